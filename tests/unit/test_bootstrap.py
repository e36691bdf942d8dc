"""./task makes the environment, once, and hands over to go-task.

The real script, the real pip and the real go-task, in a project of two small packages instead of a hundred.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = """
[build-system]
requires = ["flit_core"]
build-backend = "flit_core.buildapi"
[project]
name = "tiny-lab"
version = "0"
description = "x"
[tool.flit.module]
name = "tiny"
"""
TASKFILE = r"""
version: "3"
silent: true
tasks:
  default: {cmds: ["echo here {{.ROOT_DIR}}"]}
  say: {cmds: ["printf '<%s>' {{.CLI_ARGS}}"]}
  seven: {cmds: ["exit 7"]}
  python: {cmds: ["python -c 'import sys, tiny; print(sys.prefix, sys.dont_write_bytecode)'"]}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab in a folder with a space, not yet set up."""
    folder = tmp_path_factory.mktemp("a lab")
    shutil.copy(ROOT / "task", folder)
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^(?:go-task-bin|flit-core)==.*(?:\n    --hash.*)+\n", lock, flags=re.MULTILINE)
    assert len(pins) == 2
    (folder / "requirements.lock").write_text("".join(pins))
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "Taskfile.yml").write_text(TASKFILE)
    (folder / "tiny.py").write_text("")
    return folder


def environment(**changes: str) -> dict[str, str]:
    base = {k: v for k, v in os.environ.items() if not k.startswith(("LABKIT_", "VIRTUAL_ENV"))}
    return base | {"LABKIT_PYTHON": sys.executable} | changes


def start(project: Path, *arguments: str, cwd: Path = ROOT, **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(project / "task"), *arguments],
        cwd=cwd,
        env=environment(**changes),
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(project: Path, *arguments: str, code: int = 0, cwd: Path = ROOT, **changes: str) -> str:
    process = start(project, *arguments, cwd=cwd, **changes)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == code, output
    return output


@pytest.fixture(scope="module")
def made(project: Path) -> Path:
    """The same lab, set up by two at once."""
    both = [start(project, "say", "--", str(n)) for n in range(2)]
    outputs = [process.communicate(timeout=180)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum(output.count("making the environment in") for output in outputs) == 1
    assert sum(output.count("the environment is ready") for output in outputs) == 1
    return project


def mark(project: Path) -> Path:
    """A file that lives as long as the environment is not made anew."""
    marker = project / ".venv/lib/marker"
    marker.touch()
    return marker


OFFLINE = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/",
    "PIP_NO_INDEX": "1",
    "UV_OFFLINE": "1",
    "PIP_FIND_LINKS": "",
}


def test_two_at_once_make_one_environment_and_both_run(made: Path) -> None:
    assert (made / ".venv/.labkit-stamp").is_file()


def test_second_run_needs_no_network_and_starts_within_a_second(made: Path) -> None:
    started = time.monotonic()
    assert f"here {made}" in run(made, **OFFLINE)
    assert time.monotonic() - started < 1.0


def test_works_from_any_folder(made: Path, tmp_path: Path) -> None:
    assert f"here {made}" in run(made, cwd=tmp_path)


def test_exit_codes_come_through(made: Path) -> None:
    assert "making" not in run(made, "seven", code=7)


def test_arguments_come_through_whole(made: Path) -> None:
    assert run(made, "say", "--", "a b", "$HOME", "it's").endswith("<a b><$HOME><it's>")


def test_tasks_run_in_the_environment_and_keep_their_bytecode(made: Path) -> None:
    assert run(made, "python", PYTHONDONTWRITEBYTECODE="1").strip() == f"{made / '.venv'} False"


def test_changed_pyproject_installs_only_the_lab_itself_anew(made: Path) -> None:
    marker = mark(made)
    (made / "pyproject.toml").write_text(PYPROJECT + "\n# changed\n")
    output = run(made, "python", **OFFLINE)
    assert "the environment is ready" in output
    assert marker.exists()


def test_half_made_environment_is_made_anew(made: Path) -> None:
    marker = mark(made)
    process = start(made, LABKIT_VENV=str(made / "half"))
    deadline = time.monotonic() + 60
    while not (made / "half/pyvenv.cfg").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (made / "half/.labkit-stamp").exists()
    output = run(made, "python", LABKIT_VENV="half", cwd=made)
    assert f"{made / 'half'} False" in output
    assert marker.exists()  # and the other environment was left alone


def test_changed_lock_makes_the_environment_anew(made: Path) -> None:
    marker = mark(made)
    with (made / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert "requirements.lock has changed" in run(made)
    assert not marker.exists()


def test_package_that_does_not_match_its_hash_is_refused(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "lab"
    shutil.copytree(made, copy, ignore=shutil.ignore_patterns(".venv", "half"))
    lock = (copy / "requirements.lock").read_text()
    (copy / "requirements.lock").write_text(re.sub(r"sha256:\w+", "sha256:" + "0" * 64, lock))
    output = run(copy, code=2)
    assert "DO NOT MATCH THE HASHES" in output
    assert "the packages cannot be installed" in output
    assert not (copy / ".venv/.labkit-stamp").exists()


def test_folder_that_is_no_environment_is_never_emptied(made: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "thesis.txt" in run(made, code=2, LABKIT_VENV=str(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_without_a_python_the_one_command_is_named(made: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "cksum", "grep", "mkdir", "find", "rm", "id", "awk"):
        (tools / name).symlink_to(str(shutil.which(name)))
    changes = {"PATH": str(tools), "LABKIT_PYTHON": "/nonexistent", "LABKIT_VENV": str(tmp_path / "v")}
    assert "curl -LsSf https://astral.sh/uv/install.sh | sh" in run(made, code=2, **changes)
    (tools / "brew").symlink_to("/bin/true")
    assert "brew install python@3.13" in run(made, code=2, **changes)

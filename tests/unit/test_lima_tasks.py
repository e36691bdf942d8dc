"""The lima-* tasks: what they ask of limactl, and what they say where there is none.

limactl cannot be had here, so a script that writes down its arguments stands in for it. What runs inside of the machine
(lima/provision.sh, lima/ready.sh) is tested for real: test_lima_provision.py and tests/guest/test_lima_machine.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TASKS = {
    name: task for name, task in yaml.safe_load((ROOT / "Taskfile.yml").read_text())["tasks"].items()
    if name.startswith("lima-")
}  # fmt: skip
VERBS = ["start", "stop", "delete", "shell", "notebook", "lab", "test", "auth", "build-push"]

STAND_IN = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if os.environ.get("BROKEN"):
    print("level=fatal msg=\\"cannot load _config\\"", file=sys.stderr)
    sys.exit(1)
if "docker-auth" in sys.argv:
    with open(os.environ["CALLS"] + ".stdin", "w") as given:
        given.write(sys.stdin.read())
if sys.argv[1] == "list":
    state = os.environ["STATE"]
    if state:
        print(state if "--format" in sys.argv else "ebpf-lab")
"""


def run(
    verb: str, *arguments: str, tmp_path: Path, state: str | None = "", root: Path = ROOT, **env: str
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Run a verb with limactl in a state ("" for no instance, None for no limactl); returns its calls except questions."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for name in ("sh", "dirname", "grep", "sed", "uname", "env", "cat"):
        if not (tools / name).exists():
            (tools / name).symlink_to(
                f"/usr/bin/{name}" if Path(f"/usr/bin/{name}").exists() else f"/bin/{name}"
            )
    calls = tmp_path / "calls"
    calls.write_text("")
    if state is not None:
        (tools / "limactl").write_text(STAND_IN)
        (tools / "limactl").chmod(0o755)
    full = {"PATH": str(tools), "CALLS": str(calls), "STATE": state or "", **env}
    done = subprocess.run(
        ["/bin/sh", root / "lima/vm.sh", verb, *arguments],
        env=full,
        text=True,
        capture_output=True,
        check=False,
    )
    made = [json.loads(line) for line in calls.read_text().splitlines()]
    return done, [call for call in made if call[0] != "list"]


def inside(*command: str) -> list[str]:
    return ["shell", "--workdir", "/lab", "ebpf-lab", "env", "LABKIT_VENV=/opt/labkit/venv", *command]


def test_there_is_a_task_for_each_verb() -> None:
    assert {name.removeprefix("lima-") for name in TASKS} == set(VERBS)
    for name, task in TASKS.items():
        assert task["cmds"] == [f"sh lima/vm.sh {name.removeprefix('lima-')} {{{{.CLI_ARGS}}}}"]


@pytest.mark.parametrize("verb", VERBS)
def test_without_limactl_each_says_so_and_how_to_get_it(verb: str, tmp_path: Path) -> None:
    done, calls = run(verb, tmp_path=tmp_path, state=None)
    assert done.returncode == 2
    assert "limactl is not installed" in done.stderr
    assert "brew install lima" in done.stderr
    assert calls == []


def test_the_task_itself_fails_then_with_the_same_words(tmp_path: Path) -> None:
    task = Path(sys.prefix) / "bin/task"
    clean = [folder for folder in os.environ["PATH"].split(":") if not (Path(folder) / "limactl").exists()]
    done = subprocess.run(
        [task, "--exit-code", "--taskfile", ROOT / "Taskfile.yml", "lima-lab"],
        env=os.environ | {"PATH": ":".join(clean)}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "limactl is not installed" in done.stderr


def test_the_first_start_makes_the_machine_with_this_clone_and_patience(tmp_path: Path) -> None:
    done, (call,) = run("start", "--", "--cpus=2", tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert call[0] == "start"
    assert call[-1] == str(ROOT / "lima/ebpf-lab.yaml")
    assert call[call.index("--set") + 1] == f'.param.lab = "{ROOT}"'
    assert call[call.index("--timeout") + 1] == "30m"
    assert "--cpus=2" in call


def test_a_folder_with_quotes_and_spaces_comes_through(tmp_path: Path) -> None:
    clone = tmp_path / 'my "lab" \\ here'
    (clone / "lima").mkdir(parents=True)
    (clone / "lima/vm.sh").write_text((ROOT / "lima/vm.sh").read_text())
    _, (call,) = run("start", tmp_path=tmp_path, root=clone)
    name, _, value = call[call.index("--set") + 1].partition(" = ")
    assert name == ".param.lab"
    assert json.loads(value) == str(clone)


@pytest.mark.parametrize(
    ("state", "expected"),
    [("Stopped", [["start", "--tty=false", "--timeout", "30m", "ebpf-lab"]]), ("Running", [])],
)
def test_a_later_start_starts_what_is_there(state: str, expected: list[list[str]], tmp_path: Path) -> None:
    assert run("start", tmp_path=tmp_path, state=state)[1] == expected


@pytest.mark.parametrize(
    ("verb", "arguments", "expected"),
    [
        ("stop", [], ["stop", "ebpf-lab"]),
        ("delete", [], ["delete", "--force", "ebpf-lab"]),
        ("shell", [], ["shell", "--workdir", "/lab", "ebpf-lab"]),
        ("shell", ["--", "uname", "-r"], inside("uname", "-r")),
        ("notebook", [], inside("./task", "notebook", "--")),
        ("lab", ["--", "--quick"], inside("./task", "lab", "--", "--quick")),
        ("test", [], inside("sudo", "-E", "env", "LABKIT_VENV=/opt/labkit/venv", "./task", "test", "--")),
    ],
)
def test_each_verb_in_a_running_machine(
    verb: str, arguments: list[str], expected: list[str], tmp_path: Path
) -> None:
    done, calls = run(verb, *arguments, tmp_path=tmp_path, state="Running")
    assert done.returncode == 0, done.stderr
    assert calls == [expected]


@pytest.mark.parametrize("verb", ["stop", "delete"])
def test_what_is_not_there_needs_no_stopping(verb: str, tmp_path: Path) -> None:
    done, calls = run(verb, tmp_path=tmp_path)
    assert (done.returncode, calls) == (0, [])


def test_images_are_built_there_with_the_settings_of_here(tmp_path: Path) -> None:
    _, (call,) = run(
        *("build-push", "--", "--target", "tools"),
        tmp_path=tmp_path,
        state="Running",
        PROJECT="my-project",
        TAG="1.2",
    )
    assert {"PROJECT=my-project", "TAG=1.2", "REGION="} <= set(call)
    assert call[-5:] == ["./task", "local-build-push", "--", "--target", "tools"]


@pytest.mark.parametrize("verb", ["auth", "build-push"])
@pytest.mark.parametrize("state", [None, "", "Stopped", "Running"])
def test_a_dry_run_shows_the_lines_and_starts_nothing_with_or_without_limactl(
    verb: str, state: str | None, tmp_path: Path
) -> None:
    done, calls = run(verb, "--", "--dry", tmp_path=tmp_path, state=state, PROJECT="my project")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text() == "", "not even a question"
    assert calls == []
    start, shell = [line.partition("limactl ")[2] for line in done.stdout.splitlines() if "+ " in line]
    assert shlex.split(start)[-1] == str(ROOT / "lima/ebpf-lab.yaml")
    words = shlex.split(shell)
    assert words[:4] == ["shell", "--workdir", "/lab", "ebpf-lab"]
    assert "PROJECT=my project" in words
    task = {"auth": "docker-auth", "build-push": "local-build-push"}[verb]
    assert words[words.index("./task") + 1] == task


def test_a_push_from_in_there_gets_a_token_on_standard_input_and_not_in_any_command(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin/gcloud"
    gcloud.write_text('#!/bin/sh\n[ "$*" = "auth print-access-token" ] && echo SECRET\n')
    gcloud.chmod(0o755)
    done, (call,) = run("auth", tmp_path=tmp_path, state="Running", PROJECT="p", REGION="us-east1")
    assert done.returncode == 0, done.stderr
    assert call[-4:] == ["./task", "docker-auth", "--", "--token-stdin"]
    assert {"PROJECT=p", "REGION=us-east1"} <= set(call)
    assert "SECRET" not in (tmp_path / "calls").read_text()
    assert (tmp_path / "calls.stdin").read_text() == "SECRET"


def test_without_gcloud_here_the_login_says_what_to_do(tmp_path: Path) -> None:
    done, calls = run("auth", tmp_path=tmp_path, state="Running")
    assert (done.returncode, calls) == (2, [])
    assert "gcloud is not installed here" in done.stderr
    assert "podman login" in done.stderr


def test_arguments_that_come_too_late_are_refused_with_the_way_to_change_the_machine(tmp_path: Path) -> None:
    for state in ("Running", "Stopped"):
        done, calls = run("start", "--", "--cpus", "2", tmp_path=tmp_path, state=state)
        assert (done.returncode, calls) == (2, [])
        assert "limactl edit ebpf-lab --cpus 2" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_limactl_that_does_not_work_is_no_missing_machine(verb: str, tmp_path: Path) -> None:
    done, calls = run(verb, tmp_path=tmp_path, state="Running", BROKEN="1")
    assert (done.returncode, calls) == (2, [])
    assert "limactl is installed and does not work" in done.stderr
    assert "cannot load _config" in done.stderr


def test_the_settings_are_those_of_the_task_that_builds() -> None:
    tasks = yaml.safe_load((ROOT / "Taskfile.yml").read_text())["tasks"]
    assert tasks["lima-build-push"]["env"] == tasks["lima-auth"]["env"] == tasks["local-build-push"]["env"]
    passed = set(re.findall(r'"([A-Z_]+)=\$', (ROOT / "lima/vm.sh").read_text()))
    assert passed <= set(tasks["local-build-push"]["env"])


def test_another_instance_by_a_variable(tmp_path: Path) -> None:
    assert run("start", tmp_path=tmp_path, LABKIT_LIMA="mine")[1][0][5] == "mine"


def test_lima_lab_says_where_the_outcomes_are(tmp_path: Path) -> None:
    done, _ = run("lab", tmp_path=tmp_path, state="Running")
    assert f"{ROOT}/outcomes/latest" in done.stderr


@pytest.mark.parametrize("verb", ["", "stat"])
def test_an_unknown_verb_is_refused_with_the_list(verb: str, tmp_path: Path) -> None:
    done, calls = run(verb, tmp_path=tmp_path)
    assert done.returncode == 2
    assert "start|stop|delete" in done.stderr
    assert calls == []

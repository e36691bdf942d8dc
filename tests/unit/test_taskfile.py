"""Taskfile.yml is the one list of what can be done, and can be read."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from labkit.cli import main

ROOT = Path(__file__).parents[2]
TASKFILE = yaml.safe_load((ROOT / "Taskfile.yml").read_text())
TASKS = TASKFILE["tasks"]
ASKED_FOR = {
    *(
        "lab",
        "first",
        "setup",
        "uninstall",
        "test",
        "test-full",
        "notebook",
        "doctor",
        "lint",
        "format",
        "clean",
    ),
    *("run", "record", "guest-test", "guest-shell", "lock", "default"),
}


def test_every_task_that_was_asked_for_is_there() -> None:
    assert set(TASKS) >= ASKED_FOR


@pytest.mark.parametrize("name", sorted(TASKS))
def test_task_is_kebab_case_and_says_what_it_does(name: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name)
    assert TASKS[name].get("internal") or TASKS[name]["desc"].strip()


def test_without_a_name_the_tasks_are_listed_each_with_its_description() -> None:
    task = Path(sys.prefix) / "bin/task"
    result = subprocess.run(
        [task, "--taskfile", ROOT / "Taskfile.yml"],
        env={k: v for k, v in os.environ.items() if k != "CI"}
        | {"NO_COLOR": "1"},  # with CI set, go-task colours
        capture_output=True,
        text=True,
        check=True,
    )
    for name, definition in TASKS.items():
        if not definition.get("internal"):
            assert re.search(
                rf"^\* {name}:\s+{re.escape(definition['desc'])}(\s+\(aliases: .*\))?$",
                result.stdout,
                flags=re.MULTILINE,
            )


def test_every_labkit_command_named_in_a_task_exists() -> None:
    text = (ROOT / "Taskfile.yml").read_text()
    assert set(re.findall(r"^\s+- labkit ([a-z-]+)", text, flags=re.MULTILINE)) <= set(main.commands)


def test_what_runs_notebooks_or_tests_is_set_up_before() -> None:
    for name in ("lab", "first", "notebook", "run", "record", "test", "test-full"):
        assert TASKS[name]["cmds"][0] == {"task": "ready"}, name


def test_every_task_can_be_compiled_by_go_task() -> None:
    task = Path(sys.prefix) / "bin/task"
    for name, definition in TASKS.items():
        if definition.get("internal"):
            continue
        argv = [task, "--taskfile", ROOT / "Taskfile.yml", "--dry", name]
        # lock asks for uv before anything else, and need not be there.
        env = os.environ | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}
        result = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert result.returncode == 0 or "uv is not installed" in result.stderr, result.stderr


def test_all_of_the_tests_are_run_by_the_task_test() -> None:
    spec = importlib.util.spec_from_file_location("run_tests", ROOT / "tests/run.py")
    assert spec
    assert spec.loader
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    folders = {f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if list(path.glob("test_*.py"))}
    assert {*run._ALONE, *run._TOGETHER, "tests/guest"} == folders


def test_clean_removes_the_outcomes_that_git_ignores_and_no_others() -> None:
    listed = set(re.findall(r"^\| `([a-z0-9-]+)/", (ROOT / "outcomes/README.md").read_text(), re.M))
    kept = set(re.findall(r"^!/outcomes/([a-z0-9-]+)/$", (ROOT / ".gitignore").read_text(), re.M))
    removed = set(re.findall(r"outcomes/([a-z0-9-]+)", "\n".join(TASKS["clean"]["cmds"])))
    assert kept < listed
    assert removed == listed - kept

"""Every way in which plain papermill says "passed" (or nothing) about a notebook that did not: one real run each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebook_maker import code, parameters, write

from labkit.runner import run_notebooks


class Lab:
    """Runs one notebook and keeps what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result: Any = None

    def run(self, *cells: Any, name: str = "50_trap", **options: Any) -> dict[str, Any]:
        path = write(self.folder / f"{name}.ipynb", *cells)
        self.result = run_notebooks(
            [path], outcomes=self.folder / "outcomes", **({"timeout_s": 60.0} | options)
        )
        entry: dict[str, Any] = self.result.summary["notebooks"][0]
        return entry

    def executed(self, name: str = "50_trap") -> Any:
        return nbformat.read(self.result.folder / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def said(entry: dict[str, Any]) -> str:
    return json.dumps(entry["problems"])


def test_a_notebook_without_fault_passes(lab: Lab) -> None:
    entry = lab.run("1 + 1", "print('two')", "%%bash\necho three")
    assert (entry["status"], entry["problems"], lab.result.exit_code) == ("ok", [], 0)
    assert [cell.execution_count for cell in lab.executed().cells] == [1, 2, 3]


FAULTS = {
    "an exception in a cell": (["1/0"], "ZeroDivisionError"),
    "sys.exit(0)": (["import sys; sys.exit(0)"], "SystemExit"),
    "exit()": (["exit()"], "asked the kernel to exit"),
    "the kernel killed": (["import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], "died of SIGKILL"),
    "os._exit(0)": (["import os; os._exit(0)"], "the kernel died (exit code 0)"),
    "!false": (["!false"], "returned non-zero exit status 1"),
    "out = !false": (["out = !false"], "returned non-zero exit status 1"),
    "a command that fails within %%bash": (["%%bash\nfalse\necho done"], "returned non-zero exit status 1"),
    "a command that fails within a pipe": (
        ["%%bash\nfalse | cat\necho done"],
        "returned non-zero exit status 1",
    ),
    "an exception in a thread": (
        ["import threading\nthread = threading.Thread(target=lambda: 1/0)\nthread.start(); thread.join()"],
        "exception in Thread-",
    ),
    "an exception in a ctypes callback": (
        [
            "import ctypes\n@ctypes.CFUNCTYPE(None)\ndef callback():\n    raise RuntimeError('lost event')\ncallback()"
        ],
        "Exception ignored on calling ctypes callback",
    ),
    "a thread that fails after the last cell": (
        ["import threading\nthreading.Timer(0.6, lambda: 1/0).start()"],
        "ZeroDivisionError",
    ),
    "a traceback of a child process": (
        ["import subprocess, sys\nsubprocess.run([sys.executable, '-c', '1/0'], check=False)"],
        "a traceback on stderr",
    ),
    "an asyncio task that nobody awaited": (
        [
            "import asyncio\nasync def fail(): 1/0\ntask = asyncio.ensure_future(fail())",
            "import gc; del task; gc.collect()",
        ],
        "ZeroDivisionError",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fails_on(lab: Lab, fault: str) -> None:
    cells, expected = FAULTS[fault]
    entry = lab.run(*cells, "print('after')")
    assert entry["status"] == "failed"
    assert lab.result.exit_code == 1
    assert any(expected in problem["what"] for problem in entry["problems"]), entry["problems"]


def test_a_cell_may_not_excuse_its_error_by_a_tag(lab: Lab) -> None:
    entry = lab.run(code("1/0", id="excused", tags=["raises-exception"]), "print('after')")
    assert entry["status"] == "failed"
    assert "ZeroDivisionError" in said(entry)


def test_a_cell_may_not_be_skipped_by_a_tag(lab: Lab) -> None:
    entry = lab.run("1", code("1/0", id="skipped", tags=["skip-execution"]))
    assert (entry["status"], entry["problems"][0]["cell"]) == ("failed", "skipped")


def test_a_cell_past_the_limit_is_interrupted_and_the_rest_never_ran(lab: Lab) -> None:
    slow = "import time\ntry:\n    time.sleep(60)\nfinally:\n    print('unwound')"
    entry = lab.run(slow, "1", timeout_s=2.0)
    first, second = lab.executed().cells
    assert entry["status"] == "failed"
    assert "ran longer than 2 s" in said(entry)
    assert "unwound" in json.dumps(first.outputs)
    assert (second.execution_count, second.metadata.papermill.status) == (None, "pending")


def test_a_cell_that_ignores_the_interrupt_is_killed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.execution.GRACE_S", 1.0)
    deaf = "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        pass"
    entry = lab.run(deaf, timeout_s=2.0)
    assert "did not end within 1 s of being interrupted" in said(entry)
    assert entry["seconds"] < 15


def test_stale_counts_in_the_source_do_not_count(lab: Lab) -> None:
    stale = code("1", id="stale")
    stale.execution_count = 7
    entry = lab.run("import sys; sys.exit(0)", stale)
    assert "never ran" in said(entry)


def test_two_different_findings_of_one_name_fail(lab: Lab) -> None:
    template = "from labkit.findings import finding\nfrom labkit.ledger import Ledger\n"
    template += (
        "for value in ({}):\n    finding('n', value, unit='', how='counted', ledger=Ledger.none('given'))"
    )
    entry = lab.run(template.format("1, 2"))
    assert "two different findings are called 'n'" in said(entry)


def test_a_parameter_arrives_with_its_declared_type(lab: Lab) -> None:
    entry = lab.run(
        parameters("flag = True\nseconds = 2.0\ncount = 3\nname = 'x'"),
        "print(repr((flag, seconds, count, name)))",
        parameters={"flag": "false", "seconds": "5", "count": "7", "name": "8"},
    )
    assert entry["status"] == "ok"
    assert "(False, 5.0, 7, '8')" in json.dumps(lab.executed().cells[-1].outputs)


def test_a_notebook_does_not_depend_on_the_callers_folder(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab.folder)
    entry = lab.run("from pathlib import Path\nassert list(Path.cwd().iterdir()) == []\nimport labkit")
    assert entry["problems"] == []
    assert Path.cwd() == lab.folder


def test_braces_in_a_path_are_just_braces(lab: Lab) -> None:
    lab.folder = lab.folder / "{run}"
    assert lab.run("1")["status"] == "ok"


def test_solutions_are_put_in_and_the_kernel_knows_that_nobody_reads(lab: Lab) -> None:
    (lab.folder / "solutions").mkdir()
    (lab.folder / "solutions" / "50_trap.py").write_text('"""Header."""\n\n# %% exercise:50.1\nanswer = 42\n')
    entry = lab.run(
        code("answer = ...", id="exercise-50-1", tags=["exercise:50.1"]),
        "import os\nassert (answer, os.environ['LABKIT_HEADLESS']) == (42, '1')\nassert 'LABKIT_RECORD' not in os.environ",
    )
    assert entry["problems"] == []
    assert "answer = 42" in lab.executed().cells[0].source


def test_an_exercise_without_solution_fails_before_it_runs(lab: Lab) -> None:
    entry = lab.run(code("answer = ...", id="exercise-50-1", tags=["exercise:50.1"]))
    assert entry["status"] == "failed"
    assert "without solution: 50.1" in said(entry)


def test_recording_is_told_to_the_kernel(lab: Lab) -> None:
    entry = lab.run("import os\nassert os.environ['LABKIT_RECORD'] == '1'", record=True)
    assert entry["problems"] == []


def test_one_failure_does_not_stop_the_rest(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "51_fails.ipynb", "1/0"),
        write(tmp_path / "52_broken.ipynb", code("answer = ...", id="x", tags=["exercise:52.1"])),
        write(tmp_path / "53_passes.ipynb", "1"),
    ]
    result = run_notebooks(paths, outcomes=tmp_path / "outcomes")
    assert [entry["status"] for entry in result.summary["notebooks"]] == ["failed", "failed", "ok"]
    assert result.exit_code == 1
    assert (result.folder / "notebooks" / "51_fails.ipynb").is_file()


def test_no_socket_or_folder_is_left_in_the_temporary_folder(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = lab.folder / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    stale = temporary / f"labkit-run-{_dead_pid()}-left"
    stale.mkdir()
    assert lab.run("1")["status"] == "ok"
    assert list(temporary.iterdir()) == []


def _dead_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_a_finding_as_a_cells_last_expression_is_shown_once(lab: Lab) -> None:
    make = "from labkit.findings import finding\nfrom labkit.ledger import Ledger\n"
    make += "finding('n', 1, unit='', how='given', ledger=Ledger.none('given'))"
    entry = lab.run(make)
    assert (entry["status"], len(lab.executed().cells[0].outputs)) == ("ok", 1)

"""`labkit run`: parameters, solutions, the gate's judgement, exit codes, and what an interrupted run leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nbformat.v4 import new_output
from notebook_maker import code, notebook, parameters, prose, write

from labkit.errors import NotebookFailed, ParameterError
from labkit.gate import guard_problems, notebook_problems, stderr_problems
from labkit.notebook_io import (
    chapters,
    declared_parameters,
    put_in_solutions,
    read_notebook,
    read_solutions,
    typed_parameters,
)
from labkit.outcomes import read_summary
from labkit.progress import Reporter
from labkit.runner import run_notebooks

CHAPTER = notebook(
    parameters(
        'mode = "auto"  # live where possible\nseconds = 2.0\nflag: bool = True\nn = 3  # type: int\ncpus = [0, 1]'
    )
)
PLAIN = notebook(parameters("name = 'x'"))
BARE = notebook("1")


class TestParameters:
    def test_types_come_from_annotations_comments_and_defaults(self) -> None:
        assert declared_parameters(CHAPTER) == {
            "mode": ("str", "auto"),
            "seconds": ("float", 2.0),
            "flag": ("bool", True),
            "n": ("int", 3),
            "cpus": ("list", [0, 1]),
        }

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"flag": "false"}, False),
            ({"flag": "Yes"}, True),
            ({"flag": True}, True),
            ({"seconds": "3"}, 3.0),
            ({"seconds": 3}, 3.0),
            ({"n": "4"}, 4),
            ({"cpus": "[1]"}, [1]),
            ({"mode": "replay"}, "replay"),
        ],
    )
    def test_a_value_is_read_by_its_declared_type(self, given: dict[str, Any], expected: object) -> None:
        (name,) = given
        value = typed_parameters({"a": CHAPTER}, given)["a"][name]
        assert (value, type(value)) == (expected, type(expected))

    @pytest.mark.parametrize(
        "given",
        [
            {"flag": "maybe"},
            {"flag": 2},
            {"seconds": "fast"},
            {"seconds": "nan"},
            {"seconds": True},
            {"n": "2.5"},
            {"n": 2.5},
            {"n": True},
            {"cpus": "0"},
            {"mode": "liv"},
            {"mode": 1},
        ],
    )
    def test_a_value_of_another_type_is_an_error(self, given: dict[str, Any]) -> None:
        with pytest.raises(ParameterError, match=next(iter(given))):
            typed_parameters({"a": CHAPTER}, given)

    def test_an_unknown_name_names_the_nearest(self) -> None:
        with pytest.raises(ParameterError, match="did you mean 'seconds'"):
            typed_parameters({"a": CHAPTER}, {"secnds": "2"})

    def test_each_notebook_gets_only_what_it_declares(self) -> None:
        books = {"a": CHAPTER, "b": PLAIN, "c": BARE}
        assert typed_parameters(books, {"seconds": "1", "name": "y"}, mode="live") == {
            "a": {"mode": "live", "seconds": 1.0},
            "b": {"name": "y"},
            "c": {},
        }

    def test_what_no_notebook_declares_is_an_error(self) -> None:
        with pytest.raises(ParameterError, match="seconds"):
            typed_parameters({"b": PLAIN, "c": BARE}, {"seconds": "1"})


class TestSolutions:
    def test_sections_are_read_and_the_header_is_not(self, tmp_path: Path) -> None:
        path = tmp_path / "06_x.py"
        path.write_text(
            '"""Header."""\nimport os\n\n# %% exercise:06.1\nanswer = 1\n\nmore = 2\n\n# %% exercise:06.2\nanswer = 3'
        )
        assert read_solutions(path) == {"06.1": "answer = 1\n\nmore = 2", "06.2": "answer = 3"}

    def test_an_exercise_has_one_solution(self, tmp_path: Path) -> None:
        path = tmp_path / "06_x.py"
        path.write_text("# %% exercise:06.1\n1\n# %% exercise:06.1\n2\n")
        with pytest.raises(NotebookFailed, match=r"two solutions of exercise 06\.1"):
            read_solutions(path)

    def test_they_replace_the_exercise_cells_only(self) -> None:
        book = notebook("before", code("answer = ...", id="e", tags=["exercise:06.1"]))
        assert put_in_solutions(book, {"06.1": "answer = 1"}, name="06_x") == 1
        assert book.cells[0].source == "before"
        assert book.cells[1].source.endswith("\nanswer = 1")

    @pytest.mark.parametrize(
        ("solutions", "said"), [({}, "without solution"), ({"06.1": "", "06.9": ""}, "without exercise")]
    )
    def test_exercises_and_solutions_must_match(self, solutions: dict[str, str], said: str) -> None:
        book = notebook(code("answer = ...", id="e", tags=["exercise:06.1"]))
        with pytest.raises(NotebookFailed, match=said):
            put_in_solutions(book, solutions, name="06_x")


class TestGate:
    def ran(self, *cells: Any) -> Any:
        book = notebook(*cells)
        for count, cell in enumerate((cell for cell in book.cells if cell.cell_type == "code"), start=1):
            cell.execution_count = count
        return book

    def test_a_notebook_that_ran_whole_has_no_problem(self) -> None:
        assert notebook_problems(self.ran("1", prose("text", id="t"), "2")) == []

    def test_a_notebook_without_code_did_not_run(self) -> None:
        assert notebook_problems(notebook(prose("text", id="t")))

    def test_a_kernel_that_was_restarted_is_seen(self) -> None:
        book = self.ran("1", "2", "3")
        book.cells[2].execution_count = 1
        assert "restarted" in str(notebook_problems(book)[0])

    def test_a_traceback_counts_only_on_stderr(self) -> None:
        book = self.ran("1")
        trace = "Traceback (most recent call last):\nValueError: 1"
        book.cells[0].outputs = [new_output("stream", name="stdout", text=trace)]
        assert notebook_problems(book) == []
        book.cells[0].outputs = [new_output("stream", name="stderr", text=trace)]
        assert "a traceback on stderr" in str(notebook_problems(book)[0])
        assert stderr_problems(f"\x1b[31m{trace}")
        assert not stderr_problems("a warning")

    def test_without_its_guard_a_notebook_does_not_pass(self, tmp_path: Path) -> None:
        records = tmp_path / "guard.jsonl"
        assert "guard" in str(guard_problems(records)[0])
        records.write_text('{"kind": "installed", "text": ""}\n')
        assert guard_problems(records) == []

    def test_a_record_cut_short_is_still_a_problem(self, tmp_path: Path) -> None:
        records = tmp_path / "guard.jsonl"
        records.write_text('{"kind": "installed", "text": ""}\n{"kind": "exception in Thr')
        assert len(guard_problems(records)) == 1


class TestChecksBeforeTheFirstNotebook:
    def test_chapters_are_the_numbered_notebooks_in_order(self, tmp_path: Path) -> None:
        for name in ("10_b", "02_a", "index", "x_03"):
            write(tmp_path / f"{name}.ipynb", "1")
        assert [path.stem for path in chapters(tmp_path)] == ["02_a", "10_b"]

    @pytest.mark.parametrize(
        ("content", "said"), [(None, "No such file"), ("{", "not a notebook"), ("[]", "not a notebook")]
    )
    def test_what_is_no_notebook_is_an_error(self, tmp_path: Path, content: str | None, said: str) -> None:
        path = tmp_path / "50_a.ipynb"
        if content is not None:
            path.write_text(content)
        with pytest.raises(NotebookFailed, match=said):
            read_notebook(path)

    def test_one_name_twice_is_an_error(self, tmp_path: Path) -> None:
        paths = [write(tmp_path / folder / "50_a.ipynb", "1") for folder in ("one", "two")]
        with pytest.raises(NotebookFailed, match="twice"):
            run_notebooks(paths, outcomes=tmp_path / "outcomes")
        assert not (tmp_path / "outcomes").exists()

    @pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
    def test_a_limit_must_be_one(self, tmp_path: Path, limit: float) -> None:
        with pytest.raises(ParameterError, match="limit"):
            run_notebooks(
                [write(tmp_path / "50_a.ipynb", "1")], timeout_s=limit, outcomes=tmp_path / "outcomes"
            )

    def test_the_command_line_tells_parameter_errors(self, tmp_path: Path) -> None:
        path = write(tmp_path / "50_a.ipynb", parameters("seconds = 2.0"))
        command = [sys.executable, "-m", "labkit.cli", "run", str(path), "-p", "secnds", "1"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (done.returncode, "did you mean 'seconds'" in done.stderr) == (2, True)


SLOW = "import time\nprint('started', flush=True)\ntry:\n    time.sleep(90)\nfinally:\n    print('unwound', flush=True)"


class Interrupted:
    """A run in a process of its own, sent a signal while its second notebook sleeps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.latest = folder / "outcomes" / "latest"
        paths = [
            write(folder / "51_before.ipynb", "1"),
            write(folder / "52_during.ipynb", SLOW, "2"),
            write(folder / "53_after.ipynb", "1"),
        ]
        command = [
            sys.executable,
            "-m",
            "labkit.cli",
            "run",
            *map(str, paths),
            "--outcomes",
            str(folder / "outcomes"),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for(lambda: self._state() == "running", "the second notebook to start")
        wait_for(self.kernels, "its kernel")
        time.sleep(2.5)  # until the cell sleeps; its output is saved only with the cell
        self.kernel_pids = self.kernels()

    def _state(self) -> str:
        summary = read_summary(self.latest)
        return summary["notebooks"][1]["status"] if summary else ""

    def kernels(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"ipykernel" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def send(self, number: int) -> tuple[int, str]:
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output

    def executed(self) -> dict[str, Any]:
        book: dict[str, Any] = json.loads((self.latest / "notebooks" / "52_during.ipynb").read_text())
        return book


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 40.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


class TestInterruptions:
    @pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_what_was_done_is_kept_and_the_cell_unwinds(
        self, tmp_path: Path, number: int, exit_code: int
    ) -> None:
        run = Interrupted(tmp_path)
        code, output = run.send(number)
        assert code == exit_code, output
        assert "Traceback" not in output
        summary = read_summary(run.latest)
        assert summary is not None
        assert summary["status"] == "interrupted"
        assert [entry["status"] for entry in summary["notebooks"]] == ["ok", "interrupted", "not run"]
        assert "unwound" in json.dumps(run.executed())
        assert (run.latest / "pages" / "52_during.html").is_file()
        assert all(gone(pid) for pid in run.kernel_pids)

    def test_kill_9_leaves_no_kernel_and_whole_files(self, tmp_path: Path) -> None:
        run = Interrupted(tmp_path)
        assert run.kernel_pids
        code, _ = run.send(signal.SIGKILL)
        assert code == -signal.SIGKILL
        # ipykernel looks for its parent once a second (parentpoller.py).
        wait_for(lambda: all(gone(pid) for pid in run.kernel_pids), "the kernel to notice", seconds=5)
        summary = read_summary(run.latest)
        assert summary is not None
        assert [entry["status"] for entry in summary["notebooks"]] == ["ok", "running", "not run"]
        assert run.executed()["nbformat"] == 4
        again = run_notebooks([tmp_path / "51_before.ipynb"], outcomes=tmp_path / "outcomes")
        assert again.exit_code == 0


def test_the_moving_line_counts_the_cell_that_papermill_adds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    reporter = Reporter(["01_a"])
    reporter.begin("01_a", 2)
    reporter.cell(2, [{"source": "a"}, {"source": "mode = 'live'"}, {"source": "# The last"}])
    reporter.stop()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert "cell 3/3" in shown
    assert "cell 3/2" not in shown

"""``labkit run``: notebooks headless, in order, strict; what they found goes to the outcomes folder.

A notebook passes only if every code cell ran, nothing raised (in a cell, a thread, a callback, a command), and its
exercises are solved by the solutions that are put in. One failure does not stop the rest. Exit codes: 0 all passed,
1 some did not, 130 interrupted (Ctrl-C), 143 terminated; errors about parameters or the outcomes folder are raised
before the first notebook runs.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from labkit.errors import LabkitError, NotebookFailed, OutcomesError, ParameterError
from labkit.execution import Execution, execute
from labkit.gate import Problem
from labkit.notebook_io import chapters, put_in_solutions, read_notebook, solutions_of, typed_parameters
from labkit.outcomes import Outcomes
from labkit.paths import notebooks_dir
from labkit.progress import Reporter
from labkit.report import headline, replayed
from labkit.text import quantity

__all__ = ["RunResult", "run_command", "run_notebooks"]


class Terminated(KeyboardInterrupt):
    """A signal that asks the process to end; handled like Ctrl-C, with its own exit code."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@dataclass
class RunResult:
    """What a run came to.

    :param summary: as in ``summary.json``.
    :param folder: where it was written.
    :param exit_code: 0, 1, or 128 + the number of the signal that ended it.
    """

    summary: dict[str, Any]
    folder: Path
    exit_code: int


@dataclass
class _Job:
    """One notebook to run; ``error`` if it cannot even be prepared."""

    path: Path
    notebook: Any = None
    parameters: dict[str, Any] = field(default_factory=dict)
    error: LabkitError | None = None

    @property
    def name(self) -> str:
        return self.path.stem


def run_command(
    notebooks: Sequence[Path],
    *,
    mode: str = "auto",
    parameters: Mapping[str, Any] | None = None,
    timeout_s: float = 300.0,
    outcomes: Path | None = None,
    record: bool = False,
) -> int:
    """``labkit run``; the exit code."""
    result = run_notebooks(
        notebooks, mode=mode, parameters=parameters, timeout_s=timeout_s, outcomes=outcomes, record=record
    )
    return result.exit_code


def run_notebooks(
    notebooks: Sequence[Path] = (),
    *,
    mode: str = "auto",
    parameters: Mapping[str, Any] | None = None,
    timeout_s: float = 300.0,
    outcomes: Path | None = None,
    record: bool = False,
) -> RunResult:
    """Run notebooks and write their outcomes.

    :param notebooks: paths; all chapters, ``notebooks/NN_*.ipynb``, if empty.
    :param mode: ``auto``, ``live`` or ``replay``, for every notebook with a parameter ``mode``.
    :param parameters: name -> value, for every notebook that declares it; text is read by its declared type.
    :param timeout_s: limit for each notebook, in seconds.
    :param outcomes: folder instead of the lab's ``outcomes/``.
    :param record: chapters record captures while they run live (``LABKIT_RECORD=1`` in their kernels).
    :raises ParameterError: a parameter no notebook declares, or of the wrong type; a limit that is none.
    :raises NotebookFailed: there is no such notebook.
    :raises OutcomesError: the outcomes folder cannot be written; in the middle of a run (a full disk) what was
        found until then has been kept.
    """
    if not 0 < timeout_s < float("inf"):
        raise ParameterError(f"a limit of {timeout_s!r} s", remedy="--timeout takes seconds, more than 0")
    jobs = _prepare(notebooks, parameters or {}, mode)
    env = {"LABKIT_RECORD": "1"} if record else {}
    names = [job.name for job in jobs]
    reporter = Reporter(names)
    started = time.monotonic()
    stopped_by = 0
    with Outcomes(outcomes, environment=_environment(), names=names) as written, _signals() as signals:
        try:
            for job in jobs:
                _run_one(job, written, reporter, timeout_s=timeout_s, env=env)
        except KeyboardInterrupt as stop:
            stopped_by = getattr(stop, "number", signal.SIGINT)
        finally:
            signals.ignore()
            reporter.stop()
        return _finish(written, reporter, stopped_by, time.monotonic() - started)


def _finish(written: Outcomes, reporter: Reporter, stopped_by: int, seconds: float) -> RunResult:
    states = [notebook["status"] for notebook in written.summary["notebooks"]]
    for notebook in written.summary["notebooks"]:
        if notebook["status"] == "not run":
            reporter.end(notebook)
    status = "interrupted" if stopped_by else "ok" if all(state == "ok" for state in states) else "failed"
    written.finish(status, seconds)
    chosen = headline(written.summary)
    if chosen is not None and chosen[1]["trusted"]:
        finding = chosen[1]
        reporter.say(
            f"\n{finding['name']}: {quantity(finding['value'], finding['unit'])}  ({finding['mode']})"
        )
    for why, names in replayed(written.summary).items():
        reporter.say(f"\nreplayed, not measured here: {', '.join(names)}\n  because: {why}")
    passed = f"{states.count('ok')} of {len(states)} passed in {seconds:.1f} s"
    reporter.say(f"{passed}; read {written.latest / 'README.md'}")
    code = 128 + stopped_by if stopped_by else int(status != "ok")
    return RunResult(summary=written.summary, folder=written.latest, exit_code=code)


def _run_one(
    job: _Job, written: Outcomes, reporter: Reporter, *, timeout_s: float, env: Mapping[str, str]
) -> None:
    """Run one notebook and write what came of it.

    :raises KeyboardInterrupt: the run is to stop; what there is has been written.
    :raises OutcomesError: it cannot be written; what fits has been.
    """
    run = Execution(
        name=job.name,
        timeout_s=timeout_s,
        save=lambda notebook: written.save_notebook(job.name, notebook),
        on_cell=lambda index: reporter.cell(index, run.notebook.cells),
        env=env,
    )
    stop: KeyboardInterrupt | None = None
    if job.error is not None:
        run.problems.append(_as_problem(job.error))
    else:
        written.begin(job.name)
        reporter.begin(job.name, len(job.notebook.cells))
        stop = execute(run, job.notebook, job.parameters)
    result = {
        "name": job.name,
        "status": run.status,
        "seconds": round(run.seconds, 3),
        "problems": [problem.as_dict() for problem in run.problems],
        "parameters": job.parameters,
    }
    _write(run, result, written, reporter)
    if stop is not None:
        raise stop


def _write(run: Execution, result: dict[str, Any], written: Outcomes, reporter: Reporter) -> None:
    error = run.save_error
    if error is not None:
        result["status"] = "failed" if run.status == "ok" else run.status
        result["problems"].append(_as_problem(error).as_dict())
        written.save_what_fits(run.name, run.notebook)
    try:
        written.add(result, run.notebook)
    except OutcomesError as failed:
        written.free_reserve()
        error = error or failed
    reporter.end(written.entry(run.name))
    if error is not None:
        _give_up(written, reporter)
        raise error


def _give_up(written: Outcomes, reporter: Reporter) -> None:
    """The folder cannot be written any more: the findings at least are told, and the summary tried once more."""
    for notebook in written.summary["notebooks"]:
        for finding in notebook["findings"]:
            trust = "" if finding["trusted"] else "  (not trusted)"
            value = quantity(finding["value"], finding["unit"])
            reporter.say(f"       {notebook['name']}: {finding['name']} = {value}{trust}")
    try:
        written.finish("failed", 0.0)
    except OutcomesError:
        return  # the one that is being raised says it


def _prepare(notebooks: Sequence[Path], parameters: Mapping[str, Any], mode: str) -> list[_Job]:
    """Read everything and check everything before anything runs."""
    paths = [Path(path).absolute() for path in notebooks] or chapters()
    if not paths:
        raise NotebookFailed(f"there are no notebooks in {notebooks_dir()}")
    jobs = [_Job(path) for path in paths]
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise NotebookFailed(f"{name} is named twice", why="outcomes are filed by a notebook's name")
    for job in jobs:
        job.notebook = read_notebook(job.path)
    typed = typed_parameters({job.name: job.notebook for job in jobs}, parameters, mode=mode)
    for job in jobs:
        job.parameters = typed[job.name]
        try:
            put_in_solutions(job.notebook, solutions_of(job.path), name=job.name)
        except NotebookFailed as error:
            job.error = error
    return jobs


def _as_problem(error: LabkitError) -> Problem:
    return Problem(f"{error.what}: {error.why}" if error.why else error.what, detail=str(error))


def _environment() -> dict[str, Any]:
    """Where the run takes place, as :func:`labkit.kernel.environment` says."""
    from labkit.kernel import environment

    return dict(environment())


class _Signals:
    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def ignore(self) -> None:
        """From now on: what is left is short, and a second Ctrl-C must not leave half an outcome."""
        for number in self.handlers:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _signals() -> Iterator[_Signals]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does. Elsewhere than in the main thread Python allows no handlers."""
    kept = _Signals()

    def handler(number: int, frame: FrameType | None) -> None:
        kept.ignore()
        raise Terminated(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            old = signal.getsignal(number)
            if number == signal.SIGHUP and old == signal.SIG_IGN:
                continue  # nohup: the run is meant to outlive its terminal
            kept.handlers[number] = old
            signal.signal(number, handler)
    try:
        yield kept
    finally:
        for restored, before in kept.handlers.items():
            signal.signal(restored, before)

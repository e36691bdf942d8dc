"""One notebook through papermill, with what papermill lacks: a deadline, a guard, saves that cannot tear.

:func:`execute` registers an engine with papermill, so that parameters, statuses and the kernel protocol are papermill's
and nbclient's; the engine adds

- a deadline for the whole notebook: the cell that meets it is interrupted, so that its traceback shows where it was;
- the guard (:mod:`labkit.kernel_guard`) in the kernel;
- a kernel behind Unix sockets in a private folder: no TCP port that other users could reach, and no warning about it;
- a scratch folder as the kernel's working directory, whatever folder the caller is in.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop, run_sync
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.execute import execute_notebook, remove_error_markers

from labkit import kernel_guard
from labkit.errors import OutcomesError
from labkit.gate import Problem, correct_statuses, guard_problems, notebook_problems, stderr_problems
from labkit.paths import lab_root

__all__ = ["Execution", "execute", "scratch_folder"]

#: Kernels start in about a second; a loaded machine with cold caches has been seen to need 20.
START_TIMEOUT_S = 60.0
#: How long an interrupted cell may take to end before its kernel is killed.
GRACE_S = 5.0
#: Outputs lag behind replies on a machine whose CPUs a workload holds; nbclient's default is 4 s.
IOPUB_TIMEOUT_S = 30

_SCRATCH_PREFIX = "labkit-run-"
# sun_path holds 108 bytes (unix(7)); the sockets are called k-ipc-1 to k-ipc-5.
_LONGEST_SOCKET_FOLDER = 108 - len("/k-ipc-1") - 1

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())  # nbclient logs errors that the gate reports anyway
_log.propagate = False


@dataclass
class Execution:
    """A notebook being run, and what became of it.

    :param save: called with the notebook whenever it changed; may raise :class:`OutcomesError`.
    :param on_cell: called with the index of each cell before it runs.
    :param env: environment variables added for the kernel.
    """

    name: str
    timeout_s: float
    save: Callable[[Any], None]
    on_cell: Callable[[int], None] = lambda index: None
    env: Mapping[str, str] = field(default_factory=dict)
    notebook: Any = None
    problems: list[Problem] = field(default_factory=list)
    interrupted: bool = False
    save_error: OutcomesError | None = None
    seconds: float = 0.0
    deadline: float = 0.0
    scratch: Path = Path()
    current_cell: str = ""
    cause_of_death: str = ""

    @property
    def status(self) -> str:
        """``ok``, ``failed`` or ``interrupted``."""
        if self.interrupted:
            return "interrupted"
        return "failed" if self.problems else "ok"

    def saved(self) -> None:
        """Save; the first failure is kept, and does not stop the notebook."""
        try:
            self.save(self.notebook)
        except OutcomesError as error:
            self.save_error = self.save_error or error


def execute(run: Execution, notebook: Any, parameters: Mapping[str, Any]) -> KeyboardInterrupt | None:
    """Run ``notebook`` and judge it; the result is in ``run``. Does not raise for what the notebook does.

    :returns: the interruption (Ctrl-C, or a signal turned into one) that ended it, for the caller to raise again
        once the outcome is written; None if there was none.
    """
    stop = None
    run.notebook = notebook
    started = time.monotonic()
    with scratch_folder() as scratch:
        run.scratch = scratch
        try:
            _through_papermill(run, notebook, parameters)
        except KeyboardInterrupt as error:
            stop = error
            run.interrupted = True
            run.problems.append(Problem("interrupted", cell=run.current_cell))
            _end_pending_tasks(0)
        run.notebook = remove_error_markers(run.notebook)
        run.seconds = time.monotonic() - started
        if not run.interrupted:
            run.problems += notebook_problems(run.notebook)
            run.problems += guard_problems(scratch / "guard.jsonl")
            run.problems += [] if run.problems else stderr_problems(_kernel_log(run))
        correct_statuses(run.notebook, run.problems)
    run.notebook.metadata["labkit"] = {
        "status": run.status,
        "seconds": round(run.seconds, 3),
        "problems": [problem.as_dict() for problem in run.problems],
    }
    run.saved()
    return stop


def _through_papermill(run: Execution, notebook: Any, parameters: Mapping[str, Any]) -> None:
    run.deadline = time.monotonic() + run.timeout_s
    try:
        # The node, not a path: papermill takes braces in a path for fields to fill in.
        execute_notebook(
            notebook,
            None,
            parameters=dict(parameters),
            engine_name=_LabEngine.name,
            progress_bar=False,
            start_timeout=START_TIMEOUT_S,
            run=run,
        )
    except PapermillExecutionError:
        pass  # the gate finds the error in the outputs
    except DeadKernelError:
        what = f"the kernel died{run.cause_of_death}"
        run.problems.append(Problem(what, cell=run.current_cell, detail=_kernel_log(run)[-4000:]))
    except CellTimeoutError as error:
        first = str(error).strip().splitlines()[0]
        run.problems.append(Problem(first, cell=run.current_cell))
    except Exception as error:
        run.problems.append(Problem(f"{type(error).__name__}: {error}", cell=run.current_cell))


class _Manager(NotebookExecutionManager):  # type: ignore[misc]
    """Papermill's book-keeping; saves go through the run's own :attr:`Execution.save`."""

    def __init__(self, notebook: Any, run: Execution) -> None:
        super().__init__(notebook, progress_bar=False)
        self.run = run
        run.notebook = notebook  # papermill works on a copy of what it was given

    def save(self, **changed: Any) -> None:
        notebook = changed.get("nb") or self.run.notebook
        self.nb = self.run.notebook = notebook
        self.run.saved()
        self.last_save_time = self.now()


class _Client(PapermillNotebookClient):  # type: ignore[misc]
    """nbclient, with one deadline for all cells."""

    def __init__(self, manager: _Manager, run: Execution, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._lab_run = run

    def papermill_execute_cells(self) -> None:
        try:
            super().papermill_execute_cells()
        except KeyboardInterrupt:
            # Lets `with` blocks in the cell unwind, and their output arrive, before the kernel is told to go.
            run_sync(self.km.interrupt_kernel)()
            _end_pending_tasks(GRACE_S)
            raise

    async def _async_handle_timeout(self, timeout: float, cell: Any = None) -> None:
        """Interrupt the cell; if it does not end within the grace time, give the kernel up."""
        run = self._lab_run
        if not any(problem.what.startswith("ran longer") for problem in run.problems):
            run.problems.append(
                Problem(f"ran longer than {run.timeout_s:g} s, the notebook's limit", cell=run.current_cell)
            )
        await self.km.interrupt_kernel()
        give_up = time.monotonic() + GRACE_S
        while time.monotonic() < give_up:
            if await self.kc.shell_channel.msg_ready():
                return  # nbclient reads the reply, which holds the KeyboardInterrupt
            await asyncio.sleep(0.05)
        raise CellTimeoutError(f"did not end within {GRACE_S:g} s of being interrupted")

    async def _async_check_alive(self) -> None:
        try:
            await super()._async_check_alive()
        except DeadKernelError:
            self._lab_run.cause_of_death = _cause_of_death(self.km)
            raise


def _cause_of_death(manager: AsyncKernelManager) -> str:
    code = getattr(getattr(manager.provisioner, "process", None), "returncode", None)
    if code is None:
        return ""
    if code >= 0:
        return f" (exit code {code})"
    hint = ", out of memory?" if -code == signal.SIGKILL else ""
    return f" of {signal.Signals(-code).name}{hint}"


class _LabEngine(Engine):  # type: ignore[misc]
    """The papermill engine behind :func:`execute`."""

    name = "labkit"

    @classmethod
    def execute_notebook(
        cls, nb: Any, kernel_name: str, *, run: Execution, start_timeout: float = START_TIMEOUT_S, **_: Any
    ) -> Any:
        # papermill stores the path it was given; it was given the notebook itself.
        nb.metadata.papermill.update(input_path=f"{run.name}.ipynb", output_path=None)
        manager = _Manager(nb, run)
        manager.notebook_start()
        kernel = AsyncKernelManager(
            kernel_name=kernel_name, transport="ipc", connection_file=str(run.scratch / "k.json")
        )
        client = _Client(
            manager,
            run,
            km=kernel,
            log=_log,
            timeout=START_TIMEOUT_S,
            timeout_func=lambda cell: max(0.1, run.deadline - time.monotonic()),
            startup_timeout=start_timeout,
            iopub_timeout=IOPUB_TIMEOUT_S,
            extra_arguments=_kernel_arguments(),
            on_cell_start=lambda cell, cell_index: _note_cell(run, cell, cell_index),
        )
        try:
            # ipykernel sends what child processes write to the notebook, and also here: what comes after a cell's
            # end, a crash, its own log. The terminal shows progress and shall not be written over.
            with (
                (run.scratch / "kernel.out").open("wb") as out,
                (run.scratch / "kernel.err").open("wb") as err,
            ):
                client.execute(
                    cwd=str(_work_folder(run)), env=_kernel_env(run), stdout=out, stderr=err, cleanup_kc=True
                )
        finally:
            if kernel.has_kernel:  # interrupted before nbclient's own clean-up stood
                run_sync(kernel.shutdown_kernel)(now=True)
            run_sync(kernel.cleanup_resources)()
            manager.notebook_complete()
        return manager.nb


papermill_engines.register(_LabEngine.name, _LabEngine)


def _note_cell(run: Execution, cell: Any, index: int) -> None:
    run.current_cell = cell.id if cell.cell_type == "code" else run.current_cell
    run.on_cell(index)


def _kernel_arguments() -> list[str]:
    return [
        f"--IPKernelApp.extra_extensions={kernel_guard.__name__}",
        "--HistoryManager.hist_file=:memory:",
    ]


def _kernel_env(run: Execution) -> dict[str, str]:
    # Under pytest ipykernel would not catch what child processes write (iostream.py); a test shall see what users see.
    inherited = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    return {
        **inherited,
        "LABKIT_ROOT": str(lab_root()),  # the kernel's working directory is elsewhere
        "LABKIT_HEADLESS": "1",
        kernel_guard.ENV: str(run.scratch / "guard.jsonl"),
        **run.env,
    }


def _kernel_log(run: Execution) -> str:
    log = run.scratch / "kernel.err"
    return log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""


def _work_folder(run: Execution) -> Path:
    folder = run.scratch / "work"
    folder.mkdir()
    return folder


def _end_pending_tasks(grace_s: float) -> None:
    """After an interruption nbclient still waits for the cell: let it, for a while, then give up.

    The results are fetched, or asyncio would complain about errors that nobody asked for.
    """
    loop = ensure_event_loop()
    pending = asyncio.all_tasks(loop)
    if not pending:
        return
    loop.run_until_complete(asyncio.wait(pending, timeout=grace_s))
    for task in pending:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder for sockets, guard records and the kernel's working directory, removed afterwards.

    Folders that a killed run left behind are removed first: their name holds the pid of the run.
    """
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) + len(_SCRATCH_PREFIX) + 20 > _LONGEST_SOCKET_FOLDER:
        base = Path("/tmp")
    _sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH_PREFIX}{os.getpid()}-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(base: Path) -> None:
    for folder in base.glob(f"{_SCRATCH_PREFIX}*"):
        pid = folder.name.removeprefix(_SCRATCH_PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)  # fails for other users' folders, as it should

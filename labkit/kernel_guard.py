"""What runs inside the kernel of a headless notebook, so that no error passes in silence.

``labkit run`` loads this as an IPython extension. Papermill and nbclient see only exceptions that reach a
cell's end; everything here happens elsewhere, and plain runs of it end with exit code 0:

- an exception in a thread (:func:`threading.excepthook`),
- one in a ctypes callback, a ``__del__`` or a weak reference's callback (:data:`sys.unraisablehook`),
- one in an asyncio task that nobody awaited (logged by ``asyncio``),
- ``exit()`` in a cell, after which some of the later cells may still run,
- ``!false``, and a command that fails in the middle of ``%%bash``.

All but the last are written to the file that ``LABKIT_GUARD`` names, one JSON object a line: a file outlives a
killed kernel. The last raises in the cell. The first line says that the guard stands, so that its absence is
seen too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["ENV", "load_ipython_extension"]

ENV = "LABKIT_GUARD"

# A shell that goes on after a failing command reports only its last one.
_STRICT_SHELLS = {"bash": "bash -e -o pipefail", "sh": "sh -e"}


def load_ipython_extension(shell: Any) -> None:
    """Stand guard over ``shell`` (called by IPython)."""
    _Guard(shell, Path(os.environ[ENV])).install()


class _Guard:
    def __init__(self, shell: Any, records: Path) -> None:
        self.shell = shell
        self.records = records
        self.pid = os.getpid()

    def install(self) -> None:
        self._hook_threads()
        self._hook_unraisable()
        logging.getLogger("asyncio").addHandler(_AsyncioErrors(self))
        self._hook_exit()
        self.shell.system_raise_on_error = True
        for name, command in _STRICT_SHELLS.items():
            self._make_strict(name, command)
        self.write("installed", "")

    def write(self, kind: str, text: str) -> None:
        """Append one record. O_APPEND: forked children and threads write too, one line each."""
        record = {"kind": kind, "cell": self.shell.execution_count, "pid": os.getpid(), "text": text}
        line = (json.dumps(record) + "\n").encode()
        handle = os.open(self.records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)

    def _hook_threads(self) -> None:
        shown = threading.excepthook

        def hook(args: threading.ExceptHookArgs) -> None:
            if args.exc_type is not SystemExit:  # threading ignores it too: a thread's way to end itself
                name = args.thread.name if args.thread else "a thread"
                self.write(f"exception in {name}", _format(args.exc_type, args.exc_value, args.exc_traceback))
            shown(args)

        threading.excepthook = hook

    def _hook_unraisable(self) -> None:
        shown = sys.unraisablehook

        def hook(args: Any) -> None:
            # At exit modules are torn down in any order; what fails then says nothing about the notebook.
            if not sys.is_finalizing():
                where = args.err_msg or "Exception ignored in"
                what = f"{where} {args.object!r}" if args.object is not None else where
                self.write(what, _format(args.exc_type, args.exc_value, args.exc_traceback))
            shown(args)

        sys.unraisablehook = hook

    def _hook_exit(self) -> None:
        ask_exit = self.shell.ask_exit

        def hook() -> None:
            self.write("exit", "the cell asked the kernel to exit")
            ask_exit()

        self.shell.ask_exit = hook

    def _make_strict(self, name: str, command: str) -> None:
        shell = self.shell

        def magic(line: str, cell: str) -> None:
            shell.run_cell_magic("script", f"{command} {line}".strip(), cell)

        magic.__doc__ = f"%%{name}, which stops at the first failing command."
        shell.register_magic_function(magic, magic_kind="cell", magic_name=name)


class _AsyncioErrors(logging.Handler):
    """asyncio reports "Task exception was never retrieved" through its logger."""

    def __init__(self, guard: _Guard) -> None:
        super().__init__(level=logging.ERROR)
        self.guard = guard

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # The kernel's own loops, which end with it: nothing that the notebook began.
        if sys.is_finalizing() or ("destroyed but it is pending" in message and "ipykernel" in message):
            return
        cause = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self.guard.write("asyncio", f"{message}\n{cause}".strip())


def _format(
    kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
) -> str:
    return "".join(traceback.format_exception(kind, value, trace)).strip()

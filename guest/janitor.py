"""Starts one program and sees to it that neither it nor its folder outlives whoever asked for it.

Run as ``python -I janitor.py FOLDER PROGRAM ARGUMENT...`` with a pipe as standard input. The pipe closes when the asker
ends, however it ends (kill -9 included); then the program is killed and the folder removed. If the janitor itself is
killed, the kernel kills the program: ``setpriv --pdeathsig``, which is safe here because the janitor has one thread.
It prints ``exited CODE`` when the program ends by itself, and keeps the folder (logs) until the pipe closes.

Kept apart from the rest of the package so that it starts in a few milliseconds.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys


def _stop(_signal: int, _frame: object) -> None:
    raise SystemExit(0)


def main(folder: str, command: list[str]) -> None:
    """Run ``command`` until it ends or standard input does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    child = None
    try:
        with open(os.path.join(folder, "qemu.log"), "wb") as log:
            child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        ended = os.pidfd_open(child.pid)
        ready, _, _ = select.select([0, ended], [], [])
        if ended in ready:
            os.write(1, f"exited {child.wait()}\n".encode())
        while os.read(0, 4096):
            pass
    except OSError as error:
        # Most likely the asker is gone, so that nobody reads what we print.
        print(f"janitor: {error}", file=sys.stderr)
    finally:
        if child is not None:
            child.kill()
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

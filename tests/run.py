"""All of `./task test`: first what wants the machine for itself, then the rest side by side.

Live tests and notebooks measure this machine, and run alone. Unit tests and the guest, which only compute, share its CPUs
then: on two of them that saves a third of the time. The guest's lines come last, so that none stands in another's.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LAUNCH = [sys.executable, "labkit/system/launch.py", "pytest"]
_ALONE = ["tests/live", "tests/notebooks", "tests/browser"]
_TOGETHER = ["tests/unit"]
_NO_TESTS = 5  # pytest: all of them are slow ones


def main() -> int:
    """The first exit code that is not 0."""
    alone = subprocess.run([*_LAUNCH, *_ALONE], cwd=ROOT, check=False).returncode
    with tempfile.TemporaryDirectory() as folder, _guest(log := Path(folder) / "guest.log") as guest:
        together = subprocess.run([*_LAUNCH, *_TOGETHER], cwd=ROOT, check=False).returncode
        in_guest = _told(guest, log)
    return next((code for code in (alone, together, in_guest) if code not in (0, _NO_TESTS)), 0)


@contextlib.contextmanager
def _guest(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The tests in the guest, under way; ended with us, whatever happens."""
    with log.open("wb") as out:
        command = [sys.executable, "-m", "guest", "test"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait()


def _told(guest: subprocess.Popen[bytes], log: Path) -> int:
    """What the guest's tests have said so far, and then as they say it; their exit code."""
    with log.open(errors="replace") as said:
        while True:
            code = guest.poll()
            sys.stdout.write(said.read())
            sys.stdout.flush()
            if code is not None:
                return code
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())

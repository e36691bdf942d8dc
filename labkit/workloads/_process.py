"""One worker's process: start it, talk to it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from labkit.cgroups import janitor
from labkit.errors import WorkloadFailed

__all__ = ["Process", "crossed_pipes", "wait_parked"]

START_S, GRACE_S = 20.0, 30.0
_SCRIPT = Path(__file__).parents[1] / "_worker.py"


class Process:
    """A worker's process, watched by the janitor until the stack that it was made on is closed."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        role: str,
        kind: str,
        options: Mapping[str, Any],
        fds: Iterable[int],
    ) -> None:
        self.role, self.kind = role, kind
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SCRIPT), kind, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=list(fds),
            cwd="/",
        )
        self.pid = self._popen.pid
        self._at_rest = False
        janitor.watch_pid(self.pid)
        stack.callback(self._end)

    def await_ready(self) -> None:
        """Until it stands ready to go."""
        if self._read_line(START_S) != "ready":
            raise WorkloadFailed(f"worker {self.role} did not start", why=self._complaint())

    def go(self) -> None:
        """Let it work."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write("go\n")
            self._popen.stdin.flush()

    @property
    def has_spoken(self) -> bool:
        """Whether it has said what it did, or ended."""
        assert self._popen.stdout is not None
        return bool(select.select([self._popen.stdout], [], [], 0)[0])

    def result(self, seconds: float) -> dict[str, Any]:
        """What it says that it did; waits that long for it.

        :raises WorkloadFailed: if it says nothing.
        """
        line = self._read_line(seconds)
        if not line:
            raise WorkloadFailed(f"worker {self.role} ({self.kind}) failed", why=self._complaint())
        found: dict[str, Any] = json.loads(line)
        self._at_rest = True
        return found

    def _read_line(self, seconds: float) -> str:
        """The next line, or an empty string if none comes in time."""
        assert self._popen.stdout is not None
        ready, _, _ = select.select([self._popen.stdout], [], [], seconds)
        return self._popen.stdout.readline().rstrip("\n") if ready else ""

    def _complaint(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=1)  # its output ends a moment before it does
        if self._popen.returncode is None:
            return "it does not answer in time"
        assert self._popen.stderr is not None
        text = self._popen.stderr.read().strip().splitlines()
        return text[-1] if text else f"it ended with status {self._popen.returncode}"

    def _end(self) -> None:
        """Let it end by itself if it is parked, or end it."""
        if not self._at_rest:
            self._popen.kill()
        with contextlib.suppress(OSError):
            if self._popen.stdin:
                self._popen.stdin.close()
        try:
            self._popen.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for stream in (self._popen.stdout, self._popen.stderr):
            if stream:
                stream.close()
        with contextlib.suppress(OSError):
            janitor.release_pid(self.pid)


def crossed_pipes(stack: contextlib.ExitStack) -> list[dict[str, int]]:
    """Two pipes, crossed, for a pair of workers."""
    (a_read, a_write), (b_read, b_write) = os.pipe(), os.pipe()
    for fd in (a_read, a_write, b_read, b_write):
        stack.callback(os.close, fd)
    return [
        {"read_fd": b_read, "write_fd": a_write, "first": 1},
        {"read_fd": a_read, "write_fd": b_write, "first": 0},
    ]


def wait_parked(pids: Iterable[int]) -> None:
    """Until every process sleeps in its last read: only then do its counters stand still."""
    deadline = time.monotonic() + START_S
    for pid in pids:
        while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "S":
            if time.monotonic() > deadline:
                raise WorkloadFailed(f"process {pid} does not come to rest")
            time.sleep(0.001)

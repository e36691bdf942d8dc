"""Control groups of our own: made for workloads, and removed whatever happens.

They lie under ``labkit-PID-START`` in the cgroup2 tree (v2, or the unified tree of a hybrid machine), the name telling
whose they are. They are removed by the context manager; if the process dies before, by the janitor; if that dies too, by
:func:`sweep`, which every run calls first.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from labkit._janitor import remove_cgroup, start_ticks
from labkit.errors import CgroupError
from labkit.kernel.cgroup import hierarchy

__all__ = ["Janitor", "Scope", "janitor", "sweep"]

_PREFIX = "labkit"


class Janitor:
    """A process that cleans up when this one is gone; see :mod:`labkit._janitor`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def _pipe(self) -> IO[str]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("_janitor.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
                cwd="/",
            )
            self._owner = os.getpid()
        assert self._process.stdin is not None
        return self._process.stdin

    def _say(self, line: str) -> None:
        with self._lock:
            pipe = self._pipe()
            pipe.write(line + "\n")
            pipe.flush()

    def watch_pid(self, pid: int) -> None:
        """Kill this process when we are gone."""
        self._say(f"pid {pid} {start_ticks(pid)}")

    def watch_cgroup(self, path: Path) -> None:
        """Remove this cgroup, with what is in it, when we are gone."""
        self._say(f"cgroup {path}")

    def release_pid(self, pid: int) -> None:
        """The process has been dealt with."""
        self._say(f"-pid {pid}")

    def release_cgroup(self, path: Path) -> None:
        """The cgroup has been removed."""
        self._say(f"-cgroup {path}")

    def close(self) -> None:
        """End the janitor; it cleans what is still on its list."""
        if self._process is not None and self._owner == os.getpid() and self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            self._process = None


janitor = Janitor()
atexit.register(janitor.close)


class Scope:
    """A cgroup of our own with one child per name.

    :param names: children to make, such as ``["service", "hog"]``.

    >>> with Scope(["service"]) as scope:              # doctest: +SKIP
    ...     scope.add("service", os.getpid())
    """

    def __init__(self, names: list[str]) -> None:
        tree = hierarchy()
        if tree.unified is None:
            raise CgroupError("no cgroup2 tree to make a cgroup in", why=f"cgroups are {tree.mode} here")
        self._tree = tree
        self.names = list(dict.fromkeys(names))
        mark = f"{_PREFIX}-{os.getpid()}-{start_ticks(os.getpid())}"
        serial = next(n for n in range(10_000) if not (tree.unified / f"{mark}-{n}").exists())
        self.root = tree.unified / f"{mark}-{serial}"

    def __enter__(self) -> Self:
        janitor.watch_cgroup(self.root)
        try:
            for folder in (self.root, *(self.root / name for name in self.names)):
                folder.mkdir()
        except OSError as error:
            self.close()
            raise CgroupError(
                f"cannot make the cgroup {error.filename}",
                why=error.strerror or str(error),
                remedy="as root it works; an ordinary user needs a delegated subtree. Workloads also run without cgroups",
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, name: str, pid: int) -> None:
        """Move a process into a child.

        :raises CgroupError: if the kernel refuses.
        """
        try:
            (self.root / name / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise CgroupError(
                f"process {pid} cannot join {self.path(name)}", why=error.strerror or ""
            ) from error

    def path(self, name: str) -> str:
        """Path of a child in the cgroup2 tree."""
        assert self._tree.unified is not None
        return "/" + str((self.root / name).relative_to(self._tree.unified))

    def id(self, name: str) -> int:
        """cgroup id of a child: its inode."""
        return self._tree.id_of(self.path(name))

    def close(self) -> None:
        """Kill what is inside and remove the cgroups. May be called twice."""
        if remove_cgroup(str(self.root)):
            with contextlib.suppress(OSError):
                janitor.release_cgroup(self.root)


def sweep() -> list[str]:
    """Remove cgroups of ours whose owner is gone; returns their names. What cannot be removed is left alone."""
    unified = hierarchy().unified
    removed = []
    for folder in unified.glob(f"{_PREFIX}-*-*-*") if unified else []:
        match = re.fullmatch(rf"{_PREFIX}-(\d+)-(\d+)-\d+", folder.name)
        if match and start_ticks(match.group(1)) != match.group(2) and remove_cgroup(str(folder)):
            removed.append(folder.name)
    return removed

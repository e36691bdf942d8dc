"""The control group hierarchy: which mode, mounted where, and ids to paths.

A task's ``dfl_cgrp`` is its place in the cgroup2 tree (v2 or the unified tree of a hybrid machine), and a cgroup's id is
the inode of its directory there (``cgroup_id()``, ``kernfs_node.id``). On a v1-only machine every task has the root's id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from labkit.closing import Closing

if TYPE_CHECKING:
    import pandas as pd  # imported where it is needed: probing must start at once

__all__ = ["Finder", "Hierarchy", "Level", "ancestors", "hierarchy", "table", "walk"]

Mode = Literal["v2", "hybrid", "v1", "none"]


_MAX_BYTES = 1 << 20  # no file read here comes near this


@dataclass(frozen=True)
class Level:
    """What one cgroup sets for the CPU.

    :param path: in the tree that holds weights and quotas.
    :param weight: in units of ``cpu.weight`` (default 100; v1's shares of 1024 are 100); None if its tasks are no group of
        their own to the scheduler (no cpu controller there, or the root), so that they compete in the group above.
    :param idle: ``cpu.idle``: runs only when nobody else wants to.
    :param quota_ns: CPU time allowed in each period, all CPUs together; None if there is no limit.
    :param period_ns: that period.
    :param throttled_ns: time throttled so far, by ``cpu.stat`` of this cgroup.
    :param throttled: how many periods it was throttled in.
    :param local_throttled_ns: time throttled so far by its own quota or an ancestor's, by ``cpu.stat.local`` (Linux 6.6
        and later); None where the kernel does not tell.
    :param setting: the file in which its quota is set.
    """

    path: str
    weight: float | None = None
    idle: bool = False
    quota_ns: int | None = None
    period_ns: int = 100_000_000
    throttled_ns: int = 0
    throttled: int = 0
    local_throttled_ns: int | None = None
    setting: str = "cpu.max"


def ancestors(path: str) -> list[str]:
    """The cgroup and those above it, from the root down.

    >>> ancestors("/a/b"), ancestors("/")
    (['/', '/a', '/a/b'], ['/'])
    """
    parts = [part for part in path.split("/") if part]
    return ["/" + "/".join(parts[:n]) for n in range(len(parts) + 1)]


def _read(path: str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_MAX_BYTES).decode("ascii", "replace")
    except OSError:  # not there at this level, or the cgroup went away while it was read
        return None


def _pairs(text: str | None) -> dict[str, int]:
    found = {}
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdigit():
            found[key] = int(value)
    return found


def _number(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def _level_v2(path: str, folder: str) -> Level:
    limit = (_read(f"{folder}/cpu.max") or "").split()
    stat = _pairs(_read(f"{folder}/cpu.stat"))
    local = _pairs(_read(f"{folder}/cpu.stat.local")).get("throttled_usec")
    weight = _number(_read(f"{folder}/cpu.weight"))
    return Level(
        path=path,
        weight=None if weight is None else float(weight),
        idle=_number(_read(f"{folder}/cpu.idle")) == 1,
        quota_ns=int(limit[0]) * 1000 if len(limit) == 2 and limit[0].isdigit() else None,
        period_ns=int(limit[1]) * 1000 if len(limit) == 2 and limit[1].isdigit() else 100_000_000,
        throttled_ns=stat.get("throttled_usec", 0) * 1000,
        throttled=stat.get("nr_throttled", 0),
        local_throttled_ns=None if local is None else local * 1000,
    )


def _level_v1(path: str, folder: str) -> Level:
    quota = _number(_read(f"{folder}/cpu.cfs_quota_us"))
    period = _number(_read(f"{folder}/cpu.cfs_period_us"))
    shares = _number(_read(f"{folder}/cpu.shares"))
    stat = _pairs(_read(f"{folder}/cpu.stat"))
    return Level(
        path=path,
        weight=None if shares is None or path == "/" else shares * 100 / 1024,
        idle=_number(_read(f"{folder}/cpu.idle")) == 1,
        quota_ns=quota * 1000 if quota is not None and quota > 0 and path != "/" else None,
        period_ns=(period or 100_000) * 1000,
        throttled_ns=stat.get("throttled_time", 0),
        throttled=stat.get("nr_throttled", 0),
        local_throttled_ns=_pairs(_read(f"{folder}/cpu.stat.local")).get("throttled_time"),
        setting="cpu.cfs_quota_us",
    )


class _FileHandle(ctypes.Structure):
    """``struct file_handle`` with a kernfs id in it (``open_by_handle_at(2)``; ``FILEID_KERNFS`` in ``exportfs.h``)."""

    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("id", ctypes.c_uint64))


_FILEID_KERNFS = 0xFE


class Finder(Closing):
    """From a cgroup's id straight to its path, without walking the tree: a kernfs id is a file handle.

    Close it, or use it in a ``with`` block.

    :param tree: mount point of the tree.
    :ivar permitted: False once the kernel refused, which it does without CAP_DAC_READ_SEARCH.
    """

    def __init__(self, tree: Path) -> None:
        self._tree = os.fspath(tree)
        self._mount = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open = ctypes.CDLL(None, use_errno=True).open_by_handle_at
        self.permitted = True

    def path(self, cgroup_id: int) -> str | None:
        """Path of a cgroup that is alive; None if there is none of that id (any more), or it is not permitted to ask."""
        if not self.permitted or self._mount < 0 or not 0 < cgroup_id < 1 << 64:
            return None
        handle = _FileHandle(8, _FILEID_KERNFS, cgroup_id)
        fd = self._open(self._mount, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC)
        if fd < 0:
            self.permitted = ctypes.get_errno() != 1  # EPERM
            return None
        try:
            found = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        if found == self._tree:
            return "/"
        inside = found.removeprefix(self._tree)
        return inside if inside != found and inside.startswith("/") else None

    def close(self) -> None:
        """Give the mount point free. May be called twice."""
        if self._mount >= 0:
            os.close(self._mount)
            self._mount = -1


def walk(tree: Path) -> Iterator[tuple[int, str]]:
    """Id and path of every cgroup of a tree. Directory entries carry inodes, so that nothing is asked for each of them."""
    try:
        yield os.stat(tree).st_ino, "/"
    except OSError:
        return
    todo = [""]
    while todo:
        path = todo.pop()
        try:
            with os.scandir(f"{tree}{path}") as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        below = f"{path}/{entry.name}"
                        yield entry.inode(), below
                        todo.append(below)
        except OSError:  # it was removed while we walked
            continue


@dataclass(frozen=True)
class Hierarchy:
    """How cgroups are mounted.

    :param mode: ``v2`` (pure), ``hybrid`` (v1 controllers and a cgroup2 tree), ``v1``, or ``none``.
    :param unified: mount point of the cgroup2 tree, None on v1.
    :param controllers: v1 controller -> mount point.
    """

    mode: Mode
    unified: Path | None
    controllers: dict[str, Path] = field(default_factory=dict)

    def path_of(self, pid: int | str = "self", controller: str | None = None) -> str:
        """The path of a process in the cgroup2 tree (or a v1 controller's tree), such as ``/user.slice``.

        :raises ProcessLookupError: if there is no such process.
        """
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except FileNotFoundError as error:
            raise ProcessLookupError(f"no process {pid}") from error
        for line in lines:
            _, names, path = line.split(":", 2)
            if (controller is None and names == "") or (controller and controller in names.split(",")):
                return path
        return "/"

    def id_of(self, path: str) -> int:
        """The cgroup id of a path in the cgroup2 tree: its directory's inode.

        :raises FileNotFoundError: if there is no such cgroup, or no cgroup2 tree.
        """
        if self.unified is None:
            raise FileNotFoundError("no cgroup2 tree on this machine")
        return os.stat(self.unified / path.lstrip("/")).st_ino

    @property
    def identity(self) -> Path | None:
        """Mount point of the tree in which tasks are told apart: the cgroup2 tree, or v1's cpu tree where there is none."""
        return self.unified or self.controllers.get("cpu")

    @property
    def cpu(self) -> Path | None:
        """Mount point of the tree that holds weights and quotas: v1's cpu tree where it is mounted, else cgroup2."""
        return self.controllers.get("cpu") or self.unified

    def cpu_path(self, path: str, pid: int | None = None) -> str:
        """Where weight and quota of a cgroup are set: its own path, on a hybrid machine that of a member in v1's cpu tree.

        :param path: the cgroup's path in the tree of :attr:`identity`.
        :param pid: a task in it; without one, the same path is taken where it exists, else the root.
        """
        if self.mode != "hybrid" or "cpu" not in self.controllers:
            return path
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                return self.path_of(pid, "cpu")
        return path if (self.controllers["cpu"] / path.lstrip("/")).is_dir() else "/"

    def level(self, path: str) -> Level | None:
        """Weight, quota and throttling of one cgroup of the tree of :attr:`cpu`; None if it is gone.

        Sources: ``Documentation/admin-guide/cgroup-v2.rst`` (cpu.max, cpu.weight, cpu.idle, cpu.stat) and
        ``Documentation/scheduler/sched-bwc.rst`` (cpu.cfs_quota_us, throttled_time).
        """
        tree = self.cpu
        if tree is None:
            return None
        folder = f"{tree}/{path.lstrip('/')}"
        if not os.path.isdir(folder):
            return None
        return _level_v1(path, folder) if "cpu" in self.controllers else _level_v2(path, folder)


def hierarchy(mounts: str | None = None) -> Hierarchy:
    """Read ``/proc/self/mounts`` (or the given text in its form)."""
    text = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    unified: Path | None = None
    controllers: dict[str, Path] = {}
    for line in text.splitlines():
        _, point, kind, options = line.split()[:4]
        where = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point))
        if kind == "cgroup2" and unified is None:
            unified = where
        elif kind == "cgroup":
            for option in options.split(","):
                if option in ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "freezer"):
                    controllers.setdefault(option, where)
    without_v2: Mode = "v1" if controllers else "none"
    with_v2: Mode = "hybrid" if controllers else "v2"
    return Hierarchy(without_v2 if unified is None else with_v2, unified, controllers)


def table(tree: Hierarchy | None = None) -> pd.DataFrame:
    """All cgroups of the cgroup2 tree.

    :returns: columns ``cgroup_id`` (uint64) and ``cgroup`` (str, the path from the tree's root).
    """
    import pandas as pd

    tree = tree or hierarchy()
    found = list(walk(tree.unified)) if tree.unified is not None else []
    return pd.DataFrame(
        {
            "cgroup_id": pd.Series([cgroup_id for cgroup_id, _ in found], dtype="uint64"),
            "cgroup": pd.Series([path for _, path in found], dtype="str"),
        }
    )

"""Control groups of our own: made for workloads, and removed whatever happens.

They lie under ``labkit-PID-START-N`` in the cgroup2 tree (v2, or the unified tree of a hybrid machine), at its root or,
for an ordinary user, in the cgroup that was given to them (:mod:`labkit.kernel.place`); the name tells whose they are.
Where weight or quota are asked for and the cpu controller is mounted as v1, the same folders lie in its tree too. They are
removed by the context manager; if the process dies before, by the janitor; if that dies too, by :func:`sweep`, which every
run calls first.

Sources: ``Documentation/admin-guide/cgroup-v2.rst`` (``cpu.max``, ``cpu.weight``, ``cgroup.subtree_control``, the
no-internal-process rule), ``Documentation/scheduler/sched-bwc.rst`` (``cpu.cfs_quota_us``).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Self

from labkit._janitor import disable_cpu, remove_cgroup, start_ticks
from labkit.closing import Closing
from labkit.errors import CgroupError
from labkit.kernel.cgroup import hierarchy
from labkit.kernel.place import HOME, place

__all__ = ["Group", "Janitor", "Scope", "janitor", "sweep"]

_PREFIX = "labkit"
_AS_ROOT = "as root it works; `labkit doctor` says what an ordinary user may do"


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

    def watch_controller(self, control: Path) -> None:
        """Take the cpu controller out of this ``cgroup.subtree_control`` again when we are gone."""
        self._say(f"controller {control}")

    def release_pid(self, pid: int) -> None:
        """The process has been dealt with."""
        self._say(f"-pid {pid}")

    def release_cgroup(self, path: Path) -> None:
        """The cgroup has been removed."""
        self._say(f"-cgroup {path}")

    def release_controller(self, control: Path) -> None:
        """The controller has been taken out."""
        self._say(f"-controller {control}")

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


@dataclass(frozen=True)
class Group:
    """A cgroup to make, with its limits.

    :param path: below the scope's own cgroup, such as ``service`` or ``pod/service``; what lies above is made too.
    :param weight: ``cpu.weight`` (1 to 10000; 100 is what a new cgroup has). It counts among siblings only.
    :param quota_us: CPU time it may use in each period, all its tasks together; 0: as much as there is.
    :param period_us: length of a period.
    """

    path: str
    weight: int = 100
    quota_us: int = 0
    period_us: int = 100_000

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name


class Scope(Closing):
    """A cgroup of our own with the given ones in it.

    :param groups: cgroups to make, as names or as :class:`Group`, such as ``["service", "hog"]``.
    :param cpu: make them in the cpu controller too. Without it there is neither weight nor quota, and all of them
        compete as if they were in the cgroup that this process is in.
    :param weight: of the scope's own cgroup, against what is beside it: the rest of the machine, for an ordinary user the
        rest of the cgroup that was given to them (needs ``cpu``).
    :raises CgroupError: if this process may make cgroups nowhere.

    >>> with Scope(["service"]) as scope:              # doctest: +SKIP
    ...     scope.add("service", os.getpid())
    """

    def __init__(self, groups: Sequence[str | Group], *, cpu: bool = False, weight: int = 100) -> None:
        self._tree = hierarchy()
        self._place = place(self._tree)
        self.groups = _with_ancestors(groups)
        self.names = list(self.groups)
        self.cpu, self.weight = cpu, weight
        self._v1 = self._place.cpu if cpu else None
        mark = f"{_PREFIX}-{os.getpid()}-{start_ticks(os.getpid())}"
        serial = next(
            n for n in range(10_000) if not any((t / f"{mark}-{n}").exists() for t in self._trees())
        )
        self.root = self._place.unified / f"{mark}-{serial}"
        self._enabled: Path | None = None

    def _trees(self) -> list[Path]:
        return [self._place.unified, *([self._v1] if self._v1 else [])]

    def _roots(self) -> list[Path]:
        return [tree / self.root.name for tree in self._trees()]

    def __enter__(self) -> Self:
        for root in self._roots():
            janitor.watch_cgroup(root)
        try:
            if self.cpu and self._v1 is None:
                self._enable_at_the_top()
            for root in self._roots():
                self._make(root)
            self._limit("", Group("", weight=self.weight))
            for name, group in self.groups.items():
                self._limit(name, group)
        except OSError as error:
            self.close()
            raise CgroupError(
                f"cannot make the cgroup {error.filename}", why=error.strerror or str(error), remedy=_AS_ROOT
            ) from error
        except BaseException:
            self.close()
            raise
        return self

    def _enable_at_the_top(self) -> None:
        """On v2 a cgroup has cpu.max only if its parent hands the controller down."""
        top = self._place.unified
        if not self._place.has_cpu:
            raise CgroupError(
                "weights and quotas cannot be set here",
                why=f"there is no cpu controller at {top}, or it may not be written",
                remedy="run where the cpu controller is mounted (v1) or delegated (v2)",
            )
        control = top / "cgroup.subtree_control"
        if "cpu" not in control.read_text().split():
            _clear(top)
            janitor.watch_controller(control)
            self._enabled = control
            control.write_text("+cpu")

    def _make(self, root: Path) -> None:
        """Outer ones first. On v2 processes live in the leaves only, so every inner one may hand the controller down."""
        root.mkdir()
        inner = {root, *(root / parent for name in self.groups for parent in _parents(name))}
        for name in ("", *self.groups):
            folder = root / name if name else root
            if name:
                folder.mkdir()
            if self.cpu and self._v1 is None and folder in inner:
                (folder / "cgroup.subtree_control").write_text("+cpu")

    def _limit(self, name: str, group: Group) -> None:
        folder = self.cpu_folder(name)
        if folder is None:
            if group.quota_us or group.weight != 100:
                raise CgroupError(
                    f"{name or 'a scope'} has a weight or quota, and no cpu controller was asked for"
                )
            return
        if self._v1 is not None:
            if group.quota_us:
                (folder / "cpu.cfs_period_us").write_text(str(group.period_us))
                (folder / "cpu.cfs_quota_us").write_text(str(group.quota_us))
            # As the kernel itself relates the two: weight 100 is 1024 shares (CGROUP_WEIGHT_DFL, sched_weight_from_cgroup).
            (folder / "cpu.shares").write_text(str(round(group.weight * 1024 / 100)))
            return
        if group.quota_us:
            (folder / "cpu.max").write_text(f"{group.quota_us} {group.period_us}")
        (folder / "cpu.weight").write_text(str(group.weight))

    def add(self, name: str, pid: int) -> None:
        """Move a process into one of the cgroups.

        :raises CgroupError: if the kernel refuses.
        """
        for root in self._roots():
            _move(pid, root / name, self.path(name))

    def add_to_root(self, pid: int, *, cpu_only: bool = False) -> None:
        """Move a process into the root cgroup, outside every container.

        :param cpu_only: of a v1 cpu controller only (there real-time tasks may run); it keeps its place otherwise.
        :raises CgroupError: if the kernel refuses, or we are no root.
        """
        if not self._place.whole:
            raise CgroupError(
                f"process {pid} cannot join the root cgroup",
                why=f"cgroups of this user lie below {self._place.unified}",
                remedy="as root it works",
            )
        unified, v1 = self._tree.unified, self._tree.controllers.get("cpu")
        assert unified is not None
        for top in [*([] if cpu_only else [unified]), *([v1] if v1 else [])]:
            _move(pid, top, "/")

    def path(self, name: str) -> str:
        """Path of one of the cgroups in the cgroup2 tree."""
        assert self._tree.unified is not None
        return "/" + str((self.root / name).relative_to(self._tree.unified))

    def cpu_path(self, name: str) -> str:
        """Path in the cpu controller's tree: the same on v2; on v1 its own, the root if it was not made there."""
        v1 = self._tree.controllers.get("cpu")
        if v1 is None:
            return self.path(name)
        folder = self.cpu_folder(name)
        return "/" + str(folder.relative_to(v1)) if folder is not None else "/"

    def folder(self, name: str) -> Path:
        """Its directory in the cgroup2 tree."""
        return self.root / name

    def cpu_folder(self, name: str) -> Path | None:
        """Its directory in the cpu controller's tree, None if it was not made there."""
        return self._roots()[-1] / name if self.cpu else None

    def id(self, name: str) -> int:
        """cgroup id: the inode in the cgroup2 tree."""
        return self._tree.id_of(self.path(name))

    def close(self) -> None:
        """Kill what is inside and remove the cgroups. May be called twice."""
        for root in self._roots():
            if remove_cgroup(str(root)):
                with contextlib.suppress(OSError):
                    janitor.release_cgroup(root)
        if self._enabled is not None:
            disable_cpu(str(self._enabled))
            with contextlib.suppress(OSError):
                janitor.release_controller(self._enabled)
            self._enabled = None


def _clear(top: Path) -> None:
    """Move our processes out of a cgroup that is to hand a controller down, into a leaf. The root alone may hold both."""
    if not (top / "cgroup.type").exists():  # the root has none
        return
    home = top / HOME
    home.mkdir(exist_ok=True)
    for _ in range(100):  # some may be starting others
        pids = (top / "cgroup.procs").read_text().split()
        if not pids:
            return
        for pid in pids:
            try:
                (home / "cgroup.procs").write_text(pid)
            except ProcessLookupError:
                continue  # it has ended
    raise CgroupError(
        f"{top} does not get empty of processes", why="new ones come faster than they can be moved"
    )


def _move(pid: int, folder: Path, name: str) -> None:
    try:
        (folder / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise CgroupError(f"process {pid} cannot join {name}", why=error.strerror or "") from error


def _parents(path: str) -> list[str]:
    """The groups above one, outermost first."""
    parts = PurePosixPath(path).parts
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _with_ancestors(groups: Sequence[str | Group]) -> dict[str, Group]:
    """Path -> group, an outer one before those in it."""
    given = [Group(group) if isinstance(group, str) else group for group in groups]
    limits = {group.path: group for group in given}
    paths = dict.fromkeys(path for group in given for path in (*_parents(group.path), group.path))
    return {path: limits.get(path, Group(path)) for path in paths}


def sweep() -> list[str]:
    """Remove cgroups of ours whose owner is gone; returns their names. What cannot be removed is left alone.

    The owner's pid in the name is of the owner's pid namespace: where processes of another one are inside (the lab in a
    container, seen from the host), it tells us nothing.
    """
    removed: dict[str, None] = {}
    for folder in _ours():
        match = re.fullmatch(rf"{_PREFIX}-(\d+)-(\d+)-\d+", folder.name)
        if match is None or start_ticks(match.group(1)) == match.group(2) or _holds_strangers(folder):
            continue
        if remove_cgroup(str(folder)):
            removed[folder.name] = None
    return list(removed)


def _holds_strangers(folder: Path) -> bool:
    """Whether a process of another pid namespace is in a cgroup or below."""
    ours = os.stat("/proc/self/ns/pid").st_ino
    for procs in folder.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            for pid in procs.read_text().split():
                with contextlib.suppress(OSError):  # it has ended, or is somebody else's
                    if pid == "0" or os.stat(f"/proc/{pid}/ns/pid").st_ino != ours:
                        return True
    return False


def _ours() -> list[Path]:
    """The folders of scopes, whoever's: at the roots, and where this process may make its own."""
    tree = hierarchy()
    tops = [tree.unified, tree.controllers.get("cpu")]
    with contextlib.suppress(CgroupError):
        own = place(tree)
        tops += [own.unified, own.cpu]
    return [
        folder for top in dict.fromkeys(tops) if top is not None for folder in top.glob(f"{_PREFIX}-*-*-*")
    ]

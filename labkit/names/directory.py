"""Which control group has which id: a directory that is cheap to keep up to date and remembers the dead.

A program reports ids; people want names. Ids are never used twice while the machine is up, so what is known of one stays
true. New ids are looked up one by one, by file handle (7 us each); the tree is walked only where the kernel forbids that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from labkit.closing import Closing
from labkit.kernel.cgroup import Finder, Hierarchy, hierarchy, walk
from labkit.names.containers import Known, States
from labkit.names.paths import UNKNOWN, Name, from_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Directory", "Enricher"]

#: Walking the tree may take at most this share of the time, where ids cannot be looked up one by one.
_WALK_SHARE = 0.01
#: A container without a name is looked up again after so long: its runtime may write its state late.
_RETRY_S = 2.0
_PF_KTHREAD = 0x200000  # include/linux/sched.h


class Enricher(Protocol):
    """Something that knows more names than the machine's own files, such as Kubernetes' API.

    Called for containers and pods, from within :meth:`Directory.names`: it must answer at once, from what it has in memory.
    """

    def __call__(self, *, pod_uid: str, container_id: str) -> Known | None:
        """Names by the pod's uid and the container's id (either may be empty); None if it does not know them (yet)."""
        ...


@dataclass
class _Entry:
    name: Name
    path: str  # as the kernel has it: a name need not be UTF-8
    alive: bool = True
    asked_s: float = 0.0  # when its container's name was last looked for


class Directory(Closing):
    """Names of control groups by id. Close it, or use it in a ``with`` block.

    :param tree: how cgroups are mounted; read from this machine if not given.
    :param states: the container runtimes' state folders.
    :param enrichers: asked first, in this order; what one leaves open the next may fill in.
    :param keep_dead: how many cgroups that died keep their last name; the longest dead go first.

    >>> with Directory() as directory:                       # doctest: +SKIP
    ...     directory.names([1])[1].name
    'kernel threads'
    """

    def __init__(
        self,
        tree: Hierarchy | None = None,
        *,
        states: States | None = None,
        enrichers: Sequence[Enricher] = (),
        keep_dead: int = 20_000,
    ) -> None:
        self.tree = tree or hierarchy()
        self._states = states or States()
        self._enrichers = tuple(enrichers)
        self._keep_dead = keep_dead
        self._known: dict[int, _Entry] = {}
        self._gone: dict[int, None] = {}  # ids that no living cgroup has and that were never named
        self._dead: dict[int, None] = {}  # of the known ones, in the order of their death
        self._finder = Finder(self.tree.identity) if self.tree.identity else None
        self._walked_s, self._walk_took_s = float("-inf"), 0.0
        self._root = self._root_name()
        self.walk()

    def close(self) -> None:
        """Give the mount point free. May be called twice."""
        if self._finder is not None:
            self._finder.close()

    def __len__(self) -> int:
        return len(self._known)

    def walk(self) -> None:
        """Learn every cgroup there is now: what dies before anybody asks has a name all the same."""
        if self.tree.identity is None:
            return
        began = time.monotonic()
        for cgroup_id, path in walk(self.tree.identity):
            self.learn(cgroup_id, path)
        self._walked_s = time.monotonic()
        self._walk_took_s = self._walked_s - began

    def learn(self, cgroup_id: int, path: str) -> None:
        """Somebody (a walk, or a program that saw it being made) knows the path of an id."""
        if cgroup_id in self._known:
            return
        self._gone.pop(cgroup_id, None)
        shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        self._known[cgroup_id] = _Entry(self._root if path == "/" else from_path(shown), path)

    def names(self, ids: Iterable[int]) -> dict[int, Name]:
        """Names of these ids; one that nobody can name is :data:`~labkit.names.paths.UNKNOWN`."""
        wanted = list(dict.fromkeys(int(cgroup_id) for cgroup_id in ids))
        self._find([cgroup_id for cgroup_id in wanted if cgroup_id not in self._known])
        return {cgroup_id: self._named(cgroup_id) for cgroup_id in wanted}

    def all(self) -> dict[int, Name]:
        """Names of every cgroup that is known, the dead included."""
        return self.names(self._known)

    def alive(self, cgroup_id: int) -> bool:
        """Is there a cgroup of that id now? False for ids that nobody knows."""
        entry = self._known.get(cgroup_id)
        if entry is None or not entry.alive:
            return False
        if not self._exists(cgroup_id, entry.path):
            entry.alive = False
            self._bury(cgroup_id)
        return entry.alive

    def gone(self, cgroup_id: int) -> bool:
        """Is it certain that no cgroup has that id any more? False for one whose path was merely not found yet."""
        return cgroup_id in self._gone or (cgroup_id in self._known and not self.alive(cgroup_id))

    def frame(self, ids: Iterable[int], *, alive: Collection[int] | None = None) -> pd.DataFrame:
        """Names as a frame.

        :param alive: those of which :meth:`alive` has just said so, if they were asked: a system call each.
        :returns: columns ``cgroup_id`` (uint64), ``cgroup``, ``name``, ``kind``, ``namespace``, ``pod``, ``container``,
            ``owner`` (str; see :class:`~labkit.names.paths.Name`), ``alive`` (bool).
        """
        import pandas as pd

        names = self.names(ids)
        columns = ("cgroup", "name", "kind", "namespace", "pod", "container", "owner")
        data = {
            column: pd.Series([getattr(n, column) for n in names.values()], dtype="str") for column in columns
        }
        return pd.DataFrame(
            {
                "cgroup_id": pd.Series(list(names), dtype="uint64"),
                **data,
                "alive": pd.Series(
                    [
                        (alive is not None and cgroup_id in alive) or self.alive(cgroup_id)
                        for cgroup_id in names
                    ],
                    dtype="bool",
                ),
            }
        )

    # -- finding paths ------------------------------------------------------------------------------------------

    def _find(self, ids: list[int]) -> None:
        new = [cgroup_id for cgroup_id in ids if cgroup_id not in self._gone]
        if not new or self._finder is None:
            return
        for cgroup_id in new:
            path = self._finder.path(cgroup_id)
            if path is not None:
                self.learn(cgroup_id, path)
        missing = [cgroup_id for cgroup_id in new if cgroup_id not in self._known]
        if not self._finder.permitted:
            if time.monotonic() - self._walked_s < self._walk_took_s / _WALK_SHARE:
                return  # asked again next time
            self.walk()
            missing = [cgroup_id for cgroup_id in missing if cgroup_id not in self._known]
        self._gone.update(dict.fromkeys(missing))
        while len(self._gone) > self._keep_dead:
            del self._gone[next(iter(self._gone))]

    def _exists(self, cgroup_id: int, path: str) -> bool:
        try:
            return os.stat(f"{self.tree.identity}{path}").st_ino == cgroup_id
        except OSError:
            return False

    def _bury(self, cgroup_id: int) -> None:
        self._dead[cgroup_id] = None
        while len(self._dead) > self._keep_dead:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            self._known.pop(oldest, None)
            self._gone[oldest] = None

    def sweep(self) -> int:
        """Look which of the known cgroups are dead, and forget the oldest beyond ``keep_dead``; returns how many are known.

        Needed only now and then where many cgroups come and go: 1.5 us for each that is known.
        """
        for cgroup_id in list(self._known):
            self.alive(cgroup_id)
        return len(self._known)

    # -- names --------------------------------------------------------------------------------------------------

    def _named(self, cgroup_id: int) -> Name:
        entry = self._known.get(cgroup_id)
        if entry is None:
            return UNKNOWN
        name = entry.name
        if name.complete:
            return name
        now = time.monotonic()
        if entry.asked_s and now - entry.asked_s < _RETRY_S:
            return name
        entry.asked_s = now
        known = Known(name.container, name.namespace, name.pod)
        for answer in self._answers(name):
            known = known.filled_from(answer)
            entry.name = name.called(known.container, namespace=known.namespace, pod=known.pod)
            if entry.name.complete:
                break
        return entry.name

    def _answers(self, name: Name) -> Iterator[Known]:
        """What each source knows, the best first: one may know the pod and not yet the container."""
        asked = (
            enricher(pod_uid=name.pod_uid, container_id=name.container_id) for enricher in self._enrichers
        )
        yield from filter(None, asked)
        if name.container_id and (known := self._states.container(name.runtime, name.container_id)):
            yield known
        if name.pod_uid and (known := self._states.pod(name.pod_uid)):
            yield known

    def _root_name(self) -> Name:
        """The root's name: on v1 alone nothing is told apart but by the cpu controller; elsewhere, who lives in it?"""
        name = from_path("/")
        if self.tree.identity is None:
            return replace(name, name="unknown", kind="unknown", owner="unknown")
        return replace(name, name="kernel threads") if _only_kernel_threads(self.tree.identity) else name


def _only_kernel_threads(tree: os.PathLike[str]) -> bool:
    try:
        with open(f"{os.fspath(tree)}/cgroup.procs") as file:
            pids = file.read().split()
    except OSError:
        return False
    return bool(pids) and all(_is_kernel_thread(pid) for pid in pids)


def _is_kernel_thread(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            after_comm = file.read().rpartition(")")[2].split()
    except OSError:  # it ended
        return True
    return bool(int(after_comm[6]) & _PF_KTHREAD)

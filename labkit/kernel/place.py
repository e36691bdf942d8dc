"""Where this process may make control groups of its own.

Root may at the root of each tree. An ordinary user may below a cgroup that was given to them: a scope of systemd's user
manager (``labkit.system.launch`` begins in one where it can), or a folder that root gave away. To move a task, the kernel
asks for the right to write ``cgroup.procs`` of the common ancestor too (``cgroup_procs_write_permission()`` in
``kernel/cgroup/cgroup.c``), so the task must have begun at or below that cgroup: only our own cgroup and what is above
it count, and nothing beside.

Source: ``Documentation/admin-guide/cgroup-v2.rst``, "Delegation".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import CgroupError
from labkit.kernel.cgroup import Hierarchy, hierarchy

__all__ = ["HOME", "Place", "place"]

#: The leaf in which our own processes live once their cgroup hands a controller down: on v2 only leaves hold processes.
HOME = "labkit-home"

_REMEDY = (
    "as root it works; an ordinary user needs a cgroup of their own: log in where systemd has a user manager and cgroups "
    "are v2 (a Lima machine, a desktop, ssh), or start in a cgroup that root gave you (docs/running.md)"
)


@dataclass(frozen=True)
class Place:
    """The folders below which cgroups may be made.

    :param unified: in the cgroup2 tree.
    :param cpu: in the tree of v1's cpu controller; None where there is no such tree, or no right to it.
    :param has_cpu: True if weights and quotas can be set: by v1, or because the cgroup2 folder has the controller.
    """

    unified: Path
    cpu: Path | None
    has_cpu: bool
    whole: bool

    def describe(self) -> str:
        """One line for people."""
        folders = [str(self.unified), *([str(self.cpu)] if self.cpu else [])]
        return f"can be made below {' and '.join(folders)}" + (
            "" if self.has_cpu else ", without weights and quotas"
        )


def place(tree: Hierarchy | None = None) -> Place:
    """Find it.

    :raises CgroupError: if there is no such place, with the reason and what to do.
    """
    tree = tree or hierarchy()
    if tree.unified is None:
        raise CgroupError(
            "no cgroup2 tree to make a cgroup in",
            why=f"cgroups are {tree.mode} here",
            remedy="mount one (mount -t cgroup2 none /sys/fs/cgroup/unified), or boot with cgroup v2",
        )
    own = tree.path_of()
    unified = _first(tree.unified, own)
    if unified is None:
        raise CgroupError(
            "control groups cannot be made here",
            why=f"user id {os.geteuid()} may neither write {tree.unified} nor its own cgroup there, {own}",
            remedy=_REMEDY,
        )
    v1 = tree.controllers.get("cpu")
    cpu = _first(v1, tree.path_of(controller="cpu")) if v1 is not None else None
    has_cpu = cpu is not None if v1 is not None else "cpu" in _words(unified / "cgroup.controllers")
    whole = unified == tree.unified and (v1 is None or cpu == v1)
    return Place(unified, cpu, has_cpu, whole)


def _first(top: Path, own: str) -> Path | None:
    """The highest folder that will do: the root, or our own cgroup (the one above it, if ours is the leaf of before)."""
    folders = [top]
    if ".." not in own.split("/"):  # else it lies outside of our cgroup namespace
        mine = top / own.lstrip("/")
        folders += [mine.parent, mine] if mine.name == HOME else [mine]
    return next((folder for folder in folders if _writable(folder)), None)


def _writable(folder: Path) -> bool:
    def may(path: Path, how: int) -> bool:
        return os.access(path, how, effective_ids=os.access in os.supports_effective_ids)

    return may(folder, os.W_OK | os.X_OK) and may(folder / "cgroup.procs", os.W_OK)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []

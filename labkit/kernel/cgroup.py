"""The control group hierarchy: which mode, mounted where, and ids to paths.

A task's ``dfl_cgrp`` is its place in the cgroup2 tree (v2 or the unified tree of a hybrid machine), and a cgroup's id is
the inode of its directory there (``cgroup_id()``, ``kernfs_node.id``). On a v1-only machine every task has the root's id.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd  # imported where it is needed: probing must start at once

__all__ = ["Hierarchy", "hierarchy", "table"]

Mode = Literal["v2", "hybrid", "v1", "none"]


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
    ids: list[int] = []
    paths: list[str] = []
    if tree.unified is not None:
        for folder, _, _ in os.walk(tree.unified):
            try:
                ids.append(os.stat(folder).st_ino)
            except FileNotFoundError:  # it was removed while we walked
                continue
            paths.append("/" + os.path.relpath(folder, tree.unified) if folder != str(tree.unified) else "/")
    return pd.DataFrame(
        {"cgroup_id": pd.Series(ids, dtype="uint64"), "cgroup": pd.Series(paths, dtype="str")}
    )

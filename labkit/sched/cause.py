"""What a cgroup waited for: its wait split by cause, exactly."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["CAUSES", "causes_of", "split"]

#: ``foreign``: another cgroup held the CPU. ``self``: tasks of its own did. ``throttled``: its own quota, or an
#: ancestor's, was used up. ``idle``: nobody ran; the CPU had to wake up first. ``steal``: the hypervisor or
#: interrupts had it. ``unknown``: what held it was not recorded.
CAUSES = ("foreign", "self", "throttled", "idle", "steal", "unknown")


def causes_of(cells: pd.DataFrame) -> np.ndarray:
    """The cause that each cell counts for, as an index into :data:`CAUSES`.

    :param cells: ``victim_id``, ``kind``, ``occupant_id``; see :class:`labkit.sched.state.Snapshot`.
    """
    kind = cells["kind"].to_numpy(dtype=object)
    index = np.full(len(cells), CAUSES.index("unknown"), dtype=np.int64)
    for name in ("throttled", "idle", "steal"):
        index[kind == name] = CAUSES.index(name)
    by_cgroup = kind == "cgroup"
    own = cells["victim_id"].to_numpy() == cells["occupant_id"].to_numpy()
    index[by_cgroup & own] = CAUSES.index("self")
    index[by_cgroup & ~own] = CAUSES.index("foreign")
    return index


def split(cells: pd.DataFrame) -> pd.DataFrame:
    """Each cgroup's wait by cause. The causes add up to its wait exactly: these are sums of whole numbers.

    :param cells: ``victim_id``, ``kind``, ``occupant_id``, ``wait_ns``; see :class:`labkit.sched.state.Snapshot`.
    :returns: one row per victim, ordered by id: ``victim_id``, ``wait_ns``, and one column for each of
        :data:`CAUSES` (uint64).
    """
    victims, row = np.unique(cells["victim_id"].to_numpy(dtype=np.uint64), return_inverse=True)
    sums = np.zeros((len(victims), len(CAUSES)), dtype=np.uint64)
    np.add.at(sums, (row, causes_of(cells)), cells["wait_ns"].to_numpy(dtype=np.uint64))
    columns = {name: sums[:, number] for number, name in enumerate(CAUSES)}
    return pd.DataFrame({"victim_id": victims, "wait_ns": sums.sum(axis=1, dtype=np.uint64), **columns})

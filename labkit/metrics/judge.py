"""Verdicts for the exporter: those of :mod:`labkit.sched.verdict`, with the same evidence as an answer has.

They are made on the exporter's beat and never in a scrape, about a window that ends then. Beside the snapshot at each
end of the window the kernel's own counters are read (:mod:`labkit.noisy.witnesses`), of those that waited most: the
confidence of a verdict says how well the two agree, as that of ``labkit noisy`` does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from labkit.errors import ParameterError
from labkit.metrics.families import Judgement
from labkit.noisy import witnesses
from labkit.noisy.witnesses import Evidence, Reading
from labkit.sched.state import Snapshot, between
from labkit.sched.verdict import verdicts

__all__ = ["Judge", "Window", "Witness", "judged", "narrowed", "waited_most"]

#: Verdicts by cgroup id on an interval, with the evidence on it, of these cgroups.
Judge = Callable[[Snapshot, Evidence, Collection[int]], Mapping[int, Judgement]]
#: Reads the kernel's own counters of those that an interval shows to be worth it.
Witness = Callable[[Snapshot], Reading]


def judged(
    interval: Snapshot, evidence: Evidence | None = None, members: Collection[int] | None = None
) -> Mapping[int, Judgement]:
    """A judgement for each cgroup: ``quiet`` for one that did not wait.

    :param members: whom to judge; all that the interval knows if None.
    """
    evidence = evidence or Evidence.none()
    found = verdicts(
        interval,
        quotas=evidence.quotas,
        weights=evidence.weights,
        classes=evidence.classes,
        oracles=evidence.oracles,
        only=members,
    )
    return {one.cgroup_id: Judgement(one.verdict, one.confidence, one.wait_ns) for one in found}


@dataclass
class Window:
    """The snapshots and readings that verdicts look back to.

    :param seconds: how long the window is, once there is so much.
    """

    seconds: float
    witness: Witness | None = None
    _past: deque[tuple[Snapshot, Reading]] = field(default_factory=deque)

    def upto(self, snapshot: Snapshot, members: np.ndarray) -> tuple[Snapshot, Evidence]:
        """The interval that ends now, narrowed to these cgroups and those they waited for, and the evidence on it.

        All there is, if that is shorter than the window, or since the kernel's tables began anew.
        """
        past, window_ns = self._past, self.seconds * 1e9
        while len(past) > 1 and snapshot.taken_ns - past[1][0].taken_ns >= window_ns:
            past.popleft()
        interval, before = narrowed(snapshot, members), Reading()
        if past:
            oldest, before = past[0]
            try:
                interval = between(narrowed(oldest, members), interval)
            except ParameterError:  # the kernel's table began anew, or lost a row: so does the window
                past.clear()
                before = Reading()
        reading = self.witness(interval) if self.witness is not None else Reading()
        if not past or snapshot.taken_ns - past[-1][0].taken_ns >= window_ns / 4:
            past.append((snapshot, reading))
        return interval, witnesses.evidence(before, reading)


def waited_most(interval: Snapshot, count: int) -> list[int]:
    """Ids of those that waited most, the longest first."""
    order = np.argsort(interval.cgroups["wait_ns"].to_numpy(), kind="stable")[::-1][:count]
    ids: list[int] = interval.cgroups["cgroup_id"].to_numpy()[order].tolist()
    return ids


def narrowed(snapshot: Snapshot, victims: np.ndarray) -> Snapshot:
    """The same with these victims only, and those who held the CPU while they waited."""
    cells, histograms = snapshot.cells, snapshot.histograms
    cells = cells[np.isin(cells["victim_id"].to_numpy(np.uint64), victims)]
    ids = np.union1d(victims, cells["occupant_id"].to_numpy(np.uint64))
    return replace(
        snapshot,
        cgroups=snapshot.cgroups[np.isin(snapshot.cgroups["cgroup_id"].to_numpy(np.uint64), ids)],
        cells=cells,
        names=snapshot.names[np.isin(snapshot.names["cgroup_id"].to_numpy(np.uint64), ids)],
        histograms=histograms[np.isin(histograms["cgroup_id"].to_numpy(np.uint64), victims)],
    )

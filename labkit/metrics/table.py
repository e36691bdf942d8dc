"""A snapshot as one matrix: a row per cgroup, a column per counter. All integers, so that nothing is rounded.

Times are in ns; they become seconds when they are written out, not before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from labkit.errors import ParameterError
from labkit.sched.state import Snapshot

__all__ = ["CAUSES", "CLASSES", "Layout", "Table", "foreign_pairs", "tabulate"]

CAUSES = ("foreign", "self", "throttled", "idle", "steal", "unknown")
#: Whose the other side is: the victim's own cgroup; another workload; the system (kernel threads, init and its slice);
#: or a cgroup of which nobody knows any more what it was.
CLASSES = ("same", "other", "system", "unknown")
_COUNTS = ("waits", "wait_ns", "migrated_ns", "involuntary_switches", "run_ns")
#: Bucket bounds go from 2**10 ns (1 us) to 2**33 ns (8.6 s).
_LOW_OCTAVE, _HIGH_OCTAVE = 10, 33


@dataclass(frozen=True)
class Layout:
    """Which column of the matrix is what.

    :param per_octave: bucket bounds per octave, 1, 2, 4 or 8: all of them are bounds of the kernel's own buckets.
    """

    per_octave: int = 1

    def __post_init__(self) -> None:
        if self.per_octave not in (1, 2, 4, 8):
            raise ParameterError(
                f"{self.per_octave} buckets per octave cannot be had",
                why="the program keeps 8 per octave, and bounds must fall on its own: 1, 2, 4 or 8",
            )

    @property
    def bounds_ns(self) -> np.ndarray:
        """Upper bounds of the buckets in ns (int64), without the last, infinite one."""
        steps = range(_LOW_OCTAVE * self.per_octave, _HIGH_OCTAVE * self.per_octave + 1)
        octave, part = np.divmod(np.array(steps, dtype=np.int64), self.per_octave)
        base = np.int64(1) << octave
        bounds: np.ndarray = base + part * base // self.per_octave
        return bounds

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        return [
            *_COUNTS,
            *(f"cause:{name}" for name in CAUSES),
            *(f"class:{name}" for name in CLASSES),
            *(f"preempted:{name}" for name in CLASSES),
            *(f"le:{bound}" for bound in (*self.bounds_ns.tolist(), "inf")),
        ]

    def column(self, name: str) -> int:
        """Index of a column."""
        return self.columns.index(name)


@dataclass(frozen=True)
class Table:
    """The matrix: ``ids`` (uint64, sorted) and ``values`` (int64, a row per id, columns as in the layout)."""

    ids: np.ndarray
    values: np.ndarray

    def rows_of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each id: its row, and whether there is one."""
        at = np.searchsorted(self.ids, ids)
        at = np.minimum(at, max(len(self.ids) - 1, 0))
        return at, (self.ids[at] == ids) if len(self.ids) else np.zeros(len(ids), dtype=bool)


def tabulate(snapshot: Snapshot, layout: Layout) -> Table:
    """All counters of all cgroups of a snapshot.

    Buckets are not cumulative here: each wait is counted once, in the lowest bucket that holds it.
    """
    ids = np.unique(
        np.concatenate(
            [
                snapshot.cgroups["cgroup_id"].to_numpy(np.uint64),
                snapshot.cells["victim_id"].to_numpy(np.uint64),
                snapshot.histograms["cgroup_id"].to_numpy(np.uint64),
            ]
        )
    )
    values = np.zeros((len(ids), len(layout.columns)), dtype=np.int64)
    rows = np.searchsorted(ids, snapshot.cgroups["cgroup_id"].to_numpy(np.uint64))
    for index, name in enumerate(_COUNTS):
        np.add.at(values[:, index], rows, snapshot.cgroups[name].to_numpy(np.uint64).astype(np.int64))
    _add_cells(values, ids, snapshot, layout)
    _add_buckets(values, ids, snapshot.histograms, layout)
    return Table(ids, values)


def _add_cells(values: np.ndarray, ids: np.ndarray, snapshot: Snapshot, layout: Layout) -> None:
    cells = snapshot.cells
    if cells.empty:
        return
    victim = cells["victim_id"].to_numpy(np.uint64)
    occupant = cells["occupant_id"].to_numpy(np.uint64)
    wait = cells["wait_ns"].to_numpy(np.uint64).astype(np.int64)
    rows = np.searchsorted(ids, victim)
    codes, kinds = pd.factorize(cells["kind"])
    names = np.array([CAUSES.index(k) if k in CAUSES else CAUSES.index("unknown") for k in kinds])
    is_cgroup = np.array([k == "cgroup" for k in kinds])[codes]
    own = is_cgroup & (occupant == victim)
    cause = np.where(is_cgroup, np.where(own, CAUSES.index("self"), CAUSES.index("foreign")), names[codes])
    np.add.at(values, (rows, layout.column("cause:foreign") + cause), wait)

    kind_of = _classes(snapshot.names, occupant)
    kind_of = np.where(own, CLASSES.index("same"), kind_of)
    at = np.flatnonzero(is_cgroup)
    np.add.at(values, (rows[at], layout.column("class:same") + kind_of[at]), wait[at])
    taken = cells["preemptions"].to_numpy(np.uint64).astype(np.int64)
    np.add.at(values, (rows[at], layout.column("preempted:same") + kind_of[at]), taken[at])


def _classes(names: pd.DataFrame, occupants: np.ndarray) -> np.ndarray:
    """Index into :data:`CLASSES` of each occupant that is not the victim itself."""
    known = names.drop_duplicates("cgroup_id", keep="last").sort_values("cgroup_id")
    ids = known["cgroup_id"].to_numpy(np.uint64)
    owner = known["owner"].map({"system": CLASSES.index("system"), "workload": CLASSES.index("other")})
    classes = owner.fillna(CLASSES.index("unknown")).to_numpy(np.int64)
    if not len(ids):
        return np.full(len(occupants), CLASSES.index("unknown"))
    at = np.minimum(np.searchsorted(ids, occupants), len(ids) - 1)
    return np.where(ids[at] == occupants, classes[at], CLASSES.index("unknown"))


def _add_buckets(values: np.ndarray, ids: np.ndarray, histograms: pd.DataFrame, layout: Layout) -> None:
    if histograms.empty:
        return
    rows = np.searchsorted(ids, histograms["cgroup_id"].to_numpy(np.uint64))
    bounds = layout.bounds_ns.astype(np.uint64)
    bucket = np.searchsorted(bounds, histograms["hi"].to_numpy(np.uint64), side="left")
    first = layout.column(f"le:{int(bounds[0])}")
    np.add.at(values, (rows, first + bucket), histograms["count"].to_numpy(np.uint64).astype(np.int64))


def foreign_pairs(cells: pd.DataFrame) -> pd.DataFrame:
    """Who held the CPU while whom waited: ``victim_id``, ``occupant_id`` (uint64), ``wait_ns`` (int64); no own time."""
    foreign = cells[(cells["kind"] == "cgroup") & (cells["occupant_id"] != cells["victim_id"])]
    return foreign[["victim_id", "occupant_id", "wait_ns"]].astype({"wait_ns": "int64"})

"""A snapshot as one matrix: a row per cgroup, a column per counter. All integers, so that nothing is rounded.

Times are in ns; they become seconds when they are written out, not before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from labkit.errors import ParameterError
from labkit.sched.cause import CAUSES, causes_of
from labkit.sched.state import Snapshot

__all__ = ["CAUSES", "CLASSES", "Layout", "Table", "add_cells", "coded", "grown_cells", "tabulate", "without"]

#: Whose the other side is: the victim's own cgroup; another workload; the system (kernel threads, init and its slice);
#: or a cgroup of which nobody knows any more what it was.
CLASSES = ("same", "other", "system", "unknown")
_UNKNOWN = CAUSES.index("unknown")
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
    """Counters and buckets of all cgroups of a snapshot; causes and classes, which come from its cells, are left at 0.

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
    _add_buckets(values, ids, snapshot.histograms, layout)
    return Table(ids, values)


def _add_buckets(values: np.ndarray, ids: np.ndarray, histograms: pd.DataFrame, layout: Layout) -> None:
    if histograms.empty:
        return
    rows = np.searchsorted(ids, histograms["cgroup_id"].to_numpy(np.uint64))
    bounds = layout.bounds_ns.astype(np.uint64)
    bucket = np.searchsorted(bounds, histograms["hi"].to_numpy(np.uint64), side="left")
    first = layout.column(f"le:{int(bounds[0])}")
    np.add.at(values, (rows, first + bucket), histograms["count"].to_numpy(np.uint64).astype(np.int64))


def coded(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells with numbers for words: ``victim_id``, ``occupant_id`` (uint64), ``cause`` (index into :data:`CAUSES`),
    ``wait_ns``, ``preemptions`` (int64)."""
    cause = causes_of(cells)
    by_cgroup = np.isin(cause, [CAUSES.index("self"), CAUSES.index("foreign")])
    return pd.DataFrame(
        {
            "victim_id": cells["victim_id"].to_numpy(np.uint64),
            "occupant_id": np.where(by_cgroup, cells["occupant_id"].to_numpy(np.uint64), np.uint64(0)),
            "cause": cause,
            "wait_ns": cells["wait_ns"].to_numpy(np.uint64).astype(np.int64),
            "preemptions": cells["preemptions"].to_numpy(np.uint64).astype(np.int64),
        }
    )


def grown_cells(
    before: pd.DataFrame, now: pd.DataFrame, anew: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What each cell grew by, and the cells to compare the next ones with.

    A table that is read while it changes may show a count that is smaller than before: it is held until it has caught up.
    A cell that is gone (its occupant is long dead and forgotten) went over into its victim's ``unknown``, and what came
    there in that way is not new.

    :param anew: ids of victims that started from zero.
    """
    keys = ["victim_id", "cause", "occupant_id"]
    before = before[~np.isin(before["victim_id"].to_numpy(), anew)]
    both = now.merge(before, on=keys, how="outer", suffixes=("", "_before"), indicator=True)
    gone = both[(both["_merge"] == "right_only").to_numpy()]
    both = both[(both["_merge"] != "right_only").to_numpy()]
    held = both[keys].copy()
    for name in ("wait_ns", "preemptions"):
        was = both[f"{name}_before"].fillna(0).astype("int64").to_numpy()
        held[name] = np.maximum(both[name].fillna(0).astype("int64").to_numpy(), was)
        lost = gone.groupby("victim_id")[f"{name}_before"].sum()
        moved = both["victim_id"].map(lost).fillna(0).astype("int64").to_numpy()
        unknown = (both["cause"] == _UNKNOWN).to_numpy()
        both[name] = np.maximum(held[name] - was - np.where(unknown, moved, 0), 0)
    grown = both[(both["wait_ns"] > 0) | (both["preemptions"] > 0)]
    return grown[[*keys, "wait_ns", "preemptions"]], held


def without(cells: pd.DataFrame, gone: np.ndarray) -> pd.DataFrame:
    """Cells as :func:`coded` has them, as if the forgotten had been part of id 0 already; as occupants they are unknown."""
    if not len(gone):
        return cells
    victim = np.isin(cells["victim_id"].to_numpy(), gone)
    occupant = np.isin(cells["occupant_id"].to_numpy(), gone)
    moved = cells.assign(
        victim_id=np.where(victim, np.uint64(0), cells["victim_id"]),
        occupant_id=np.where(occupant, np.uint64(0), cells["occupant_id"]),
        cause=np.where(occupant, _UNKNOWN, cells["cause"]),
    )
    return moved.groupby(["victim_id", "cause", "occupant_id"], as_index=False)[
        ["wait_ns", "preemptions"]
    ].sum()


def add_cells(
    values: np.ndarray, rows: np.ndarray, grown: pd.DataFrame, layout: Layout, names: pd.DataFrame
) -> None:
    """Add what cells grew by to the matrix, by cause and by class of occupant.

    :param rows: row of each cell's victim.
    """
    cause = grown["cause"].to_numpy(np.int64)
    wait = grown["wait_ns"].to_numpy(np.int64)
    np.add.at(values, (rows, layout.column(f"cause:{CAUSES[0]}") + cause), wait)
    classes = _classes(names, grown["occupant_id"].to_numpy(np.uint64))
    classes = np.where(cause == CAUSES.index("self"), CLASSES.index("same"), classes)
    at = np.flatnonzero(np.isin(cause, [CAUSES.index("self"), CAUSES.index("foreign")]))
    np.add.at(values, (rows[at], layout.column(f"class:{CLASSES[0]}") + classes[at]), wait[at])
    taken = grown["preemptions"].to_numpy(np.int64)
    np.add.at(values, (rows[at], layout.column(f"preempted:{CLASSES[0]}") + classes[at]), taken[at])


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

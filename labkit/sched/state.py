"""What the noisy-neighbour program has measured, frozen: the one form that every answer, metric and figure is made of.

A :class:`Snapshot` holds what came since the program was loaded; :func:`between` gives what came between two of them, in
the same form. Frames are never changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from labkit.errors import ParameterError
from labkit.ledger import Ledger, Mode

__all__ = ["KINDS", "SCHEMAS", "Cost", "Room", "Snapshot", "between", "empty"]

#: What can hold a CPU while somebody waits for it, or keep it from them.
KINDS = ("cgroup", "idle", "throttled", "steal", "unknown")

_CGROUP_COUNTS = (
    "waits",
    "wait_ns",
    "throttled_ns",
    "steal_ns",
    "migrated_ns",
    "involuntary_switches",
    "run_ns",
)

#: Columns and dtypes of each frame of a :class:`Snapshot`.
SCHEMAS: dict[str, dict[str, str]] = {
    "cgroups": {"cgroup_id": "uint64", **dict.fromkeys(_CGROUP_COUNTS, "uint64")},
    "cells": {
        "victim_id": "uint64",
        "kind": "str",
        "occupant_id": "uint64",
        "wait_ns": "uint64",
        "preemptions": "uint64",
    },
    "histograms": {"cgroup_id": "uint64", "lo": "uint64", "hi": "uint64", "count": "uint64"},
    "names": {
        "cgroup_id": "uint64",
        "cgroup": "str",
        "name": "str",
        "kind": "str",
        "namespace": "str",
        "pod": "str",
        "container": "str",
        "owner": "str",
        "alive": "bool",
    },
}
_KEYS = {
    "cgroups": ["cgroup_id"],
    "cells": ["victim_id", "kind", "occupant_id"],
    "histograms": ["cgroup_id", "lo", "hi"],
}


@dataclass(frozen=True)
class Cost:
    """What measuring cost.

    :param switches: context switches that the program was called for.
    :param kernel_ns: run time of all its hooks together; None where the kernel's statistics are not permitted.
    :param user_ns: CPU time of the process that reads the maps.
    :param cpus: CPUs online.
    :param checks_ns: run time of other programs that were loaded for a moment, to check this one.
    """

    switches: int = 0
    kernel_ns: int | None = None
    user_ns: int = 0
    cpus: int = 1
    checks_ns: int = 0

    @property
    def ns_per_switch(self) -> float | None:
        """Nanoseconds of all hooks per context switch; None where not permitted, or nothing was switched."""
        return None if self.kernel_ns is None or not self.switches else self.kernel_ns / self.switches

    def cpu_share(self, seconds: float) -> float | None:
        """Share of the machine's CPU time over so many seconds (0.0 to 1.0): hooks, checks and reader; where the kernel's
        statistics are not permitted, of the reader alone. None if no time went by."""
        if seconds <= 0:
            return None
        return ((self.kernel_ns or 0) + self.checks_ns + self.user_ns) / (seconds * 1e9 * self.cpus)

    def since(self, older: Cost) -> Cost:
        """What came after ``older``."""
        known = self.kernel_ns is not None and older.kernel_ns is not None
        kernel_ns = self.kernel_ns - older.kernel_ns if known else None  # type: ignore[operator]
        return Cost(
            self.switches - older.switches,
            kernel_ns,
            self.user_ns - older.user_ns,
            self.cpus,
            self.checks_ns - older.checks_ns,
        )


@dataclass(frozen=True)
class Room:
    """How full the program's tables are, and what they cost.

    :param entries: table -> entries in use.
    :param limits: table -> entries that it has room for.
    :param map_bytes: kernel memory of all maps; None where the kernel does not tell.
    """

    entries: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    map_bytes: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """What the program's maps held at one moment, by cgroup id, with names.

    :param taken_ns: when, on CLOCK_MONOTONIC.
    :param seconds: how long was measured.
    :param mode: ``live`` or ``replay``.
    :param kernel: release of the kernel that was measured.
    :param cgroups: one row per cgroup that was seen: ``cgroup_id``, ``waits``, ``wait_ns`` (sum of its tasks' waits; equals
        what ``run_delay`` of its tasks grew by), of which ``throttled_ns`` (under a quota) and ``steal_ns`` (taken by the
        hypervisor or interrupts), and ``migrated_ns`` (the part that came before the waiting task was moved to another
        CPU); ``involuntary_switches``; ``run_ns`` (its tasks held a CPU, up to the last time that another cgroup got it).
        All uint64. Cgroups that found no place in the program's tables are one row of id 0.
    :param cells: ``victim_id``, ``kind`` (one of :data:`KINDS`), ``occupant_id`` (0 unless ``kind`` is ``cgroup``),
        ``wait_ns`` (of the victim's wait, how much went by while this one held the CPU), ``preemptions`` (how often it took
        the CPU from the victim). A victim's ``wait_ns`` add up to its ``wait_ns`` in ``cgroups``, exactly.
    :param histograms: whole waits: ``cgroup_id``, ``lo``, ``hi`` (ns, ``lo <= wait < hi``), ``count``; eight buckets to the
        octave, empty ones left out. A wait that was broken by a migration is one wait.
    :param names: ``cgroup_id``, ``cgroup`` (path), ``name``, ``kind``, ``namespace``, ``pod``, ``container``, ``owner``
        (``system``, ``workload`` or ``unknown``), ``alive``.
    :param ledger: what was seen and lost.
    :param cost: what measuring cost.
    :param rules: which rule was chosen for what, in words, where the kernel leaves a choice.
    :param noted: further counts of the program's: what is in the results in part, such as ``missed_waits``, ``missed_ns``,
        ``cgroups_full`` (the notes of the ledger in ``bpf/noisy_neighbor.c``). Empty where nobody counted.
    :param room: how full its tables were at the end.
    """

    taken_ns: int
    seconds: float
    mode: Mode
    kernel: str
    cgroups: pd.DataFrame
    cells: pd.DataFrame
    histograms: pd.DataFrame
    names: pd.DataFrame
    ledger: Ledger
    cost: Cost = field(default_factory=Cost)
    rules: tuple[str, ...] = ()
    noted: Mapping[str, int] = field(default_factory=dict)
    room: Room = field(default_factory=Room)


def empty(frame: str) -> pd.DataFrame:
    """A frame of a snapshot without rows, with its columns and dtypes.

    >>> list(empty("cells").columns)
    ['victim_id', 'kind', 'occupant_id', 'wait_ns', 'preemptions']
    """
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in SCHEMAS[frame].items()})


def between(older: Snapshot, newer: Snapshot) -> Snapshot:
    """What came after ``older`` and up to ``newer``, of one loaded program. Rows in which nothing happened are left out.

    :raises ParameterError: if ``newer`` is not the later one, or a count is smaller in it: they are not of one program.
    """
    if newer.taken_ns < older.taken_ns:
        raise ParameterError(
            "these snapshots are in the wrong order", remedy="between(older, newer) takes the older one first"
        )
    forgotten = set(older.names["cgroup_id"]) - set(newer.names["cgroup_id"])
    frames = {
        name: _difference(name, _without(forgotten, getattr(older, name)), getattr(newer, name))
        for name in ("cgroups", "cells", "histograms")
    }
    return replace(
        newer,
        seconds=(newer.taken_ns - older.taken_ns) / 1e9,
        ledger=_ledger_since(older.ledger, newer.ledger),
        cost=newer.cost.since(older.cost),
        noted={name: count - older.noted.get(name, 0) for name, count in newer.noted.items()},
        **frames,
    )


def _without(forgotten: set[int], frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as if these cgroups, which died long ago, had been part of the row of id 0 already."""
    if not forgotten:
        return frame
    frame = frame.copy()
    for column in ("cgroup_id", "victim_id", "occupant_id"):
        if column in frame:
            gone = frame[column].isin(list(forgotten))
            frame.loc[gone, column] = 0
            if column == "occupant_id":
                frame.loc[gone, "kind"] = "unknown"
    return frame


def _difference(name: str, older: pd.DataFrame, newer: pd.DataFrame) -> pd.DataFrame:
    """Rows by key, the older ones taken off. In arrays: a live table does this all the time."""
    schema, keys = SCHEMAS[name], _KEYS[name]
    counts = [column for column in schema if column not in keys]
    together = {key: np.concatenate([older[key].to_numpy(), newer[key].to_numpy()]) for key in keys}
    values = np.concatenate([-_matrix(older, counts), _matrix(newer, counts)])
    if not len(values):
        return newer
    codes = [_codes(together[key], schema[key]) for key in keys]
    order = np.lexsort(codes[::-1])
    new_row = np.ones(len(order), bool)
    new_row[1:] = np.any([code[order][1:] != code[order][:-1] for code in codes], axis=0)
    starts = np.flatnonzero(new_row)
    grown = np.add.reduceat(values[order], starts, axis=0)
    if (grown < 0).any():
        raise ParameterError(
            f"{name}: a count is smaller in the newer snapshot",
            why="the two are not of one loaded program",
            remedy="take both from the same Watch; if `labkit noisy` says this, start it again, and report it with what "
            "`./task doctor` prints",
        )
    kept = grown.any(axis=1)
    first = order[starts][kept]
    columns = {key: pd.Series(together[key][first], dtype=schema[key]) for key in keys}
    columns |= {count: pd.Series(grown[kept, n], dtype=schema[count]) for n, count in enumerate(counts)}
    return pd.DataFrame({column: columns[column] for column in schema})


def _codes(keys: np.ndarray, dtype: str) -> np.ndarray:
    return np.unique(keys.astype(object if dtype == "str" else dtype), return_inverse=True)[1]


def _matrix(frame: pd.DataFrame, columns: list[str]) -> np.ndarray:
    return np.stack([frame[column].to_numpy().astype(np.int64) for column in columns], axis=1)


def _ledger_since(older: Ledger, newer: Ledger) -> Ledger:
    fields: dict[str, Any] = {
        "seen": newer.seen - older.seen,
        "delivered": newer.delivered - older.delivered,
        "losses": {cause: count - older.losses.get(cause, 0) for cause, count in newer.losses.items()},
    }
    fields["counted"] = {words: count - older.counted.get(words, 0) for words, count in newer.counted.items()}
    if newer.unseen is not None:
        fields["unseen"] = newer.unseen - (older.unseen or 0)
    return replace(newer, **fields)

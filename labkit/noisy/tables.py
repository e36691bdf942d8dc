"""The maps of ``bpf/noisy_neighbor.c`` as frames, by cgroup id; and places of dead cgroups given to new ones.

In the kernel a cgroup is an index, handed out of a queue when its first task is seen. When a cgroup is gone, its index
rests for a while (a wait that began before may still be charged to it), then its sums move into the memory of this process,
and the index goes back into the queue. So the tables stay as large as they were, however many cgroups come and go.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from labkit import bpfsys, histogram
from labkit.program import Program
from labkit.sched.state import KINDS

__all__ = ["Tables"]

IDLE, UNKNOWN = 0, 1
_FIELDS = 8  # u64 members of struct lk_cgroup before its histogram
_WAIT, _THROTTLED, _STEAL, _UNKNOWN_NS, _MIGRATED, _INVOLUNTARY, _THROTTLED_OUTS, _RUN = range(_FIELDS)
_CGROUP_KIND, _IDLE_KIND, _UNKNOWN_KIND = (KINDS.index(kind) for kind in ("cgroup", "idle", "unknown"))
#: How long the index of a dead cgroup rests, by how full the table is: relaxed, three quarters full, nearly full.
REST_S = (60.0, 5.0, 1.0)
_CROWDED, _FULL = 0.75, 0.9
#: So many dead cgroups keep rows of their own; older ones are added up in the row of id 0.
MOST_DEAD = 1000


@dataclass
class _Sums:
    """Sums of one cgroup and of its pairs, as they stood when its index was taken back."""

    fields: np.ndarray
    waits: np.ndarray


@dataclass
class Tables:
    """Reads one loaded program's tables.

    :param rest_s: how long indexes of dead cgroups rest before they are used again; None chooses by how full the table is.
    """

    program: Program
    rest_s: float | None = None
    _ids: dict[int, int] = field(default_factory=dict)  # index -> cgroup id, resting ones too
    _resting: dict[int, float] = field(default_factory=dict)  # index -> since when
    _dead: dict[int, _Sums] = field(default_factory=dict)  # cgroup id -> sums
    _untold: dict[int, int] = field(
        default_factory=dict
    )  # cgroup id -> involuntary switches by nobody in particular
    _dead_cells: dict[tuple[int, str, int], np.ndarray] = field(default_factory=dict)
    _far: int = 0  # pairs in the table of further cgroups, when it was last read

    def __post_init__(self) -> None:
        params = self.program.params
        self.room = params["cgroups"]
        shards, dense_shards, dense = params["shards"], params["dense_shards"], params["dense"]
        words = self.program.maps["cgroups"].mapped().view(np.uint64)
        self._cgroups = words.reshape(shards, self.room, _FIELDS + histogram.WAIT_SLOTS)
        self._pairs = self.program.maps["pairs"].mapped().view(np.uint64)
        self._pairs = self._pairs.reshape(dense_shards, dense, dense, 2)

    @property
    def occupancy(self) -> pd.Series:
        """How full the tables were when they were last read: ``in_use``, ``resting``, ``room`` (indexes), ``cells``,
        ``dead`` (remembered here)."""
        in_use = len(self._ids) - len(self._resting)
        counts = [in_use, len(self._resting), self.room - 2, self._far, len(self._dead)]
        return pd.Series(counts, index=["in_use", "resting", "room", "cells", "dead"])

    @property
    def crowded(self) -> bool:
        """Are three quarters of the places taken?"""
        return len(self._ids) >= _CROWDED * (self.room - 2)

    def ids(self) -> set[int]:
        """Ids of all cgroups that have a place now."""
        keys, values = self.program.maps["known"].raw()
        found = dict(
            zip(
                values.reshape(-1, 4).view(np.uint32)[:, 0].tolist(),
                keys.view(np.uint64)[:, 0].tolist(),
                strict=True,
            )
        )
        self._ids.update(found)
        return {identity for index, identity in self._ids.items() if index not in self._resting}

    def born(self) -> list[tuple[int, str]]:
        """Id and path of cgroups of the cgroup2 tree that were made since this was last asked: some are gone by now."""
        entries = self.program.maps["born"].drain()
        return [
            (int.from_bytes(entry[:8], sys.byteorder), os.fsdecode(entry[8:].partition(b"\0")[0]))
            for entry in entries
        ]

    def totals(self) -> pd.Series:
        """``wait_ns`` by cgroup id, as the program sums it beside its parts (which it equals when nothing changes)."""
        ids = pd.Series({UNKNOWN: 0, **self._ids})
        total = pd.Series(self._cgroups[:, ids.index, _WAIT].sum(axis=0), index=ids.to_numpy(np.uint64))
        dead = pd.Series({i: int(s.fields[_WAIT]) for i, s in self._dead.items()}, dtype="uint64")
        return pd.concat([total, dead]).groupby(level=0).sum()

    def frames(self) -> dict[str, pd.DataFrame]:
        """``cgroups``, ``cells`` and ``histograms`` as :class:`~labkit.sched.state.Snapshot` has them.

        While the program is attached the tables change as they are read. ``wait_ns`` is therefore the sum of its parts as
        they were read, and ``waits`` the sum of the histogram, so that a snapshot always agrees with itself.
        """
        # Pairs first: whoever is in them is known by the time that the ids are read. The other way round, a cgroup that was
        # new in between would count as unknown now, and as itself later.
        pairs = self._raw_pairs()
        self.ids()
        indexes = np.array([UNKNOWN, *sorted(self._ids)], dtype=np.int64)
        ids = np.array([0, *(self._ids[i] for i in indexes[1:].tolist())], dtype=np.uint64)
        sums = self._cgroups[:, indexes].sum(axis=0)
        fields, waits = sums[:, :_FIELDS], sums[:, _FIELDS:]
        if self._dead:
            ids = np.concatenate([ids, np.array(list(self._dead), dtype=np.uint64)])
            fields = np.concatenate([fields, np.stack([s.fields for s in self._dead.values()])])
            waits = np.concatenate([waits, np.stack([s.waits for s in self._dead.values()])])
        ids, fields, waits = _by_id(ids, fields, waits)
        cells = self._cells(pairs, ids, fields)
        return {
            "cgroups": _cgroup_frame(ids, fields, waits, cells),
            "cells": cells.frame(),
            "histograms": _histogram_frame(ids, waits),
        }

    # -- pairs -------------------------------------------------------------------------------------------------------

    def _raw_pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Victim index, occupant index, (n, 2): wait_ns and preemptions; of both tables."""
        dense = self._pairs.sum(axis=0)
        victims, occupants = np.nonzero(dense.any(axis=2))
        keys, values = self.program.maps["cells"].raw()
        self._far = len(keys)
        packed = np.ascontiguousarray(keys).view(np.uint64)[:, 0]
        far = np.ascontiguousarray(values[:, 0]).view(np.uint64).reshape(-1, 2)
        return (
            np.concatenate([victims, (packed >> np.uint64(32)).astype(np.int64)]),
            np.concatenate([occupants, (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)]),
            np.concatenate([dense[victims, occupants], far]),
        )

    def _cells(
        self, pairs: tuple[np.ndarray, np.ndarray, np.ndarray], ids: np.ndarray, fields: np.ndarray
    ) -> _Cells:
        """All cells, each victim, kind and occupant once, ordered by them."""
        victims, occupants, values = pairs
        victim_ids, occupant_ids = self._identities(victims), self._identities(occupants)
        told = _sum_by(ids, victim_ids, values[:, 1])
        for (victim, _, _), count in self._dead_cells.items():
            told[np.searchsorted(ids, np.uint64(victim))] += count[1]
        parts = [
            _Cells(
                victim_ids,
                np.where(occupants == IDLE, _IDLE_KIND, _CGROUP_KIND),
                occupant_ids,
                values[:, 0],
                values[:, 1],
            ),
            *_own_cells(ids, fields, self._rest_of(ids, fields, told)),
        ]
        if self._dead_cells:
            keys, counts = list(self._dead_cells), np.stack(list(self._dead_cells.values()))
            parts.append(
                _Cells(
                    np.array([k[0] for k in keys], np.uint64),
                    np.array([KINDS.index(k[1]) for k in keys]),
                    np.array([k[2] for k in keys], np.uint64),
                    counts[:, 0],
                    counts[:, 1],
                )
            )
        return _joined(parts)

    def _rest_of(self, ids: np.ndarray, fields: np.ndarray, told: np.ndarray) -> np.ndarray:
        """Involuntary switches by nobody in particular: what could not be told.

        The pairs are read a moment after the sums, so this may seem to shrink while tasks run; it never does.
        """
        involuntary, by_someone = fields[:, _INVOLUNTARY], told + fields[:, _THROTTLED_OUTS]
        rest = np.where(involuntary > by_someone, involuntary - by_someone, 0)
        most = [
            max(now, self._untold.get(identity, 0))
            for identity, now in zip(ids.tolist(), rest.tolist(), strict=True)
        ]
        self._untold = {identity: count for identity, count in zip(ids.tolist(), most, strict=True) if count}
        return np.array(most, dtype=np.uint64)

    def _identities(self, indexes: np.ndarray) -> np.ndarray:
        return np.array([self._ids.get(index, 0) for index in indexes.tolist()], dtype=np.uint64)

    # -- places that come free ---------------------------------------------------------------------------------------

    def retire(self, gone: Collection[int]) -> int:
        """Take back the places of cgroups that are gone.

        :param gone: ids of cgroups that are known not to exist any more. One that merely has no name yet is not among them.
        :returns: how many places were given back to the program.
        """
        now = time.monotonic()
        for index, identity in list(self._ids.items()):
            if identity in gone and index not in self._resting:
                self._resting[index] = now
                bpfsys.map_delete(self.program.maps["known"].fd, np.array([identity], np.uint64))
        rest = self._rest()
        ready = [index for index, since in self._resting.items() if now - since >= rest]
        if ready:
            self._take_back(np.array(ready, dtype=np.int64))
        return len(ready)

    def _rest(self) -> float:
        if self.rest_s is not None:
            return self.rest_s
        share = len(self._ids) / (self.room - 2)
        return REST_S[0] if share < _CROWDED else REST_S[1] if share < _FULL else REST_S[2]

    def _take_back(self, indexes: np.ndarray) -> None:
        """Move their sums here, empty their places, and hand them out anew."""
        sums = self._cgroups[:, indexes].sum(axis=0)
        for index, row in zip(indexes.tolist(), sums, strict=True):
            self._bury(self._ids[index], _Sums(row[:_FIELDS].copy(), row[_FIELDS:].copy()))
        self._cgroups[:, indexes] = 0
        victims, occupants, values = self._raw_pairs()
        gone = np.isin(victims, indexes) | np.isin(occupants, indexes)
        for victim, occupant, value in zip(
            victims[gone].tolist(), occupants[gone].tolist(), values[gone], strict=True
        ):
            kind = "idle" if occupant == IDLE else "cgroup"
            key = (self._ids.get(victim, 0), kind, self._ids.get(occupant, 0))
            self._dead_cells[key] = self._dead_cells.get(key, 0) + value
        self._empty_pairs(indexes, victims[gone], occupants[gone])
        vacant = self.program.maps["vacant"]
        ones = np.ones(1, np.uint32)
        bpfsys.map_update(self.program.maps["epoch"].fd, ones, np.array([time.monotonic_ns()], np.uint64))
        for index in indexes.tolist():
            del self._ids[index], self._resting[index]
            vacant.push(index)
        self._forget()

    def _empty_pairs(self, indexes: np.ndarray, victims: np.ndarray, occupants: np.ndarray) -> None:
        near = indexes[indexes < self._pairs.shape[1]]
        self._pairs[:, near] = 0
        self._pairs[:, :, near] = 0
        far = (victims >= self._pairs.shape[1]) | (occupants >= self._pairs.shape[1])
        cells = self.program.maps["cells"].fd
        keys = (victims[far].astype(np.uint64) << np.uint64(32)) | occupants[far].astype(np.uint64)
        for key in keys:
            bpfsys.map_delete(cells, np.array([key], np.uint64))

    def _bury(self, identity: int, sums: _Sums) -> None:
        before = self._dead.pop(identity, None)  # the youngest last
        if before is not None:
            sums = _Sums(sums.fields + before.fields, sums.waits + before.waits)
        self._dead[identity] = sums

    def _forget(self) -> None:
        """Let the oldest dead go: they are one row of id 0 from then on, and as occupants they are unknown."""
        many = len(self._dead) - (0 in self._dead) - MOST_DEAD
        if many <= 0:
            return
        gone = set([identity for identity in self._dead if identity][:many])
        for identity in gone:
            sums = self._dead.pop(identity)
            self._bury(0, sums)
            self._untold[0] = self._untold.get(0, 0) + self._untold.pop(identity, 0)
        for key in [k for k in self._dead_cells if k[0] in gone or k[2] in gone]:
            value = self._dead_cells.pop(key)
            victim, kind, occupant = key
            new = (
                0 if victim in gone else victim,
                "unknown" if occupant in gone else kind,
                0 if occupant in gone else occupant,
            )
            self._dead_cells[new] = self._dead_cells.get(new, 0) + value


def _by_id(
    ids: np.ndarray, fields: np.ndarray, waits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row per id: a cgroup can have had two places, one after the other."""
    unique, inverse = np.unique(ids, return_inverse=True)
    if len(unique) == len(ids):
        order = np.argsort(ids)
        return ids[order], fields[order], waits[order]
    joined = np.zeros((len(unique), fields.shape[1]), np.uint64)
    counts = np.zeros((len(unique), waits.shape[1]), np.uint64)
    np.add.at(joined, inverse, fields)
    np.add.at(counts, inverse, waits)
    return unique, joined, counts


@dataclass(frozen=True)
class _Cells:
    """Columns of ``cells`` as arrays; kinds are places in :data:`~labkit.sched.state.KINDS`."""

    victims: np.ndarray
    kinds: np.ndarray
    occupants: np.ndarray
    wait_ns: np.ndarray
    preemptions: np.ndarray

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "victim_id": self.victims,
                "kind": pd.Series(np.array(KINDS, dtype=object)[self.kinds], dtype="str"),
                "occupant_id": self.occupants,
                "wait_ns": self.wait_ns,
                "preemptions": self.preemptions,
            }
        )


def _sum_by(ids: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of values by key, in the order of ``ids`` (sorted, and every key among them)."""
    total = np.zeros(len(ids), np.uint64)
    np.add.at(total, np.searchsorted(ids, keys), values)
    return total


def _joined(parts: list[_Cells]) -> _Cells:
    victims, kinds, occupants, wait_ns, preemptions = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("victims", "kinds", "occupants", "wait_ns", "preemptions")
    )
    kinds = np.where((kinds == _CGROUP_KIND) & (occupants == 0), _UNKNOWN_KIND, kinds)
    order = np.lexsort((occupants, kinds, victims))
    victims, kinds, occupants = victims[order], kinds[order], occupants[order]
    new = np.ones(len(order), bool)
    new[1:] = (victims[1:] != victims[:-1]) | (kinds[1:] != kinds[:-1]) | (occupants[1:] != occupants[:-1])
    starts = np.flatnonzero(new)
    if not len(starts):
        return _Cells(victims, kinds, occupants, wait_ns, preemptions)
    return _Cells(
        victims[starts],
        kinds[starts],
        occupants[starts],
        np.add.reduceat(wait_ns[order], starts),
        np.add.reduceat(preemptions[order], starts),
    )


def _own_cells(ids: np.ndarray, fields: np.ndarray, rest: np.ndarray) -> list[_Cells]:
    """What the program keeps beside the pairs: throttled, stolen and unknown time."""
    by_quota = fields[:, _THROTTLED_OUTS]
    nothing = np.zeros(len(ids), np.uint64)
    parts = []
    for kind, column, count in (
        ("throttled", _THROTTLED, by_quota),
        ("steal", _STEAL, nothing),
        ("unknown", _UNKNOWN_NS, rest),
    ):
        there = (fields[:, column] > 0) | (count > 0)
        kinds = np.full(int(there.sum()), KINDS.index(kind))
        parts.append(_Cells(ids[there], kinds, nothing[there], fields[there, column], count[there]))
    return parts


def _cgroup_frame(ids: np.ndarray, fields: np.ndarray, waits: np.ndarray, cells: _Cells) -> pd.DataFrame:
    columns = {
        "waits": waits.sum(axis=1),
        "wait_ns": _sum_by(ids, cells.victims, cells.wait_ns),
        "throttled_ns": fields[:, _THROTTLED],
        "steal_ns": fields[:, _STEAL],
        "migrated_ns": fields[:, _MIGRATED],
        "involuntary_switches": _sum_by(ids, cells.victims, cells.preemptions),
        "run_ns": fields[:, _RUN],
    }
    busy = np.any(list(columns.values()), axis=0)
    return pd.DataFrame({"cgroup_id": ids[busy], **{name: values[busy] for name, values in columns.items()}})


def _histogram_frame(ids: np.ndarray, waits: np.ndarray) -> pd.DataFrame:
    lo, hi = histogram.wait_edges()
    rows, slots = np.nonzero(waits)
    return pd.DataFrame(
        {"cgroup_id": ids[rows], "lo": lo[slots], "hi": hi[slots], "count": waits[rows, slots]}
    )

"""From snapshots to series: counters that never go back, bounded in number, and none that long outlives its cgroup.

Each snapshot adds what came since the one before, cgroup by cgroup, to the series that the cgroup belongs to at that
moment. So a series stays true when a cgroup dies, when the kernel's table starts anew, when a better name arrives (the
Kubernetes API answered at last), and when two cgroups share their labels (a container that was restarted).

There are at most ``max_cgroups`` series, for those that wait most (:mod:`labkit.metrics.seats`); the others add up in
one *overflow* series. A series is removed ``keep_s`` after the last of its cgroups died: until then it stands still, a
tombstone, so that the last increase is seen by whoever scrapes. If others need the room, one that has not moved for as
long makes way, and so does one that waits clearly less than another. A series that comes back begins at 0, which is what
Prometheus takes for the new beginning that it is.

A series that begins while somebody scrapes is shown once at 0: from its first true value alone, ``rate()`` and
``increase()`` could not tell what it grew by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from labkit.errors import ParameterError
from labkit.metrics.labels import REST, Labels, occupant_label
from labkit.metrics.seats import SETTLED_S, Seats
from labkit.metrics.table import CAUSES, Layout, Table, add_cells, coded, grown_cells, tabulate, without
from labkit.sched.state import Snapshot

__all__ = ["Book", "Limits", "Series"]

Key = tuple[str, ...]

#: Of so many occupants without a label the heat is remembered, for each victim; beyond, the coldest half is forgotten.
_MOST_REMEMBERED = 128


@dataclass(frozen=True)
class Limits:
    """How much may be exposed.

    :param max_cgroups: series of victims, beside the overflow.
    :param max_occupants: occupants named per victim, beside the rest.
    :param keep_s: for how long a series stays after the last of its cgroups died.
    """

    max_cgroups: int = 200
    max_occupants: int = 5
    keep_s: float = 300.0

    def __post_init__(self) -> None:
        if self.max_cgroups < 1 or self.max_occupants < 0 or not self.keep_s >= 0:
            raise ParameterError(
                "these limits leave nothing to expose",
                why=f"max_cgroups {self.max_cgroups}, max_occupants {self.max_occupants}, keep_s {self.keep_s}",
                remedy="at least 1 cgroup, 0 occupants and 0 seconds",
            )


@dataclass
class Series:
    """What one victim's series hold.

    :ivar values: counters, columns as in the layout.
    :ivar occupants: wait in ns charged to each named occupant, and to the rest.
    :ivar members: ids of the cgroups that are part of it now.
    :ivar unshown: it is to be shown at 0 once; ``unshown_occupants`` are those of its occupants that are.
    """

    key: Key
    values: np.ndarray
    occupants: dict[str, int] = field(default_factory=dict)
    members: list[int] = field(default_factory=list)
    alive: bool = True
    seen_s: float = 0.0
    moved_s: float = 0.0
    occupant_moved_s: dict[str, float] = field(default_factory=dict)
    seats: Seats[str] = field(default_factory=Seats)
    unshown: bool = False
    unshown_occupants: set[str] = field(default_factory=set)

    @property
    def shown_values(self) -> np.ndarray:
        """The values as they are to be exposed now."""
        return np.zeros_like(self.values) if self.unshown else self.values

    @property
    def shown_occupants(self) -> list[tuple[str, int]]:
        """Occupants and their ns, as they are to be exposed now."""
        hidden = self.occupants if self.unshown else self.unshown_occupants
        return [(who, 0 if who in hidden else ns) for who, ns in sorted(self.occupants.items())]


class Book:
    """All series, brought forward by :meth:`advance`.

    :ivar overflow: the series of those without one.
    :ivar overflow_cgroups: how many cgroups add to it now.
    :ivar overflow_total: how often a cgroup was put there.
    :ivar replaced: how often a series was removed for another that waited clearly more.
    :ivar corrections: how often a counter of the kernel's went back without having started anew; it was held.
    """

    def __init__(self, labels: Labels, limits: Limits | None = None, layout: Layout | None = None) -> None:
        self.labels = labels
        self.limits = limits or Limits()
        self.layout = layout or Layout()
        self.overflow = Series(labels.overflow, self._nothing())
        self.overflow_cgroups = 0
        self.overflow_total = 0
        self.replaced = 0
        self.corrections = 0
        self._overflowed: set[int] = set()
        self._series: dict[Key, Series] = {}
        self._seats: Seats[Key] = Seats()
        self._table: Table | None = None
        self._cells: pd.DataFrame | None = None
        self._settled = True
        self._watched = False

    @property
    def series(self) -> list[Series]:
        """Those with labels of their own, in the order of their labels."""
        return [self._series[key] for key in sorted(self._series)]

    @property
    def exposed(self) -> list[Series]:
        """All of :attr:`series`, and the overflow once it holds anything."""
        return [*self.series, *([self.overflow] if self.overflow.values.any() else [])]

    def members(self) -> np.ndarray:
        """Ids (uint64) of all cgroups that have a series of their own."""
        return np.array([one for s in self._series.values() for one in s.members], dtype=np.uint64)

    def shown(self) -> None:
        """Somebody has been given all that is exposed now. From here on, what is new begins at 0."""
        self._watched = True
        for series in (*self._series.values(), self.overflow):
            series.unshown = False
            series.unshown_occupants.clear()

    def advance(self, snapshot: Snapshot) -> None:
        """Add what came since the snapshot before; of the first one, all that it holds."""
        now = snapshot.taken_ns / 1e9
        self._settled = self._table is None and snapshot.seconds >= SETTLED_S
        table = tabulate(snapshot, self.layout)
        gone = self._forgotten(table, snapshot.cells)
        grown, anew = self._grown(table, gone)
        cells = self._cells_grown(snapshot.cells, anew, gone)
        victims, _ = table.rows_of(cells["victim_id"].to_numpy(np.uint64))
        add_cells(grown, victims, cells, self.layout, snapshot.names)
        keys = self.labels.of(snapshot.names, table.ids)
        alive = _alive(snapshot.names, table.ids)
        # A row that moves is there, whatever its name says: what nobody could name has no cgroup to be alive.
        alive = alive | (grown != 0).any(axis=1)
        self._retire(keys, alive, now)
        self._admit(keys, grown, now)
        self._add(table, keys, grown, alive, now)
        self._add_occupants(cells, victims, keys, snapshot.names, now)
        self._table = table

    def _nothing(self) -> np.ndarray:
        return np.zeros(len(self.layout.columns), dtype=np.int64)

    def _forgotten(self, table: Table, cells: pd.DataFrame) -> np.ndarray:
        """Ids that were there before and are nowhere now. The program's reader forgets those that died long ago: their
        counts, which we have had, are part of the row of id 0 from then on."""
        if self._table is None:
            return np.zeros(0, np.uint64)
        left = np.setdiff1d(self._table.ids, table.ids)
        return np.setdiff1d(left, cells["occupant_id"].to_numpy(np.uint64))

    def _grown(self, table: Table, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each row grew by, and the ids of those that started anew: their number of waits fell, and all is new."""
        if self._table is None or not len(self._table.ids):
            return table.values.copy(), table.ids
        at, known = self._table.rows_of(table.ids)
        before = np.where(known[:, None], self._table.values[at], 0)
        if len(gone) and len(table.ids) and table.ids[0] == 0:
            moved = before[0] + self._table.values[self._table.rows_of(gone)[0]].sum(axis=0)
            if table.values[0, 0] >= moved[0]:
                before[0] = moved
        anew = table.values[:, 0] < before[:, 0]
        grown = table.values - np.where(anew[:, None], 0, before)
        back = grown < 0
        if back.any():
            self.corrections += int(back.sum())
            table.values[back] = before[back]  # held where it was, until the kernel's own has caught up
            grown[back] = 0
        return grown, table.ids[anew]

    def _cells_grown(self, cells: pd.DataFrame, anew: np.ndarray, gone: np.ndarray) -> pd.DataFrame:
        now = coded(cells)
        before = now.iloc[:0] if self._cells is None else without(self._cells, gone)
        grown, self._cells = grown_cells(before, now, anew)
        return grown

    def _retire(self, keys: list[Key], alive: np.ndarray, now: float) -> None:
        """Remove series whose cgroups have been dead for long enough."""
        present = {key for key, living in zip(keys, alive.tolist(), strict=True) if living}
        for key, series in list(self._series.items()):
            series.alive = key in present
            if series.alive:
                series.seen_s = now
            elif now - series.seen_s >= self.limits.keep_s:
                del self._series[key]

    def _admit(self, keys: list[Key], grown: np.ndarray, now: float) -> None:
        """Give series to those that have none and did something, those that wait most first."""
        wait = grown[:, self.layout.column("wait_ns")]
        wanting: set[Key] = set()
        waited: dict[Key, int] = {}
        for row in np.flatnonzero(grown.any(axis=1)).tolist():
            key = keys[row]
            waited[key] = waited.get(key, 0) + int(wait[row])
            if key not in self._series:
                wanting.add(key)
        self._seats.keep({*keys, *self._series})
        self._seats.warm(waited, now)
        admitted, leaving = self._seats.choose(
            wanting,
            self._series,
            places=self.limits.max_cgroups,
            now=now,
            settled=self._settled,
            idle={key for key, s in self._series.items() if now - s.moved_s >= self.limits.keep_s},
        )
        self.replaced += len(leaving)
        for key in leaving:
            del self._series[key]
        for key in admitted:
            self._series[key] = Series(key, self._nothing(), seen_s=now, moved_s=now, unshown=self._watched)

    def _add(self, table: Table, keys: list[Key], grown: np.ndarray, alive: np.ndarray, now: float) -> None:
        for series in self._series.values():
            series.members = []
        moving: list[bool] = (grown != 0).any(axis=1).tolist()
        overflowed: set[int] = set()
        rows: list[int] = []
        for row, (id_, key) in enumerate(zip(table.ids.tolist(), keys, strict=True)):
            mine = self._series.get(key)
            if mine is None:
                if moving[row]:
                    rows.append(row)
                if moving[row] or (alive[row] and id_ in self._overflowed):
                    overflowed.add(id_)
                continue
            mine.members.append(id_)
            if moving[row]:
                mine.values += grown[row]
                mine.moved_s = now
        if rows:
            if self._watched and not self.overflow.values.any():
                self.overflow.unshown = True
            self.overflow.values += grown[rows].sum(axis=0)
        self.overflow_total += len(overflowed - self._overflowed)
        self.overflow_cgroups = len(overflowed)
        self._overflowed = overflowed

    def _add_occupants(
        self, cells: pd.DataFrame, victims: np.ndarray, keys: list[Key], names: pd.DataFrame, now: float
    ) -> None:
        seated = np.array([key in self._series for key in keys], dtype=bool)
        wanted = (cells["cause"] == CAUSES.index("foreign")).to_numpy() & (cells["wait_ns"] > 0).to_numpy()
        wanted &= seated[victims] if len(victims) else False
        mine = cells[wanted]
        labels = _occupant_names(names, mine["occupant_id"].to_numpy(np.uint64))
        added: dict[Key, dict[str, int]] = {}
        for row, occupant, wait in zip(
            victims[wanted].tolist(), mine["occupant_id"].tolist(), mine["wait_ns"].tolist(), strict=True
        ):
            label = labels.get(occupant, "unknown")
            of_victim = added.setdefault(keys[row], {})
            of_victim[label] = of_victim.get(label, 0) + wait
        for key, of_victim in added.items():
            self._charge(self._series[key], of_victim, now)

    def _charge(self, series: Series, added: Mapping[str, int], now: float) -> None:
        """Those that cost most have a label of their own; what one that loses it has cost is not told any more."""
        moved = series.occupant_moved_s
        series.seats.warm(added, now)
        admitted, leaving = series.seats.choose(
            [label for label in added if label not in moved],
            moved,
            places=self.limits.max_occupants,
            now=now,
            settled=self._settled,
            idle={label for label, last in moved.items() if now - last >= self.limits.keep_s},
        )
        for label in leaving:
            del moved[label], series.occupants[label]
            series.unshown_occupants.discard(label)
        for label, wait in added.items():
            shown_as = label if label in moved or label in admitted else REST
            if shown_as not in series.occupants and self._watched:
                series.unshown_occupants.add(shown_as)
            series.occupants[shown_as] = series.occupants.get(shown_as, 0) + wait
            if shown_as != REST:
                moved[label] = now
        if len(series.seats) > _MOST_REMEMBERED + self.limits.max_occupants:
            series.seats.keep({*series.seats.hottest(_MOST_REMEMBERED // 2), *moved})


def _alive(names: pd.DataFrame, ids: np.ndarray) -> np.ndarray:
    """Whether each cgroup lives; one without a name does as long as the kernel's table has it."""
    known = names.drop_duplicates("cgroup_id", keep="last").set_index("cgroup_id")["alive"]
    found: Any = known.reindex(ids)
    return np.asarray(found.astype("object").where(found.notna(), True).astype(bool))


def _occupant_names(names: pd.DataFrame, ids: np.ndarray) -> dict[int, str]:
    wanted = names[np.isin(names["cgroup_id"].to_numpy(np.uint64), np.unique(ids))]
    columns = [wanted[column].tolist() for column in ("namespace", "pod", "container", "name")]
    labels = [occupant_label(*(str(part) for part in parts)) for parts in zip(*columns, strict=True)]
    return dict(zip(wanted["cgroup_id"].tolist(), labels, strict=True))

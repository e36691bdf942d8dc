"""Recordings of ring events, for reading: group by group in bounded memory, or whole.

A recording is a capture (``capture.json``, see :mod:`labkit.capture`) and, beside it, one Parquet dataset per kind of
event::

    RING/KIND/part-000000.parquet, part-000001.parquet, ...

Parts of one number hold the events of one stretch of time and are one *group*. Each part appears under its name whole or
not at all, and a group counts once every kind has its part; so whatever ends the recorder, all groups but the last are
readable, by labkit and by everything else that reads Parquet. A run that was not ended in order has no ledger: only the
kernel knew what was lost, and that died with the program. Such a recording says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from labkit.capture import Capture
from labkit.errors import CaptureMismatch, MissingCapture, MissingLedger
from labkit.ledger import Ledger

__all__ = ["PART", "Group", "Recording", "Run", "read_events"]

PART = "part-{:06d}.parquet"


@dataclass(frozen=True)
class Group:
    """Events of one stretch of time, by kind.

    :param tables: kind -> its events as an Arrow table, in the order in which they were reserved in the ring.
    :param run: which run of the recorder they come from: between runs nobody looked.
    """

    tables: Mapping[str, pa.Table]
    run: int = 0

    def __len__(self) -> int:
        return sum(table.num_rows for table in self.tables.values())

    def frame(self, kind: str) -> pd.DataFrame:
        """The events of a kind as a DataFrame; columns are the members of its C struct."""
        return self.tables[kind].to_pandas()


@dataclass(frozen=True)
class Run:
    """One run of the recorder.

    :param first_group: number of its first group.
    :param received: events that it wrote; None if it did not end in order.
    :param ledger: None if it did not end in order, or the program keeps none.
    """

    label: str
    hash: str
    began: str
    first_group: int
    received: int | None
    ledger: Ledger | None


class Recording:
    """A recording of events, for reading. Iterating gives its groups, one in memory at a time.

    :raises MissingCapture: if the folder holds no recording of events.
    :raises CaptureMismatch: if it is damaged.

    >>> for group in read_events("my/recording"):           # doctest: +SKIP
    ...     group.frame("switched")
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.capture = Capture(folder)
        loads = {k: v for k, v in self.capture.data["loads"].items() if "events" in v}
        if not loads:
            raise MissingCapture(
                f"{folder} is a capture, but not of events",
                remedy="record some with `labkit record --events`",
            )
        self.runs = [_run(label, load) for label, load in loads.items()]
        first = next(iter(loads.values()))["events"]
        self.ring: str = first["ring"]
        self.kinds: list[str] = first["kinds"]

    @property
    def groups(self) -> int:
        """How many groups are whole, counted from the first without a gap."""
        number = 0
        while all(self._part(kind, number).exists() for kind in self.kinds):
            number += 1
        return number

    def _part(self, kind: str, number: int) -> Path:
        return self.folder / self.ring / kind / PART.format(number)

    def __iter__(self) -> Iterator[Group]:
        return self.select(dict.fromkeys(self.kinds))

    def select(self, columns: Mapping[str, Sequence[str] | None]) -> Iterator[Group]:
        """The groups, with only those kinds and columns read (None: all columns).

        :raises MissingCapture: if there is no such kind.
        """
        for kind in columns:
            self._check(kind)
        for number in range(self.groups):
            run = max(i for i, r in enumerate(self.runs) if r.first_group <= number)
            tables = {kind: _from_parquet(self._part(kind, number), names) for kind, names in columns.items()}
            yield Group(tables, run)

    @property
    def count(self) -> int:
        """Events in whole groups, from the files' own counts."""
        parts = (self._part(kind, number) for number in range(self.groups) for kind in self.kinds)
        return sum(_opened(part).metadata.num_rows for part in parts)

    def frame(self, kind: str) -> pd.DataFrame:
        """All events of a kind as one DataFrame; memory is that of the result and of one group."""
        self._check(kind)
        tables = [_from_parquet(self._part(kind, number)) for number in range(self.groups)]
        return (pa.concat_tables(tables) if tables else pa.table({})).to_pandas(self_destruct=True)

    def _check(self, kind: str) -> None:
        if kind not in self.kinds:
            raise MissingCapture(
                f"{self.folder} has no events of kind {kind!r}", why=f"it has: {', '.join(self.kinds)}"
            )

    @property
    def ledger(self) -> Ledger:
        """What all runs together saw and lost.

        :raises MissingLedger: if a run did not end in order: then nobody knows what it lost.
        """
        broken = [run.label for run in self.runs if run.ledger is None]
        if broken:
            raise MissingLedger(
                f"the recording at {self.folder} ended without a ledger",
                why=f"run {', '.join(broken)} was ended from outside; what it lost is not known",
                remedy="its whole groups can be read; for numbers that count, record again",
            )
        books = [run.ledger for run in self.runs if run.ledger is not None]
        causes = {cause for book in books for cause in book.losses}
        return dataclasses.replace(
            books[0],
            mode="replay",
            seen=sum(book.seen for book in books),
            delivered=sum(book.delivered for book in books),
            losses={cause: sum(book.losses.get(cause, 0) for book in books) for cause in sorted(causes)},
        )

    def describe(self) -> str:
        """A few lines for people."""
        lines = [f"{self.count:,} events in {self.groups} groups, kinds: {', '.join(self.kinds)}"]
        for run in self.runs:
            state = (
                run.ledger.describe() if run.ledger else "ended without a ledger: what it lost is not known"
            )
            lines.append(f"{run.label} from {run.began}: {state}")
        return "\n".join(lines)


def _run(label: str, load: Mapping[str, Any]) -> Run:
    about = load["events"]
    ledger = Ledger.from_dict(load["ledger"], mode="replay") if "ledger" in load else None
    return Run(label, load["hash"], about["began"], about["first_group"], about.get("received"), ledger)


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from error


def _from_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        return _opened(path).read(columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CaptureMismatch:
    return CaptureMismatch(f"{path} is damaged", why=str(error), remedy="record it again")


def read_events(folder: str | Path) -> Recording:
    """Open a recording of events; see :class:`Recording`.

    :raises MissingCapture, CaptureMismatch: if there is none, or it is damaged.
    """
    return Recording(Path(folder))

"""Ring events in bounded memory: as frames, as Arrow tables, or straight to Parquet, group by group.

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
import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from labkit.capture import Capture, Recorder, typed_parameters, write_whole
from labkit.errors import CaptureMismatch, LabkitError, MissingCapture, MissingLedger, ParameterError
from labkit.kernel import environment
from labkit.ledger import Ledger
from labkit.program import Program, load, program_hash
from labkit.ring import Batch, EventType, Ring
from labkit.spec import read

__all__ = [
    "Group",
    "Recording",
    "Run",
    "drained",
    "read_events",
    "record_command",
    "record_events",
    "stream_events",
]

_MOST_BYTES = 16 << 20  # of one read; the ring's own size bounds it too
_REST_S = 2.0  # how long CPUs may take to finish what they were doing when the program was detached
_PART = "part-{:06d}.parquet"


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


class _Pending:
    """Events that wait for their group to fill."""

    def __init__(self, kinds: list[EventType]) -> None:
        self._kinds = kinds
        self._batches: dict[str, list[Batch]] = {}
        self.count = 0

    def add(self, batches: list[Batch]) -> None:
        for batch in batches:
            self._batches.setdefault(batch.kind.name, []).append(batch)
            self.count += len(batch)

    def take(self) -> Group:
        """All that is here, as a group; kinds without events have a table without rows."""
        batches, self._batches, self.count = self._batches, {}, 0
        return Group({kind.name: _table(kind, batches.pop(kind.name, [])) for kind in self._kinds})


def _table(kind: EventType, batches: list[Batch]) -> pa.Table:
    arrays: dict[str, Any] = {}
    for column in kind.layout.columns:
        parts = [batch.columns[column.name] for batch in batches]
        shape = (0,) if column.count == 1 else (0, column.count)
        values = np.concatenate(parts) if parts else np.empty(shape, column.dtype)
        for name, series in kind.layout.series(column, values).items():
            arrays[name] = pa.array(series) if column.text else pa.array(series.to_numpy())
    return pa.table(arrays)


def stream_events(
    program: Program,
    ring: str,
    *,
    seconds: float,
    latency_s: float = 0.1,
    row_group_events: int = 1 << 20,
    group_s: float = 10.0,
    going: Callable[[], bool] | None = None,
) -> Iterator[Group]:
    """Events as they come, in groups; at the end the program is detached and what is left in the ring is read.

    Memory is bounded by the group: a consumer that is slow is not waited for with a queue, the ring fills meanwhile, and
    what does not fit is counted as lost by the program. Then ``program.ledger`` has every event: ``delivered`` is the sum
    of the groups' lengths.

    :param seconds: how long; longer while ``going()`` is true, if it is given.
    :param latency_s: how long an event may lie in the ring before it is read. Nobody is woken for an event.
    :param row_group_events: a group is handed out when it has so many events (and up to one read more),
    :param group_s: or when it is so old.
    :raises ParameterError: if a parameter makes no sense.
    :raises MapError, RingCorrupt: as :meth:`labkit.program.Program.ring` and :meth:`labkit.ring.Ring.read`.
    """
    for name, value in {"seconds": seconds, "latency_s": latency_s, "group_s": group_s}.items():
        if not value > 0:
            raise ParameterError(f"{name} must be above 0, not {value}")
    if row_group_events < 1:
        raise ParameterError(f"row_group_events must be at least 1, not {row_group_events}")
    source = program.ring(ring)
    limit = int(np.clip(row_group_events * _smallest_record(source), 1 << 16, _MOST_BYTES))
    pending = _Pending(source.kinds)
    end = time.monotonic() + seconds
    began = time.monotonic()
    while (now := time.monotonic()) < end or (going is not None and going()):
        pending.add(source.read(limit))
        if pending.count >= row_group_events or (pending.count and now - began >= group_s):
            yield pending.take()
            began = time.monotonic()
        if source.backlog_bytes < limit:  # else there is more than one read left: go on at once
            left = end - time.monotonic()
            time.sleep(latency_s if left <= 0 else min(latency_s, left))
    program.stop()
    for batches in _rest(program, source, limit):
        pending.add(batches)
        if pending.count >= row_group_events:
            yield pending.take()
    if pending.count:
        yield pending.take()


def drained(program: Program, ring: str, kind: str) -> pd.DataFrame:
    """Stop a program and return all events of one kind that still lie in its ring.

    :returns: columns and dtypes as the C struct has them, without its tag; no rows if there are none.
    """
    source = program.ring(ring)
    program.stop()
    groups = list(stream_events(program, ring, seconds=0.001))
    if not groups:
        groups = [_Pending(source.kinds).take()]
    return pd.concat([group.frame(kind) for group in groups], ignore_index=True)


def _smallest_record(ring: Ring) -> int:
    return 8 + min(kind.layout.size for kind in ring.kinds)


def _rest(program: Program, ring: Ring, limit: int) -> Iterator[list[Batch]]:
    """What is left after the program was detached. A CPU may still be in it for a moment."""
    deadline = time.monotonic() + _REST_S
    while True:
        yield ring.read(limit)
        if ring.backlog_bytes == 0 and (
            program.spec.ledger is None or program.ledger.delivered == ring.received
        ):
            return
        if time.monotonic() > deadline:
            return  # the ledger will show the difference
        if ring.backlog_bytes < limit:
            time.sleep(0.001)


def record_events(
    program: Program,
    ring: str,
    folder: str | Path,
    *,
    seconds: float,
    latency_s: float = 0.1,
    row_group_events: int = 1 << 20,
    group_s: float = 10.0,
    resume: bool = False,
    going: Callable[[], bool] | None = None,
) -> Recording:
    """Record events to Parquet, group by group, with the environment, the program's hash and its ledger beside them.

    :param folder: a recording there is overwritten, unless it is resumed.
    :param resume: go on in that folder, after a crash or in order, as a further run.
    :param seconds, latency_s, row_group_events, group_s, going: see :func:`stream_events`.
    :raises CaptureMismatch: if the recording to resume is of another program.
    :raises OutcomesError: if it cannot be written. Groups written before it are whole.
    """
    writer = _Writer(program, ring, Path(folder), resume=resume)
    before, written = program.ring(ring).received, 0
    for group in stream_events(
        program,
        ring,
        seconds=seconds,
        latency_s=latency_s,
        row_group_events=row_group_events,
        group_s=group_s,
        going=going,
    ):
        writer.write(group)
        written += len(group)
    writer.end(written, before)
    return Recording(Path(folder))


class _Writer:
    """One run of a recorder, and its folder."""

    def __init__(self, program: Program, ring: str, folder: Path, *, resume: bool) -> None:
        self.program, self.folder = program, folder / ring
        self.kinds = [kind.name for kind in program.ring(ring).kinds]
        old = _resumable(folder, program, ring) if resume else None
        self.next = old.groups if old is not None else 0
        self.recorder = Recorder(folder, folder.name, resume=old is not None)
        for kind in self.kinds:
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
            for part in [*(self.folder / kind).glob("part-*.parquet"), *(self.folder / kind).glob(".part-*")]:
                if part.name.startswith(".") or part.name >= _PART.format(self.next):
                    part.unlink()
        runs = len(old.runs) if old is not None else 0
        self.label = program.spec.name + (f".{runs + 1}" if runs else "")
        self.recorder.load(self.label, program)
        self.about: dict[str, Any] = {
            "ring": ring,
            "kinds": self.kinds,
            "first_group": self.next,
            "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "environment": environment(),
        }
        self.recorder.load_field(self.label, "events", self.about)

    def write(self, group: Group) -> None:
        for kind in self.kinds:
            write_whole(
                self.folder / kind / _PART.format(self.next), partial(_to_parquet, group.tables[kind])
            )
        self.next += 1

    def end(self, written: int, before: int) -> None:
        self.recorder.load_field(self.label, "events", self.about | {"received": written})
        if self.program.spec.ledger is None:
            return
        book = self.program.ledger
        if before:  # somebody read from the ring before the recording
            book = dataclasses.replace(
                book,
                delivered=book.delivered - before,
                losses={**book.losses, "read_before_recording": before},
            )
        self.recorder.load_field(self.label, "ledger", book.as_dict())


def _resumable(folder: Path, program: Program, ring: str) -> Recording | None:
    if not (folder / "capture.json").exists():
        return None
    found = Recording(folder)
    if found.ring != ring or any(run.hash != program_hash(program.spec) for run in found.runs):
        raise CaptureMismatch(
            f"the recording at {folder} is not of this version of {program.spec.name}",
            remedy="record into another folder",
        )
    return found


def _to_parquet(table: pa.Table, path: Path) -> None:
    # Times grow by little, so their differences are small; dictionaries of ids cost more than they save.
    times = [name for name in table.column_names if name.endswith("_ns")]
    pq.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=False,
        column_encoding=dict.fromkeys(times, "DELTA_BINARY_PACKED"),
        row_group_size=max(1, table.num_rows),
    )


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
        return self.folder / self.ring / kind / _PART.format(number)

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


def record_command(program: str, *, seconds: float, parameters: Mapping[str, str], out: Path) -> int:
    """`labkit record --events`: record a program's events for a while. Returns the exit code."""
    rings = [name for name, table in read(program).maps.items() if table.ring]
    if not rings:
        raise LabkitError(f"program {program} makes no events", remedy="leave out --events to keep its maps")
    with load(program, label=f"{out.name}/{program}", **typed_parameters(parameters)) as running:
        print(running.describe(), flush=True)
        print(f"recording for {seconds:g} s ...", flush=True)
        recording = record_events(running, rings[0], out, seconds=seconds)
    print(recording.describe())
    print(f"kept in {out}; look at it with: ./task replay -- {out}")
    return 0

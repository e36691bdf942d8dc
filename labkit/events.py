"""Ring events in bounded memory: as frames, as Arrow tables, or straight to Parquet, group by group.

What the files are like, and how they are read: :mod:`labkit.recordings`.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from labkit.capture import Recorder, typed_parameters, write_whole
from labkit.errors import CaptureMismatch, LabkitError, ParameterError
from labkit.kernel import environment
from labkit.program import Program, load, program_hash
from labkit.recordings import PART, Group, Recording
from labkit.ring import Batch, EventType, Ring
from labkit.spec import read

__all__ = ["drained", "record_command", "record_events", "stream_events"]

_MOST_BYTES = 16 << 20  # of one read; the ring's own size bounds it too
_REST_S = 2.0  # how long CPUs may take to finish what they were doing when the program was detached


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
                if part.name.startswith(".") or part.name >= PART.format(self.next):
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
            write_whole(self.folder / kind / PART.format(self.next), partial(_to_parquet, group.tables[kind]))
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

"""Demonstrations of chapter 04: a ring's raw memory, two ways to read it, losing events, and what a wakeup costs.

They know the two events of ``bpf/sched_events.c``. What is read here in slow ways is read by :mod:`labkit.ring` in bulk.
"""

from __future__ import annotations

import mmap
import os
import select
import statistics
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np
import pandas as pd

from labkit import oracles
from labkit.capture import ReplayedProgram
from labkit.errors import LabkitError, ParameterError
from labkit.program import Program
from labkit.ring import BUSY, DISCARD, Batch, EventType, Ring

__all__ = ["Reader", "course", "delivery_speed", "memory", "watch"]

_RING = "events"
_HEADER = 8
_REPEATS = 5
#: struct lk_woken and struct lk_switched of bpf/sched_events.c, and where their tag lies.
_WOKEN, _SWITCHED, _KIND_AT = struct.Struct("<QIBBH"), struct.Struct("<QIBBHII"), 12

Frames = dict[str, pd.DataFrame]


def memory(program: Program, most: int | None = None) -> bytes:
    """What lies unread in the program's ring buffer, as it lies there; the positions stay where they are.

    :param most: no more than so many bytes, from the oldest record on.
    """
    page, size = mmap.PAGESIZE, program.maps[_RING].definition.max_entries
    fd = program.maps[_RING].fd
    with mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ) as consumer:
        begin = int.from_bytes(consumer[:8], "little")
    with mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page) as shared:
        end = int.from_bytes(shared[:8], "little")
        start = page + begin % size
        return bytes(shared[start : start + min(end - begin, size if most is None else most)])


def delivery_speed(program: Program) -> pd.DataFrame:
    """From the same raw memory to the same DataFrames in two ways: a call per record, and in bulk.

    The ring is copied first, so that it can be read several times; the median of five is shown.

    :returns: columns ``how`` (str), ``records`` (int64), ``ms`` (float64), ``ns_per_record`` (float64).
    :raises LabkitError: if the two ways do not agree.
    """
    raw, ring = memory(program), program.ring(_RING)
    copy = _Copy(raw, ring)
    try:
        ways: dict[str, Callable[[], Frames]] = {
            "a call per record": lambda: _one_by_one(raw),
            "in bulk": copy.read,
        }
        results = {how: way() for how, way in ways.items()}
        taken = {how: statistics.median(_ms(way) for _ in range(_REPEATS)) for how, way in ways.items()}
    finally:
        copy.close()
    one, bulk = results.values()
    if any(not (bulk[name].to_numpy() == one[name].to_numpy()).all() for name in bulk):
        raise LabkitError("the two ways to read the ring do not agree", why="one of them is wrong")
    records = sum(len(frame) for frame in bulk.values())
    frame = pd.DataFrame({"how": list(ways), "records": records, "ms": list(taken.values())})
    return frame.assign(ns_per_record=1e6 * frame["ms"] / max(records, 1))


def _ms(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return (time.perf_counter() - start) * 1000


def _one_by_one(raw: bytes) -> Frames:
    """The way of most tools: for each record a function is called, which takes it apart and keeps it."""
    woken: list[tuple[int, ...]] = []
    switched: list[tuple[int, ...]] = []

    def on_event(data: bytes) -> None:
        if data[_KIND_AT] == 1:
            woken.append(_WOKEN.unpack(data))
        else:
            switched.append(_SWITCHED.unpack(data))

    at = 0
    while at < len(raw):
        (header,) = struct.unpack_from("<I", raw, at)
        if header & BUSY:
            break
        length = header & (DISCARD - 1)
        if not header & DISCARD:
            on_event(raw[at + _HEADER : at + _HEADER + length])
        at += _HEADER + (length + 7) // 8 * 8
    return {
        "woken": pd.DataFrame(woken, columns=["time_ns", "pid", "kind", "unused", "cpu"]),
        "switched": pd.DataFrame(
            switched, columns=["time_ns", "prev_pid", "kind", "runnable", "cpu", "next_pid", "lost"]
        ),
    }


class _Copy:
    """A ring in memory of our own, laid out as the kernel does it, that can be read again and again."""

    def __init__(self, raw: bytes, like: Ring) -> None:
        page = mmap.PAGESIZE
        self._file = os.fdopen(os.memfd_create("ring"), "r+b", buffering=0)
        self._file.truncate(2 * page + 2 * like.size)
        os.pwrite(self._file.fileno(), len(raw).to_bytes(8, "little"), page)
        os.pwrite(self._file.fileno(), raw, 2 * page)
        self._ring = Ring(self._file.fileno(), like.size, like.kinds, like._tag)

    def read(self) -> Frames:
        os.pwrite(self._file.fileno(), bytes(8), 0)  # the consumer's position: nothing is read yet
        return _frames(self._ring.kinds, self._ring.read(self._ring.size))

    def close(self) -> None:
        self._ring.close()
        self._file.close()


def _frames(kinds: list[EventType], batches: list[Batch]) -> Frames:
    """The events of each kind in one frame; a kind without events has one without rows."""
    found = {}
    for kind in kinds:
        nothing = Batch(kind, {c.name: np.empty(0, c.dtype) for c in kind.layout.columns})
        mine = [batch.frame() for batch in batches if batch.kind.name == kind.name]
        found[kind.name] = pd.concat(mine, ignore_index=True) if mine else nothing.frame()
    return found


class Reader:
    """Reads a program's ring from a thread of its own, every so often, while something else goes on.

    Leaving the ``with`` block detaches the program and reads what is left. In replay it does nothing.

    >>> with lab.load("sched_events") as prog, Reader(prog, every_s=0.1) as reader:       # doctest: +SKIP
    ...     lab.run(workload)
    >>> events = lab.read("events", reader.frames)                                        # doctest: +SKIP
    """

    def __init__(self, program: Program | ReplayedProgram, *, every_s: float) -> None:
        if not every_s > 0:
            raise ParameterError(f"every_s must be above 0, not {every_s}")
        self._program, self._every_s = program, every_s
        self._over = threading.Event()
        self._batches: list[Batch] = []
        self._kinds: list[EventType] = []
        self._error: LabkitError | None = None
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def _run(self) -> None:
        assert isinstance(self._program, Program)
        ring = self._program.ring(_RING)
        self._kinds = ring.kinds
        try:
            while not self._over.wait(self._every_s):
                self._batches += ring.read()
            self._program.stop()
            while rest := ring.read():
                self._batches += rest
        except LabkitError as error:
            self._error = error

    def __enter__(self) -> Self:
        if isinstance(self._program, Program):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def frames(self) -> Frames:
        """What was read: kind -> frame."""
        return _frames(self._kinds, self._batches)


def course(events: Frames) -> pd.DataFrame:
    """How many events had been delivered, and how many lost, at each switch that was kept.

    :param events: frames of ``sched_events``; each switch carries the number lost before it, wakeups do not.
    :returns: columns ``ms`` (float64, since the first event), ``delivered``, ``lost`` (int64), in the order of time.
    """
    together = pd.concat([events["woken"][["time_ns"]], events["switched"][["time_ns", "lost"]]])
    together = together.sort_values("time_ns", kind="stable", ignore_index=True)
    together["delivered"] = np.arange(1, len(together) + 1)
    known = together.dropna(subset=["lost"])
    since = known["time_ns"] - together["time_ns"].min()
    # Two CPUs may read the number in another order than the clock: what was lost stays lost.
    lost = known["lost"].cummax().astype("int64")
    frame = pd.DataFrame({"ms": since.astype("float64") / 1e6, "delivered": known["delivered"], "lost": lost})
    return frame.reset_index(drop=True)


def watch(program: Program, seconds: float, *, woken: bool, every_s: float = 0.1) -> dict[str, float]:
    """Read the ring for a time from this thread, and count how much of what is recorded is this thread's own doing.

    :param woken: sleep until the kernel says that there is something (``epoll`` on the map's file descriptor); else look
        every ``every_s``.
    :returns: ``seconds``, ``reads``, ``switches`` (recorded), ``own_switches`` (of them from or to this thread),
        ``own_switch_outs``, ``counted_switch_outs`` (the same from /proc/TID/status), ``unseen`` (switches that ``ctxt`` in
        /proc/stat counted beyond those recorded, and a moment before and after), ``cpu_ms`` (of this thread).
    """
    ring, tally = program.ring(_RING), _Tally(threading.get_native_id())
    with select.epoll() as bell:
        bell.register(program.maps[_RING].fd, select.EPOLLIN)
        # From the outside in, and back: so what `ctxt` counted beyond the recorded bounds what these lack of the thread's.
        ctxt, outs, start = oracles.context_switches(), _switch_outs(tally.tid), time.monotonic_ns()
        cpu_ns, end = time.thread_time_ns(), start + int(seconds * 1e9)
        while (left_s := (end - time.monotonic_ns()) / 1e9) > 0:
            if woken:
                bell.poll(left_s)
            else:
                time.sleep(min(every_s, left_s))
            tally.add(ring.read(), since=start)
        cpu_ns = time.thread_time_ns() - cpu_ns
        end = time.monotonic_ns()
        outs, ctxt = _switch_outs(tally.tid) - outs, oracles.context_switches() - ctxt
    tally.add(ring.read(), since=start, until=end)
    return {
        "seconds": (end - start) / 1e9,
        "reads": tally.reads,
        "switches": tally.switches,
        "own_switches": tally.own,
        "own_switch_outs": tally.own_out,
        "counted_switch_outs": outs,
        "unseen": max(ctxt - tally.switches, 0),
        "cpu_ms": cpu_ns / 1e6,
    }


class _Tally:
    """Counts switches, and those from or to one thread. Keeps no events: there may be many."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self.reads = self.switches = self.own = self.own_out = 0

    def add(self, batches: list[Batch], *, since: int, until: int = 2**63) -> None:
        self.reads += 1
        for batch in batches:
            if batch.kind.name == "switched":
                at = batch.columns["time_ns"]
                now = (at >= since) & (at <= until)
                to, away = batch.columns["next_pid"] == self.tid, batch.columns["prev_pid"] == self.tid
                self.switches += int(np.count_nonzero(now))
                self.own_out += int(np.count_nonzero(away & now))
                self.own += int(np.count_nonzero((to | away) & now))


def _switch_outs(tid: int) -> int:
    counted = oracles.switches([tid])
    return int((counted["voluntary"] + counted["involuntary"]).iloc[0])

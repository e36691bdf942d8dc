"""From recorded wakeups and switches to waits per task, in columns and group by group.

A task begins to wait when it is woken or when it is put off the CPU while still runnable, and ends when it is switched in.
The rules, event by event (``tests/unit/test_from_events.py`` has them as a plain loop, to compare with):

* A wakeup of a task that runs or already waits changes nothing: it was woken before it slept, or while preempted.
* A switch-in of a task that nobody saw begin to wait is ``unmatched``, and so is a switch-out of one that nobody saw
  switched in.
* Two switches in a row on one CPU where the second does not take off the task that the first put on: that task left
  unseen, and where it stands is not known until its next event.
* Each switch carries how many events had been lost before it. A wait between whose ends that number grew is *uncertain*:
  the task may have run meanwhile.

One task's events are ordered by time, since the scheduler holds its run queue's lock at each of them.

**How.** Each group of events becomes one 64-bit word per task and event (pid, time, what happened); sorted, each task's
events lie side by side, and the rules are comparisons with the one or two words before. What a task was doing at the end
of a group goes in front of the next one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from labkit.errors import CaptureMismatch
from labkit.recordings import Group, read_events

__all__ = ["COLUMNS", "WaitPairing", "task_waits"]

#: What is read of each kind of event.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "woken": ("time_ns", "pid"),
    "switched": ("time_ns", "prev_pid", "next_pid", "cpu", "runnable", "lost"),
}

# What happens to a task, in the order of things that carry the same time. A word is pid (22 bits: PID_MAX_LIMIT is 2^22),
# time (39 bits: 9 minutes), and this.
_WOKEN, _LOST_SIGHT, _SLEPT, _PREEMPTED, _IN, _NOTHING = range(6)
_WHAT_BITS, _TIME_BITS = 3, 39
_PID_SHIFT = np.uint64(_WHAT_BITS + _TIME_BITS)
_WHAT_MASK, _TIME_MASK = np.uint64((1 << _WHAT_BITS) - 1), np.uint64((1 << _TIME_BITS) - 1)

_SUMS = [
    "waits",
    "wait_ns",
    "preempted_waits",
    "preempted_wait_ns",
    "uncertain_waits",
    "uncertain_wait_ns",
    "unmatched",
    "open",
]


@dataclass
class _Switches:
    """Columns of switches, in the ring's order."""

    time: np.ndarray
    prev: np.ndarray
    next: np.ndarray
    cpu: np.ndarray
    runnable: np.ndarray
    lost: np.ndarray

    def where(self, mask: np.ndarray) -> _Switches:
        return _Switches(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


@dataclass
class _Tasks:
    """What each task was last seen doing; ordered by pid."""

    pid: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    what: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    time: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


class WaitPairing:
    """Pairs waits of one stream of events, given piece by piece; holds the state of each task between the pieces."""

    def __init__(self) -> None:
        self._parts: list[pd.DataFrame] = []
        self._forget()

    def _forget(self) -> None:
        self._tasks = _Tasks()
        self._current: dict[int, tuple[int, int]] = {}  # cpu -> the task on it, and since when
        self._lost, self._lost_at = 0, -1  # events lost so far, and when that number last grew

    def add(self, woken: tuple[np.ndarray, np.ndarray], switched: _Switches) -> None:
        """The next events: times and pids of wakeups, and the switches."""
        times = [t for t in (woken[0], switched.time) if len(t)]
        if not times:
            return
        base, end = min(int(t.min()) for t in times), max(int(t.max()) for t in times)
        step = (1 << _TIME_BITS) - 1
        for start in range(base, end + 1, step):
            if end - base < step:
                self._add(base, woken, switched)
                continue
            mine = (woken[0] >= start) & (woken[0] < start + step)
            theirs = (switched.time >= start) & (switched.time < start + step)
            self._add(start, (woken[0][mine], woken[1][mine]), switched.where(theirs))

    def cut(self) -> None:
        """Nobody looked for a while: waits that are open stay so, and what tasks did is forgotten."""
        self._parts.append(self._open())
        self._forget()

    def result(self) -> pd.DataFrame:
        """The waits so far, per task; see :func:`task_waits`."""
        return _fold([*self._parts, self._open()])

    def _open(self) -> pd.DataFrame:
        waiting = (self._tasks.what == _WOKEN) | (self._tasks.what == _PREEMPTED)
        return pd.DataFrame({"pid": self._tasks.pid[waiting], "open": 1})

    def _add(self, base: int, woken: tuple[np.ndarray, np.ndarray], switched: _Switches) -> None:
        before = self._tasks
        left, losses = self._departures(switched), self._loss_times(switched)
        words = np.concatenate(
            [
                (before.pid << _PID_SHIFT) | before.what,  # at time 0, before all others
                _words(woken[1], woken[0], base, _WOKEN),
                _words(switched.prev, switched.time, base, _SLEPT + (switched.runnable != 0)),
                _words(switched.next, switched.time, base, _IN),
                _words(left["pid"], left["time"], base, _LOST_SIGHT),
            ]
        )
        words.sort()
        pid = words >> _PID_SHIFT
        what = (words & _WHAT_MASK).astype(np.uint8)
        offset = ((words >> np.uint64(_WHAT_BITS)) & _TIME_MASK).astype(np.int64)
        time = offset + (base - 1)
        time[offset == 0] = before.time
        keep = _meant(pid, what, time, left)
        if not keep.all():
            pid, what, time, offset = pid[keep], what[keep], time[keep], offset[keep]
        if len(words):
            self._pair(_Story(pid, what, time, offset > 0), losses)

    def _departures(self, switched: _Switches) -> np.ndarray:
        """Tasks that left their CPU unseen: pid, when that shows, and since when they were on it; by pid and time."""
        order = np.argsort(switched.cpu, kind="stable")
        cpu = switched.cpu[order]
        prev, following, time = switched.prev[order], switched.next[order], switched.time[order]
        starts = _starts(cpu)
        on_cpu, since = np.empty_like(following), np.empty_like(time)
        on_cpu[1:], since[1:] = following[:-1], time[:-1]
        for start, end in itertools.pairwise([*starts, len(cpu)]):
            on_cpu[start], since[start] = self._current.get(int(cpu[start]), (prev[start], 0))
            self._current[int(cpu[start])] = (int(following[end - 1]), int(time[end - 1]))
        gone = np.flatnonzero((on_cpu != prev) & (on_cpu != 0))
        found = np.zeros(len(gone), [("pid", "u8"), ("time", "i8"), ("since", "i8")])
        found["pid"], found["time"], found["since"] = on_cpu[gone], time[gone], since[gone]
        return np.sort(found, order=["pid", "time"])

    def _loss_times(self, switched: _Switches) -> np.ndarray:
        """When the number of lost events grew: the last time before these switches, and all among them."""
        known = np.array([self._lost_at], np.int64)
        if not len(switched.lost) or int(switched.lost.max()) <= self._lost:
            return known
        order = np.argsort(switched.time, kind="stable")
        total = np.maximum.accumulate(np.r_[self._lost, switched.lost[order].astype(np.int64)])
        grew = switched.time[order][total[1:] > total[:-1]]
        self._lost, self._lost_at = int(total[-1]), int(grew[-1])
        return np.concatenate([known, grew])

    def _pair(self, story: _Story, losses: np.ndarray) -> None:
        what, time, pid = story.what, story.time, story.pid
        one, two = story.before()
        woken = (one == _WOKEN) & (two != _IN)  # a wakeup of a running task is none
        preempted = (one == _PREEMPTED) | (woken & (two == _PREEMPTED))
        waiting = woken | preempted

        arrived = (what == _IN) & story.new
        ends = np.flatnonzero(arrived & waiting)
        begins = ends - np.where((one[ends] == _WOKEN) & (two[ends] == _PREEMPTED), 2, 1)
        if len(ends):
            self._parts.append(_measured(pid[ends], time[begins], time[ends], preempted[ends], losses))

        left = (what == _SLEPT) | (what == _PREEMPTED)
        unseen = left & (waiting | (one == _SLEPT) | (one == _LOST_SIGHT))
        unmatched = np.flatnonzero(unseen | (arrived & ~waiting))
        if len(unmatched):
            self._parts.append(_totals(pid[unmatched], {"unmatched": np.ones(len(unmatched), np.int64)}))
        self._tasks = _last_seen(story, one)
        if len(self._parts) > 64:
            self._parts = [_fold(self._parts)]


@dataclass
class _Story:
    """What happened, task by task, each in order of time.

    :param new: False for what a task did before this piece.
    """

    pid: np.ndarray
    what: np.ndarray
    time: np.ndarray
    new: np.ndarray

    def before(self) -> tuple[np.ndarray, np.ndarray]:
        """What happened to the same task one step and two steps before."""
        same = self.pid[1:] == self.pid[:-1]
        one, two = np.full_like(self.what, _NOTHING), np.full_like(self.what, _NOTHING)
        np.copyto(one[1:], self.what[:-1], where=same)
        np.copyto(two[1:], one[:-1], where=same)
        return one, two


def _words(pid: np.ndarray, time: np.ndarray, base: int, what: int | np.ndarray) -> np.ndarray:
    """One word per event; idle (pid 0) is nobody."""
    after = (time.astype(np.int64) - (base - 1)).astype(np.uint64)
    words = (pid.astype(np.uint64) << _PID_SHIFT) | (after << np.uint64(_WHAT_BITS))
    words |= np.asarray(what, np.uint64)
    return words if pid.all() else words[pid != 0]


def _meant(pid: np.ndarray, what: np.ndarray, time: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Leaves out wakeups that follow one, and departures of tasks that had already been seen elsewhere since."""
    keep = np.ones(len(what), bool)
    if len(left):
        places = np.flatnonzero(what == _LOST_SIGHT)
        seen = np.where((what != _WOKEN) & (what != _LOST_SIGHT), np.arange(len(what)), 0)
        last = np.maximum.accumulate(seen)[places]
        same = (pid[last] == pid[places]) & (what[last] == _IN) & (time[last] == left["since"])
        keep[places] = same
    # Only what is kept counts as the one before.
    index = np.flatnonzero(keep)
    again = (what[index[1:]] == _WOKEN) & (what[index[:-1]] == _WOKEN) & (pid[index[1:]] == pid[index[:-1]])
    keep[index[1:][again]] = False
    return keep


def _measured(
    pid: np.ndarray, begin: np.ndarray, end: np.ndarray, preempted: np.ndarray, losses: np.ndarray
) -> pd.DataFrame:
    """Sums per task of waits that are ordered by task."""
    wait = end - begin
    count = np.ones(len(pid), np.int64)
    columns = {
        "waits": count,
        "wait_ns": wait,
        "preempted_waits": preempted.astype(np.int64),
        "preempted_wait_ns": wait * preempted,
    }
    if losses[-1] >= 0:
        uncertain = np.searchsorted(losses, end, "right") > np.searchsorted(losses, begin, "right")
        columns |= {"uncertain_waits": uncertain.astype(np.int64), "uncertain_wait_ns": wait * uncertain}
    found = _totals(pid, columns)
    found["max_wait_ns"] = np.maximum.reduceat(wait, _starts(pid))
    return found


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Where each new value begins."""
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])[: len(ordered)]


def _totals(pid: np.ndarray, columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    starts = _starts(pid)
    sums = {name: np.add.reduceat(values, starts) for name, values in columns.items()}
    return pd.DataFrame({"pid": pid[starts], **sums})


def _last_seen(story: _Story, one: np.ndarray) -> _Tasks:
    """What each task is doing at the end, with the time since when."""
    pid = story.pid
    last = np.flatnonzero(np.r_[pid[1:] != pid[:-1], True])
    # A wakeup that changed nothing: what was before it goes on.
    moot = (story.what[last] == _WOKEN) & ((one[last] == _IN) | (one[last] == _PREEMPTED))
    last = last - moot
    what = story.what[last].astype(np.uint64)
    what[what == _LOST_SIGHT] = _SLEPT
    return _Tasks(pid[last], what, story.time[last])


def _fold(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Parts of results as one, a row per task."""
    empty = pd.DataFrame({name: pd.Series(dtype="int64") for name in ["pid", *_SUMS, "max_wait_ns"]})
    joined = pd.concat([empty, *(part for part in parts if len(part))], ignore_index=True)
    joined = joined.fillna(0).astype("int64")
    how = dict.fromkeys(_SUMS, "sum") | {"max_wait_ns": "max"}
    folded = joined.groupby("pid", as_index=False, sort=True).agg(how)
    return folded[["pid", "waits", "wait_ns", "max_wait_ns", *_SUMS[2:]]].astype({"pid": "uint32"})


def task_waits(events: str | Path | Iterable[Group]) -> pd.DataFrame:
    """Waits per task out of recorded wakeups and switches (``bpf/sched_events.c``).

    Memory is bounded by one group of events and the number of tasks, however long the recording is.

    :param events: folder of a recording (:func:`labkit.events.record_events`), or groups in order, as
        :func:`labkit.events.stream_events` gives them. Between two runs of a recorder nobody looked: no wait spans that.
    :returns: one row per task that was seen: ``pid`` (uint32), and int64 each: ``waits``, ``wait_ns``, ``max_wait_ns``;
        ``preempted_waits``, ``preempted_wait_ns`` (of them, those of tasks that were put off the CPU while runnable);
        ``uncertain_waits``, ``uncertain_wait_ns`` (of them, those during which events were lost); ``unmatched`` (waits of
        which one end was not seen: not part of ``waits``); ``open`` (waits that had not ended).
        Its columns suit :func:`labkit.sched.compare`.
    :raises MissingCapture, CaptureMismatch: if there is no such recording, it is damaged, or of another kind of event.
    """
    pairing = WaitPairing()
    run = 0
    for group in _groups(events):
        if group.run != run:
            pairing.cut()
            run = group.run
        if missing := set(COLUMNS) - set(group.tables):
            raise CaptureMismatch(
                "these are not wakeups and switches",
                why=f"no events of kind {', '.join(sorted(missing))}",
                remedy="record the program sched_events",
            )
        columns = {
            kind: [group.tables[kind].column(name).to_numpy() for name in names]
            for kind, names in COLUMNS.items()
        }
        time, pid = columns["woken"]
        pairing.add((time.view(np.int64), pid), _switches(columns["switched"]))
    return pairing.result()


def _groups(events: str | Path | Iterable[Group]) -> Iterator[Group]:
    return iter(read_events(events).select(COLUMNS) if isinstance(events, str | Path) else events)


def _switches(columns: list[np.ndarray]) -> _Switches:
    time, prev, following, cpu, runnable, lost = columns
    return _Switches(time.view(np.int64), prev, following, cpu, runnable, lost)

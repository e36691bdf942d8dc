"""Who held the CPU where V stood in line, to the nanosecond: the exact integral over a recorded stream of events.

The independent check of what ``bpf/noisy_neighbor.c`` adds up in the kernel with a short memory. Here nothing is forgotten:
for each wait, all its time is laid over all that ran on that CPU. Input are events of ``bpf/sched_trace.c``.

**Waits.** A switch-in says since when the task was queued on that CPU (``last_queued``). A task that is moved while it
waits leaves that part of its wait behind in ``run_delay``: what that grew by since the task's last event is the time it
stood in the queue that it leaves. Both are the kernel's own increments, so the sum over a task is its ``run_delay``.

**Throttled.** If the task left the CPU throttled at the very moment its wait began, the head of the wait is as long as its
queue's throttle clock has advanced since. Time under one's own quota is nobody's fault, and is not laid over occupants.

**Occupants.** Between two switches of a CPU the first one's ``next`` holds it. Where the kernel's counter of switches shows
that some were not seen, ``prev_arrived_ns`` tells since when the task that leaves had the CPU; with one switch missing, the
one before held it until then, with more, nobody knows (``unknown``). A CPU that is found idle was idle during all of a
wait that ends there: had the task waited before, it would have been taken instead.

**Steal.** ``clock - clock_task`` grows by what interrupts and the hypervisor took. What it grew by during a stretch is
``steal``, the rest is the occupant's. It is noted at each event, and taken as even in between.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labkit.sched.stretches import Stretches, missing_before, stretches_of
from labkit.sched.trace import PREEMPT, THROTTLED, THROTTLED_KNOWN, Events, Trace, trace

__all__ = ["EVER", "IDLE", "UNKNOWN", "Held", "cells", "occupancy", "occupants_of", "stolen_of", "waits"]

_KINDS = np.array(["cgroup", "idle", "throttled", "steal", "unknown"])
_CGROUP, IDLE, _THROTTLED, _STEAL, UNKNOWN = range(5)
EVER, _NEVER = np.iinfo(np.int64).min // 2, np.iinfo(np.int64).max // 2
#: Pieces (a wait, an occupant of its CPU meanwhile) that are held in memory at once.
_PIECES = 1 << 22


def waits(events: Events) -> pd.DataFrame:
    """Each stretch of waiting in one CPU's queue; a wait that was broken by migrations has several.

    :param events: see :func:`labkit.sched.trace.trace`.
    :returns: one row per stretch, by CPU and end: ``pid`` (int64), ``victim_id`` (uint64, its cgroup), ``cpu``,
        ``start_ns``, ``end_ns`` (int64, of that CPU's ``rq->clock``), ``wait_ns``, ``throttled_ns`` (of it, under its own
        quota; int64), ``migrated`` (bool: it ended because the task was moved to another CPU, where it goes on waiting).
        ``cpu`` is -1 where only ``run_delay`` shows that there was a wait, since events were lost.
    :raises MissingCapture, CaptureMismatch: see :func:`labkit.sched.trace.trace`.
    """
    found = stretches_of(trace(events))
    return pd.DataFrame(
        {
            "pid": found.pid,
            "victim_id": found.victim,
            "cpu": found.cpu,
            "start_ns": found.start,
            "end_ns": found.end,
            "wait_ns": found.end - found.start,
            "throttled_ns": found.throttled,
            "migrated": found.migrated,
        }
    )


def occupancy(events: Events) -> pd.DataFrame:
    """Who was on each CPU, from the first event of it to the last.

    :returns: one row per stretch: ``cpu``, ``start_ns``, ``end_ns`` (int64), ``pid`` (int64; 0: idle, -1: not known),
        ``kind`` (str: ``cgroup``, ``idle`` or ``unknown``), ``occupant_id`` (uint64; 0 unless ``kind`` is ``cgroup``).
    :raises MissingCapture, CaptureMismatch: see :func:`labkit.sched.trace.trace`.
    """
    found = trace(events)
    parts = []
    for cpu in found.cpus:
        held = occupants_of(found, cpu)
        parts.append(
            pd.DataFrame(
                {
                    "cpu": np.full(len(held.pid) - 2, cpu),
                    "start_ns": held.start[1:-2],
                    "end_ns": held.start[2:-1],
                    "pid": held.pid[1:-1],
                    "kind": pd.Series(_KINDS[held.kind[1:-1]], dtype="str"),
                    "occupant_id": held.occupant[1:-1],
                }
            )
        )
    if not parts:
        return pd.DataFrame(
            {
                **{name: pd.Series(dtype="int64") for name in ("cpu", "start_ns", "end_ns", "pid")},
                "kind": pd.Series(dtype="str"),
                "occupant_id": pd.Series(dtype="uint64"),
            }
        )
    whole = pd.concat(parts, ignore_index=True)
    known = (whole["end_ns"] > whole["start_ns"]) & (whole["start_ns"] > EVER)
    return whole[known].reset_index(drop=True)


def cells(events: Events, *, steal: bool = True) -> pd.DataFrame:
    """The matrix: of the ns that V waited, how many went by while each other held the CPU that V waited for.

    :param events: see :func:`labkit.sched.trace.trace`.
    :param steal: set interrupts' and the hypervisor's time apart; else it counts for whoever held the CPU.
    :returns: as ``cells`` of :class:`labkit.sched.state.Snapshot`: ``victim_id`` (uint64), ``kind`` (str),
        ``occupant_id`` (uint64), ``wait_ns``, ``preemptions`` (uint64; how often this one took the CPU from the victim). A
        victim's ``wait_ns`` add up to its waits exactly.
    :raises MissingCapture, CaptureMismatch: see :func:`labkit.sched.trace.trace`.
    """
    found = trace(events)
    stretches = stretches_of(found)
    head, nowhere = stretches.throttled > 0, stretches.cpu < 0
    parts = [
        _preemptions(found),
        _part(stretches.victim[head], _THROTTLED, 0, stretches.throttled[head]),
        _part(stretches.victim[nowhere], UNKNOWN, 0, (stretches.end - stretches.start)[nowhere]),
    ]
    for cpu in found.cpus:
        parts.extend(_laid_over(found, stretches, cpu, steal))
    whole = pd.concat(parts, ignore_index=True)
    whole = whole.groupby(["victim_id", "kind", "occupant_id"], as_index=False, sort=True).sum()
    whole = whole[(whole["wait_ns"] > 0) | (whole["preemptions"] > 0)].reset_index(drop=True)
    whole["kind"] = pd.Series(_KINDS[whole["kind"].to_numpy()], dtype="str")
    return whole.astype({"wait_ns": "uint64", "preemptions": "uint64"})


@dataclass(frozen=True)
class Held:
    """Who held one CPU: stretch i goes from ``start[i]`` to ``start[i + 1]``; the first begins at :data:`EVER`, the
    last never ends.

    :param start: ns, one more than the others.
    :param pid: 0 idle, -1 not known.
    :param kind: ``IDLE``, ``UNKNOWN``, or another number: a cgroup, whose id is in ``occupant``.
    """

    start: np.ndarray
    pid: np.ndarray
    kind: np.ndarray
    occupant: np.ndarray


def occupants_of(found: Trace, cpu: int) -> Held:
    """Who held a CPU, as arrays."""
    s = found.switched
    first, end = np.searchsorted(s["cpu"], [cpu, cpu + 1])
    here = {name: values[first:end] for name, values in s.items()}
    time, following, cgroup = here["time_ns"], here["next_pid"], here["next_cgroup_id"]
    # Stretch 2i+1 is from switch i until the task that leaves at switch i+1 arrived; if all was seen, it is empty.
    missing = missing_before(here)
    since = np.concatenate([[EVER], time[:-1]])
    arrived = np.where(here["prev_pid"] == 0, since, np.clip(here["prev_arrived_ns"], since, time))
    arrived = np.where(missing == 0, since, arrived)
    before = np.concatenate([[-1], following[:-1]])
    unknown = (missing > 1) & (arrived > since)
    n = len(time)
    start, pid = np.empty(2 * n + 2, np.int64), np.empty(2 * n + 1, np.int64)
    occupant = np.zeros(2 * n + 1, np.uint64)
    start[0:-2:2], start[1:-2:2], start[-2], start[-1] = since, arrived, time[-1], _NEVER
    pid[0:-1:2], pid[1:-1:2], pid[-1] = np.where(unknown, -1, before), here["prev_pid"], following[-1]
    occupant[2::2], occupant[1::2] = cgroup, here["prev_cgroup_id"]
    seen = np.flatnonzero(missing == 0)
    pid[2 * seen + 1], occupant[2 * seen + 1] = before[seen], occupant[2 * seen]
    kind = np.where(pid == 0, IDLE, np.where(pid < 0, UNKNOWN, _CGROUP))
    occupant[kind != _CGROUP] = 0
    return Held(start, pid, kind, occupant)


def stolen_of(found: Trace, cpu: int) -> tuple[np.ndarray, np.ndarray]:
    """Time and stolen time at each event of a CPU."""
    mine = [(part, part["cpu"] == cpu) for part in (found.switched, found.woken, found.migrated)]
    time = np.concatenate([part["time_ns"][here] for part, here in mine])
    stolen = np.concatenate([part["stolen_ns"][here] for part, here in mine])
    order = np.lexsort((stolen, time))
    return time[order], np.maximum.accumulate(stolen[order])


def _part(victim: np.ndarray, kind: object, occupant: object, wait: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "victim_id": victim.astype(np.uint64),
            "kind": np.broadcast_to(np.asarray(kind, np.int8), len(victim)),
            "occupant_id": np.broadcast_to(np.asarray(occupant, np.uint64), len(victim)),
            "wait_ns": wait.astype(np.int64),
            "preemptions": np.zeros(len(victim), np.int64),
        }
    )


def _laid_over(found: Trace, stretches: Stretches, cpu: int, steal: bool) -> Iterator[pd.DataFrame]:
    """Sums of pieces of one CPU: all its waits, laid over all that ran there."""
    held = occupants_of(found, cpu)
    here = np.flatnonzero(stretches.cpu == cpu)
    start, end = (stretches.start + stretches.throttled)[here], stretches.end[here]
    first = np.searchsorted(held.start, start, "right") - 1
    count = np.searchsorted(held.start, end, "left") - first
    count[end <= start] = 0
    time, stolen = stolen_of(found, cpu)
    base = time[0] if len(time) else 0
    for piece in _chunks(count):
        number = count[piece]
        wait = np.repeat(np.arange(piece.start, piece.stop), number)
        offset = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        stretch = first[wait] + offset
        begin = np.maximum(start[wait], held.start[stretch])
        finish = np.minimum(end[wait], held.start[stretch + 1])
        victim = stretches.victim[here[wait]]
        taken = np.zeros(len(wait), np.int64)
        if steal and stolen[-1] > stolen[0]:
            at = [
                np.interp(t - base, time - base, stolen - stolen[0]).round().astype(np.int64)
                for t in (begin, finish)
            ]
            taken = np.clip(at[1] - at[0], 0, finish - begin)
            lost = taken > 0
            yield _sums(_part(victim[lost], _STEAL, 0, taken[lost]))
        yield _sums(_part(victim, held.kind[stretch], held.occupant[stretch], finish - begin - taken))


def _chunks(count: np.ndarray) -> Iterator[slice]:
    """Slices of waits that have about :data:`_PIECES` pieces each."""
    total = np.cumsum(count)
    edges = np.searchsorted(total, np.arange(_PIECES, total[-1] if len(total) else 0, _PIECES))
    starts = np.unique(np.concatenate([[0], edges, [len(count)]]))
    for begin, end in itertools.pairwise(starts):
        yield slice(int(begin), int(end))


def _sums(part: pd.DataFrame) -> pd.DataFrame:
    return part.groupby(["victim_id", "kind", "occupant_id"], as_index=False, sort=False).sum()


def _preemptions(found: Trace) -> pd.DataFrame:
    """Who took the CPU from whom: switches from a task that would have gone on."""
    s = found.switched
    taken = (s["prev_pid"] != 0) & (((s["flags"] & PREEMPT) != 0) | (s["prev_state"] == 0))
    by_quota = THROTTLED | THROTTLED_KNOWN
    idle, throttled = s["next_pid"] == 0, (s["flags"] & by_quota) == by_quota
    kind = np.where(throttled, _THROTTLED, np.where(idle, IDLE, _CGROUP))[taken]
    part = _part(s["prev_cgroup_id"][taken], kind, 0, np.zeros(taken.sum(), np.int64))
    part["occupant_id"] = np.where(kind == _CGROUP, s["next_cgroup_id"][taken], np.uint64(0))
    part["preemptions"] = 1
    return _sums(part)

"""A model of how Linux picks the next task on one CPU since 6.6 (EEVDF), small enough to be read; chapter 06 draws it.

What it has: weights, virtual run time, lag, slices, virtual deadlines, and that the question "who is next" is asked at
ticks, at wakeups and when a task goes to sleep. What it leaves out: groups, other CPUs, bandwidth, slices of a task's own,
and how lag fades while a task sleeps (here a task that wakes owes nothing and is owed nothing). Sources:
``kernel/sched/fair.c`` (``pick_eevdf``, ``place_entity``, ``update_deadline``) and
``Documentation/scheduler/sched-eevdf.rst``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

__all__ = ["NICE_0", "Demand", "default_slice_ns", "model", "waits_per_request"]

#: The weight of a task with nice 0.
NICE_0 = 1024
_STEP_MS = 0.05


@dataclass(frozen=True)
class Demand:
    """A task's wish: ``work_ms`` of CPU time every ``every_ms``, from ``first_ms`` on. Without ``every_ms``: all of it."""

    name: str
    work_ms: float = 0.0
    every_ms: float = 0.0
    first_ms: float = 0.0
    weight: int = NICE_0


def default_slice_ns(cpus: int) -> int:
    """What ``base_slice_ns`` is if nobody has set it: 0.70 ms times 1 + log2 of the number of CPUs (8 at most).

    Source: ``sysctl_sched_base_slice`` and ``get_update_sysctl_factor`` in ``kernel/sched/fair.c`` (0.75 ms before 6.15,
    commit 2ae891b82695).
    """
    return 700_000 * min(cpus, 8).bit_length()


def waits_per_request(
    *, work_ms: float, every_ms: float, tick_ms: float, slice_ms: float, places: int = 8
) -> pd.Series:
    """How long a service waits for each piece of work beside a hog of equal weight, by where in a tick it is woken.

    :returns: one value in ms for each place, spread evenly over a tick.
    """
    requests = 5
    found = []
    for place in range(places):
        first_ms = tick_ms * (place + 0.5) / places
        demands = [Demand("service", work_ms, every_ms, first_ms), Demand("hog")]
        played = model(demands, tick_ms=tick_ms, slice_ms=slice_ms, length_ms=first_ms + requests * every_ms)
        waits = (played["task"] == "service") & (played["state"] == "waits")
        found.append(_STEP_MS * float(waits.sum()) / requests)
    return pd.Series(found, name="wait_ms")


class _Task:
    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.vruntime = self.deadline = self.protected = 0.0
        self.left_ms = 0.0 if demand.every_ms else float("inf")
        self.due_ms = demand.first_ms

    def virtual(self, ms: float) -> float:
        return ms * NICE_0 / self.demand.weight


def model(demands: Sequence[Demand], *, tick_ms: float, slice_ms: float, length_ms: float) -> pd.DataFrame:
    """Play it.

    :param tick_ms: time between two ticks, 1000 / HZ.
    :param slice_ms: how much a task asks for at once (``base_slice_ns``).
    :returns: a row per task and step, in order of time: ``time_ms`` (float64), ``task`` (str), ``state`` (str: ``runs``,
        ``waits``, ``sleeps``), ``lag_ms`` (float64: what it got too little of the CPU, as virtual time; 0 while it sleeps).
    """
    tasks = [_Task(demand) for demand in demands]
    queue = [task for task in tasks if task.left_ms]
    current = _pick(queue, None, slice_ms)
    rows = []
    for step in range(round(length_ms / _STEP_MS)):
        now = step * _STEP_MS
        for task in tasks:
            if task.demand.every_ms and now >= task.due_ms:
                task.due_ms += task.demand.every_ms
                task.left_ms += task.demand.work_ms
                if task not in queue:  # it wakes: at the average, and with a fresh deadline
                    task.vruntime = _average(queue, task.vruntime)
                    task.deadline = task.vruntime + task.virtual(slice_ms)
                    queue.append(task)
                    _renew(current, slice_ms)
                    if current is None or current.vruntime >= current.protected:
                        current = _pick(queue, current, slice_ms)
        if step and _at_tick(now, tick_ms) and _renew(current, slice_ms):
            current = _pick(queue, current, slice_ms)
        average = _average(queue, 0.0)
        for task in tasks:
            state = "runs" if task is current else "waits" if task in queue else "sleeps"
            lag = average - task.vruntime if task in queue else 0.0
            rows.append((now, task.demand.name, state, lag))
        if current is not None:
            current.vruntime += current.virtual(_STEP_MS)
            current.left_ms -= _STEP_MS
            if current.left_ms <= _STEP_MS / 2:
                current.left_ms = 0.0
                queue.remove(current)
                current = _pick(queue, None, slice_ms)
    return pd.DataFrame(rows, columns=["time_ms", "task", "state", "lag_ms"]).astype(
        {"task": "str", "state": "str"}
    )


def _average(queue: Sequence[_Task], otherwise: float) -> float:
    weights = sum(task.demand.weight for task in queue)
    return sum(task.vruntime * task.demand.weight for task in queue) / weights if weights else otherwise


def _pick(queue: Sequence[_Task], current: _Task | None, slice_ms: float) -> _Task | None:
    """Of those that are not ahead of the average, the one whose deadline is first; with the same, not the one that runs."""
    average = _average(queue, 0.0)
    eligible = [task for task in queue if task.vruntime <= average + 1e-9]
    chosen = min(eligible, key=lambda task: (task.deadline, task is current), default=None)
    if chosen is not None and chosen is not current:
        chosen.protected = chosen.vruntime + chosen.virtual(slice_ms)
    return chosen


def _renew(task: _Task | None, slice_ms: float) -> bool:
    """A task that has had its slice gets its next deadline; True if so."""
    if task is None or task.vruntime < task.deadline:
        return False
    task.deadline = task.vruntime + task.virtual(slice_ms)
    return True


def _at_tick(now: float, tick_ms: float) -> bool:
    return now % tick_ms < _STEP_MS / 2 or tick_ms - now % tick_ms < _STEP_MS / 2

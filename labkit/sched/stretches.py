"""Each stretch of waiting in a queue, out of recorded events: since when, until when, and how much of it throttled.

The rules stand in :mod:`labkit.sched.integral`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labkit.sched.trace import NEW, ON_CPU, PREEMPT, THROTTLED, Trace

__all__ = ["Stretches", "missing_before", "stretches_of"]

_BORN, _MOVED, _ENTERED = range(3)
_WORD = 1 << 32


@dataclass(frozen=True)
class Stretches:
    """Stretches of waiting, by CPU and end."""

    pid: np.ndarray
    victim: np.ndarray
    cpu: np.ndarray
    start: np.ndarray
    end: np.ndarray
    throttled: np.ndarray
    migrated: np.ndarray


def stretches_of(found: Trace) -> Stretches:
    s = found.switched
    entered = np.flatnonzero((s["next_pid"] != 0) & (s["queued_ns"] > 0) & (s["queued_ns"] <= s["time_ns"]))
    parts = [
        {
            "pid": s["next_pid"][entered],
            "victim": s["next_cgroup_id"][entered],
            "cpu": s["cpu"][entered],
            "start": s["queued_ns"][entered],
            "end": s["time_ns"][entered],
            "clock": s["next_throttle_clock_ns"][entered],
            "migrated": np.zeros(len(entered), bool),
        },
        *_only_in_run_delay(found),
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((joined["end"], joined["cpu"]))
    joined = {name: values[order] for name, values in joined.items()}
    clock = joined.pop("clock")
    return Stretches(throttled=_throttled(found, joined, clock), **joined)


def _only_in_run_delay(found: Trace) -> list[dict[str, np.ndarray]]:
    """Waits that no switch-in tells of: those before a move, and those that ended unseen.

    ``run_delay`` never shrinks, so a task's events are in order by it; what has the same value is in order of the ring,
    a move before the switch-in that follows it. The clocks of two CPUs are not compared. What it grew by
    between two events of the task is a wait that only it knows.
    """
    s, w, m = found.switched, found.woken, found.migrated
    new = np.flatnonzero(w["flags"] & NEW)
    entered = np.flatnonzero(s["next_pid"])
    waited = np.where(s["queued_ns"] > 0, np.maximum(s["time_ns"] - s["queued_ns"], 0), 0)[entered]
    what = np.repeat([_BORN, _MOVED, _ENTERED], [len(new), len(m["pid"]), len(entered)])
    row = np.concatenate([new, np.arange(len(m["pid"])), entered])
    pid = np.concatenate([w["pid"][new], m["pid"], s["next_pid"][entered]])
    time = np.concatenate([w["time_ns"][new], m["time_ns"], s["time_ns"][entered]])
    before = np.concatenate([np.zeros(len(new), np.int64), m["run_delay_ns"], s["run_delay_ns"][entered]])
    after = before.copy()
    after[len(after) - len(waited) :] += waited
    by_time = np.lexsort((what, time, pid))
    life = np.empty(len(pid), np.int64)  # a pid that is used again is another task
    life[by_time] = np.cumsum(what[by_time] == _BORN)
    turn = np.concatenate([w["order"][new], m["order"], s["order"][entered]])
    order = np.lexsort((turn, what, before, life, pid))
    what, row, pid, time, life = what[order], row[order], pid[order], time[order], life[order]
    grown = np.zeros(len(pid), np.int64)
    grown[1:] = np.where(
        (pid[1:] == pid[:-1]) & (life[1:] == life[:-1]), before[order][1:] - after[order][:-1], 0
    )
    first = np.ones(len(pid), bool)
    first[1:] = (pid[1:] != pid[:-1]) | (life[1:] != life[:-1])
    moved = np.flatnonzero(first & (what == _MOVED))
    grown[moved] = _since_queued(found, row[moved])
    moved = np.flatnonzero((grown > 0) & (what == _MOVED))
    missed = np.flatnonzero((grown > 0) & (what == _ENTERED))
    at = row[moved]
    behind = {
        "pid": m["pid"][at],
        "victim": m["cgroup_id"][at],
        "cpu": m["cpu"][at],
        "start": m["time_ns"][at] - grown[moved],
        "end": m["time_ns"][at],
        "clock": m["throttle_clock_ns"][at],
        "migrated": np.ones(len(at), bool),
    }
    return [behind, _ended_unseen(s, row[missed], time[missed - 1], grown[missed])]


def _since_queued(found: Trace, row: np.ndarray) -> np.ndarray:
    """How long tasks had waited at a move that is the first we see of their ``run_delay``; 0 if they began unseen."""
    s, w, m = found.switched, found.woken, found.migrated
    woken = (w["flags"] & ON_CPU) == 0
    put_off = (s["prev_pid"] != 0) & (((s["flags"] & PREEMPT) != 0) | (s["prev_state"] == 0))
    queued = {
        name: np.concatenate([w[name][woken], s[other][put_off]])
        for name, other in {"pid": "prev_pid", "cpu": "cpu", "time_ns": "time_ns"}.items()
    }
    begun = pd.DataFrame(queued | {"since": queued["time_ns"]}).sort_values("time_ns", kind="stable")
    moves = pd.DataFrame({name: m[name][row] for name in ("pid", "cpu", "time_ns")})
    moves = moves.sort_values("time_ns", kind="stable")
    both = pd.merge_asof(moves, begun, on="time_ns", by=["pid", "cpu"])
    length = np.zeros(len(row), np.int64)
    length[moves.index] = (both["time_ns"] - both["since"]).fillna(0).to_numpy(np.int64)
    return length


def _ended_unseen(
    s: Mapping[str, np.ndarray], row: np.ndarray, after: np.ndarray, length: np.ndarray
) -> dict[str, np.ndarray]:
    """Waits of tasks whose switch-in was not seen: it shows when they leave that CPU, with the time when they came.

    :param row, after, length: switch-ins at which ``run_delay`` shows more, the task's event before, how much more.
    """
    surprise = np.flatnonzero((missing_before(s) > 0) & (s["prev_pid"] != 0))
    keys = {"pid": s["prev_pid"][surprise], "came": s["prev_arrived_ns"][surprise], "at": surprise}
    came = pd.DataFrame(keys).sort_values("came", kind="stable")
    known = pd.DataFrame(
        {"pid": s["next_pid"][row], "time": s["time_ns"][row], "after": after, "length": length, "row": row}
    ).sort_values("time", kind="stable")
    both = pd.merge_asof(known, came, left_on="time", right_on="came", by="pid")
    found = (both["came"] > both["after"]).to_numpy()
    at = both["at"].fillna(0).to_numpy(np.int64)
    end = np.where(found, s["prev_arrived_ns"][at] if len(surprise) else 0, both["time"])
    return {
        "pid": both["pid"].to_numpy(np.int64),
        "victim": s["next_cgroup_id"][both["row"].to_numpy(np.int64)],
        "cpu": np.where(found, s["cpu"][at] if len(surprise) else 0, -1),
        "start": end - both["length"].to_numpy(np.int64),
        "end": end,
        "clock": np.zeros(len(both), np.int64),
        "migrated": np.zeros(len(both), bool),
    }


def missing_before(s: Mapping[str, np.ndarray]) -> np.ndarray:
    """For each switch, how many of its CPU's switches before it were not seen; for a CPU's first, too many to tell."""
    missing = np.full(len(s["cpu"]), _WORD, np.int64)
    same = s["cpu"][1:] == s["cpu"][:-1]
    missing[1:][same] = ((s["switches"][1:] - s["switches"][:-1]) % _WORD - 1)[same]
    return missing


def _throttled(found: Trace, stretches: dict[str, np.ndarray], clock: np.ndarray) -> np.ndarray:
    """How much of each stretch's head was under the task's own quota."""
    s, w = found.switched, found.woken
    out = (s["flags"] & THROTTLED) != 0
    was = (w["throttle_clock_ns"] > 0) & (clock.max(initial=0) > 0)  # only kernels before 6.18 tell
    cpu = np.concatenate([s["cpu"][out], w["cpu"][was]])
    time = np.concatenate([s["time_ns"][out], w["time_ns"][was]])
    pid = np.concatenate([s["prev_pid"][out], w["pid"][was]])
    then = np.concatenate([s["prev_throttle_clock_ns"][out], w["throttle_clock_ns"][was]])
    result = np.zeros(len(clock), np.int64)
    for one in np.unique(cpu):
        mine, here = np.flatnonzero(cpu == one), np.flatnonzero(stretches["cpu"] == one)
        mine = mine[np.lexsort((pid[mine], time[mine]))]
        # Begun at that moment, by that task: the two are compared as one, in order.
        begun = np.searchsorted(time[mine], stretches["start"][here], "left")
        for step in range(2):  # two events of a CPU can carry one time
            at = np.minimum(begun + step, len(mine) - 1)
            same = (time[mine[at]] == stretches["start"][here]) & (pid[mine[at]] == stretches["pid"][here])
            grown = clock[here] - then[mine[at]]
            length = stretches["end"][here] - stretches["start"][here]
            result[here] = np.where(same, np.clip(grown, 0, length), result[here])
    return result

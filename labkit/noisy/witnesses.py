"""What else the kernel says about the same cgroups: the oracles of an answer, and the weights, quotas and classes it
is judged by.

Nothing here comes from BPF. A :class:`Reading` is taken beside a snapshot, and :func:`evidence` says what grew between two.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from labkit.kernel.cgroup import Hierarchy, Level, ancestors

__all__ = ["LATER", "SCHEMAS", "Evidence", "Reading", "Task", "evidence", "read"]

#: At most so many cgroups are read, and so many tasks in all (0.2 ms each): a reading shall not become the load it is to
#: explain.
MOST_CGROUPS, MOST_TASKS = 2_000, 5_000
_REALTIME, _IDLE = (
    (1, 2, 6),
    5,
)  # SCHED_FIFO, SCHED_RR, SCHED_DEADLINE; SCHED_IDLE (include/uapi/linux/sched.h)

SCHEMAS: dict[str, dict[str, str]] = {
    "quotas": {
        "cgroup_id": "uint64",
        "holder": "str",
        "quota_ns": "int64",
        "period_ns": "int64",
        "throttled_ns": "int64",
        "throttled_periods": "int64",
        "setting": "str",
    },
    "weights": {
        "cgroup_id": "uint64",
        "depth": "int64",
        "group": "str",
        "weight": "float64",
        "idle": "bool",
    },
    "classes": {
        "cgroup_id": "uint64",
        "tasks": "int64",
        "realtime": "int64",
        "idle": "int64",
        "nice": "int64",
    },
    "oracles": {
        "cgroup_id": "uint64",
        "tasks": "int64",
        "run_delay_ns": "int64",
        "timeslices": "int64",
        "involuntary": "int64",
        "some_ns": "int64",
        "throttled_ns": "int64",
        "voluntary": "int64",
    },
    "stamps": {
        "cgroup_id": "uint64",
        "waits": "int64",
        "measured_ns": "int64",
        "most_ns": "int64",
        "stamped_ns": "int64",
    },
    "requests": {"cgroup_id": "uint64", "requests": "int64", "beyond_ns": "int64"},
}
#: Columns that came later: recordings may be without, and have -1 for them then.
LATER = {"oracles": ("voluntary",), "stamps": ("most_ns",)}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Task:
    """One task's counters: ``/proc/TID/schedstat``, ``status`` and ``stat``.

    :param started_s: when it was made, by CLOCK_BOOTTIME, rounded down to a clock tick.
    """

    run_ns: int
    run_delay_ns: int
    timeslices: int
    involuntary: int
    nice: int
    policy: int
    voluntary: int = 0
    started_s: float = math.inf


@dataclass(frozen=True)
class _Member:
    """What was read of one cgroup. ``asked`` is False if it has more tasks than were to be read: then none was."""

    tasks: Mapping[int, Task]
    some_us: int | None
    levels: tuple[Level, ...]
    asked: bool = True


@dataclass(frozen=True)
class Reading:
    """Counters of cgroups at one moment.

    :param members: by cgroup id.
    :param complete: True if no cgroup that was alive was left out, so that one not in it did not exist.
    :param began_s: when it began, by CLOCK_BOOTTIME.
    """

    members: Mapping[int, _Member] = field(default_factory=dict)
    complete: bool = False
    began_s: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """What grew between two readings, and what holds at the second; see :data:`SCHEMAS` for the columns.

    :param quotas: limits of each cgroup and its ancestors, with how long they throttled.
    :param weights: groups that the scheduler knows, from the root (depth 0) down.
    :param classes: tasks by scheduling class; ``realtime`` and ``idle`` are 0 unless those had most of the cgroup's
        CPU time.
    :param oracles: sums over the tasks alive at the end: ``run_delay_ns``, ``timeslices``, ``involuntary``, ``voluntary``
        (switches); ``some_ns`` of ``cpu.pressure`` and ``throttled_ns`` of ``cpu.stat.local``, or of ``cpu.stat`` of a
        group of one task that holds the quota (-1 where there is none).
    :param stamps: the waits of a part of the time, measured in two ways; see :meth:`labkit.noisy.stamps.Stamps.check`.
    :param requests: of a scenario's victim, by its own clock: ``requests``, and by how much they took longer than the work
        in them (``beyond_ns``).
    """

    quotas: pd.DataFrame
    weights: pd.DataFrame
    classes: pd.DataFrame
    oracles: pd.DataFrame
    stamps: pd.DataFrame = field(default_factory=lambda: _frame("stamps", []))
    requests: pd.DataFrame = field(default_factory=lambda: _frame("requests", []))

    @classmethod
    def none(cls) -> Evidence:
        """No evidence."""
        return cls(**{name: _frame(name, []) for name in SCHEMAS})


def read(
    tree: Hierarchy, paths: Mapping[int, str], *, everything: bool = False, most_tasks: int = MOST_TASKS
) -> Reading:
    """Read the counters of these cgroups.

    :param paths: id -> path in the tree of identity. The root, with the most tasks, is read last: the nearer in time to
        the snapshot a reading is, the smaller its residual.
    :param everything: True if these are all cgroups that there are.
    :param most_tasks: so many tasks are asked in all; a cgroup with more than are left is read without its tasks.
    """
    began_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    chosen = dict(sorted(paths.items(), key=lambda item: item[1] == "/")[:MOST_CGROUPS])
    levels: dict[str, Level | None] = {}
    members = {}
    for cgroup_id, path in chosen.items():
        found = _member(tree, path, levels, most_tasks)
        if found is not None:
            most_tasks -= len(found.tasks)
            members[cgroup_id] = found
    return Reading(members, everything and len(chosen) == len(paths), began_s)


def _member(tree: Hierarchy, path: str, levels: dict[str, Level | None], most_tasks: int) -> _Member | None:
    folder = f"{tree.identity}/{path.lstrip('/')}"
    # v1 has no cgroup.threads, and a cgroup that may only hold processes (domain invalid) cannot be asked
    tids = _lines(f"{folder}/cgroup.threads" if tree.unified else f"{folder}/tasks")
    if tids is None:
        return None
    tasks = {}
    asked = len(tids) <= most_tasks
    for tid in tids if asked else []:
        task = _task(tid)
        if task is not None:
            tasks[int(tid)] = task
    where = tree.cpu_path(path, int(tids[0]) if tids else None) if tree.cpu else "/"
    for step in ancestors(where):
        if step not in levels:
            levels[step] = tree.level(step)
    chain = tuple(level for step in ancestors(where) if (level := levels[step]) is not None)
    return _Member(tasks, _some_us(f"{folder}/cpu.pressure"), chain, asked)


def _text(path: str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(1 << 20).decode("utf-8", "replace")
    except OSError:  # gone, or not told here
        return None


def _lines(path: str) -> list[str] | None:
    found = _text(path)
    return None if found is None else found.split()


def _some_us(path: str) -> int | None:
    for line in (_text(path) or "").splitlines():
        if line.startswith("some "):
            return int(line.rpartition("total=")[2])
    return None


def _task(tid: str) -> Task | None:
    stat, schedstat, status = (_text(f"/proc/{tid}/{name}") for name in ("stat", "schedstat", "status"))
    if not stat or not schedstat or not status:
        return None  # it ended
    run, delay, slices = (int(word) for word in schedstat.split())
    after_comm = stat.rpartition(")")[2].split()
    before, _, involuntary = status.rpartition("nonvoluntary_ctxt_switches:")
    voluntary = before.rpartition("voluntary_ctxt_switches:")[2]
    nice, started_s, policy = (
        int(after_comm[16]),
        int(after_comm[19]) / _TICKS_PER_S,
        int(after_comm[38]),
    )
    return Task(run, delay, slices, int(involuntary), nice, policy, int(voluntary), started_s)


def evidence(older: Reading, newer: Reading) -> Evidence:
    """What grew from one reading to the next.

    A task that was elsewhere before is left out of the sums. Of a cgroup whose tasks were not read both times there are no
    sums: counters of a task that is seen for the first time are those of its whole life.
    """
    before = {
        tid: (cgroup_id, task) for cgroup_id, m in older.members.items() for tid, task in m.tasks.items()
    }
    rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in SCHEMAS}
    for cgroup_id in sorted({*older.members, *newer.members}):
        was, now = older.members.get(cgroup_id), newer.members.get(cgroup_id)
        member = now or older.members[cgroup_id]
        known = was is not None or older.complete
        rows["weights"] += _weights(cgroup_id, member)
        rows["quotas"] += _quotas(cgroup_id, member, was.levels if was else () if known else member.levels)
        if now is not None:
            grown = _grown(cgroup_id, now, before, older.began_s)
            rows["classes"].append(_classes(cgroup_id, now, grown))
            if known and now.asked and (was is None or was.asked):
                rows["oracles"].append(_oracles(cgroup_id, now, was, grown))
    return Evidence(**{name: _frame(name, found) for name, found in rows.items()})


def _frame(name: str, rows: Iterable[tuple[object, ...]]) -> pd.DataFrame:
    schema = SCHEMAS[name]
    return pd.DataFrame(list(rows), columns=list(schema)).astype(schema)


def _grown(
    cgroup_id: int, member: _Member, before: Mapping[int, tuple[int, Task]], since_s: float
) -> dict[int, Task]:
    """Growth of each task's counters; of one that is new, or whose id was used before, its counters are the growth."""
    found = {}
    for tid, task in member.tasks.items():
        home, old = before.get(tid, (cgroup_id, None))
        if home != cgroup_id:
            continue
        if old is None and task.started_s + 2 / _TICKS_PER_S < since_s:
            continue  # it is older than the first reading, and was in a cgroup that was not read
        if old is None or task.run_ns < old.run_ns or task.timeslices < old.timeslices:
            found[tid] = task
            continue
        found[tid] = Task(
            task.run_ns - old.run_ns,
            task.run_delay_ns - old.run_delay_ns,
            task.timeslices - old.timeslices,
            task.involuntary - old.involuntary,
            task.nice,
            task.policy,
            task.voluntary - old.voluntary,
            task.started_s,
        )
    return found


def _weights(cgroup_id: int, member: _Member) -> list[tuple[object, ...]]:
    groups = [level for level in member.levels if level.weight is not None and level.path != "/"]
    root = (cgroup_id, 0, "/", float("nan"), False)
    return [root] + [
        (cgroup_id, depth, level.path, level.weight, level.idle) for depth, level in enumerate(groups, 1)
    ]


def _quotas(cgroup_id: int, member: _Member, since: Iterable[Level]) -> list[tuple[object, ...]]:
    old = {level.path: level for level in since}
    return [
        (
            cgroup_id,
            level.path,
            level.quota_ns,
            level.period_ns,
            level.throttled_ns - (old[level.path].throttled_ns if level.path in old else 0),
            level.throttled - (old[level.path].throttled if level.path in old else 0),
            level.setting,
        )
        for level in member.levels
        if level.quota_ns is not None
    ]


def _classes(cgroup_id: int, member: _Member, grown: Mapping[int, Task]) -> tuple[object, ...]:
    run_ns = sum(task.run_ns for task in grown.values())
    kinds = {"realtime": _REALTIME, "idle": (_IDLE,)}
    counts = {}
    for kind, policies in kinds.items():
        of_kind = [task for task in grown.values() if task.policy in policies]
        had = sum(task.run_ns for task in of_kind)
        counts[kind] = (
            len(of_kind) if 2 * had > run_ns else 0
        )  # the root has real-time tasks that hardly ever run
    nices = sorted(task.nice for task in grown.values() if task.policy not in _REALTIME)
    nice = nices[len(nices) // 2] if nices else 0
    return (cgroup_id, len(member.tasks), counts["realtime"], counts["idle"], nice)


def _oracles(
    cgroup_id: int, member: _Member, was: _Member | None, grown: Mapping[int, Task]
) -> tuple[object, ...]:
    some = -1
    if member.some_us is not None:
        some = 1000 * (member.some_us - (was.some_us or 0 if was else 0))
    return (
        cgroup_id,
        len(grown),
        sum(task.run_delay_ns for task in grown.values()),
        sum(task.timeslices for task in grown.values()),
        sum(task.involuntary for task in grown.values()),
        some,
        _throttled_ns(member, was),
        sum(task.voluntary for task in grown.values()),
    )


def _throttled_ns(member: _Member, was: _Member | None) -> int:
    """How long its tasks were throttled, by the kernel: growth of ``cpu.stat.local`` of the group that they are in to the
    scheduler. Before Linux 6.6 there is none; ``cpu.stat`` of the group itself is as good where it holds the quota and has
    one task, as what throttles it throttles nobody else."""
    if not any(level.quota_ns is not None for level in member.levels):
        return -1
    own = member.levels[-1]
    old = {level.path: level for level in was.levels}.get(own.path) if was else None
    if own.local_throttled_ns is not None:
        return own.local_throttled_ns - ((old.local_throttled_ns or 0) if old else 0)
    if own.quota_ns is not None and len(member.tasks) == 1:
        return own.throttled_ns - (old.throttled_ns if old else 0)
    return -1

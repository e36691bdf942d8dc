"""An answer's parts made up for tests: a snapshot, counters of tasks, and a recording of both."""

from snapshot_maker import Group as Made
from snapshot_maker import snapshot

from labkit.kernel.cgroup import Level
from labkit.noisy import witnesses
from labkit.noisy.archive import Recording
from labkit.noisy.select import Selection
from labkit.noisy.witnesses import Evidence, Reading, Task, evidence
from labkit.sched.state import Snapshot

MS, S = 10**6, 10**9


def made() -> Snapshot:
    """Over 10 s ``web`` waits for ``batch`` (3 s), itself and an idle CPU; ``db`` is throttled below a quota on its pod."""
    return snapshot(
        Made(1, "kernel threads", owner="system"),
        Made(
            10,
            "shop/web",
            {("cgroup", 11): 3 * S, ("cgroup", 10): S // 10, ("idle", 0): MS},
            waits=900,
            run_ns=S,
        ),
        Made(11, "batch", {("cgroup", 10): S}, waits=500, run_ns=6 * S),
        Made(
            12,
            "shop/db",
            {("throttled", 0): 2 * S},
            waits=200,
            run_ns=S,
            namespace="shop",
            pod="db-0",
            container="db",
        ),
    )


def level(path: str, **more: object) -> Level:
    return Level(path, weight=None if path == "/" else 100.0, **more)  # type: ignore[arg-type]


def reading(factor: int = 1) -> Reading:
    """Counters of tasks as they might be at the start (0) and end (1)."""
    groups = {
        10: (Task(S, 3101 * MS, 900, 40, 0, 0), [level("/shop"), level("/shop/web")]),
        11: (Task(6 * S, S, 500, 80, 5, 0), [level("/batch")]),
        12: (
            Task(S, 2 * S, 200, 1, 0, 0),
            [
                level("/shop", quota_ns=20 * MS, throttled_ns=8 * S * factor, throttled=100 * factor),
                level("/shop/db", local_throttled_ns=2 * S * factor),
            ],
        ),
    }
    members = {
        cgroup_id: witnesses._Member(
            {
                100 + cgroup_id: Task(
                    task.run_ns * factor,
                    task.run_delay_ns * factor,
                    task.timeslices * factor,
                    task.involuntary * factor,
                    task.nice,
                    task.policy,
                    (task.timeslices - task.involuntary) * factor,
                )
            },
            2_900_000 * factor,
            (level("/"), *levels),
        )
        for cgroup_id, (task, levels) in groups.items()
    }
    return Reading(members, complete=True)


def proof() -> Evidence:
    return evidence(reading(0), reading(1))


def recording(selection: Selection | None = None) -> Recording:
    return Recording(made(), proof(), selection or Selection())

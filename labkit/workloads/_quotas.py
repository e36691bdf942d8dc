"""Scenarios in which a quota bites: the wait that is nobody's fault but the quota's."""

from __future__ import annotations

from labkit.cgroups import Group
from labkit.workloads._parts import GREEDY_MS, PERIOD_MS, WORK_MS, make, truth, worker
from labkit.workloads.running import Workload

__all__ = ["quota_on_parent", "throttled", "throttled_beside_hog"]


def throttled(seconds: float, cpu: int) -> Workload:
    """Wants a quarter of the CPU, and gets a tenth."""
    return make(
        "throttled",
        f"a service ({WORK_MS:g} ms of work every {PERIOD_MS:g} ms) with a quota of 10 ms in 100, alone on CPU {cpu}",
        [worker("service", "service", cpu, seconds)],
        truth(cpu, "throttled", causes=["throttled"], quota_ancestor="service"),
        groups=[Group("service", quota_us=10_000)],
    )


def throttled_beside_hog(seconds: float, cpu: int) -> Workload:
    """The service takes 60 ms to use up its quota of 30 beside the hog, and is throttled for the other 40."""
    return make(
        "throttled_beside_hog",
        f"a service with a quota of 30 ms in 100 that wants more, and a neighbour that never sleeps, on CPU {cpu}",
        [
            worker("service", "service", cpu, seconds, work_ms=GREEDY_MS),
            worker("hog", "hog", cpu, seconds),
        ],
        truth(cpu, "mixed", {"hog": 1.0}, causes=["throttled", "foreign"], quota_ancestor="service"),
        groups=[Group("service", quota_us=30_000)],
    )


def quota_on_parent(seconds: float, cpu: int) -> Workload:
    """The service's own cgroup has no quota: who looks only there finds nothing."""
    return make(
        "quota_on_parent",
        f"a service that wants more, in a pod with a quota of 20 ms in 100, alone on CPU {cpu}",
        [worker("service", "service", cpu, seconds, group="pod/service", work_ms=GREEDY_MS)],
        truth(cpu, "throttled", causes=["throttled"], quota_ancestor="pod"),
        groups=[Group("pod", quota_us=20_000)],
    )

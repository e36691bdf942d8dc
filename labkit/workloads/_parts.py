"""What scenarios are put together from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from labkit.cgroups import Group
from labkit.errors import UnsupportedKernel
from labkit.workloads.running import Worker, Workload

__all__ = ["GREEDY_MS", "VERDICTS", "make", "other_cpu", "truth", "worker"]

#: What can be said of a cgroup.
VERDICTS = ("quiet", "noisy_neighbor", "self_contended", "throttled", "system", "mixed")

#: The service's work per request and the time from one to the next. The work outlasts the longest tick (4 ms at HZ=250) and
#: the period is no multiple of any: else a service in step with the tick is preempted in each request, or in none.
WORK_MS, PERIOD_MS = 5.0, 19.0

#: Work per request of a service that wants more than its share: always runnable, so that shares hold exactly.
GREEDY_MS = 16.0


def truth(
    cpu: int,
    verdict: str,
    guilty: Mapping[str, float | None] | None = None,
    *,
    causes: Sequence[str] = (),
    innocent: Sequence[str] = (),
    quota_ancestor: str = "",
) -> dict[str, Any]:
    """What :func:`labkit.workloads.scenario` documents as declared."""
    assert verdict in VERDICTS
    return {
        "victim": "service",
        "verdict": verdict,
        "guilty": dict(guilty or {}),
        "causes": list(causes),
        "innocent": list(innocent),
        "quota_ancestor": quota_ancestor,
        "cpu": cpu,
    }


def worker(
    role: str,
    kind: str,
    cpu: int | None,
    seconds: float,
    *,
    group: str = "",
    fifo: int = 0,
    nice: int = 0,
    **options: Any,
) -> Worker:
    """A worker at a niceness of its own, whatever that of the caller is."""
    if kind == "service":
        options = {"work_ms": WORK_MS, "period_ms": PERIOD_MS} | options
    return Worker(role, kind, cpu, {"seconds": seconds, "nice": nice, **options}, group, fifo)


def make(
    name: str,
    what: str,
    workers: Sequence[Worker],
    declared: Mapping[str, Any],
    *,
    groups: Sequence[Group] = (),
    paired: bool = False,
    weight: int = 1000,
) -> Workload:
    """A workload that cannot do without its cgroups.

    :param weight: of all its cgroups together. Ten times the usual, so that what it declares holds on a busy machine too.
    """
    return Workload(
        name,
        what,
        tuple(workers),
        declared,
        float(workers[0].options["seconds"]),
        paired,
        groups=tuple(groups),
        cpu_control=True,
        needs_cgroups=True,
        weight=weight,
    )


def other_cpu(cpu: int) -> int:
    """Another CPU than this.

    :raises UnsupportedKernel: if there is none.
    """
    others = sorted(os.sched_getaffinity(0) - {cpu})
    if not others:
        raise UnsupportedKernel(
            "this scenario needs two CPUs",
            why="this process may use one only",
            remedy="run on a larger machine, or with a wider affinity",
        )
    return others[-1]

"""Sixteen scenarios: contention whose victim, culprits and causes hold by construction.

In each a **service** works some milliseconds of every 20 and times its own requests: its latency is an oracle that shares
nothing with the scheduler's counters. Everything is pinned to one CPU unless the scenario says otherwise, so a scenario
loads one CPU (``hog_elsewhere`` and ``migrating`` two) of a machine however large.

Where a scenario needs several tasks in one cgroup they are processes, not threads: to the scheduler both are tasks,
Python's interpreter lock would let only one of its threads run, and each process stands parked with its own counters
afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from labkit.cgroups import Group
from labkit.errors import ParameterError, UnsupportedKernel
from labkit.workloads.known import last_cpu, positive
from labkit.workloads.running import Worker, Workload

__all__ = ["SCENARIOS", "VERDICTS", "scenario"]

#: What can be said of a cgroup.
VERDICTS = ("quiet", "noisy_neighbor", "self_contended", "throttled", "system", "mixed")

#: Work of the service that wants more than its share, whatever the share: it is always runnable, so shares hold exactly.
_GREEDY_MS = 16.0


def scenario(name: str, *, seconds: float = 3.0, cpu: int | None = None) -> Workload:
    """A workload with declared truth, ready to run.

    ``declared`` of it, and of the :class:`~labkit.workloads.Truth` of its run, holds:

    - ``victim`` (str): role of the cgroup that the verdict is about;
    - ``verdict`` (str): one of ``quiet``, ``noisy_neighbor``, ``self_contended``, ``throttled``, ``system``, ``mixed``;
    - ``guilty`` (role -> share of the victim's foreign wait, None where it does not follow from the construction);
    - ``causes`` (list of str): which of foreign, self and throttled make up the victim's wait, the largest first where that
      follows from the construction;
    - ``innocent`` (list of str): roles that cause none of it;
    - ``quota_ancestor`` (str): role of the cgroup whose quota bites, empty if none does;
    - ``cpu`` (int).

    Shares are among the scenario's own cgroups; whatever else runs on the CPU comes on top.

    :param name: one of :data:`SCENARIOS`.
    :param seconds: how long it works.
    :param cpu: where; the last CPU that we may use if None.
    :raises ParameterError: if there is no such scenario, time or CPU.
    :raises UnsupportedKernel: if it needs two CPUs and there is one.
    """
    if name not in _MAKERS:
        raise ParameterError(f"there is no scenario {name!r}", why=f"there are: {', '.join(SCENARIOS)}")
    allowed = os.sched_getaffinity(0)
    if cpu is not None and cpu not in allowed:
        raise ParameterError(f"CPU {cpu} is not to be had", why=f"we may use: {sorted(allowed)}")
    return _MAKERS[name](positive(seconds), last_cpu() if cpu is None else cpu)


def _truth(
    cpu: int,
    verdict: str,
    guilty: Mapping[str, float | None] | None = None,
    *,
    causes: tuple[str, ...] = (),
    innocent: tuple[str, ...] = (),
    quota_ancestor: str = "",
) -> dict[str, Any]:
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


def _worker(
    role: str, kind: str, cpu: int | None, seconds: float, *, group: str = "", fifo: int = 0, **options: Any
) -> Worker:
    # At the usual niceness, whatever that of the caller is.
    return Worker(
        role,
        kind,
        cpu,
        {"nice": 0, "seconds": seconds, **options},
        group or ("" if fifo == 0 else role),
        fifo,
    )


def _make(
    name: str,
    what: str,
    workers: list[Worker],
    declared: Mapping[str, Any],
    *,
    groups: tuple[Group, ...] = (),
    paired: bool = False,
    cpu_control: bool = True,
) -> Workload:
    seconds = float(workers[0].options["seconds"])
    return Workload(
        name,
        what,
        tuple(workers),
        declared,
        seconds,
        paired,
        groups=groups,
        cpu_control=cpu_control,
        needs_cgroups=True,
    )


def _other_cpu(cpu: int) -> int:
    others = sorted(os.sched_getaffinity(0) - {cpu})
    if not others:
        raise UnsupportedKernel("this scenario needs two CPUs", why="this process may use one only")
    return others[-1]


def _quiet(seconds: float, cpu: int) -> Workload:
    return _make(
        "quiet",
        f"a service (4 ms of work every 20 ms) alone on CPU {cpu}",
        [_worker("service", "service", cpu, seconds)],
        _truth(cpu, "quiet"),
    )


def _hog(seconds: float, cpu: int) -> Workload:
    return _make(
        "hog",
        f"a service (4 ms of work every 20 ms) and a neighbour that never sleeps on CPU {cpu}",
        [_worker("service", "service", cpu, seconds), _worker("hog", "hog", cpu, seconds)],
        _truth(cpu, "noisy_neighbor", {"hog": 1.0}, causes=("foreign",)),
    )


def _two_hogs(seconds: float, cpu: int) -> Workload:
    """The service wants more than its fifth, so all three are always runnable and the hogs have CPU as 3 to 1."""
    return _make(
        "two_hogs_3_1",
        f"a service and two neighbours that never sleep, weights 100, 300 and 100, on CPU {cpu}",
        [
            _worker("service", "service", cpu, seconds, work_ms=_GREEDY_MS),
            _worker("hog_a", "hog", cpu, seconds),
            _worker("hog_b", "hog", cpu, seconds),
        ],
        _truth(cpu, "noisy_neighbor", {"hog_a": 0.75, "hog_b": 0.25}, causes=("foreign",)),
        groups=(Group("service"), Group("hog_a", weight=300), Group("hog_b")),
    )


def _throttled(seconds: float, cpu: int) -> Workload:
    return _make(
        "throttled",
        f"a service (4 ms of work every 20 ms) with a quota of 10 ms in 100, alone on CPU {cpu}",
        [_worker("service", "service", cpu, seconds)],
        _truth(cpu, "throttled", causes=("throttled",), quota_ancestor="service"),
        groups=(Group("service", quota_us=10_000),),
    )


def _throttled_beside_hog(seconds: float, cpu: int) -> Workload:
    """The service needs 60 of every 100 ms to use up its quota of 30 beside the hog, and is throttled for 40."""
    return _make(
        "throttled_beside_hog",
        f"a service with a quota of 30 ms in 100 that wants more, and a neighbour that never sleeps, on CPU {cpu}",
        [
            _worker("service", "service", cpu, seconds, work_ms=_GREEDY_MS),
            _worker("hog", "hog", cpu, seconds),
        ],
        _truth(cpu, "mixed", {"hog": 1.0}, causes=("throttled", "foreign"), quota_ancestor="service"),
        groups=(Group("service", quota_us=30_000),),
    )


def _own_threads(seconds: float, cpu: int) -> Workload:
    others = [_worker(f"thread_{n}", "hog", cpu, seconds, group="service") for n in (1, 2)]
    return _make(
        "own_threads",
        f"a service and two tasks of its own that never sleep, in one cgroup on CPU {cpu}",
        [_worker("service", "service", cpu, seconds), *others],
        _truth(cpu, "self_contended", causes=("self",)),
    )


_MAKERS: dict[str, Callable[[float, int], Workload]] = {
    "quiet": _quiet,
    "hog": _hog,
    "two_hogs_3_1": _two_hogs,
    "throttled": _throttled,
    "throttled_beside_hog": _throttled_beside_hog,
    "own_threads": _own_threads,
}

#: Names of all scenarios, simple ones first.
SCENARIOS: tuple[str, ...] = tuple(_MAKERS)

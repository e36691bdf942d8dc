"""Small known workloads: exact numbers of calls, and the contention that the first chapters measure."""

from __future__ import annotations

import os

from labkit.errors import ParameterError
from labkit.workloads.running import Worker, Workload

__all__ = [
    "exact_calls",
    "exact_spawns",
    "last_cpu",
    "ping_pong",
    "positive",
    "service_alone",
    "service_beside_hog",
    "two_pinned_hogs",
]


def last_cpu() -> int:
    """The CPU that workloads are pinned to unless told otherwise: the last that we may use."""
    return max(os.sched_getaffinity(0))


def positive(seconds: float) -> float:
    """A time to work, checked.

    :raises ParameterError: if it is not more than 0 and at most an hour.
    """
    if not 0 < seconds <= 3600:
        raise ParameterError(f"seconds must be more than 0 and at most 3600, not {seconds}")
    return float(seconds)


def exact_calls(count: int = 23) -> Workload:
    """One process that calls ``getppid()`` exactly ``count`` times."""
    return Workload(
        "exact_calls",
        f"one process calls getppid() exactly {count} times",
        (Worker("caller", "calls", options={"count": count}),),
        {"getppid_calls": count},
    )


def exact_spawns(count: int = 23) -> Workload:
    """One process that starts ``/bin/true`` exactly ``count`` times."""
    return Workload(
        "exact_spawns",
        f"one process starts /bin/true exactly {count} times",
        (Worker("spawner", "spawner", options={"count": count}),),
        {"execve_calls": count, "comm": "lk-spawner"},
    )


def two_pinned_hogs(seconds: float = 2.0, cpu: int | None = None) -> Workload:
    """Two processes that never sleep, pinned to one CPU: each waits about half of the time."""
    seconds, cpu = positive(seconds), last_cpu() if cpu is None else cpu
    workers = tuple(Worker(role, "hog", cpu, {"seconds": seconds}) for role in ("hog_a", "hog_b"))
    return Workload(
        "two_pinned_hogs",
        f"two spinning processes on CPU {cpu}",
        workers,
        {"wait_share": 0.5, "cpu": cpu},
        seconds,
    )


def service_alone(seconds: float = 2.0, cpu: int | None = None) -> Workload:
    """A service that works 4 ms of every 20, with its CPU to itself."""
    seconds, cpu = positive(seconds), last_cpu() if cpu is None else cpu
    return Workload(
        "service_alone",
        f"a service (4 ms of work every 20 ms) on CPU {cpu}",
        (Worker("service", "service", cpu, {"seconds": seconds}),),
        {"cpu": cpu},
        seconds,
    )


def service_beside_hog(seconds: float = 2.0, cpu: int | None = None) -> Workload:
    """The same service, and a process that never sleeps on the same CPU."""
    seconds, cpu = positive(seconds), last_cpu() if cpu is None else cpu
    return Workload(
        "service_beside_hog",
        f"a service (4 ms of work every 20 ms) and a spinning process on CPU {cpu}",
        (
            Worker("service", "service", cpu, {"seconds": seconds}),
            Worker("hog", "hog", cpu, {"seconds": seconds}),
        ),
        {"cpu": cpu, "noisy": "hog", "victim": "service"},
        seconds,
    )


def ping_pong(rounds: int = 2000, cpu: int | None = None) -> Workload:
    """Two processes pass one byte to and fro on one CPU: many waits, each too short to verify one by one."""
    cpu = last_cpu() if cpu is None else cpu
    workers = tuple(Worker(role, "pinger", cpu, {"rounds": rounds}) for role in ("ping", "pong"))
    return Workload(
        "ping_pong",
        f"two processes pass a byte {rounds} times on CPU {cpu}",
        workers,
        {"rounds": rounds, "cpu": cpu},
        None,
        True,
    )

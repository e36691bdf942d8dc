"""Scenarios without quotas: neighbours of all kinds, innocent ones too, and the service as its own worst neighbour."""

from __future__ import annotations

from labkit.cgroups import Group
from labkit.workloads._parts import GREEDY_MS, PERIOD_MS, WORK_MS, make, other_cpu, truth, worker
from labkit.workloads.running import OUTSIDE, Workload

__all__ = [
    "bursty_neighbour",
    "fifo_hog",
    "fork_storm",
    "hog",
    "hog_elsewhere",
    "hog_outside",
    "migrating",
    "nested",
    "niced_hog",
    "own_threads",
    "quiet",
    "two_hogs_3_1",
    "wakeup_storm",
]

_SERVICE = f"a service ({WORK_MS:g} ms of work every {PERIOD_MS:g} ms)"


def quiet(seconds: float, cpu: int) -> Workload:
    """Nobody to wait for."""
    return make(
        "quiet",
        f"{_SERVICE} alone on CPU {cpu}",
        [worker("service", "service", cpu, seconds)],
        truth(cpu, "quiet"),
    )


def hog(seconds: float, cpu: int) -> Workload:
    """The plain case."""
    return make(
        "hog",
        f"{_SERVICE} and a neighbour that never sleeps on CPU {cpu}",
        [worker("service", "service", cpu, seconds), worker("hog", "hog", cpu, seconds)],
        truth(cpu, "noisy_neighbor", {"hog": 1.0}, causes=["foreign"]),
    )


def two_hogs_3_1(seconds: float, cpu: int) -> Workload:
    """The service wants more than its fifth, so all three are always runnable and the hogs have the CPU as 3 to 1."""
    return make(
        "two_hogs_3_1",
        f"a service and two neighbours that never sleep, weights 100, 300 and 100, on CPU {cpu}",
        [
            worker("service", "service", cpu, seconds, work_ms=GREEDY_MS),
            worker("hog_a", "hog", cpu, seconds),
            worker("hog_b", "hog", cpu, seconds),
        ],
        truth(cpu, "noisy_neighbor", {"hog_a": 0.75, "hog_b": 0.25}, causes=["foreign"]),
        groups=[Group("hog_a", weight=300)],
    )


def own_threads(seconds: float, cpu: int) -> Workload:
    """More runnable tasks in one cgroup than CPUs for them."""
    others = [worker(f"thread_{n}", "hog", cpu, seconds, group="service") for n in (1, 2)]
    return make(
        "own_threads",
        f"{_SERVICE} and two tasks of its own that never sleep, in one cgroup on CPU {cpu}",
        [worker("service", "service", cpu, seconds), *others],
        truth(cpu, "self_contended", causes=["self"]),
    )


def hog_elsewhere(seconds: float, cpu: int) -> Workload:
    """Busy, and nobody's problem."""
    other = other_cpu(cpu)
    return make(
        "hog_elsewhere",
        f"{_SERVICE} alone on CPU {cpu}, and a neighbour that never sleeps on CPU {other}",
        [worker("service", "service", cpu, seconds), worker("hog", "hog", other, seconds)],
        truth(cpu, "quiet", innocent=["hog"]),
    )


def hog_outside(seconds: float, cpu: int) -> Workload:
    """In the root cgroup are the machine's own tasks: no neighbour, but the system."""
    return make(
        "hog_outside",
        f"{_SERVICE} on CPU {cpu}, and a process that never sleeps there, in the root cgroup",
        [worker("service", "service", cpu, seconds), worker("hog", "hog", cpu, seconds, group=OUTSIDE)],
        truth(cpu, "system", {"hog": 1.0}, causes=["foreign"]),
        weight=100,  # against the root's own tasks, one of which the hog is
    )


def fork_storm(seconds: float, cpu: int) -> Workload:
    """Hundreds or thousands of tasks a second that end at once: who asks "which task?" later finds none."""
    return make(
        "fork_storm",
        f"{_SERVICE} and a neighbour that forks without end on CPU {cpu}",
        [worker("service", "service", cpu, seconds), worker("storm", "forker", cpu, seconds)],
        truth(cpu, "noisy_neighbor", {"storm": 1.0}, causes=["foreign"]),
    )


def wakeup_storm(seconds: float, cpu: int) -> Workload:
    """Two tasks that wake each other: the CPU changes hands all the time, in pieces of microseconds."""
    storm = [worker(f"storm_{end}", "bouncer", cpu, seconds, group="storm") for end in "ab"]
    return make(
        "wakeup_storm",
        f"{_SERVICE} and a neighbour whose two tasks wake each other without end on CPU {cpu}",
        [worker("service", "service", cpu, seconds), *storm],
        truth(cpu, "noisy_neighbor", {"storm": 1.0}, causes=["foreign"]),
        paired=True,
    )


def niced_hog(seconds: float, cpu: int) -> Workload:
    """Niceness counts among the tasks of one cgroup only: in one of its own the nicest hog is as loud as any."""
    return make(
        "niced_hog",
        f"{_SERVICE} and a neighbour of niceness 19 that never sleeps on CPU {cpu}",
        [worker("service", "service", cpu, seconds), worker("hog", "hog", cpu, seconds, nice=19)],
        truth(cpu, "noisy_neighbor", {"hog": 1.0}, causes=["foreign"]),
    )


def fifo_hog(seconds: float, cpu: int) -> Workload:
    """Real-time: while it wants the CPU no ordinary task runs there. It leaves 30 ms in 100, or nothing would be served.

    Where the cpu controller is v1 it stays in the root of that tree, as the only place with real-time runtime, and has its
    cgroup in the cgroup2 tree only.
    """
    hog = worker("hog", "burst", cpu, seconds, fifo=10, on_ms=70.0, period_ms=100.0)
    return make(
        "fifo_hog",
        f"{_SERVICE} and a real-time neighbour (SCHED_FIFO) that takes 70 ms in 100 of CPU {cpu}",
        [worker("service", "service", cpu, seconds), hog],
        truth(cpu, "noisy_neighbor", {"hog": 1.0}, causes=["foreign"]),
    )


def bursty_neighbour(seconds: float, cpu: int) -> Workload:
    """It hurts one or two requests in ten: seen in the p99, not in the median."""
    bursts = worker("neighbour", "burst", cpu, seconds, on_ms=20.0, period_ms=200.0)
    return make(
        "bursty_neighbour",
        f"{_SERVICE} and a neighbour that takes 20 ms in 200 of CPU {cpu}",
        [worker("service", "service", cpu, seconds), bursts],
        truth(cpu, "noisy_neighbor", {"neighbour": 1.0}, causes=["foreign"]),
    )


def nested(seconds: float, cpu: int) -> Workload:
    """Tasks live in the leaves; the cgroups above have none, and are neither victims nor culprits."""
    sidecar = worker("sidecar", "service", cpu, seconds, group="pod_a/sidecar", work_ms=0.2, period_ms=100.0)
    return make(
        "nested",
        f"{_SERVICE} and a quiet sidecar in one pod, a neighbour that never sleeps deep in another, on CPU {cpu}",
        [
            worker("service", "service", cpu, seconds, group="pod_a/service"),
            sidecar,
            worker("hog", "hog", cpu, seconds, group="pod_b/inner/hog"),
        ],
        truth(cpu, "noisy_neighbor", {"hog": 1.0}, causes=["foreign"], innocent=["sidecar"]),
    )


def migrating(seconds: float, cpu: int) -> Workload:
    """Four tasks that sleep and wake out of step, and want all of two CPUs: each is moved often, also while it waits.

    (Tasks that never sleep settle down: the kernel leaves them where they are for seconds.)
    """
    cpus = sorted({cpu, other_cpu(cpu)})
    beats = {"neighbour_a": (3.0, 4.1), "neighbour_b": (5.0, 7.3), "neighbour_c": (2.0, 5.9)}
    neighbours = [
        worker(role, "burst", None, seconds, cpus=cpus, on_ms=on_ms, period_ms=period_ms)
        for role, (on_ms, period_ms) in beats.items()
    ]
    return make(
        "migrating",
        f"{_SERVICE} and three restless neighbours, all free to move between CPUs {cpus[0]} and {cpus[1]}",
        [worker("service", "service", None, seconds, cpus=cpus), *neighbours],
        truth(cpu, "noisy_neighbor", dict.fromkeys(beats, None), causes=["foreign"]),
    )

"""Known workloads: real processes that do what they declare, in cgroups of their own.

A workload is a list of workers. :meth:`Workload.run` starts them, lets them work and returns a :class:`Truth` while they
still stand, parked and blocked, so that the kernel's counters of exactly these tasks can be read at rest, and so can a
program's maps. Leaving the ``with`` block (or :meth:`Truth.release`) ends them and removes their cgroups.

:func:`scenario` makes contention whose victim, culprits and causes hold by construction:

>>> with scenario("two_hogs_3_1").run() as truth:                   # doctest: +SKIP
...     truth.declared["verdict"], truth.declared["guilty"]
('noisy_neighbor', {'hog_a': 0.75, 'hog_b': 0.25})
"""

from labkit.workloads.known import (
    exact_calls,
    exact_spawns,
    ping_pong,
    service_alone,
    service_beside_hog,
    two_pinned_hogs,
)
from labkit.workloads.running import Running, Worker, Workload
from labkit.workloads.scenarios import SCENARIOS, scenario
from labkit.workloads.truth import Truth

__all__ = [
    "SCENARIOS",
    "Running",
    "Truth",
    "Worker",
    "Workload",
    "exact_calls",
    "exact_spawns",
    "ping_pong",
    "scenario",
    "service_alone",
    "service_beside_hog",
    "two_pinned_hogs",
]

"""Sixteen scenarios: contention whose victim, culprits and causes hold by construction.

In each a **service** works some milliseconds of every 19 and times its own requests: its latency is an oracle that shares
nothing with the scheduler's counters. Everything is pinned to one CPU unless the scenario says otherwise, so a scenario
loads one CPU (``hog_elsewhere`` and ``migrating`` two) of a machine however large. All its cgroups together have ten times
the usual weight against the rest of the machine (``hog_outside``: the usual one), so that what is declared holds on a busy
machine too; among themselves their weights are the usual ones unless declared.

Where a scenario needs several tasks in one cgroup they are processes, not threads: to the scheduler both are tasks,
Python's interpreter lock would let only one of its threads run, and each process stands parked with its own counters
afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from labkit.errors import ParameterError
from labkit.workloads import _neighbours, _quotas
from labkit.workloads.known import last_cpu, positive
from labkit.workloads.running import Workload

__all__ = ["SCENARIOS", "scenario"]

_MAKERS: dict[str, Callable[[float, int], Workload]] = {
    "quiet": _neighbours.quiet,
    "hog": _neighbours.hog,
    "two_hogs_3_1": _neighbours.two_hogs_3_1,
    "throttled": _quotas.throttled,
    "throttled_beside_hog": _quotas.throttled_beside_hog,
    "own_threads": _neighbours.own_threads,
    "hog_elsewhere": _neighbours.hog_elsewhere,
    "hog_outside": _neighbours.hog_outside,
    "fork_storm": _neighbours.fork_storm,
    "wakeup_storm": _neighbours.wakeup_storm,
    "niced_hog": _neighbours.niced_hog,
    "fifo_hog": _neighbours.fifo_hog,
    "bursty_neighbour": _neighbours.bursty_neighbour,
    "nested": _neighbours.nested,
    "quota_on_parent": _quotas.quota_on_parent,
    "migrating": _neighbours.migrating,
}

#: Names of all scenarios, simple ones first.
SCENARIOS: tuple[str, ...] = tuple(_MAKERS)


def scenario(name: str, *, seconds: float = 3.0, cpu: int | None = None) -> Workload:
    """A workload with declared truth, ready to run.

    ``declared`` of it, and of the :class:`~labkit.workloads.Truth` of its run, holds:

    - ``victim`` (str): role of the cgroup that the verdict is about;
    - ``verdict`` (str): one of ``quiet``, ``noisy_neighbor``, ``self_contended``, ``throttled``, ``system``, ``mixed``;
    - ``guilty`` (role -> share of the victim's foreign wait, None where it does not follow from the construction);
    - ``causes`` (list of str): which of foreign, self and throttled make up the victim's wait;
    - ``innocent`` (list of str): roles that cause none of it worth naming;
    - ``quota_ancestor`` (str): role of the cgroup whose quota bites, empty if none does;
    - ``cpu`` (int): where the victim runs (``migrating``: one of the two).

    Roles are those of :attr:`Truth.cgroups <labkit.workloads.Truth>`. Shares are among the scenario's own cgroups; whatever
    else runs on the CPU comes on top.

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

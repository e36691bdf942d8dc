"""How large the tables of ``bpf/noisy_neighbor.c`` are to be on this machine, and which rules its kernel leaves.

Chosen before it is loaded, and said in words. Memory is bounded whatever the machine: some 64 MiB of sums, 16 MiB of pairs,
56 MiB of tasks, 44 to 220 KB of log for each CPU. Where copies per CPU would take more, CPUs share them and add atomically.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit import bpfsys
from labkit.errors import UnsupportedKernel
from labkit.kernel import btf
from labkit.kernel.cgroup import hierarchy

__all__ = ["Plan", "plan", "power_of_two", "sizes"]

_CGROUP_BYTES = 2112  # struct lk_cgroup
_CELL_BYTES = 16  # struct lk_cell
_LOG = 8192  # changes of occupant remembered per CPU, while that takes 16 MiB at most
_LEAST_LOG = 1024
_LOGS_BYTES = 16 << 20
_TASK_BYTES = 56  # struct lk_task
_SUMS_BYTES = 64 << 20
_PAIRS_BYTES = 16 << 20
_CHEAP_BYTES = 18 << 20  # as much room as this buys is there in any case
_SCHED_EXT = Path("/sys/kernel/sched_ext/state")


@dataclass(frozen=True)
class Plan:
    """Parameters for ``lk.load("noisy_neighbor", **plan.params)``.

    :param params: name -> value.
    :param rules: which rule was chosen where the kernel leaves a choice, and the sizes, in words.
    :param wakeup: True if the kernel needs the hook on wakeups to tell throttled time (6.17 and earlier).
    :param subsystem: number of the v1 controller whose tree tells cgroups apart; -1 for the cgroup2 tree.
    """

    params: dict[str, Any]
    rules: tuple[str, ...] = field(default=())
    wakeup: bool = False
    subsystem: int = -1


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below ``number``.

    >>> [power_of_two(n) for n in (0, 1, 2, 3, 1000)]
    [1, 1, 2, 4, 1024]
    """
    return 1 << max(0, number - 1).bit_length()


def cpu_bytes(log: int) -> int:
    """What one CPU's log takes: ``struct lk_cpu`` with so many changes of occupant remembered."""
    totals = log // 64 + 32 + 1
    return 1464 + 16 * log + 520 * totals


def sizes(cpus: int, cgroups: int, tasks: int) -> dict[str, Any]:
    """Table sizes for a machine.

    :param cpus: highest possible CPU number plus 1.
    :param cgroups: cgroups that exist now; there will be room for twice as many, and for 1,024 to
        4,096 at least, as memory allows.
    :param tasks: tasks that exist now.

    >>> sizes(2, 90, 200)["shards"], sizes(256, 3000, 40000)["shards"], sizes(256, 3000, 40000)["atomic"]
    (2, 2, True)
    """
    copies = power_of_two(cpus)
    cheap = power_of_two(_CHEAP_BYTES // (copies * _CGROUP_BYTES) + 1) // 2
    room = min(power_of_two(max(1024, 2 * cgroups, min(cheap, 4096))), 1 << 14)
    shards = copies
    while shards > 1 and shards * room * _CGROUP_BYTES > _SUMS_BYTES:
        shards //= 2
    dense = 256
    while dense > 32 and copies * dense * dense * _CELL_BYTES > _PAIRS_BYTES:
        dense //= 2
    dense_shards = copies
    while dense_shards > 1 and dense_shards * dense * dense * _CELL_BYTES > _PAIRS_BYTES:
        dense_shards //= 2
    log = _LOG
    while log > _LEAST_LOG and cpus * cpu_bytes(log) > _LOGS_BYTES:
        log //= 2
    return {
        "cpus": cpus,
        "log": log,
        "cgroups": room,
        "tasks": min(max(power_of_two(4 * tasks), 1 << 14), 1 << 20),
        "shards": shards,
        "atomic": min(shards, dense_shards) < copies,
        "dense": dense,
        "dense_shards": dense_shards,
        "cells": 1 << 14 if room <= 4096 else 1 << 16,
    }


def plan(*, cgroups: int | None = None) -> Plan:
    """What this machine and its kernel call for.

    :param cgroups: how many cgroups to expect; None counts those there are.
    :raises UnsupportedKernel: if the kernel keeps no ``sched_info``: then nothing says since when a task waits.
    """
    types = btf.kernel()
    if not types.has("task_struct", "sched_info.last_queued"):
        raise UnsupportedKernel(
            "this kernel does not note since when a task waits",
            why="it was built without CONFIG_SCHED_INFO (task_struct.sched_info)",
            remedy="`labkit record runq_latency` measures waits with stamps of its own, without telling who is to blame",
        )
    cpus = max(bpfsys.possible_cpu_list()) + 1
    chosen = sizes(cpus, _cgroups_now() if cgroups is None else cgroups, _tasks_now())
    subsystem, identity = _identity(types)
    throttle, wakeup = _throttle_rule(types)
    rules = [identity, throttle, *_sched_ext(), _describe(chosen)]
    return Plan(chosen | {"subsystem": subsystem}, tuple(rules), wakeup, subsystem)


def _cgroups_now() -> int:
    tree = hierarchy()
    root = tree.unified or tree.controllers.get("cpu")
    return sum(1 for _ in os.walk(root)) if root else 1


def _tasks_now() -> int:
    return int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])


def _identity(types: btf.BTF) -> tuple[int, str]:
    tree = hierarchy()
    if tree.unified is not None:
        return -1, f"cgroups are told apart in the cgroup2 tree ({tree.mode})"
    number = types.enumerator("cgroup_subsys_id", "cpu_cgrp_id")
    if number is None:
        return -1, "all cgroups look alike: there is no cgroup2 tree, and this kernel has no cpu controller"
    return number, "cgroups are told apart in the v1 tree of the cpu controller, as there is no cgroup2 tree"


def _throttle_rule(types: btf.BTF) -> tuple[str, bool]:
    if types.has("task_struct", "throttled"):
        return (
            "throttled time: by the kernel's flag on the task and its throttle clock (6.18 and later)",
            False,
        )
    if types.has("cfs_rq", "throttled_clock_self"):
        return (
            "throttled time: by the throttle clock of the run queue, noted at wakeup too (6.6 to 6.17)",
            True,
        )
    if types.has("cfs_rq", "throttle_count"):
        return "throttled time: an upper bound, by the clock of load tracking (before 6.6)", True
    return "throttled time: none, this kernel has no CFS bandwidth control", False


def _sched_ext() -> list[str]:
    try:
        state = _SCHED_EXT.read_text().strip()
    except OSError:
        return []
    if state != "enabled":
        return []
    return [
        "a sched_ext scheduler is at work: waits are exact, but a task may wait for any CPU, "
        "so who held its last one need not be whom it waited for"
    ]


def _describe(sizes: dict[str, Any]) -> str:
    memory = sizes["cgroups"] * sizes["shards"] * _CGROUP_BYTES
    memory += sizes["dense"] ** 2 * sizes["dense_shards"] * _CELL_BYTES
    memory += sizes["cpus"] * cpu_bytes(sizes["log"]) + sizes["tasks"] * _TASK_BYTES
    shared = "shared by CPUs, added up atomically" if sizes["atomic"] else "one copy per CPU"
    return (
        f"room for {sizes['cgroups']:,} cgroups, {sizes['tasks']:,} tasks, {sizes['cells']:,} pairs beyond the first "
        f"{sizes['dense']} cgroups', {sizes['log']:,} changes per CPU ({memory >> 20} MiB in all; sums: {shared})"
    )

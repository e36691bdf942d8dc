"""Independent witnesses: the kernel's own counters that measurements are held against.

Each function reads ``/proc`` or the cgroup file system, never BPF. Sources: ``Documentation/scheduler/sched-stats.rst``
(schedstat), ``Documentation/filesystems/proc.rst`` (status, stat), ``Documentation/admin-guide/cgroup-v2.rst`` (cpu.stat,
cpu.max, cpu.weight), ``Documentation/scheduler/sched-bwc.rst`` (the same on v1), ``Documentation/accounting/psi.rst``
(cpu.pressure).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from labkit.errors import UnsupportedKernel

__all__ = [
    "context_switches",
    "cpu_limits",
    "cpu_stat",
    "object_sizes",
    "pressure",
    "require_schedstat",
    "schedstat",
    "scheduler_pace",
    "switches",
    "threads_of",
    "tracepoint_functions",
]

_TRACE_ITER = "__traceiter_"


def threads_of(pid: int) -> list[int]:
    """Thread ids of a process, itself included; empty if it is gone."""
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        return []


def schedstat(pids: Iterable[int]) -> pd.DataFrame:
    """The scheduler's own account of tasks: ``/proc/PID/schedstat``.

    ``run_delay_ns`` is the time the task was runnable and not running, the oracle for waits. It is updated when the task
    gets the CPU, so a wait that is not over is not in it. It holds time throttled by a quota too.

    :param pids: thread ids.
    :returns: columns ``pid`` (int64), ``run_ns`` (int64), ``run_delay_ns`` (int64), ``timeslices`` (int64); tasks that
        are gone are left out.
    """
    rows = []
    for pid in pids:
        try:
            run, delay, slices = Path(f"/proc/{pid}/schedstat").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        rows.append((pid, int(run), int(delay), int(slices)))
    return pd.DataFrame(rows, columns=["pid", "run_ns", "run_delay_ns", "timeslices"]).astype("int64")


def require_schedstat(proc: Path = Path("/proc")) -> None:
    """See to it that the kernel keeps an account of waits.

    :raises UnsupportedKernel: if it does not: no ``/proc/PID/schedstat`` (``CONFIG_SCHED_INFO`` is not set), or zeros only
        (``sched_info_on()`` is false, ``proc_pid_schedstat`` in ``fs/proc/base.c``).
    """
    remedy = "run on a kernel with CONFIG_SCHED_INFO (CONFIG_SCHEDSTATS or CONFIG_TASK_DELAY_ACCT selects it), or in replay"
    try:
        fields = (proc / "self/schedstat").read_text().split()
    except OSError as error:
        raise UnsupportedKernel(
            "this kernel keeps no account of how long tasks wait",
            why=f"{error.filename}: {error.strerror}; CONFIG_SCHED_INFO is not set",
            remedy=remedy,
        ) from error
    if int(fields[0]) == 0:
        raise UnsupportedKernel(
            "this kernel's account of how long tasks wait is turned off",
            why="/proc/self/schedstat says that this very process has never run",
            remedy=remedy,
        )


def scheduler_pace(debugfs: Path = Path("/sys/kernel/debug")) -> dict[str, int | None]:
    """How often the scheduler can change its mind, and how much CPU time a task asks for at once.

    The tick is what the coarse clocks advance by (``CLOCK_MONOTONIC_COARSE`` in clock_getres(2)), so it can be had without
    rights. The slice stands in debugfs, for root where no lockdown forbids it, since 6.6.

    :returns: ``tick_ns`` (1e9 / ``CONFIG_HZ``) and ``base_slice_ns`` (None where it cannot be read).
    """
    coarse = 6  # CLOCK_MONOTONIC_COARSE in include/uapi/linux/time.h; the time module has no name for it
    tick_ns = round(time.clock_getres(coarse) * 1e9)
    try:
        base_slice_ns = int((debugfs / "sched/base_slice_ns").read_text())
    except (OSError, ValueError):
        return {"tick_ns": tick_ns, "base_slice_ns": None}
    return {"tick_ns": tick_ns, "base_slice_ns": base_slice_ns}


def switches(pids: Iterable[int]) -> pd.DataFrame:
    """Context switches of tasks: ``/proc/PID/status``.

    :returns: columns ``pid``, ``voluntary`` and ``involuntary`` (int64, ``nvcsw`` and ``nivcsw``).
    """
    rows = []
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        rows.append((pid, int(fields["voluntary_ctxt_switches"]), int(fields["nonvoluntary_ctxt_switches"])))
    return pd.DataFrame(rows, columns=["pid", "voluntary", "involuntary"]).astype("int64")


def context_switches() -> int:
    """Context switches of the whole machine since boot: ``ctxt`` in ``/proc/stat`` (the sum of ``rq->nr_switches``)."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("ctxt "):
            return int(line.split()[1])
    raise OSError("no ctxt line in /proc/stat")


def tracepoint_functions() -> pd.DataFrame:
    """Tracepoints by the function ``__traceiter_NAME`` that each leaves in the kernel's symbol table.

    The function is made by ``__DEFINE_TRACE`` (``include/linux/tracepoint.h``, since 5.10) and calls whoever is
    attached. The names in ``/proc/kallsyms`` are readable by everybody, also where addresses are hidden. Those of
    modules are left out.

    :returns: column ``name`` (str), sorted; no rows if the kernel has no symbol table.
    """
    names = []
    try:
        with open("/proc/kallsyms") as file:
            for line in file:
                _, _, symbol, *module = line.split()
                if symbol.startswith(_TRACE_ITER) and not module:
                    names.append(symbol.removeprefix(_TRACE_ITER))
    except OSError:
        pass
    return pd.DataFrame({"name": pd.Series(sorted(names), dtype="str")})


def object_sizes(caches: Iterable[str]) -> pd.DataFrame:
    """Sizes of the objects that the kernel's allocator hands out: ``/sys/kernel/slab/CACHE/object_size``.

    A cache with a constructor holds objects of one type only and is never merged with others (``mm/slab_common.c``,
    ``slab_unmergeable``), so its object size is that of the struct.

    :param caches: names of slab caches, such as ``inode_cache``.
    :returns: columns ``cache`` (str), ``object_bytes`` (int64); caches that are not there or not readable (they are
        root's) are left out.
    """
    rows = []
    for cache in caches:
        try:
            rows.append((cache, int((Path("/sys/kernel/slab") / cache / "object_size").read_text())))
        except OSError:
            continue
    frame = pd.DataFrame(rows, columns=["cache", "object_bytes"])
    return frame.astype({"cache": "str", "object_bytes": "int64"})


def _flat(path: Path) -> dict[str, int]:
    """A flat keyed file of the cgroup file system; empty if it is not there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {key: int(value) for key, value in (line.split() for line in lines)}


def _nanoseconds(found: dict[str, int], v1: str, v2: str) -> int | None:
    if v1 in found:
        return found[v1]
    return found[v2] * 1000 if v2 in found else None


def cpu_stat(folders: Iterable[str | Path]) -> pd.DataFrame:
    """What the cpu controller counts of cgroups, each with all that is below it: ``cpu.stat`` and ``cpu.stat.local``.

    ``throttled_ns`` is wall time, summed over the CPUs on which the cgroup's own quota held it back while it had tasks that
    wanted to run there; ``throttled_local_ns`` (6.6 and later) is the same, under its own or any ancestor's quota.

    :param folders: directories of cgroups, of the cgroup2 tree or of a v1 cpu controller.
    :returns: columns ``folder`` (str), and as Int64, NA where the file does not tell: ``periods`` and ``nr_throttled``
        (periods that passed while there was a quota, and those in which it ran out), ``throttled_ns``,
        ``throttled_local_ns``, ``usage_ns`` (CPU time used; v1 has it in cpuacct). A cgroup that is gone has NA throughout.
    """
    rows = []
    for folder in folders:
        stat, local = _flat(Path(folder) / "cpu.stat"), _flat(Path(folder) / "cpu.stat.local")
        rows.append(
            (
                str(folder),
                stat.get("nr_periods"),
                stat.get("nr_throttled"),
                _nanoseconds(stat, "throttled_time", "throttled_usec"),
                _nanoseconds(local, "throttled_time", "throttled_usec"),
                _nanoseconds(stat, "usage_ns", "usage_usec"),
            )
        )
    columns = ["folder", "periods", "nr_throttled", "throttled_ns", "throttled_local_ns", "usage_ns"]
    return pd.DataFrame(rows, columns=columns).astype({"folder": "str"} | dict.fromkeys(columns[1:], "Int64"))


def pressure(folders: Iterable[str | Path]) -> pd.DataFrame:
    """Pressure stall information of cgroups of the cgroup2 tree: totals of ``cpu.pressure``.

    "some" is wall time in which at least one task waited for a CPU: a bound, ``some <= sum of waits <= tasks * some``.

    :returns: columns ``folder`` (str), ``some_us`` and ``full_us`` (Int64, NA where there is no PSI).
    """
    rows = []
    for folder in folders:
        totals: dict[str, int] = {}
        try:
            for line in (Path(folder) / "cpu.pressure").read_text().splitlines():
                kind, *fields = line.split()
                totals[kind] = int(dict(field.split("=") for field in fields)["total"])
        except OSError:  # EOPNOTSUPP where PSI is built in and off
            totals = {}
        rows.append((str(folder), totals.get("some"), totals.get("full")))
    frame = pd.DataFrame(rows, columns=["folder", "some_us", "full_us"])
    return frame.astype({"folder": "str", "some_us": "Int64", "full_us": "Int64"})


def cpu_limits(folders: Iterable[str | Path]) -> pd.DataFrame:
    """Quota and weight of cgroups: ``cpu.max`` and ``cpu.weight``, or a v1 cpu controller's ``cpu.cfs_quota_us``,
    ``cpu.cfs_period_us`` and ``cpu.shares``.

    :returns: columns ``folder`` (str), and as Int64, NA where the cgroup has no cpu controller or is gone: ``quota_us`` (0:
        no quota), ``period_us``, ``weight`` (as ``cpu.weight``, 100 being usual; 1024 shares are 100).
    """
    rows = [(str(folder), *_limits_of(Path(folder))) for folder in folders]
    columns = ["folder", "quota_us", "period_us", "weight"]
    return pd.DataFrame(rows, columns=columns).astype({"folder": "str"} | dict.fromkeys(columns[1:], "Int64"))


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _limits_of(folder: Path) -> tuple[int | None, int | None, int | None]:
    if both := _word(folder / "cpu.max"):
        quota, period = both.split()
        weight = _word(folder / "cpu.weight")
        return 0 if quota == "max" else int(quota), int(period), int(weight) if weight else None
    if not (shares := _word(folder / "cpu.shares")):
        return None, None, None
    found, share = _word(folder / "cpu.cfs_quota_us"), max(1, round(int(shares) * 100 / 1024))
    if not found:  # without CONFIG_CFS_BANDWIDTH
        return 0, None, share
    return max(0, int(found)), int(_word(folder / "cpu.cfs_period_us")), share

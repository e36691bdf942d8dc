"""Independent witnesses: the kernel's own counters that measurements are held against.

Each function reads ``/proc`` or the cgroup file system, never BPF. Sources: ``Documentation/scheduler/sched-stats.rst``
(schedstat), ``Documentation/filesystems/proc.rst`` (status, stat).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

__all__ = [
    "context_switches",
    "object_sizes",
    "schedstat",
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

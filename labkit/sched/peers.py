"""The rules of others for "how long did it wait, and because of whom?", replayed over one recorded stream of events.

All of them keep a stamp per task and take the difference when the task gets the CPU. They differ in when they stamp:

``article``
    at ``sched_wakeup`` and ``sched_wakeup_new``, keeping an older stamp (``BPF_NOEXIST``). A task that is put off the CPU
    is not stamped. "Noisy Neighbor Detection with eBPF", Netflix Technology Blog, September 2024.
``preempt``
    the usual repair: the task that leaves is stamped too if the tracepoint's argument ``preempt`` is set. It is not for
    one that is put off on its way to user space, since there the scheduler is called in the ordinary way (``schedule()``
    from ``exit_to_user_mode_loop``, ``kernel/entry/common.c``; ``preempt`` is ``sched_mode == SM_PREEMPT``).
``bpftrace``
    the task that leaves is stamped if the *formatted* tracepoint's ``prev_state`` is 0. For a preempted task that field
    holds ``TASK_REPORT_MAX`` (``__trace_sched_switch_state``, ``include/trace/events/sched.h``), so it drops just those.
    ``tools/runqlat.bt`` of bpftrace.
``bcc``
    the task that leaves is stamped if its state is ``TASK_RUNNING``. Only tasks that are preempted on their way to sleep
    are missed. ``tools/runqlat.py`` of bcc; Datadog's agent (``noisy-neighbor-kern.c``) does the same.

Who is to blame: the article names the cgroup of ``prev``, the task that leaves the CPU as the wait ends, idle included,
whose cgroup is the root. The others name nobody; here they are given the same answer, with idle told apart. None separates
time under the task's own quota.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labkit.errors import ParameterError
from labkit.sched.trace import PREEMPT, Events, Trace, trace

__all__ = ["RULES", "Rule", "cells", "rate_limited", "seen"]


@dataclass(frozen=True)
class Rule:
    """One way to measure waits.

    :param title: for people.
    :param source: where it is from.
    :param stamps: when a task is stamped, in words.
    :param blames: whom it blames, in words.
    """

    name: str
    title: str
    source: str
    stamps: str
    blames: str


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "article",
            "the article",
            "https://netflixtechblog.com/noisy-neighbor-detection-with-ebpf-64b1f4b3bbdd",
            "when it is woken, unless an older stamp is there",
            "the cgroup of whoever left the CPU last, idle included",
        ),
        Rule(
            "preempt",
            "preempt flag",
            "https://github.com/torvalds/linux/blob/v6.12/include/trace/events/sched.h (sched_switch)",
            "when it is woken, or leaves the CPU with the flag `preempt`",
            "names nobody; here: whoever left the CPU last",
        ),
        Rule(
            "bpftrace",
            "bpftrace's runqlat.bt",
            "https://github.com/bpftrace/bpftrace/blob/master/tools/runqlat.bt",
            "when it is woken, or leaves the CPU with a formatted prev_state of 0",
            "names nobody; here: whoever left the CPU last",
        ),
        Rule(
            "bcc",
            "bcc's runqlat",
            "https://github.com/iovisor/bcc/blob/master/tools/runqlat.py",
            "when it is woken, or leaves the CPU in the state TASK_RUNNING",
            "names nobody; here: whoever left the CPU last",
        ),
    )
}


def seen(events: Events, rule: str) -> pd.DataFrame:
    """The waits that a rule sees.

    :param events: see :func:`labkit.sched.trace.trace`.
    :param rule: one of :data:`RULES`.
    :returns: one row per wait, by CPU and time: ``pid``, ``cpu``, ``ts``, ``runq_lat`` (int64, ns), ``cgroup_id``,
        ``prev_cgroup_id`` (uint64), ``prev_pid`` (int64; 0: idle). The article's columns have the names of its event.
    :raises ParameterError: if there is no such rule.
    :raises MissingCapture, CaptureMismatch: see :func:`labkit.sched.trace.trace`.
    """
    if rule not in RULES:
        raise ParameterError(f"there is no rule {rule!r}", why=f"there are: {', '.join(RULES)}")
    found = trace(events)
    s, w = found.switched, found.woken
    left = _stamps_prev(found, rule)
    row, ended = _pair(
        np.concatenate([w["pid"], s["prev_pid"][left]]),
        np.concatenate([w["time_ns"], s["time_ns"][left]]),
        s["next_pid"],
        s["time_ns"],
        keep_first=rule == "article",
    )
    return pd.DataFrame(
        {
            "pid": s["next_pid"][row],
            "cpu": s["cpu"][row],
            "ts": s["time_ns"][row],
            "runq_lat": np.maximum(s["time_ns"][row] - ended, 0),
            "cgroup_id": s["next_cgroup_id"][row],
            "prev_cgroup_id": s["prev_cgroup_id"][row],
            "prev_pid": s["prev_pid"][row],
        }
    )


def cells(found: pd.DataFrame, *, idle_apart: bool) -> pd.DataFrame:
    """What :func:`seen` saw, charged as its rule would, in the form of the matrix.

    :param idle_apart: idle is nobody; else it is its cgroup, the root.
    :returns: ``victim_id`` (uint64), ``kind`` (str), ``occupant_id`` (uint64), ``wait_ns``, ``preemptions`` (uint64: how
        many of the waits ended so).
    """
    found = found.reset_index(drop=True)
    idle = (found["prev_pid"] == 0).to_numpy() & idle_apart
    charged = pd.DataFrame(
        {
            "victim_id": found["cgroup_id"],
            "kind": pd.Series(np.where(idle, "idle", "cgroup"), dtype="str"),
            "occupant_id": found["prev_cgroup_id"].where(~idle, 0).astype("uint64"),
            "wait_ns": found["runq_lat"],
            "preemptions": 1,
        }
    )
    keys = ["victim_id", "kind", "occupant_id"]
    whole = charged.groupby(keys, as_index=False, sort=True)[["wait_ns", "preemptions"]].sum()
    return whole.astype({"wait_ns": "uint64", "preemptions": "uint64"})


def rate_limited(found: pd.DataFrame, limit_ns: int) -> pd.DataFrame:
    """What is left of events after the article's rate limit: per cgroup and CPU, the first of each so many ns.

    :param found: as :func:`seen` gives.
    """
    if not len(found):
        return found
    ordered = found.sort_values(["cpu", "cgroup_id", "ts"], kind="stable")
    time = ordered["ts"].to_numpy()
    group = ordered.groupby(["cpu", "cgroup_id"], sort=False).ngroup().to_numpy()
    # One line of time on which groups lie far apart, so that one search finds the next event that passes.
    apart = int(time.max() - time.min()) + limit_ns + 1
    line = group * apart + (time - time.min())
    following = np.append(np.searchsorted(line, line + limit_ns, "left"), len(line))
    first = np.append(np.r_[True, group[1:] != group[:-1]], False)
    following[:-1] = np.where(following[:-1] < len(line), following[:-1], len(line))
    kept = first
    while True:  # follow the chain from each group's first event, in steps that double
        further = kept.copy()
        further[following[kept]] = True
        if (further == kept).all():
            break
        kept, following = further, following[following]
    return ordered[kept[:-1]].sort_index()


def _stamps_prev(found: Trace, rule: str) -> np.ndarray:
    """Switches at which the rule stamps the task that leaves."""
    s = found.switched
    preempt: np.ndarray = (s["flags"] & PREEMPT) != 0
    running: np.ndarray = s["prev_state"] == 0
    if rule == "article":
        return np.zeros(len(running), bool)
    if rule == "preempt":
        return preempt
    return running & ~preempt if rule == "bpftrace" else running


def _pair(
    stamped: np.ndarray, stamp: np.ndarray, entered: np.ndarray, time: np.ndarray, *, keep_first: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Switch-ins of tasks that have a stamp, and that stamp. A switch-in takes the stamp away; idle has none.

    :param keep_first: of several stamps, the first counts; else the last.
    """
    pid = np.concatenate([stamped, entered])
    when = np.concatenate([stamp, time])
    arrives = np.repeat([False, True], [len(stamped), len(entered)])
    order = np.lexsort((arrives, when, pid))
    order = order[pid[order] != 0]
    pid, when, arrives = pid[order], when[order], arrives[order]
    # A chapter is what lies between two arrivals of a task; its last line is the arrival.
    begins = np.ones(len(pid), bool)
    begins[1:] = (pid[1:] != pid[:-1]) | arrives[:-1]
    at = np.flatnonzero(arrives & ~begins)
    start = np.maximum.accumulate(np.where(begins, np.arange(len(pid)), 0))
    return order[at] - len(stamped), when[start[at]] if keep_first else when[at - 1]

"""Waits held against the kernel's own account of them."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["CLOCK_NS_PER_EVENT", "SHARE", "allowed_ns", "compare"]

#: Our stamps and the scheduler's are taken at different moments of one switch and with different clocks
#: (``bpf_ktime_get_ns`` against ``rq->clock``). Measured: 5 to 11 µs per event on a small virtual machine.
CLOCK_NS_PER_EVENT = 12_000
#: Longer waits must agree within this share.
SHARE = 0.02


def allowed_ns(oracle_ns: float, events: float) -> float:
    """The largest residual that still agrees: 2 % of the oracle, or 12 µs per event if that is more."""
    return max(SHARE * float(oracle_ns), CLOCK_NS_PER_EVENT * float(events))


def compare(waits: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """Measured waits of known tasks beside ``run_delay``.

    :param waits: the map ``waits`` of ``runq_latency``: ``pid``, ``waits``, ``wait_ns``, ``preempted_wait_ns``, ...
    :param tasks: a workload's :attr:`~labkit.workloads.Truth.tasks`: ``role``, ``pid``, ``run_ns``, ``run_delay_ns``,
        ``timeslices``.
    :returns: one row per task: ``role`` (str), ``pid``, ``waits``, ``timeslices`` (int64), ``wait_ns``, ``run_delay_ns``,
        ``preempted_wait_ns``, ``run_ns``, ``residual_ns``, ``allowed_ns`` (int64), ``residual_share``, ``ns_per_wait``
        (float64) and ``verdict`` (str): ``agrees``; ``differs``; or ``below what can be verified``, where the allowance is
        more than half of the oracle (or the oracle is 0), so that agreement would prove nothing; there only the number of
        waits can be checked.
    """
    merged = tasks.merge(waits, on="pid", how="left", suffixes=("", "_program"))
    counts = ["waits", "wait_ns", "preempted_wait_ns"]
    merged[counts] = merged[counts].fillna(0).astype("int64")
    oracle = merged["run_delay_ns"].to_numpy(dtype=float)
    residual = merged["wait_ns"].to_numpy(dtype=float) - oracle
    allowed = np.maximum(SHARE * oracle, CLOCK_NS_PER_EVENT * merged["waits"].to_numpy(dtype=float))
    verdict = np.where(
        (allowed > oracle / 2) | (oracle == 0),
        "below what can be verified",
        np.where(np.abs(residual) <= allowed, "agrees", "differs"),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        share, each = residual / oracle, residual / merged["waits"].to_numpy(dtype=float)
    return pd.DataFrame(
        {
            "role": merged["role"],
            "pid": merged["pid"],
            "waits": merged["waits"],
            "timeslices": merged["timeslices"],
            "wait_ns": merged["wait_ns"],
            "run_delay_ns": merged["run_delay_ns"],
            "preempted_wait_ns": merged["preempted_wait_ns"],
            "run_ns": merged["run_ns"],
            "residual_ns": residual.astype("int64"),
            "allowed_ns": allowed.astype("int64"),
            "residual_share": share,
            "ns_per_wait": each,
            "verdict": pd.Series(verdict, dtype="str"),
        }
    )

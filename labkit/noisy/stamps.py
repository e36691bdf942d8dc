"""A second measure of the same waits, with nothing in common but the waits: the classical stamps of ``runq_latency``.

What ``noisy_neighbor`` sums *is* ``run_delay``, so that counter alone would not show an error that both share. Stamps of
another clock at wakeup and at preemption would. They cost three times as much, so they run for a moment only.
"""

from __future__ import annotations

import time

import pandas as pd

from labkit.noisy.watch import Watch
from labkit.noisy.witnesses import SCHEMAS
from labkit.program import load
from labkit.sched.state import between

__all__ = ["LONGEST_S", "SHARE", "check"]

#: Of a measurement, this share at its end is measured twice, but not more than so many seconds.
SHARE, LONGEST_S = 0.25, 1.0


def check(watch: Watch, seconds: float) -> pd.DataFrame:
    """Measure for so long in both ways.

    :returns: one row per cgroup in which both saw waits: ``cgroup_id`` (uint64), ``waits`` (by the stamps), ``measured_ns``
        (``noisy_neighbor``), ``stamped_ns`` (``runq_latency``; int64). A wait that began in one cgroup and ended in another
        is where it ended.
    :raises LabkitError: if ``runq_latency`` cannot be loaded.
    """
    with load("runq_latency") as stamps:
        before = watch.snapshot()
        began = stamps.frame("waits")
        time.sleep(seconds)
        after = watch.snapshot()
        ended = stamps.frame("waits")
    counts = ["waits", "wait_ns"]
    by_cgroup = ended.groupby("cgroup_id")[counts].sum().astype("int64")
    earlier = began.groupby("cgroup_id")[counts].sum().astype("int64")
    stamped = by_cgroup.sub(earlier, fill_value=0)
    measured = between(before, after).cgroups.set_index("cgroup_id")["wait_ns"].astype("int64")
    both = stamped.join(measured.rename("measured_ns"), how="inner").reset_index()
    both = both.rename(columns={"wait_ns": "stamped_ns"})
    return both[both["waits"] > 0][list(SCHEMAS["stamps"])].astype(SCHEMAS["stamps"]).reset_index(drop=True)

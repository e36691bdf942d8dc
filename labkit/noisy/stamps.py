"""A second measure of the same waits, with nothing in common but the waits: the classical stamps of ``runq_latency``.

What ``noisy_neighbor`` sums *is* ``run_delay``, so that counter alone would not show an error that both share. Stamps of
another clock at wakeup and at preemption would. They cost three times as much, so they run for a moment only.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pandas as pd

from labkit import bpfsys
from labkit.closing import Closing
from labkit.errors import LabkitError
from labkit.noisy.watch import Watch
from labkit.noisy.witnesses import SCHEMAS
from labkit.program import Program, load
from labkit.sched.state import Snapshot, between

__all__ = ["LONGEST_S", "SHARE", "Stamps"]

#: Of a measurement, this share is measured twice, but not more than so many seconds.
SHARE, LONGEST_S = 0.25, 1.0
_TOO_SOON = "no stamps of another clock: it was ended before their turn"
#: Switches first: a task whose wakeup was stamped and whose switch-in was not would seem to wait until its next one.
_ORDER = ("switch", "wakeup", "wakeup_new")


class Stamps(Closing):
    """``runq_latency``, loaded and detached: nothing is compiled, loaded or paid for until :meth:`check`.

    A context manager. What keeps it from working is no reason to withhold the answer, so it is kept in :attr:`problem`.

    :ivar problem: why there will be no stamps, in words; empty if there will.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._program: Program | None = None
        self._idle_ns = 0
        self._checked = False
        self.problem = ""
        if watch.plan.subsystem >= 0:
            self.problem = "stamps tell cgroups apart in the cgroup2 tree, which this machine does not have"
            return
        try:
            self._program = load("runq_latency")
        except LabkitError as error:
            self.problem = f"stamps of another clock could not be had: {error.what}"
            return
        self._begin_anew()
        self._idle_ns = self._program.run_time_ns or 0

    def close(self) -> None:
        """Unload it. May be called twice."""
        if self._program is not None:
            self._program.close()

    @property
    def run_time_ns(self) -> int:
        """What all checks together cost in the kernel; 0 where counting that is not permitted."""
        return 0 if self._program is None else (self._program.run_time_ns or 0) - self._idle_ns

    def told(self, interval: Snapshot) -> Snapshot:
        """The interval, with what checking it cost, and with why it was not checked, if so."""
        why = self.problem or ("" if self._checked else _TOO_SOON)
        notes = (*interval.ledger.notes, why) if why else interval.ledger.notes
        return replace(
            interval,
            cost=replace(interval.cost, checks_ns=self.run_time_ns),
            ledger=replace(interval.ledger, notes=notes),
        )

    def _begin_anew(self) -> None:
        """Detach, and forget: a stamp of before would make a wait of all the time since."""
        assert self._program is not None
        self._program.stop()
        bpfsys.wait_for_programs()
        for table in self._program.maps.values():
            table.clear()

    def check(self, seconds: float) -> pd.DataFrame | None:
        """Measure for so long in both ways.

        The stamps count each wait that ends between attaching and detaching. A snapshot is taken on either side of each of
        the two, so that what ended in that time is at least ``measured_ns`` and at most ``most_ns``, whatever is slow.

        :returns: one row per cgroup in which the stamps saw waits end: ``cgroup_id`` (uint64), ``waits`` (by the stamps),
            ``measured_ns`` and ``most_ns`` (``noisy_neighbor``), ``stamped_ns`` (``runq_latency``; int64). A wait that
            began in one cgroup and ended in another is where it ended. None where there are no stamps.
        """
        if self._program is None:
            return None
        outer = self._watch.snapshot()
        for label in _ORDER:
            self._program.attach(label)
        inner = self._watch.snapshot()
        try:
            time.sleep(seconds)
        finally:
            inner_end = self._watch.snapshot()
            self._program.stop()
            bpfsys.wait_for_programs()
            outer_end = self._watch.snapshot()
            stamped = self._program.frame("waits")
            self._begin_anew()
        self._checked = True
        counts = ["waits", "wait_ns"]
        found = stamped.groupby("cgroup_id")[counts].sum().astype("int64")
        found = found.rename(columns={"wait_ns": "stamped_ns"})
        found["measured_ns"] = _waited(inner, inner_end).reindex(found.index, fill_value=0)
        found["most_ns"] = _waited(outer, outer_end).reindex(found.index, fill_value=0)
        found = found[found["waits"] > 0].reset_index()
        return found[list(SCHEMAS["stamps"])].astype(SCHEMAS["stamps"])


def _waited(older: Snapshot, newer: Snapshot) -> pd.Series:
    return between(older, newer).cgroups.set_index("cgroup_id")["wait_ns"].astype("int64")

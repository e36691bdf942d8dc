"""Verdicts for the exporter: those of :mod:`labkit.sched.verdict`, on the cgroups that have a series."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.metrics.families import Judgement
from labkit.sched.state import Snapshot
from labkit.sched.verdict import verdicts

__all__ = ["judged"]


def judged(interval: Snapshot) -> Mapping[int, Judgement]:
    """A judgement for each cgroup that waited in the interval."""
    only = interval.cells["victim_id"].unique().tolist()
    return {
        found.cgroup_id: Judgement(found.verdict, found.confidence, found.wait_ns)
        for found in verdicts(interval, only=only)
    }

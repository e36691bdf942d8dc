"""A workload of known truth under the noisy-neighbour program: what a chapter, a test and a recording have in common."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import pandas as pd

from labkit.events import stream_events
from labkit.names import Directory
from labkit.noisy import witnesses
from labkit.noisy.answer import Answer
from labkit.noisy.archive import Recording
from labkit.noisy.select import Selection
from labkit.noisy.stamps import LONGEST_S, SHARE, Stamps
from labkit.noisy.watch import Watch
from labkit.noisy.witnesses import Evidence, Reading
from labkit.program import load
from labkit.sched import integral
from labkit.sched.state import Snapshot, between
from labkit.sched.trace import trace
from labkit.sched.verdict import Verdict
from labkit.workloads import Truth, Workload

__all__ = ["EVENT_FRAMES", "Measured", "measure"]

#: Frames that come of the event stream: who was on which CPU, each stretch of waiting, and the exact matrix.
EVENT_FRAMES = ("occupancy", "waits", "exact")


@dataclass(frozen=True)
class Measured:
    """A workload's truth, and what was measured while it ran.

    :param truth: what the workload did; its processes stand parked until it is released.
    :param recording: snapshot and oracles of the time from go to rest.
    :param events: of the event stream, if it was asked for: ``occupancy`` and ``waits`` as
        :func:`labkit.sched.integral.occupancy` and :func:`~labkit.sched.integral.waits` give them, ``exact`` as
        :func:`labkit.sched.integral.cells`, of the same time. Else empty.
    """

    truth: Truth
    recording: Recording
    events: dict[str, pd.DataFrame]

    @property
    def snapshot(self) -> Snapshot:
        """What the program measured."""
        return self.recording.snapshot

    @property
    def answer(self) -> Answer:
        """The verdicts on all cgroups, with oracles."""
        return self.recording.answer()

    @property
    def ids(self) -> dict[str, int]:
        """Role -> cgroup id, of the workload's own cgroups."""
        own = self.truth.cgroups
        return dict(zip(own["role"], own["cgroup_id"].astype(int), strict=True))

    def verdict(self, role: str) -> Verdict:
        """The verdict on one of the workload's cgroups.

        :raises KeyError: if there is no such role, or its cgroup never ran.
        """
        wanted = self.ids[role]
        found = [verdict for verdict in self.answer.verdicts if verdict.cgroup_id == wanted]
        if not found:
            raise KeyError(f"{role} never waited nor ran")
        return found[0]


def measure(workload: Workload, *, events: bool = False) -> Measured:
    """Run a workload under the program, from the moment it is let go to the moment it rests.

    :param events: record the event stream beside it, for figures in time and for the exact integral.
    :raises LabkitError: as :class:`~labkit.noisy.watch.Watch` and :meth:`~labkit.workloads.Workload.start`.
    """
    with ExitStack() as stack:
        running = workload.start()
        stack.callback(running.release)
        watch = stack.enter_context(Watch(label=workload.name))
        second = stack.enter_context(Stamps(watch))
        tracer = stack.enter_context(load("sched_trace")) if events else None
        first, before = watch.snapshot(), _read(watch.directory)
        running.go()
        stamped = second.check(min(SHARE * (workload.seconds or 1.0), LONGEST_S))
        truth = running.finish()
        if tracer is not None:
            tracer.stop()
        watch.stop()
        last, after = watch.snapshot(), _read(watch.directory)
        evidence = witnesses.evidence(before, after)
        if stamped is not None:
            evidence = replace(evidence, stamps=stamped)
        evidence = replace(evidence, requests=_requests(truth))
        recording = Recording(second.told(between(first, last)), evidence, Selection())
        frames = {}
        if tracer is not None:
            found = trace(list(stream_events(tracer, "events", seconds=0.01)))
            frames = {
                "occupancy": integral.occupancy(found),
                "waits": integral.waits(found),
                "exact": integral.cells(found),
            }
        stack.pop_all()  # the processes stay parked: who asked releases them
        watch.close()
        second.close()
        if tracer is not None:
            tracer.close()
    return Measured(truth, recording, frames)


def _requests(truth: Truth) -> pd.DataFrame:
    """What the victim says of its own requests."""
    victim = str(truth.declared.get("victim", ""))
    said = truth.results.get(victim, {})
    rows = truth.cgroups[truth.cgroups["role"] == victim]
    if "beyond_work_ns" not in said or rows.empty:
        return Evidence.none().requests
    row = (int(rows["cgroup_id"].iloc[0]), int(said["requests"]), int(said["beyond_work_ns"]))
    schema = witnesses.SCHEMAS["requests"]
    return pd.DataFrame([row], columns=list(schema)).astype(schema)


def _read(directory: Directory) -> Reading:
    """The oracles' counters of every cgroup there is, those that nobody has seen run too."""
    directory.walk()
    paths = {i: name.cgroup for i, name in directory.all().items() if name.cgroup and directory.alive(i)}
    return witnesses.read(directory.tree, paths, everything=True)

"""A scenario's truth and the scheduler's events from before its first step until its last task rests, in one folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from labkit.capture import Capture, Recorder
from labkit.errors import LabkitError, MissingCapture, ParameterError, WorkloadFailed
from labkit.events import record_events
from labkit.ledger import Ledger
from labkit.paths import captures_dir
from labkit.program import load
from labkit.recordings import read_events
from labkit.sched.trace import Trace, trace
from labkit.workloads import SCENARIOS, Workload, scenario, two_pinned_hogs

__all__ = ["NAMES", "PAIRS", "SECONDS", "Case", "cases", "folder_of", "open_case", "record"]

#: The plainest contention there is: two that never sleep, one the other's victim. Name -> what they do.
PAIRS: Mapping[str, str] = {"two_pinned_hogs": "hog", "two_kernel_hogs": "reader"}
#: What is shown, in this order.
NAMES: tuple[str, ...] = (*PAIRS, *SCENARIOS)
#: How long each works. Two tasks that wake each other fill a small file in no time.
SECONDS: Mapping[str, float] = {name: 0.1 if name == "wakeup_storm" else 1.5 for name in NAMES}
_TRUTH = "truth"


@dataclass(frozen=True)
class Case:
    """A recorded scenario.

    :param what: what runs, in words.
    :param declared: its truth by construction; see :func:`labkit.workloads.scenario`.
    :param cgroups: see :attr:`labkit.workloads.Truth.cgroups`.
    :param results: role -> what the worker itself says, such as the service's latency.
    :param seconds: how long it worked.
    :param events: the scheduler's events.
    """

    name: str
    what: str
    declared: Mapping[str, Any]
    cgroups: pd.DataFrame
    results: Mapping[str, Mapping[str, Any]]
    seconds: float
    events: Trace
    ledger: Ledger
    recorded: str
    environment: Mapping[str, Any]

    @property
    def victim(self) -> int:
        """Cgroup id of the one that the verdict is about."""
        return self.id_of(self.declared["victim"])

    def id_of(self, role: str) -> int:
        """Cgroup id of a role."""
        found = self.cgroups.loc[self.cgroups["role"] == role, "cgroup_id"]
        return int(found.iloc[0])

    @property
    def true_wait_ns(self) -> int:
        """``run_delay`` of the victim's tasks, from go to rest."""
        row = self.cgroups.loc[self.cgroups["role"] == self.declared["victim"], "run_delay_ns"]
        return int(row.iloc[0])

    @property
    def roles(self) -> dict[int, str]:
        """Cgroup id -> role."""
        rows = self.cgroups[self.cgroups["cgroup_id"] != 1]
        return dict(zip(rows["cgroup_id"].astype(int), rows["role"], strict=True))


def folder_of(name: str) -> Path:
    """Where the recording of a scenario lies.

    :raises ParameterError: if there is no such scenario.
    """
    if name not in NAMES:
        raise ParameterError(f"there is no scenario {name!r}", why=f"there are: {', '.join(NAMES)}")
    return captures_dir() / "scenarios" / name


def _workload(name: str, seconds: float) -> Workload:
    if name not in PAIRS:
        return scenario(name, seconds=seconds)
    hogs = two_pinned_hogs(seconds=seconds)
    workers = tuple(replace(worker, kind=PAIRS[name]) for worker in hogs.workers)
    truth = {
        "victim": "hog_a",
        "verdict": "noisy_neighbor",
        "guilty": {"hog_b": 1.0},
        "causes": ["foreign"],
        "innocent": [],
        "quota_ancestor": "",
    }
    what = (
        hogs.what
        if PAIRS[name] == "hog"
        else f"two processes that copy in the kernel on CPU {hogs.declared['cpu']}"
    )
    declared = {**hogs.declared, **truth}
    return replace(hogs, name=name, what=what, workers=workers, declared=declared, needs_cgroups=True)


def record(name: str, folder: Path | None = None, *, seconds: float | None = None) -> Case:
    """Run a scenario and record it; a recording there is overwritten.

    :param folder: ``captures/scenarios/NAME`` if None.
    :raises ParameterError: if there is no such scenario.
    :raises WorkloadFailed: if events were lost: then it proves nothing.
    :raises MissingPrivilege, UnsupportedKernel, CgroupError: if this machine cannot do it.
    """
    folder = folder_of(name) if folder is None else folder
    seconds = SECONDS.get(name, 1.5) if seconds is None else seconds
    workload = _workload(name, seconds)
    with (
        workload.start() as running,
        load("sched_trace", label=f"scenarios/{name}") as program,
        _elsewhere(workload.declared.get("cpu")),
    ):
        running.go()
        with ThreadPoolExecutor(1) as beside:
            # Until all stand parked, however late that is: then each wait has ended, and is in the events.
            finished = beside.submit(running.finish)
            recording = record_events(
                program, "events", folder, seconds=seconds, latency_s=0.05, going=lambda: not finished.done()
            )
            truth = finished.result()
        recorder = Recorder(folder, folder.name, resume=True)
        recorder.truth(_TRUTH, truth)
        recorder.reading("about", {"name": name, "what": workload.what, "seconds": seconds})
    if recording.ledger.lost:
        raise WorkloadFailed(
            f"events of {name} were lost",
            why=recording.ledger.describe(),
            remedy="record again on a quieter machine",
        )
    return open_case(folder)


@contextlib.contextmanager
def _elsewhere(cpu: int | None) -> Iterator[None]:
    """Keep this thread off the CPU that the scenario is about, where there is another."""
    allowed = os.sched_getaffinity(0)
    others = allowed - {cpu}
    try:
        os.sched_setaffinity(0, others or allowed)
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def open_case(folder: Path) -> Case:
    """A recorded scenario.

    :raises MissingCapture, CaptureMismatch: if there is none, or it is damaged.
    """
    recording = read_events(folder)
    capture: Capture = recording.capture
    truth, about = capture.truth(_TRUTH), capture.reading("about")
    cgroups = truth["cgroups"]
    if cgroups is None:
        raise MissingCapture(f"{folder} does not say who was in which cgroup", remedy="record it again")
    return Case(
        name=about["name"],
        what=about["what"],
        declared=truth["declared"],
        cgroups=cgroups,
        results=truth["results"],
        seconds=about["seconds"],
        events=trace(recording),
        ledger=recording.ledger,
        recorded=capture.data["recorded"],
        environment=capture.data["environment"],
    )


def cases(names: tuple[str, ...] = NAMES) -> list[Case]:
    """The recorded scenarios, in order.

    :raises MissingCapture: if one was not recorded.
    """
    found = []
    for name in names:
        try:
            found.append(open_case(folder_of(name)))
        except MissingCapture as error:
            raise MissingCapture(
                f"scenario {name} was not recorded", why=error.what, remedy="labkit scenarios --record"
            ) from error
        except LabkitError:
            raise
    return found

"""The recorded events of ``bpf/sched_trace.c`` as arrays, in the order that sums need.

Whatever holds such events will do: a recording's folder, groups as they come from a ring, or frames by kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from labkit.errors import CaptureMismatch
from labkit.recordings import Group, Recording, read_events

__all__ = ["COLUMNS", "NEW", "ON_CPU", "PREEMPT", "THROTTLED", "THROTTLED_KNOWN", "Events", "Trace", "trace"]

#: ``flags`` of a switch and of a wakeup, as ``bpf/sched_trace.c`` has them.
PREEMPT, THROTTLED, THROTTLED_KNOWN = 1, 2, 4
NEW, ON_CPU = 1, 2

#: Columns of each kind of event.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "switched": (
        "time_ns",
        "cpu",
        "flags",
        "prev_pid",
        "next_pid",
        "switches",
        "prev_state",
        "lost",
        "prev_cgroup_id",
        "next_cgroup_id",
        "prev_arrived_ns",
        "queued_ns",
        "run_delay_ns",
        "prev_throttle_clock_ns",
        "next_throttle_clock_ns",
        "stolen_ns",
    ),
    "woken": ("time_ns", "cpu", "flags", "pid", "throttle_clock_ns", "stolen_ns"),
    "migrated": ("time_ns", "cpu", "pid", "cgroup_id", "run_delay_ns", "throttle_clock_ns", "stolen_ns"),
}
_IDS = {"prev_cgroup_id", "next_cgroup_id", "cgroup_id"}


@dataclass(frozen=True)
class Trace:
    """Events by kind. Each is ordered by CPU, then time; the times of two CPUs are of two clocks that differ a little.

    :param switched, woken, migrated: column -> values: int64, cgroup ids uint64; and ``order``, the place in the ring among
        events of that kind.
    """

    switched: Mapping[str, np.ndarray]
    woken: Mapping[str, np.ndarray]
    migrated: Mapping[str, np.ndarray]

    @property
    def cpus(self) -> np.ndarray:
        """The CPUs on which something was switched, in order."""
        return np.unique(self.switched["cpu"])


#: What can be read as a trace.
Events: TypeAlias = Trace | str | Path | Recording | Mapping[str, pd.DataFrame] | Iterable[Group]


def trace(events: Events) -> Trace:
    """Events as a :class:`Trace`.

    :param events: folder of a recording, a recording, frames by kind (columns as in :data:`COLUMNS`), or groups in order.
    :raises MissingCapture, CaptureMismatch: if there is no such recording, it is damaged, or of another program.
    """
    if isinstance(events, Trace):
        return events
    frames = _frames(events)
    if missing := set(COLUMNS) - set(frames):
        raise CaptureMismatch(
            "these are not the scheduler's events",
            why=f"no events of kind {', '.join(sorted(missing))}",
            remedy="record the program sched_trace",
        )
    return Trace(*(_ordered(kind, frames[kind]) for kind in ("switched", "woken", "migrated")))


def _frames(
    events: str | Path | Recording | Mapping[str, pd.DataFrame] | Iterable[Group],
) -> Mapping[str, pd.DataFrame]:
    if isinstance(events, Mapping):
        return events
    if isinstance(events, str | Path):
        events = read_events(events)
    if isinstance(events, Recording):
        return {kind: events.frame(kind) for kind in events.kinds}
    groups = list(events)
    kinds = {kind for group in groups for kind in group.tables}
    return {kind: pd.concat([group.frame(kind) for group in groups], ignore_index=True) for kind in kinds}


def _ordered(kind: str, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    names = COLUMNS[kind]
    if missing := set(names) - set(frame.columns):
        raise CaptureMismatch(
            f"events of kind {kind} lack {', '.join(sorted(missing))}",
            why="they are of another version of sched_trace",
            remedy="record again",
        )
    columns = {
        name: frame[name].to_numpy().astype(np.uint64 if name in _IDS else np.int64, copy=False)
        for name in names
    }
    columns["order"] = np.arange(len(frame))
    # Stable: what carries the same time stays as it came out of the ring.
    order = np.lexsort((columns["time_ns"], columns["cpu"]))
    return {name: values[order] for name, values in columns.items()}

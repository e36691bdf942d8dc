"""Who held the CPU is not always who exceeded its share: an occupant's time against its weight.

The scheduler promises shares among those who want the CPU at the same moment, level by level: the children of a
cgroup share by ``cpu.weight``, and tasks that lie directly in it take part each for itself, by nice
(``Documentation/scheduler/sched-eevdf.rst``; ``sched_prio_to_weight`` in ``kernel/sched/core.c``). So two cgroups
are compared where their paths part.

*held*: of the time in which both wanted one and the same CPU and one of the two had it, the occupant's part. The
matrix has it: while the occupant ran and the victim waited, time went into the cell (victim, occupant); while the
victim ran and the occupant waited, into (occupant, victim). Neither the time in which only one of them wanted a CPU,
nor what they did on other CPUs, is in either. If *n* tasks of one side wait at once each of them counts the same time,
so each cell is divided by its *n*, taken from how many of the same cgroup wait while it runs: a mean over the whole
time, so that it is too low for a cgroup which has many tasks only now and then.

*entitled*: the occupant's weight over both weights; task by task, where both lie directly in what they have in common.

Held well above entitled means that weights did not decide: real-time classes; weights that work on the whole machine
while the two meet on one CPU; or bursts shorter than a time slice (some ms), which the scheduler does not divide: it
gives the CPU to who wakes up and had less before, so that a neighbour with a small part of the CPU can still be in the
way whenever it wants it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["MARGIN", "Classes", "Group", "Standing", "standing"]

#: held may exceed entitled by this much (of 1) before it is called so: slices are milliseconds, and intervals are short.
MARGIN = 0.1
_DEFAULT_WEIGHT = 100.0  # of a cgroup, and of one task at nice 0
_IDLE_WEIGHT = 100.0 * 3 / 1024  # WEIGHT_IDLEPRIO
_NICE_STEP = 1.25  # one nice level


@dataclass(frozen=True)
class Group:
    """One level that is a group to the scheduler: its path, weight (``cpu.weight`` units), and whether ``cpu.idle``
    is set."""

    path: str
    weight: float = _DEFAULT_WEIGHT
    idle: bool = False


@dataclass(frozen=True)
class Classes:
    """Scheduling classes of a cgroup's tasks, counted at the end of the measurement.

    :param tasks: all that were looked at.
    :param realtime: of them in SCHED_FIFO, SCHED_RR or SCHED_DEADLINE.
    :param idle: of them in SCHED_IDLE.
    :param nice: the middle one of the others' nice values.
    """

    tasks: int = 0
    realtime: int = 0
    idle: int = 0
    nice: int = 0

    @property
    def weight(self) -> float:
        """Weight of one task."""
        if self.tasks and self.idle == self.tasks:
            return _IDLE_WEIGHT
        return float(_DEFAULT_WEIGHT / _NICE_STEP**self.nice)


@dataclass(frozen=True)
class Standing:
    """An occupant's part beside a victim.

    :param held: 0.0 to 1.0, see the module.
    :param entitled: 0.0 to 1.0; None where weights could not be read.
    :param by: what decides between the two: ``realtime``, ``weight`` (at least one is a group) or ``tasks`` (both
        compete task by task), ``unknown``.
    :param weights: the two weights, occupant's first; 0 where unknown.
    """

    held: float
    entitled: float | None = None
    by: Literal["realtime", "weight", "tasks", "unknown"] = "unknown"
    weights: tuple[float, float] = (0.0, 0.0)

    @property
    def exceeded(self) -> bool:
        """True if it held clearly more than it is entitled to; False also where that is not known."""
        return self.entitled is not None and self.held > self.entitled + MARGIN

    @property
    def within(self) -> bool:
        """True if it is known to have stayed within its share."""
        return self.entitled is not None and not self.exceeded


def standing(
    *,
    behind_ns: float,
    ahead_ns: float,
    waiting: float,
    occupant_waiting: float,
    groups: tuple[Sequence[Group], Sequence[Group]] | None,
    classes: Mapping[str, Classes] | None = None,
) -> Standing:
    """An occupant's standing beside a victim.

    :param behind_ns: time that the victim's tasks waited while the occupant held that CPU.
    :param ahead_ns: time that the occupant's tasks waited while the victim held that CPU.
    :param waiting: how many of the victim's tasks want the CPU at once, on average (at least 1).
    :param occupant_waiting: how many of the occupant's tasks do.
    :param groups: the victim's and the occupant's groups from the root down, the root left out; None if not known.
    :param classes: of ``victim`` and ``occupant``, as far as known.
    """
    of = dict(classes or {})
    occupant = of.get("occupant", Classes())
    many, others = max(1.0, waiting), max(1.0, occupant_waiting)
    held = _part(behind_ns / many, ahead_ns / others)
    if groups is None:
        return Standing(held)
    ours, theirs = _parting(*groups)
    if occupant.realtime:
        return Standing(held, None, "realtime")
    own = _weight(ours) if ours else of.get("victim", Classes()).weight * many
    other = _weight(theirs) if theirs else occupant.weight * others
    by: Literal["weight", "tasks"] = "weight" if ours or theirs else "tasks"
    return Standing(held, other / (own + other), by, (other, own))


def _part(one: float, other: float) -> float:
    return one / (one + other) if one + other > 0 else 0.0


def _weight(group: Group) -> float:
    return _IDLE_WEIGHT if group.idle else group.weight


def _parting(victim: Sequence[Group], occupant: Sequence[Group]) -> tuple[Group | None, Group | None]:
    """The first groups in which the two differ; None for one whose tasks lie directly in what they have in common."""
    common = 0
    for ours, theirs in zip(victim, occupant, strict=False):
        if ours.path != theirs.path:
            break
        common += 1
    return (
        victim[common] if common < len(victim) else None,
        occupant[common] if common < len(occupant) else None,
    )

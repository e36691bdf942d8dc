"""Repetition and statistics: sides take turns, medians, spread, goals."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

__all__ = ["Goal", "Row", "Samples", "clocked", "compare", "interleave"]

T = TypeVar("T")

#: What each side measured, round by round.
Samples = dict[str, list[float]]

_TESTS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio.

    >>> str(Goal(">=", 40)), Goal(">=", 40).reached(41.0), Goal("<=", 1.3).reached(1.31)
    ('>= 40', True, False)
    """

    relation: str
    bound: float

    def __post_init__(self) -> None:
        if self.relation not in _TESTS:
            raise ValueError(f"a goal is one of {', '.join(_TESTS)}, not {self.relation!r}")

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"

    def reached(self, ratio: float) -> bool:
        """True if the ratio keeps the bound."""
        return _TESTS[self.relation](ratio, self.bound)


@dataclass(frozen=True)
class Row:
    """One comparison.

    :param ours: median of our side, in ``unit``.
    :param peer: median of the other side.
    :param ratio: ``ours / peer``.
    :param spread: lowest and highest ratio of one round's pair.
    :param goal: the bound on the ratio as text, None where the issue sets none.
    :param reached: None where there is no goal, or where nothing was measured.
    :param reason: why the goal is not reached, or what a reader must know to judge the row.
    :param family: which module of the bench it comes from.
    :param rounds: what each side measured, round by round.
    """

    name: str
    ours: float | None
    peer: float | None
    peer_name: str
    ratio: float | None
    unit: str
    spread: tuple[float, float] | None
    goal: str | None = None
    reached: bool | None = None
    reason: str = ""
    family: str = ""
    rounds: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self) | {"spread": list(self.spread) if self.spread else None}

    @classmethod
    def absent(cls, name: str, *, peer_name: str, unit: str, reason: str, goal: Goal | None = None) -> Row:
        """A comparison that could not be made here, with the reason; a goal that was not tried is not reached."""
        return cls(
            name=name,
            ours=None,
            peer=None,
            peer_name=peer_name,
            ratio=None,
            unit=unit,
            spread=None,
            goal=str(goal) if goal else None,
            reached=False if goal else None,
            reason=reason,
        )


def clocked(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of CPU that the work took in all threads, user and kernel, and its result, which is freed later.

    CPU time, since other work on the machine stretches the wall time of a long run more than that of a short one.
    """
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def interleave(sides: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: bool = True) -> Samples:
    """Let all sides take turns: A B C, A B C, ... so that what disturbs the machine disturbs all of them.

    :param sides: each measures once and returns its value.
    :param warm_up: run each once before, and drop what it says (caches, first touch of memory, lazy imports).
    """
    if rounds < 1:
        raise ValueError("at least one round")
    if warm_up:
        for side in sides.values():
            side()
    samples: Samples = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            samples[name].append(side())
    return samples


def compare(
    name: str,
    samples: Mapping[str, Sequence[float]],
    *,
    ours: str,
    peer: str,
    unit: str,
    goal: Goal | None = None,
    explain: Callable[[], str] | None = None,
    note: str = "",
) -> Row:
    """A row from two sides of one interleaved run.

    :param explain: called only if the goal is missed; profiles, and says why.
    :param note: what a reader must know in any case.
    """
    mine, theirs = list(samples[ours]), list(samples[peer])
    pairs = [a / b for a, b in zip(mine, theirs, strict=True)]
    ratio = statistics.median(mine) / statistics.median(theirs)
    reached = goal.reached(ratio) if goal else None
    reasons = [explain()] if reached is False and explain else []
    return Row(
        name=name,
        ours=statistics.median(mine),
        peer=statistics.median(theirs),
        peer_name=peer,
        ratio=ratio,
        unit=unit,
        spread=(min(pairs), max(pairs)),
        goal=str(goal) if goal else None,
        reached=reached,
        reason="; ".join([*reasons, note] if note else reasons),
        rounds={"ours": mine, "peer": theirs},
    )

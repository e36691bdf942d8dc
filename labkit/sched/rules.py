"""Why a cgroup waits, in one word and one sentence: the rules, and their few thresholds.

The rules, in this order. *Contended* is the wait less its idle part: while a CPU wakes up nobody is in the way.

1. ``quiet``: so little that it does not matter (:data:`QUIET_NS_PER_S`, :data:`QUIET_SLOWDOWN`), or short waits
   (below :data:`QUIET_WAIT_NS`) that do not add up (:data:`SHORT_SLOWDOWN`). Short and long are weighed by time: a
   hundred thousand short waits do not hide one stall of a tenth of a second, as they would in a percentile.
2. The contended wait has four possible authors: *neighbours* (cgroups of others, also such as nobody can name), the
   *system* (the kernel's threads, init.scope, system.slice; and steal), the cgroup *itself*, and its *quota*. If no
   second author has :data:`MIXED_SHARE` of what is known, the verdict is the first: ``noisy_neighbor``, ``system``,
   ``self_contended``, ``throttled``. Otherwise ``mixed``, and so where most is not known. Tasks of the root cgroup that
   wait for each other wait for the system: it is no workload that could have fewer threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "MIXED_SHARE",
    "QUIET_NS_PER_S",
    "QUIET_SLOWDOWN",
    "QUIET_WAIT_NS",
    "SHORT_SLOWDOWN",
    "VERDICTS",
    "authors_of",
    "decide",
    "slow_wake",
    "somebodys_fault",
]

VERDICTS = ("quiet", "noisy_neighbor", "self_contended", "throttled", "system", "mixed")

#: A wait below 1 ms in each second is a thousandth of the time: nothing that could be won back matters.
QUIET_NS_PER_S = 1_000_000
#: Waiting for less than 1 % of the time in which it wanted to run does not slow anything down that can be measured outside.
QUIET_SLOWDOWN = 0.01
#: On a quiet host waits are tens of us, the time to wake a CPU up; who shares a CPU waits for a slice, 0.7 ms and more
#: (``base_slice_ns``, ``kernel/sched/fair.c``). Between the two, and nearer to the second. Waits from here on are long
#: ones; below :data:`QUIET_NS_PER_S` of them they do not matter.
QUIET_WAIT_NS = 500_000
#: Short waits are quiet unless they make up this share of the time in which it wanted to run.
SHORT_SLOWDOWN = 0.2
#: A second author with less than this share does not change the story.
MIXED_SHARE = 0.2
#: The nearer a number lies to the threshold that decided, the less sure: half sure there, sure at this relative distance.
_SURE_AT = 0.5


def authors_of(
    causes: Mapping[str, int], blamed: list[dict[str, Any]], *, root: bool = False
) -> dict[str, int]:
    """Who is behind the contended wait: ``neighbours``, ``system``, ``self``, ``throttled`` -> ns.

    :param causes: cause -> ns.
    :param blamed: rows of :func:`labkit.sched.blame.shares` of this victim.
    :param root: the victim is the root cgroup, which is the system itself.
    """
    system = sum(int(one["wait_ns"]) for one in blamed if one["owner"] == "system")
    return {
        "neighbours": causes["foreign"] - system,
        "system": system + causes["steal"] + (causes["self"] if root else 0),
        "self": 0 if root else causes["self"],
        "throttled": causes["throttled"],
    }


_OF_AUTHOR = {
    "neighbours": "noisy_neighbor",
    "system": "system",
    "self": "self_contended",
    "throttled": "throttled",
}


def decide(
    contended: int, seconds: float, slowdown: float, long_ns: float, authors: Mapping[str, int]
) -> tuple[str, float]:
    """The verdict, and how clear it is: 0.5 on a threshold, 1.0 well away from it.

    :param contended: wait less its idle part.
    :param slowdown: contended wait as a share of the time in which it wanted to run.
    :param long_ns: how much of the wait lay in waits of :data:`QUIET_WAIT_NS` and more.
    """
    per_s, long_per_s = (ns / seconds if seconds > 0 else 0.0 for ns in (contended, long_ns))
    # Below 1: short ones that do not add up.
    short = max(min(per_s, long_per_s) / QUIET_NS_PER_S, slowdown / SHORT_SLOWDOWN)
    loud = min(per_s / QUIET_NS_PER_S, slowdown / QUIET_SLOWDOWN, short)
    if loud < 1.0:
        return "quiet", _clear(1.0 - loud)
    (first, _), (_, second) = sorted(authors.items(), key=lambda item: -item[1])[:2]
    known = sum(authors.values())
    if not known or contended > 2 * known:
        return "mixed", 0.5
    share = second / known
    clear = min(_clear(loud - 1.0), _clear(abs(share - MIXED_SHARE) / MIXED_SHARE))
    return (_OF_AUTHOR[first] if share < MIXED_SHARE else "mixed"), clear


def slow_wake(long_ns: float, contended: int, wanted_ns: int, seconds: float) -> int:
    """How much of the wait was long waits for an idle CPU to wake up; 0 where that does not matter.

    :param long_ns: how much of the wait lay in waits of :data:`QUIET_WAIT_NS` and more: what nobody caused of it.
    :param wanted_ns: time in which the tasks wanted to run.
    """
    idle_ns = long_ns - contended
    matters = idle_ns >= QUIET_NS_PER_S * seconds and idle_ns >= QUIET_SLOWDOWN * wanted_ns
    return int(idle_ns) if matters else 0


def _clear(distance: float) -> float:
    return min(1.0, 0.5 + 0.5 * distance / _SURE_AT)


def somebodys_fault(verdict: str, authors: Mapping[str, int]) -> bool:
    """Is any other cgroup to be named?"""
    if verdict != "mixed":
        return verdict in ("noisy_neighbor", "system")
    return authors["neighbours"] + authors["system"] >= MIXED_SHARE * max(1, sum(authors.values()))

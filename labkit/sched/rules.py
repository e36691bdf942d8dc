"""Why a cgroup waits, in one word and one sentence: the rules, and their few thresholds.

The rules, in this order. *Contended* is the wait less its idle part: while a CPU wakes up nobody is in the way.

1. ``quiet``: so little that it does not matter (:data:`QUIET_NS_PER_S`, :data:`QUIET_SLOWDOWN`), or only short waits
   (:data:`QUIET_P99_NS`) that do not add up (:data:`SHORT_SLOWDOWN`).
2. The contended wait has four possible authors: *neighbours* (cgroups of others, also such as nobody can name), the
   *system* (the kernel's threads, init.scope, system.slice; and steal), the cgroup *itself*, and its *quota*. If no
   second author has :data:`MIXED_SHARE` of what is known, the verdict is the first: ``noisy_neighbor``, ``system``,
   ``self_contended``, ``throttled``. Otherwise ``mixed``, and so where most is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "MIXED_SHARE",
    "QUIET_NS_PER_S",
    "QUIET_P99_NS",
    "QUIET_SLOWDOWN",
    "SHORT_SLOWDOWN",
    "VERDICTS",
    "authors_of",
    "decide",
    "somebodys_fault",
]

VERDICTS = ("quiet", "noisy_neighbor", "self_contended", "throttled", "system", "mixed")

#: A wait below 1 ms in each second is a thousandth of the time: nothing that could be won back matters.
QUIET_NS_PER_S = 1_000_000
#: Waiting for less than 1 % of the time in which it wanted to run does not slow anything down that can be measured outside.
QUIET_SLOWDOWN = 0.01
#: On a quiet host the p99 is tens of us, the time to wake a CPU up; who shares a CPU waits for a slice, 0.7 ms and more
#: (``base_slice_ns``, ``kernel/sched/fair.c``). Between the two, and nearer to the second.
QUIET_P99_NS = 500_000
#: Short waits are quiet unless they make up this share of the time in which it wanted to run.
SHORT_SLOWDOWN = 0.2
#: A second author with less than this share does not change the story.
MIXED_SHARE = 0.2
#: The nearer a number lies to the threshold that decided, the less sure: half sure there, sure at this relative distance.
_SURE_AT = 0.5


def authors_of(causes: Mapping[str, int], blamed: list[dict[str, Any]]) -> dict[str, int]:
    """Who is behind the contended wait: ``neighbours``, ``system``, ``self``, ``throttled`` -> ns.

    :param causes: cause -> ns.
    :param blamed: rows of :func:`labkit.sched.blame.shares` of this victim.
    """
    system = sum(int(one["wait_ns"]) for one in blamed if one["owner"] == "system")
    return {
        "neighbours": causes["foreign"] - system,
        "system": system + causes["steal"],
        "self": causes["self"],
        "throttled": causes["throttled"],
    }


_OF_AUTHOR = {
    "neighbours": "noisy_neighbor",
    "system": "system",
    "self": "self_contended",
    "throttled": "throttled",
}


def decide(
    contended: int, seconds: float, slowdown: float, p99_ns: float, authors: Mapping[str, int]
) -> tuple[str, float]:
    """The verdict, and how clear it is: 0.5 on a threshold, 1.0 well away from it."""
    per_s = contended / seconds if seconds > 0 else 0.0
    short = max(p99_ns / QUIET_P99_NS, slowdown / SHORT_SLOWDOWN)  # below 1: short ones that do not add up
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


def _clear(distance: float) -> float:
    return min(1.0, 0.5 + 0.5 * distance / _SURE_AT)


def somebodys_fault(verdict: str, authors: Mapping[str, int]) -> bool:
    """Is any other cgroup to be named?"""
    if verdict != "mixed":
        return verdict in ("noisy_neighbor", "system")
    return authors["neighbours"] + authors["system"] >= MIXED_SHARE * max(1, sum(authors.values()))

"""A verdict in plain words: what happened, who, how much, and what this measure cannot see.

Names are other people's: every one of them passes :func:`labkit.text.plain`, and long ones are cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit import text
from labkit.names.paths import from_path

if TYPE_CHECKING:
    from labkit.sched.verdict import Blamed, Quota, Verdict

__all__ = ["BLIND", "BLIND_QUIET", "called", "per_second", "sentence", "story"]

#: What run-queue waits do not show, said at the end of each verdict.
BLIND = "Not in these numbers: what it lost while it ran, to a sibling hyperthread, caches, memory bandwidth or interrupts."
BLIND_QUIET = (
    "If it is slow all the same, look at what waits for a CPU do not show: a sibling hyperthread, caches, memory "
    "bandwidth, interrupts, locks, I/O."
)
_LONGEST = 60


def called(name: str) -> str:
    """A name as it is shown to people."""
    shown = text.plain(name)
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def per_second(ns: float, seconds: float) -> str:
    """Time in each second: ``1.4 s`` (of several tasks together), ``43 ms``, ``1.2 ms``, ``430 us``."""
    return _time(ns / seconds if seconds > 0 else 0.0)


def _time(ns: float) -> str:
    if ns >= 999_500_000:
        return f"{ns / 1e9:,.1f} s"
    if ns >= 999_500:
        ms = ns / 1e6
        return f"{ms:.0f} ms" if ms >= 9.95 else f"{ms:.1f} ms"
    return f"{ns / 1e3:.0f} us"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def sentence(verdict: Verdict) -> str:
    """The story and what this measure cannot see."""
    return f"{story(verdict)} {BLIND_QUIET if verdict.verdict == 'quiet' else BLIND}"


def story(verdict: Verdict) -> str:
    """What happened, in one sentence."""
    tell = {
        "quiet": _quiet,
        "noisy_neighbor": _others,
        "system": _others,
        "self_contended": _own,
        "throttled": _throttled,
        "mixed": _mixed,
    }[verdict.verdict]
    return tell(verdict) + "."


def _lead(verdict: Verdict) -> str:
    who = called(verdict.name) + ("'s tasks together" if verdict.wait_per_s_ns > 1e9 else "")
    return f"{who} waited {per_second(verdict.wait_ns, verdict.seconds)} per second for a CPU"


def _part(verdict: Verdict, ns: int) -> str:
    """``38 ms of it``; ``all of it``."""
    return "all of it" if ns >= 0.995 * verdict.wait_ns else f"{per_second(ns, verdict.seconds)} of it"


def _quiet(verdict: Verdict) -> str:
    if not verdict.wait_ns:
        return f"{called(verdict.name)} never waited for a CPU"
    lead = f"{_lead(verdict)}, in waits of which 99 % were below {_time(verdict.p99_ns)}"
    if verdict.slow_wake_ns:
        return (
            f"{_lead(verdict)}; {_part(verdict, verdict.slow_wake_ns)} for an idle CPU that was slow to wake up: no task "
            "was in its way, perhaps a deep sleep state, or a hypervisor that ran something else there"
        )
    if 2 * verdict.causes["idle"] >= verdict.wait_ns:
        return f"{lead}, mostly for an idle CPU to wake up: nobody was in its way"
    return f"{lead}: nothing that matters"


def _others(verdict: Verdict) -> str:
    stolen = verdict.causes["steal"]
    if verdict.verdict == "system" and 2 * stolen >= verdict.authors["system"]:
        part = _part(verdict, stolen)
        return f"{_lead(verdict)}; {part} the hypervisor or interrupts had the CPU, no task of this machine"
    if verdict.verdict == "system" and _among_itself(verdict):
        return f"{_lead(verdict)}; {_part(verdict, verdict.causes['self'])} for tasks of its own"
    if not verdict.blame:
        return f"{_lead(verdict)}, behind many others of whom none stands out"
    return f"{_lead(verdict)}; {_held(verdict)}{_standing(verdict, verdict.blame[0])}"


def _among_itself(verdict: Verdict) -> bool:
    """Is it the root cgroup, whose tasks waited for each other most of the time that is the system's doing?"""
    return verdict.cgroup == "/" and 2 * verdict.causes["self"] >= verdict.authors["system"]


def _held(verdict: Verdict) -> str:
    """``38 ms of them while batch held it, 4 ms while cron.service did``."""
    first, *more = [one for one in verdict.blame if one.share >= 0.05][:3] or verdict.blame[:1]
    said = f"{_part(verdict, first.wait_ns)} while {_who(first)} held that CPU"
    for one in more:
        said += f", {per_second(one.wait_ns, verdict.seconds)} while {_who(one)} did"
    return said


def _who(one: Blamed) -> str:
    if one.cgroup == "/":
        return "kernel threads" if one.name == "kernel threads" else "something in the root cgroup"
    if one.owner == "unknown":
        return "a cgroup that nobody can name any more"
    return called(one.name)


def _standing(verdict: Verdict, one: Blamed) -> str:
    """Whether the first of the blamed had more than its share."""
    held, who = one.standing, _who(one)
    had = f"while both wanted to run {who} had the CPU {_percent(held.held)} of the time"
    if held.by == "realtime":
        return f"; {who} has real-time tasks, which go before all others whatever the weights"
    if held.entitled is None:
        return f"; {had}"
    due = _percent(held.entitled)
    reason = (
        f"its weight gives it {due}" if held.by == "weight" else f"as one task among others it is due {due}"
    )
    if held.exceeded:
        used = one.run_ns / 1e9 / max(verdict.seconds, 1e-9)
        brief = held.entitled is not None and used < held.entitled
        return f"; {had}, although {reason}" + (
            f" (in short bursts: over all the time it used {_percent(used)} of one CPU)" if brief else ""
        )
    if one.owner == "system":
        return f"; {had}, and {reason}"
    return f"; {had}, and {reason}: it stayed within its share, so change the weights or move one of the two"


def _own(verdict: Verdict) -> str:
    wanted = (
        (verdict.run_ns + verdict.wait_ns - verdict.causes["throttled"]) / 1e9 / max(verdict.seconds, 1e-9)
    )
    got = verdict.run_ns / 1e9 / max(verdict.seconds, 1e-9)
    part = _part(verdict, verdict.causes["self"])
    return (
        f"{_lead(verdict)}; {part} for tasks of its own: they wanted {_cpus(wanted)} at once on average and "
        f"had {_cpus(got)}. Fewer runnable tasks, or more CPUs for it, would help; no neighbour is at fault"
    )


def _cpus(many: float) -> str:
    return "under 0.1 CPUs" if many < 0.1 else f"{many:.1f} CPUs"


def _throttled(verdict: Verdict) -> str:
    part = _part(verdict, verdict.causes["throttled"])
    return f"{_lead(verdict)}; {part} {_limit(verdict, verdict.quota)}. No neighbour is at fault"


def _limit(verdict: Verdict, quota: Quota | None) -> str:
    if quota is None or not quota.holder:
        return "held back by a CPU quota that could not be read"
    own = "its own quota" if quota.holder == verdict.cgroup else f"the quota of {_place(quota.holder)}"
    said = f"held back by {own}, {_time(quota.quota_ns)} of CPU time in every {_time(quota.period_ns)}"
    if not quota.needed_ns:
        return said
    needed, period = -(-quota.needed_ns // 1_000_000) * 1000, quota.period_ns // 1000
    value = _value(quota, needed, period)
    whole = quota.enough_ns // 1000
    if needed >= whole:
        return f"{said}; {quota.setting} {value} there would be enough for sure"
    return (
        f"{said}; about {quota.setting} {value} there would have been enough on average, "
        f"{_value(quota, whole, period)} for sure"
    )


def _value(quota: Quota, quota_us: int, period_us: int) -> str:
    return f'"{quota_us} {period_us}"' if quota.setting == "cpu.max" else str(quota_us)


def _place(path: str) -> str:
    return called(path) if len(path) <= _LONGEST else called(from_path(path).name)


def _mixed(verdict: Verdict) -> str:
    known = sum(verdict.authors.values())
    if verdict.causes["unknown"] > known:
        part = _part(verdict, verdict.causes["unknown"])
        return f"{_lead(verdict)}; for {part} nobody knows who held the CPU"
    parts = []
    for author, ns in sorted(verdict.authors.items(), key=lambda item: -item[1]):
        if not known or ns < 0.1 * known:
            continue
        parts.append(f"{per_second(ns, verdict.seconds)} {_author(verdict, author)}")
    return f"{_lead(verdict)}, for more than one reason: " + "; ".join(parts)


def _author(verdict: Verdict, author: str) -> str:
    if author == "throttled":
        return _limit(verdict, verdict.quota)
    if author == "self":
        return "for other tasks of its own"
    system = author == "system"
    if system and _among_itself(verdict):
        return "for other tasks of its own"
    who = [_who(one) for one in verdict.blame if (one.owner == "system") == system][:2]
    if system and 2 * verdict.causes["steal"] >= verdict.authors["system"]:
        return "while the hypervisor or interrupts had the CPU"
    return f"while {' and '.join(who) or 'others'} held the CPU"

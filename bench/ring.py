"""Ring buffer to DataFrame, beside bcc's callback and beside a plain copy of the same bytes.

Every reader drains the same ring in the kernel, filled before its clock starts; so no producer is measured.
"""

from __future__ import annotations

import cProfile
import pstats

import numpy as np
import pandas as pd

from bench.kernel import FilledRing
from bench.measure import Goal, Row, Samples, clocked, compare, interleave
from bench.peers import BccPeer

__all__ = ["compare_rings"]

_GOAL = Goal(">=", 40)
_UNIT = "events/s"
_FULL_PAGES, _QUICK_PAGES = 16384, 1024  # 64 MiB, 4 MiB


def _to_frames(filled: FilledRing) -> list[pd.DataFrame]:
    """What a user of labkit does: read all there is, one DataFrame per kind of event."""
    return [batch.frame() for batch in filled.ring.read(limit_bytes=filled.size)]


def _ours(filled: FilledRing) -> float:
    count = filled.fill()
    seconds, frames = clocked(lambda: _to_frames(filled))
    got = sum(len(frame) for frame in frames)
    assert got == count, f"{got} of {count} events"
    return count / seconds


def _callback(filled: FilledRing, peer: BccPeer) -> float:
    count = filled.fill()
    return count / peer.seconds("ring", expect=count)


def _copy(filled: FilledRing, target: np.ndarray, events: int) -> float:
    seconds, _ = clocked(lambda: np.copyto(target, filled.memory))
    return events / seconds


def _where_time_goes(filled: FilledRing) -> str:
    """The three functions that take the most time of one read, by the profiler."""
    filled.fill()
    profile = cProfile.Profile()
    profile.runcall(_to_frames, filled)
    stats = pstats.Stats(profile)
    total = stats.total_tt  # type: ignore[attr-defined]
    top = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:3]  # type: ignore[attr-defined]
    parts = [f"{name.strip('<>')} {100 * row[2] / total:.0f} %" for (_, _, name), row in top]
    return "most of the time goes to " + ", ".join(parts)


def _measure(filled: FilledRing, rounds: int, bare: BccPeer | None, full: BccPeer) -> Samples:
    events = filled.fill()
    filled.ring.read(limit_bytes=filled.size)
    target = np.empty_like(filled.memory)
    sides = {
        "labkit": lambda: _ours(filled),
        "callback": lambda: _callback(filled, full),
        "copy": lambda: _copy(filled, target, events),
    }
    if bare is not None:
        sides["bare callback"] = lambda: _callback(filled, bare)
    return interleave(sides, rounds=rounds)


def compare_rings(*, quick: bool, rounds: int) -> list[Row]:
    """Rows for one kind of event, and for two kinds in one ring."""
    pages = _QUICK_PAGES if quick else _FULL_PAGES
    rows = []
    for mixed in (False, True):
        what = "two kinds of event" if mixed else "one kind of event"
        with FilledRing(pages=pages, mixed=mixed) as filled, BccPeer("ring", fd=filled.fd) as full:
            if mixed:
                samples = _measure(filled, rounds, None, full)
            else:
                with BccPeer("bare_ring", fd=filled.fd) as bare:
                    samples = _measure(filled, rounds, bare, full)
            rows += _rows(filled, samples, what)
    return rows


def _rows(filled: FilledRing, samples: Samples, what: str) -> list[Row]:
    def row(peer: str, peer_name: str, goal: Goal | None, note: str = "") -> Row:
        named = {"labkit": samples["labkit"], peer_name: samples[peer]}
        return compare(
            f"ring to DataFrame, {what}",
            named,
            ours="labkit",
            peer=peer_name,
            unit=_UNIT,
            goal=goal,
            explain=lambda: _where_time_goes(filled),
            note=note,
        )

    rows = [row("callback", "bcc callback, to DataFrame", _GOAL)]
    if "bare callback" in samples:
        rows.append(row("bare callback", "bcc callback, keeps nothing", _GOAL))
    rows.append(row("copy", "one plain copy of the bytes", None, "the ratio is the fraction of a plain copy"))
    return rows

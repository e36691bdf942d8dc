"""Who was on which CPU: a lane for each CPU, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from labkit import text
from labkit.plots import BLUE, GREEN, GREY, ORANGE, VERMILION, axes

__all__ = ["IDLE", "held_ns", "occupancy", "strip"]

#: The pid of a CPU that has nothing to do.
IDLE = 0
_COLOURS = (BLUE, ORANGE, GREEN, VERMILION)
_OTHERS = "#c4c4c4"
_UNKNOWN: dict[str, Any] = {"facecolor": "white", "edgecolor": GREY, "hatch": "////"}


def occupancy(switched: pd.DataFrame, *, end_ns: int | None = None, lost: int | None = None) -> pd.DataFrame:
    """Stretches of time for which one task held one CPU, from switches.

    Whom a CPU went to at its last switch still has it at the end; whom it came from at its first had it since the
    beginning. A task that runs for seconds without a switch is thereby seen, and not taken for an idle CPU.

    :param switched: ``time_ns``, ``cpu``, ``prev_pid``, ``next_pid``, and ``lost`` (events lost so far on all CPUs), as
        events of ``bpf/sched_events.c``, in any order: all switches since the first of them. Of what was before, a CPU's
        last switch may be among them.
    :param end_ns: until when all switches are known; until the last of them if None.
    :param lost: events lost until ``end_ns``; those that the newest switch knows of if None.
    :returns: ``cpu`` (int64), ``pid`` (int64; -1: not known, because events were lost), ``start_ns``, ``end_ns``
        (int64), by CPU and start. Each CPU that switched is covered from the first switch of any CPU to ``end_ns``.
    """
    columns = ["cpu", "pid", "start_ns", "end_ns"]
    events = switched.sort_values(["cpu", "time_ns"], kind="stable")
    if events.empty:
        return pd.DataFrame(np.empty((0, 4), dtype=np.int64), columns=columns)
    cpu, at, left, arrived, missing = (
        events[name].to_numpy(dtype=np.int64) for name in ("cpu", "time_ns", "prev_pid", "next_pid", "lost")
    )
    begin = int(at.min())
    end = max(int(at.max()), end_ns or 0)
    first, last = np.flatnonzero(np.diff(cpu, prepend=-1)), np.flatnonzero(np.diff(cpu, append=-1))
    same = cpu[1:] == cpu[:-1]
    # Between two switches of a CPU each confirms the other. At the two ends of the record only one of them speaks: it is
    # believed where nothing was lost.
    between = np.column_stack(
        [cpu[:-1], np.where(arrived[:-1] == left[1:], arrived[:-1], -1), at[:-1], at[1:]]
    )
    before = np.where(missing[first] == missing[at.argmin()], left[first], -1)
    after = np.where(missing[last] == (missing.max() if lost is None else lost), arrived[last], -1)
    heads = np.column_stack([cpu[first], before, np.full(len(first), begin), at[first]])
    tails = np.column_stack([cpu[last], after, at[last], np.full(len(last), end)])
    found = pd.DataFrame(np.concatenate([heads, between[same], tails]), columns=columns)
    found = found[found["end_ns"] > found["start_ns"]]
    return found.sort_values(["cpu", "start_ns"], kind="stable", ignore_index=True)


def held_ns(switched: pd.DataFrame, begin_ns: int, end_ns: int, *, lost: int | None = None) -> pd.Series:
    """How long each task held a CPU between two times.

    :param switched, lost: see :func:`occupancy`.
    :returns: ns (int64), named ``held_ns``, by ``pid``; -1: nobody knows.
    """
    here = _within(occupancy(switched, end_ns=end_ns, lost=lost), begin_ns, end_ns)
    return (here["end_ns"] - here["start_ns"]).groupby(here["pid"]).sum().rename("held_ns")


def _within(stretches: pd.DataFrame, begin: int, end: int) -> pd.DataFrame:
    here = stretches[(stretches["end_ns"] > begin) & (stretches["start_ns"] < end)]
    return here.assign(start_ns=here["start_ns"].clip(lower=begin), end_ns=here["end_ns"].clip(upper=end))


def strip(
    switched: pd.DataFrame,
    names: Mapping[int, str],
    *,
    title: str,
    window_ms: float = 200.0,
    until_ns: int | None = None,
    lost: int | None = None,
    cpus: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A lane per CPU, coloured by who held it; what is blank was idle, what is hatched is not known.

    It shows the ``window_ms`` before ``until_ns``, or before the last switch.

    :param switched, lost: see :func:`occupancy`. All switches until ``until_ns`` are in it, or were lost.
    :param names: pids to be told apart, each with its name, at most four; all others are grey.
    :param cpus: which lanes to draw; those that switched if None.
    """
    stretches = occupancy(switched, end_ns=until_ns, lost=lost)
    lanes = sorted(set(cpus) if cpus is not None else set(stretches["cpu"]))
    ax = axes(ax, height=1.2 + 0.45 * max(len(lanes), 1))
    newest = int(stretches["end_ns"].max()) if len(stretches) else 0
    end = newest if until_ns is None else until_ns
    begin = end - int(window_ms * 1e6)
    shown = _within(stretches, begin, end)
    chosen = dict(zip(list(names)[: len(_COLOURS)], _COLOURS, strict=False))
    hatched = False
    for lane, cpu in enumerate(lanes):
        here = shown[shown["cpu"] == cpu]
        known = here["pid"] >= 0
        others = known & (here["pid"] != IDLE) & ~here["pid"].isin(list(chosen))
        _lay(ax, lane, here[others], begin, _OTHERS)
        unknown = pd.concat([here.loc[~known, ["start_ns", "end_ns"]], _untold(here, begin, end)])
        hatched |= len(unknown) > 0
        _lay(ax, lane, unknown, begin, **_UNKNOWN)
        for pid, colour in chosen.items():
            _lay(ax, lane, here[here["pid"] == pid], begin, colour)
    ax.set_yticks(range(len(lanes)), [f"CPU {cpu}" for cpu in lanes])
    ax.set(xlim=(0, window_ms), ylim=(len(lanes) - 0.4, -0.6))
    ax.set_xlabel("time (ms)")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_title(text.plain(title), pad=24)
    keys = [Patch(color=colour, label=text.plain(names[pid])) for pid, colour in chosen.items()]
    keys += [
        Patch(color=_OTHERS, label="others"),
        Patch(facecolor="white", edgecolor=GREY, label="idle"),
        *([Patch(**_UNKNOWN, label="not known")] if hatched else []),
    ]
    ax.legend(handles=keys, frameon=False, ncols=7, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1,
              fontsize=9, handlelength=1.2)  # fmt: skip
    return ax


def _untold(here: pd.DataFrame, begin: int, end: int) -> pd.DataFrame:
    """The parts of a window, before and after a CPU's stretches, of which no switch tells."""
    first = int(here["start_ns"].min()) if len(here) else end
    last = int(here["end_ns"].max()) if len(here) else end
    ends = [(begin, first), (last, end)]
    return pd.DataFrame([pair for pair in ends if pair[1] > pair[0]], columns=["start_ns", "end_ns"])


def _lay(ax: Axes, lane: int, stretches: pd.DataFrame, begin: int, colour: str = "", **look: Any) -> None:
    start = (stretches["start_ns"].to_numpy(dtype=float) - begin) / 1e6
    length = (stretches["end_ns"] - stretches["start_ns"]).to_numpy(dtype=float) / 1e6
    # No edges: they would widen what is thinner than a pixel, and most stretches are.
    look = look or {"facecolor": colour, "linewidth": 0}
    ax.broken_barh(list(zip(start, length, strict=True)), (lane - 0.4, 0.8), **look)

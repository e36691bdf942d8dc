"""Who was on which CPU: a lane for each CPU, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from labkit import text
from labkit.plots import BLUE, GREEN, GREY, ORANGE, VERMILION, axes

__all__ = ["IDLE", "occupancy", "strip"]

#: The pid of a CPU that has nothing to do.
IDLE = 0
_COLOURS = (BLUE, ORANGE, GREEN, VERMILION)
_OTHERS = "#c4c4c4"


def occupancy(switched: pd.DataFrame) -> pd.DataFrame:
    """Stretches of time for which one task held one CPU, from switches.

    :param switched: ``time_ns``, ``cpu``, ``prev_pid``, ``next_pid``, and ``lost`` (events lost so far), as events of
        ``bpf/sched_events.c``, in any order.
    :returns: ``cpu`` (int64), ``pid`` (int64; -1: not known, because events between two switches were lost),
        ``start_ns``, ``end_ns`` (int64), by CPU and start. The last switch of a CPU begins no stretch.
    """
    columns = ["cpu", "pid", "start_ns", "end_ns"]
    events = switched.sort_values(["cpu", "time_ns"], kind="stable")
    cpu = events["cpu"].to_numpy(dtype=np.int64)
    same = cpu[1:] == cpu[:-1]
    arrived = events["next_pid"].to_numpy(dtype=np.int64)[:-1]
    left = events["prev_pid"].to_numpy(dtype=np.int64)[1:]
    at = events["time_ns"].to_numpy(dtype=np.int64)
    found = np.column_stack([cpu[:-1], np.where(arrived == left, arrived, -1), at[:-1], at[1:]])
    return pd.DataFrame(found[same], columns=columns)


def strip(
    switched: pd.DataFrame,
    names: Mapping[int, str],
    *,
    title: str,
    window_ms: float = 200.0,
    until_ns: int | None = None,
    cpus: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A lane per CPU, coloured by who held it; what is blank was idle.

    It shows the ``window_ms`` before ``until_ns``, or before the last switch.

    :param switched: see :func:`occupancy`.
    :param names: pids to be told apart, each with its name, at most four; all others are grey.
    :param cpus: which lanes to draw; those that switched if None.
    """
    stretches = occupancy(switched)
    lanes = sorted(set(cpus) if cpus is not None else set(stretches["cpu"]))
    ax = axes(ax, height=1.2 + 0.45 * max(len(lanes), 1))
    last = int(stretches["end_ns"].max()) if len(stretches) else 0
    end = last if until_ns is None else until_ns
    begin = end - int(window_ms * 1e6)
    shown = stretches[
        (stretches["end_ns"] > begin) & (stretches["start_ns"] < end) & (stretches["pid"] != IDLE)
    ]
    chosen = dict(zip(list(names)[: len(_COLOURS)], _COLOURS, strict=False))
    for lane, cpu in enumerate(lanes):
        here = shown[shown["cpu"] == cpu]
        known = here["pid"] >= 0
        _lay(ax, lane, here[known & ~here["pid"].isin(list(chosen))], begin, _OTHERS)
        _lay(ax, lane, here[~known], begin, "white", hatch="////")
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
    ]
    ax.legend(handles=keys, frameon=False, ncols=6, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1,
              fontsize=9, handlelength=1.2)  # fmt: skip
    return ax


def _lay(ax: Axes, lane: int, stretches: pd.DataFrame, begin: int, colour: str, hatch: str = "") -> None:
    start = (stretches["start_ns"].to_numpy(dtype=float) - begin) / 1e6
    length = (stretches["end_ns"] - stretches["start_ns"]).to_numpy(dtype=float) / 1e6
    # No edges: they would widen what is thinner than a pixel, and most stretches are.
    look = (
        {"facecolor": colour, "linewidth": 0}
        if not hatch
        else {"facecolor": colour, "edgecolor": GREY, "hatch": hatch}
    )
    ax.broken_barh(list(zip(start, length, strict=True)), (lane - 0.4, 0.8), **look)

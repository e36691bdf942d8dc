"""Drawings about waiting: who is next, how a wait is charged, what a quota does, how a verdict comes about."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from labkit.plots import BLUE, CAUSE_COLOURS, GREEN, GREY, ORANGE, VERMILION
from labkit.shapes import INK, Box, arrow, bar, canvas, draw, note

__all__ = ["lag", "path_of_a_verdict", "quota_periods", "wait_over_log"]

_PALE = "#dddddd"


def lag(played: pd.DataFrame, *, tick_ms: float, slice_ms: float) -> Axes:
    """Who runs and who waits in the model, above; what each is owed, below. Dotted: ticks.

    :param played: as :func:`labkit.lessons.eevdf.model` returns.
    """
    names = list(dict.fromkeys(played["task"]))
    colours = dict(zip(names, (GREEN, BLUE, ORANGE), strict=False))
    (above, below) = plt.subplots(
        2, 1, figsize=(9, 4.4), dpi=110, layout="constrained", sharex=True, height_ratios=(1, 1.5)
    )[1]
    for row, name in enumerate(names):
        mine = played[played["task"] == name]
        blocks = (mine["state"] != mine["state"].shift()).cumsum()
        step = played["time_ms"].drop_duplicates().diff().median()
        for _, block in mine.groupby(blocks):
            state, start = block["state"].iloc[0], float(block["time_ms"].iloc[0])
            width = float(block["time_ms"].iloc[-1]) + step - start
            if state != "sleeps":
                colour = colours[name] if state == "runs" else VERMILION
                above.barh(
                    row, width, left=start, height=0.62, color=colour, alpha=1 if state == "runs" else 0.55
                )
            if state == "waits" and width > 0.08 * float(played["time_ms"].max()):
                above.text(start + width / 2, row, f"waits {width:.1f}", ha="center", va="center", fontsize=8)
        shown = mine["lag_ms"].where(mine["state"] != "sleeps")
        below.plot(mine["time_ms"], shown, color=colours[name], linewidth=1.6, label=name)
    end = float(played["time_ms"].max())
    for ax in (above, below):
        for number in range(int(end / tick_ms) + 1):
            ax.axvline(number * tick_ms, color=GREY, linewidth=0.8, linestyle=":")
        ax.spines[["top", "right"]].set_visible(False)
    above.set(yticks=range(len(names)), yticklabels=names, ylim=(-0.6, len(names) - 0.4))
    above.invert_yaxis()
    above.set_title(
        f"A model: tick {tick_ms:g} ms (dotted), slice {slice_ms:g} ms, equal weights",
        loc="left",
        fontsize=11,
    )
    below.axhline(0, color=INK, linewidth=0.8)
    below.set(xlabel="ms", ylabel="lag, ms", xlim=(0, end))
    below.text(
        4 * tick_ms, 0.08, "above: is owed, may go next", ha="center", va="bottom", fontsize=8, color=INK
    )
    below.text(4 * tick_ms, -0.08, "below: has had too much", ha="center", va="top", fontsize=8, color=INK)
    below.legend(frameon=False, fontsize=9, loc="upper center", ncols=len(names))
    return above


def wait_over_log() -> Axes:
    """A wait laid over the log of who held the CPU: each piece is charged to whoever held it then, not to the last one."""
    ax = canvas(12.6, 5.2, "A wait of 10 ms, laid over the log of who held the CPU")
    left, unit = 2.3, 0.72  # where 0 ms is, and how long one is
    log = (
        (0, 2, "service", GREEN),
        (2, 8, "hog_a", VERMILION),
        (8, 9, "kworker", GREY),
        (9, 12, "hog_b", BLUE),
    )

    def at(ms: float) -> float:
        return left + unit * ms

    note(ax, 0.1, 4.3, "log of the CPU", ha="left")
    for start, end, name, colour in log:
        bar(ax, at(start), at(end), 4.3, colour, name if end - start > 1 else "")
    bar(ax, at(12), at(14), 4.3, GREEN, "service")
    note(ax, at(8.5), 4.75, "kworker", GREY, size=7.5)
    note(ax, 0.1, 3.3, "the service", ha="left")
    bar(ax, at(0), at(2), 3.3, GREEN, "runs")
    bar(ax, at(2), at(12), 3.3, ORANGE, "waits: runnable, put off the CPU")
    bar(ax, at(12), at(14), 3.3, GREEN, "runs")
    for ms, words, ha in ((2, "last_queued ", "right"), (12, " rq->clock at sched_switch", "left")):
        ax.plot([at(ms)] * 2, [0.95, 4.6], color=INK, linewidth=0.8, linestyle=":")
        note(ax, at(ms), 2.78, words, ha=ha, size=7.5)
    note(ax, 0.1, 2.2, "charged by time", ha="left")
    for start, end, _, colour in log[1:]:
        bar(ax, at(start), at(end), 2.2, colour, f"{end - start} ms")
    note(ax, 0.1, 1.2, "all to prev", ha="left")
    bar(ax, at(2), at(12), 1.2, BLUE, "10 ms, to hog_b, who had it for 3")
    arrow(ax, (left - 0.2, 0.5), (12.5, 0.5))
    note(ax, 12.5, 0.25, "time", ha="right")
    return ax


def quota_periods() -> Axes:
    """Two periods of a quota of 30 ms in 100 beside a hog: the budget, the throttled head of a wait, and its rest."""
    ax = canvas(12.6, 5.0, "A quota of 30 ms in 100, beside a hog: where the wait comes from")
    left, unit = 2.3, 0.0505

    def at(ms: float) -> float:
        return left + unit * ms

    note(ax, 0.1, 3.75, "budget left", ha="left")
    note(ax, 0.1, 2.1, "the service", ha="left")
    note(ax, 0.1, 1.2, "has the CPU", ha="left")
    for period in (0, 100):
        budget, now = 30.0, period
        points = [(at(now), 3.2 + 1.2)]
        for runs in (10, 10, 10):
            if now or period:
                bar(ax, at(now), at(now + 10), 2.1, CAUSE_COLOURS["foreign"])
                bar(ax, at(now), at(now + 10), 1.2, GREY)
                now += 10
                points.append((at(now), 3.2 + 1.2 * budget / 30))
            bar(ax, at(now), at(now + runs), 2.1, GREEN)
            bar(ax, at(now), at(now + runs), 1.2, GREEN)
            now, budget = now + runs, budget - runs
            points.append((at(now), 3.2 + 1.2 * budget / 30))
        bar(ax, at(now), at(period + 100), 2.1, CAUSE_COLOURS["throttled"], "throttled")
        bar(ax, at(now), at(period + 100), 1.2, GREY)
        points.append((at(period + 100), 3.2))
        ax.plot(*zip(*points, strict=True), color=INK, linewidth=1.4)
        ax.plot([at(period + 100)] * 2, [0.8, 4.55], color=INK, linewidth=0.8, linestyle=":")
    ax.annotate(
        "",
        (at(50), 2.62),
        (at(110), 2.62),
        arrowprops={"arrowstyle": "|-|,widthA=0.2,widthB=0.2", "color": INK},
    )
    note(ax, at(98), 2.85, "one wait: its head throttled, its rest in line", ha="right", size=8)
    for x, words, colour in (
        (3.3, "runs", GREEN),
        (5.2, "waits while another runs", CAUSE_COLOURS["foreign"]),
        (8.6, "waits for its own quota", CAUSE_COLOURS["throttled"]),
        (11.4, "the hog runs", GREY),
    ):
        ax.add_patch(plt.Rectangle((x - 0.42, 0.18), 0.3, 0.22, facecolor=colour, edgecolor="none"))
        note(ax, x, 0.29, words, ha="left", size=7.5)
    note(ax, at(100), 4.7, "a new period: the budget is full again", size=7.5)
    return ax


def path_of_a_verdict() -> Axes:
    """The questions of a verdict, in their order: each one that is answered by "yes" leaves the next with less."""
    ax = canvas(12.6, 5.6, "From a wait to a verdict: the questions, in this order")
    columns = (
        (1.3, "waits at all?", "ms in each second", "hardly", "quiet", "look elsewhere", GREY),
        (
            3.8,
            "its own quota?",
            "throttled part",
            "most",
            "throttled",
            "raise that limit",
            CAUSE_COLOURS["throttled"],
        ),
        (6.3, "its own tasks?", "occupant: itself", "most", "self_contended", "fewer, or more CPUs", BLUE),
        (8.8, "neighbours?", "others, by time", "most", "noisy_neighbor", "weight, own CPU", VERMILION),
        (11.3, "who else?", "kernel, machine", "most", "system", "see what it does", CAUSE_COLOURS["steal"]),
    )
    for x, question, look, how_much, verdict, remedy, colour in columns:
        draw(ax, Box(x, 4.6, question, look, colour, width=2.1))
        draw(ax, Box(x, 2.6, verdict, remedy, colour, width=2.3))
        arrow(ax, (x, 4.1), (x, 3.1))
        note(ax, x + 0.12, 3.6, how_much, GREY, ha="left", size=7.5)
    for one, other in pairwise(column[0] for column in columns):
        arrow(ax, (one + 1.05, 4.6), (other - 1.05, 4.6))
        note(ax, (one + other) / 2, 4.82, "yes" if one == columns[0][0] else "rest", GREY, size=7.5)
    draw(ax, Box(7.55, 0.85, "mixed", "two of them, each at least a fifth", GREY, width=4.6, dashed=True))
    for x, to in ((3.8, 6.0), (6.3, 7.0), (8.8, 8.1), (11.3, 9.1)):
        arrow(ax, (x, 2.1), (to, 1.37), colour=_PALE)
    return ax

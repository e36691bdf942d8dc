"""Drawings for single chapters: what happens when, and what goes where. They return the Axes they drew on."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from labkit.plots import BLUE, GREEN, GREY, ORANGE, VERMILION, axes
from labkit.shapes import Box, area, arrow, bar, canvas, draw, note

__all__ = [
    "entry_bytes",
    "inside_and_outside",
    "ladder",
    "samples",
    "scaling",
    "slot_ruler",
    "stamp_pairs",
    "two_paths",
]


def stamp_pairs() -> Axes:
    """Two threads of one process in overlapping calls: what a stamp per thread measures, and what one per process does."""
    ax = canvas(12.6, 5.4, "Two threads of one process, each in a call of its own")
    calls = {"thread A": (1.8, 6.6, 4.6), "thread B": (4.0, 8.6, 3.8)}
    for name, (start, end, y) in calls.items():
        bar(ax, start, end, y, BLUE, f"{name}: inside the call")
        for at, word in ((start, "entry"), (end, "return")):
            ax.plot([at, at], [y - 0.25, 0.5], color=GREY, linewidth=0.8, linestyle=":")
            note(ax, at, y + 0.42, word, GREY, size=7.5)
    note(ax, 0.1, 2.6, "stamp per thread", ha="left")
    bar(ax, 1.8, 6.6, 2.75, GREEN, "A: right")
    bar(ax, 4.0, 8.6, 2.2, GREEN, "B: right")
    note(ax, 0.1, 1.05, "stamp per process", ha="left")
    bar(ax, 1.8, 4.0, 1.05, GREY)
    note(ax, 2.9, 1.05, "overwritten", "white")
    bar(ax, 4.0, 6.6, 1.05, VERMILION, "A takes B's stamp")
    note(ax, 8.75, 1.05, "B returns: no stamp left, unmatched", VERMILION, ha="left")
    arrow(ax, (1.2, 0.35), (12.3, 0.35))
    note(ax, 12.3, 0.12, "time", ha="right")
    return ax


def slot_ruler(most: int = 16) -> Axes:
    """Which values go to which slot: by the number of bits, and by log2 rounded down."""
    ax = canvas(12.6, 3.1, "The same values, numbered in two ways")
    width = 11.0 / (most + 1)
    rows = (
        (1.7, "number of bits (this lab)", lambda v: v.bit_length()),
        (0.45, "log2, rounded down", _floor_log2),
    )
    for value in range(most + 1):
        x = 1.5 + (value + 0.5) * width
        note(ax, x, 2.6, str(value), size=8.5)
    note(ax, 0.1, 2.6, "value", ha="left")
    colours = (GREY, BLUE, ORANGE, GREEN, VERMILION, BLUE)
    for y, name, number in rows:
        note(ax, 0.1, y + 0.5, name, ha="left", size=8)
        begin = 0
        for value in range(1, most + 2):
            if value == most + 1 or number(value) != number(begin):
                slot = number(begin)
                open_end = value == most + 1
                label = f"{slot}" if value - begin < 2 else f"slot {slot}"
                bar(
                    ax,
                    1.5 + begin * width,
                    1.5 + value * width,
                    y,
                    colours[slot],
                    label + (" ..." if open_end else ""),
                )
                begin = value
    return ax


def _floor_log2(value: int) -> int:
    return max(value.bit_length() - 1, 0)


def two_paths() -> Axes:
    """What the verifier believes about R0 on each path of a program that asks for NULL, and of one that does not."""
    ax = canvas(12.6, 5.0, "What the verifier knows of register R0, on each path")
    boxes = {
        "call": Box(1.75, 3.6, "R0 = lookup()", "map_value_or_null", ORANGE, width=2.9),
        "ask": Box(5.2, 3.6, "if (!R0)", "two paths from here", ORANGE, width=2.4),
        "null": Box(8.5, 4.25, "R0 = 0", "return", GREY, width=2.2),
        "value": Box(8.5, 2.95, "R0 = map_value", "8 bytes from 0 on", GREEN, width=2.6),
        "add": Box(11.3, 2.95, "*R0 += 1", "let in", GREEN, width=1.9),
        "again": Box(1.75, 1.0, "R0 = lookup()", "map_value_or_null", ORANGE, width=2.9),
        "refused": Box(5.6, 1.0, "*R0 += 1", "may be NULL: refused", VERMILION, width=3.0),
    }
    for box in boxes.values():
        draw(ax, box)
    for one, other in (
        ("call", "ask"),
        ("ask", "null"),
        ("ask", "value"),
        ("value", "add"),
        ("again", "refused"),
    ):
        start, end = boxes[one], boxes[other]
        arrow(ax, (start.x + start.width / 2, start.y), (end.x - end.width / 2, end.y))
    note(ax, 0.3, 4.5, "with the question", ha="left")
    note(ax, 0.3, 1.9, "without it", ha="left")
    note(ax, 6.85, 4.3, "is 0", GREY, size=7.5)
    note(ax, 6.5, 2.8, "is not 0", GREY, size=7.5)
    return ax


def scaling(
    frame: pd.DataFrame, *, x: str, y: str, title: str, xlabel: str, ylabel: str, limit: float
) -> Axes:
    """How one quantity grows with another, both axes logarithmic, and a limit that it comes up against."""
    ax = axes(None)
    ax.loglog(frame[x], frame[y], "o-", color=BLUE)
    ax.axhline(limit, color=VERMILION, linestyle="--", linewidth=1.2)
    ax.annotate(
        f"the limit: {limit:,.0f}",
        (float(frame[x].min()), limit),
        xytext=(0, -12),
        textcoords="offset points",
        color=VERMILION,
        fontsize=9,
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set(xlabel=f"{xlabel} (logarithmic)", ylabel=f"{ylabel} (logarithmic)", ylim=(1, 4 * limit))
    ax.grid(True)
    ax.set_title(title)
    return ax


def ladder(frame: pd.DataFrame, *, title: str) -> Axes:
    """Per rung what the caller pays, with the spread of the repeats, beside what the kernel counts of the program.

    The pale bar behind is what the caller pays while the kernel counts: the count has a price of its own.

    :param frame: as :func:`labkit.lessons.ch11.costs` returns.
    """
    ax = axes(None, height=1.1 + 0.55 * len(frame))
    for place, (name, row) in enumerate(frame.iterrows()):
        paid, counted, both = (
            0.0 if pd.isna(row[key]) else float(row[key])
            for key in ("pays_ns", "counted_ns", "pays_while_counted_ns")
        )
        if counted:
            ax.barh(place - 0.19, both, 0.36, color=BLUE, alpha=0.22)
            ax.barh(place + 0.19, counted, 0.36, color=ORANGE)
            ax.text(counted + 3, place + 0.19, f"{counted:,.0f}", va="center", fontsize=9)
        error = {"elinewidth": 1, "capsize": 2}
        ax.barh(place - 0.19, paid, 0.36, color=BLUE, xerr=row["spread_ns"] / 2, error_kw=error)
        ax.text(
            paid - row["spread_ns"] / 2 - 3,
            place - 0.19,
            f"{paid:,.0f}",
            va="center",
            ha="right",
            fontsize=9,
            color="white",
        )
        ax.text(-4, place, str(name), va="center", ha="right", fontsize=9.5)
    ax.barh(0, 0, color=BLUE, label="the caller pays")
    ax.barh(0, 0, color=BLUE, alpha=0.22, label="while the kernel counts")
    ax.barh(0, 0, color=ORANGE, label="the kernel counts")
    ax.set_yticks([])
    ax.invert_yaxis()
    ax.set_xlabel("ns per system call, more than with nobody looking")
    ax.grid(True, axis="x")
    ax.set_title(title, pad=24)
    ax.legend(
        frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1, fontsize=9
    )
    return ax


def samples() -> Axes:
    """One large write and many small ones, round after round, and which of them three ways of sampling keep."""
    ax = canvas(12.6, 4.0, "Two rounds of writes (here ten each, not a hundred), and who keeps which")
    rounds = [(start, [1.9 + start + 0.32 * step for step in range(10)]) for start in (0.0, 5.2)]
    picked = {
        "every fifth": (1.95, (4, 9), ORANGE),
        "one in five, at random": (1.25, (), GREEN),
        "first of a window": (0.55, (0,), VERMILION),
    }
    chance = ((3, 6, 7), (2,))
    note(ax, 0.05, 3.0, "writes", ha="left")
    for turn, (start, places) in enumerate(rounds):
        for step, x in enumerate(places):
            height = 0.85 if step == 0 else 0.22
            ax.add_patch(_rectangle(x, 2.6, 0.22, height, BLUE))
            for y, steps, colour in picked.values():
                kept = step in (steps or chance[turn])
                ax.plot(
                    [x + 0.11], [y], "o", color=colour if kept else "#dddddd", markersize=7 if kept else 3
                )
        ax.annotate(
            "",
            (1.75 + start, 0.15),
            (5.15 + start + 1.75, 0.15),
            arrowprops={"arrowstyle": "|-|,widthA=0.2,widthB=0.2", "color": GREY},
        )
        note(ax, 1.75 + start + 2.6, 0.0, "a window", GREY, size=7.5)
    for name, (y, _, colour) in picked.items():
        note(ax, 12.5, y, name, colour, ha="right", size=8.5)
    return ax


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> Rectangle:
    return Rectangle((x, y), width, height, facecolor=colour, edgecolor="none")


def inside_and_outside() -> Axes:
    """What runs in the kernel and what in your process, and the two things that pass between them."""
    ax = canvas(12.6, 4.4, "Your program runs over there; what it learnt you read from here")
    area(ax, (4.6, 0.1), 7.9, 4.2, "in the kernel")
    boxes = {
        "work": Box(6.3, 3.2, "whatever happens", "a call, a switch, a packet", GREY, width=2.9),
        "hook": Box(10.6, 3.2, "hook", "a CPU comes by", ORANGE, width=2.4),
        "program": Box(10.6, 1.0, "your program", "checked, then run", ORANGE, width=2.6),
        "map": Box(6.3, 1.0, "map", "numbers by key", GREEN, width=2.4),
        "frame": Box(2.0, 1.0, "DataFrame", "in your process", BLUE, width=2.4),
        "source": Box(2.0, 3.2, "C and BTF", "compiled here", BLUE, width=2.4),
    }
    for box in boxes.values():
        draw(ax, box)
    arrow(ax, (7.75, 3.2), (9.4, 3.2))
    arrow(ax, (10.6, 2.7), (10.6, 1.5))
    arrow(ax, (9.3, 1.0), (7.5, 1.0))
    arrow(ax, (5.1, 1.0), (3.2, 1.0))
    arrow(ax, (3.2, 3.0), (9.3, 1.3), colour=GREY)
    note(ax, 5.55, 2.1, "loaded once", GREY, size=7.5)
    note(ax, 10.75, 2.1, "each time", GREY, size=7.5, ha="left")
    note(ax, 4.15, 1.2, "read", GREY, size=7.5)
    return ax


def entry_bytes() -> Axes:
    """One entry of the map ``counts`` of ``syscall_counts``: which bytes are which column."""
    ax = canvas(12.6, 3.4, "One entry of counts as the kernel hands it out: each square is a byte")
    rows = (
        (2.1, "key", (("tgid", "uint32", 4, BLUE), ("nr", "uint32", 4, ORANGE))),
        (
            0.7,
            "value",
            (
                ("calls", "uint64", 8, GREEN),
                ("first_ns", "uint64", 8, BLUE),
                ("last_ns", "uint64", 8, ORANGE),
                ("comm", "text, up to its first zero", 16, GREY),
            ),
        ),
    )
    side = 0.265
    for y, name, members in rows:
        note(ax, 0.1, y + 0.15, name, ha="left", size=9)
        x = 1.0
        for member, kind, size, colour in members:
            for byte in range(size):
                ax.add_patch(
                    Rectangle((x + byte * side, y), side * 0.9, 0.3, facecolor=colour, edgecolor="none")
                )
            middle = x + size * side / 2
            note(ax, middle, y + 0.55, member, size=8.5)
            note(ax, middle, y - 0.25, kind, GREY, size=7.5)
            x += size * side
    return ax

"""Drawings for single chapters: what happens when, and what goes where. They return the Axes they drew on."""

from __future__ import annotations

from matplotlib.axes import Axes

from labkit.drawings import _arrow, _canvas
from labkit.plots import BLUE, GREEN, GREY, ORANGE, VERMILION

__all__ = ["slot_ruler", "stamp_pairs"]

_INK = "#222222"


def _bar(ax: Axes, start: float, end: float, y: float, colour: str, words: str = "") -> None:
    ax.barh(y, end - start, left=start, height=0.5, color=colour, edgecolor="white")
    if words:
        ax.text(
            (start + end) / 2, y, words, ha="center", va="center", color="white", weight="bold", fontsize=8.5
        )


def _note(
    ax: Axes, x: float, y: float, words: str, colour: str = _INK, *, ha: str = "center", size: float = 8
) -> None:
    ax.text(x, y, words, ha=ha, va="center", fontsize=size, color=colour)


def stamp_pairs() -> Axes:
    """Two threads of one process in overlapping calls: what a stamp per thread measures, and what one per process does."""
    ax = _canvas(12.6, 5.4, "Two threads of one process, each in a call of its own")
    calls = {"thread A": (1.8, 6.6, 4.6), "thread B": (4.0, 8.6, 3.8)}
    for name, (start, end, y) in calls.items():
        _bar(ax, start, end, y, BLUE, f"{name}: inside the call")
        for at, word in ((start, "entry"), (end, "return")):
            ax.plot([at, at], [y - 0.25, 0.5], color=GREY, linewidth=0.8, linestyle=":")
            _note(ax, at, y + 0.42, word, GREY, size=7.5)
    _note(ax, 0.1, 2.6, "stamp per thread", ha="left")
    _bar(ax, 1.8, 6.6, 2.75, GREEN, "A: right")
    _bar(ax, 4.0, 8.6, 2.2, GREEN, "B: right")
    _note(ax, 0.1, 1.05, "stamp per process", ha="left")
    _bar(ax, 1.8, 4.0, 1.05, GREY)
    _note(ax, 2.9, 1.05, "overwritten", "white")
    _bar(ax, 4.0, 6.6, 1.05, VERMILION, "A takes B's stamp")
    _note(ax, 8.75, 1.05, "B returns: no stamp left, unmatched", VERMILION, ha="left")
    _arrow(ax, (1.2, 0.35), (12.3, 0.35))
    _note(ax, 12.3, 0.12, "time", ha="right")
    return ax


def slot_ruler(most: int = 16) -> Axes:
    """Which values go to which slot: by the number of bits, and by log2 rounded down."""
    ax = _canvas(12.6, 3.1, "The same values, numbered in two ways")
    width = 11.0 / (most + 1)
    rows = (
        (1.7, "number of bits (this lab)", lambda v: v.bit_length()),
        (0.45, "log2, rounded down", _floor_log2),
    )
    for value in range(most + 1):
        x = 1.5 + (value + 0.5) * width
        _note(ax, x, 2.6, str(value), size=8.5)
    _note(ax, 0.1, 2.6, "value", ha="left")
    colours = (GREY, BLUE, ORANGE, GREEN, VERMILION, BLUE)
    for y, name, number in rows:
        _note(ax, 0.1, y + 0.5, name, ha="left", size=8)
        begin = 0
        for value in range(1, most + 2):
            if value == most + 1 or number(value) != number(begin):
                slot = number(begin)
                open_end = value == most + 1
                label = f"{slot}" if value - begin < 2 else f"slot {slot}"
                _bar(
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

"""The shapes that explaining drawings are made of: boxes, arrows, bars and notes on a canvas without a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from labkit import text
from labkit.plots import BLUE, GREY

__all__ = ["INK", "Box", "area", "arrow", "bar", "canvas", "chain", "draw", "note"]

#: The colour of lines and letters.
INK = "#222222"


@dataclass(frozen=True)
class Box:
    """A box: its centre and size in the drawing's units, a title, small print below it, and a colour."""

    x: float
    y: float
    title: str
    small: str = ""
    colour: str = BLUE
    width: float = 2.3
    height: float = 1.0
    dashed: bool = False


def canvas(width: float, height: float, title: str) -> Axes:
    """Axes without a frame, one unit to 0.72 inches."""
    # Not in an rc_context: the first figure of a notebook sets up its backend, and leaving the context would undo that.
    ax = plt.subplots(figsize=(width * 0.72, height * 0.72), dpi=110, layout="constrained")[1]
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    ax.set_title(text.plain(title), loc="left", fontsize=11)
    return ax


def draw(ax: Axes, box: Box) -> None:
    left, bottom = box.x - box.width / 2, box.y - box.height / 2
    ax.add_patch(
        FancyBboxPatch(
            (left, bottom),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor="white" if box.dashed else box.colour + "22",
            edgecolor=box.colour,
            linewidth=1.4,
            linestyle="--" if box.dashed else "-",
        )
    )
    lift = 0.2 if box.small else 0
    ax.text(
        box.x,
        box.y + lift,
        text.plain(box.title),
        ha="center",
        va="center",
        fontsize=9,
        weight="bold",
        color=INK,
    )
    if box.small:
        ax.text(box.x, box.y - 0.22, text.plain(box.small), ha="center", va="center", fontsize=7.5, color=INK)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], *, colour: str = INK) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=1.2, shrinkA=1, shrinkB=1
        )
    )


def chain(ax: Axes, boxes: Sequence[Box]) -> None:
    """Boxes in a row, and an arrow from each to the next, whichever way they run."""
    for box in boxes:
        draw(ax, box)
    for one, other in pairwise(boxes):
        way = 1 if other.x > one.x else -1
        arrow(ax, (one.x + way * one.width / 2, one.y), (other.x - way * other.width / 2, other.y))


def area(ax: Axes, corner: tuple[float, float], width: float, height: float, name: str) -> None:
    ax.add_patch(plt.Rectangle(corner, width, height, facecolor="#f3f3f3", edgecolor="none", zorder=0))
    ax.text(
        corner[0] + width - 0.1, corner[1] + height - 0.1, name, ha="right", va="top", fontsize=8, color=GREY
    )


def bar(ax: Axes, start: float, end: float, y: float, colour: str, words: str = "") -> None:
    ax.barh(y, end - start, left=start, height=0.5, color=colour, edgecolor="white")
    if words:
        ax.text(
            (start + end) / 2, y, words, ha="center", va="center", color="white", weight="bold", fontsize=8.5
        )


def note(
    ax: Axes, x: float, y: float, words: str, colour: str = INK, *, ha: str = "center", size: float = 8
) -> None:
    ax.text(x, y, words, ha=ha, va="center", fontsize=size, color=colour)

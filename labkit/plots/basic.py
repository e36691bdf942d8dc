"""The lab's style, and figures of no particular subject: histograms, bars, agreement of two accounts."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from labkit import histogram as _histogram
from labkit import text

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "VERMILION",
    "agreement",
    "axes",
    "bars",
    "delivered_and_lost",
    "duration",
    "histogram",
    "histograms",
    "parts",
    "use_style",
]

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
_STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
}


# Words over lines of the grid or of the figure stay legible.
_BEHIND_WORDS = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
#: The share of a histogram below which its lowest buckets are not worth a stretch of empty axis.
_STRAGGLERS = 0.01


def duration(value_ns: float) -> str:
    """A time as people read it.

    >>> duration(0), duration(950), duration(1500), duration(2_000_000), duration(3.5e9)
    ('0', '950 ns', '1.5 µs', '2 ms', '3.5 s')
    """
    for limit, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if abs(value_ns) >= limit:
            return f"{value_ns / limit:.3g} {unit}"
    return f"{value_ns:.3g} ns" if value_ns else "0"


def _edge_label(value: float, unit: str) -> str:
    if unit == "ns":
        return duration(value)
    if unit == "bytes":
        for limit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if value >= limit:
                return f"{value / limit:.3g} {name}"
        return f"{value:.0f} B"
    return f"{value:.3g} {unit}"


def use_style() -> None:
    """From now on matplotlib draws new axes in the lab's style."""
    plt.rcParams.update(_STYLE)


def axes(ax: Axes | None, *, width: float = 7.2, height: float = 3.2) -> Axes:
    """The axes given, or those of a figure of their own in the lab's style."""
    use_style()
    if ax is not None:
        return ax
    return plt.subplots(figsize=(width, height))[1]


def histogram(
    frame: pd.DataFrame, *, title: str, what: str = "events", ax: Axes | None = None, colour: str = BLUE
) -> Axes:
    """Bars per bucket over a logarithmic axis, with p50 and p99 marked.

    :param frame: columns ``lo``, ``hi``, ``unit``, ``count`` (see :mod:`labkit.histogram`).
    """
    return histograms({what: frame}, title=title, what=what, ax=ax, colours=[colour])


def histograms(
    frames: dict[str, pd.DataFrame],
    *,
    title: str,
    what: str = "events",
    ax: Axes | None = None,
    colours: Sequence[str] = (BLUE, ORANGE, GREEN, VERMILION),
) -> Axes:
    """Several histograms of one unit over the same buckets, as outlines; one is drawn filled.

    :param frames: name -> histogram.
    """
    ax = axes(ax)
    filled = {name: frame[frame["count"] > 0] for name, frame in frames.items() if frame["count"].sum()}
    if not filled:
        ax.text(0.5, 0.5, "no events", ha="center", va="center", transform=ax.transAxes, color=GREY)
        ax.set_title(text.plain(title))
        return ax
    unit = next(iter(filled.values()))["unit"].iloc[0]
    filled, cut, below = _without_stragglers(filled)
    low = min(np.log2(max(float(f["lo"].iloc[0]), 0.5)) for f in filled.values())
    high = max(np.log2(float(f["hi"].iloc[-1])) for f in filled.values())
    alone = len(filled) == 1
    for (name, frame), colour in zip(filled.items(), colours, strict=False):
        left = np.log2(frame["lo"].to_numpy(dtype=float).clip(0.5))
        right = np.log2(frame["hi"].to_numpy(dtype=float))
        look = {"edgecolor": "white", "linewidth": 0.8} if alone else {"alpha": 0.15, "linewidth": 0}
        ax.bar(left, frame["count"], width=right - left, align="edge", color=colour, **look)
        if not alone:  # outlines stay legible where two overlap; fills mix to a third colour
            edges = np.arange(left.min(), right.max() + 1)
            heights = np.zeros(len(edges) - 1)
            heights[np.searchsorted(edges, left)] = frame["count"]
            ax.stairs(heights, edges, color=colour, linewidth=2, label=text.plain(name))
    if alone:
        _mark_quantiles(ax, next(frame for frame in frames.values() if frame["count"].sum()), unit, low, high)
    else:
        ax.legend(frameon=False)
    ax.set_xlim(low - 0.3, high + 0.3)
    ticks = np.arange(np.floor(low), np.ceil(high) + 1, max(1, int((high - low) // 8) or 1))
    ax.set_xticks(ticks, [_edge_label(2.0**t, unit) for t in ticks], rotation=30 if len(ticks) > 7 else 0)
    name = {"ns": "wait", "bytes": "size"}.get(unit, unit)
    left_out = f"; not drawn: {cut:,} below {_edge_label(below, unit)}" if cut else ""
    ax.set_xlabel(f"{name} (logarithmic{left_out})")
    ax.set_ylabel(what)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.grid(True, axis="y")
    ax.set_title(text.plain(title))
    return ax


def _without_stragglers(filled: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], int, float]:
    """The histograms without their lowest buckets where those hold next to nothing and would cost three octaves of axis.

    Next to nothing: less than a hundredth of what the histogram counts. All histograms begin at the same edge.

    :returns: the histograms, how many events are left out of them together, and the edge below which those lie.
    """
    starts = {}
    for name, frame in filled.items():
        share = frame["count"].cumsum() / frame["count"].sum()
        starts[name] = float(frame["lo"][share >= _STRAGGLERS].iloc[0])
    edge = min(starts.values())
    first = min(float(frame["lo"].iloc[0]) for frame in filled.values())
    if edge < 8 * max(first, 0.5):
        return filled, 0, first
    cut = sum(int(frame["count"][frame["lo"] < edge].sum()) for frame in filled.values())
    return {name: frame[frame["lo"] >= edge] for name, frame in filled.items()}, cut, edge


def _mark_quantiles(ax: Axes, frame: pd.DataFrame, unit: str, low: float, high: float) -> None:
    top = float(frame["count"].max())
    ax.set_ylim(0, top * 1.22)
    room = 0.22 * (high - low)  # about as wide as a label
    values = {q: _histogram.quantile(frame, q) for q in (0.5, 0.99)}
    places = {q: float(np.log2(max(value, 0.5))) for q, value in values.items()}
    for q, style in ((0.5, "--"), (0.99, ":")):
        at = places[q]
        ax.axvline(at, color="black", linestyle=style, linewidth=1.1)
        # To the right, unless the axis ends there or the other line would run through the words.
        leftward = high - at < room or (0 < places[0.99] - at < room < at - low)
        ax.annotate(
            f"p{q * 100:.0f} ≈ {_edge_label(values[q], unit)}",
            (at, top * (1.15 if q > 0.9 else 1.05)),
            xytext=(-4 if leftward else 4, 0),
            textcoords="offset points",
            ha="right" if leftward else "left",
            fontsize=9,
            bbox=_BEHIND_WORDS,
        )


def agreement(
    frame: pd.DataFrame,
    *,
    label: str,
    measured: str,
    oracle: str,
    title: str,
    oracle_name: str,
    ax: Axes | None = None,
) -> Axes:
    """Measured beside oracle for each row, with the residual written on it. Columns are in ns and shown in ms.

    :param frame: one row per thing compared; ``label``, ``measured``, ``oracle`` name its columns.
    """
    ax = axes(ax, height=1.1 + 0.55 * max(len(frame), 1))
    at = np.arange(len(frame))
    ours = frame[measured].to_numpy(dtype=float) / 1e6
    theirs = frame[oracle].to_numpy(dtype=float) / 1e6
    ax.barh(at - 0.19, ours, height=0.36, color=BLUE, label="measured by the program")
    ax.barh(at + 0.19, theirs, height=0.36, color=GREY, label=oracle_name)
    widest = max(float(ours.max(initial=0)), float(theirs.max(initial=0)), 1e-9)
    for y, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        ax.text(max(a, b) + widest * 0.015, y, _residual(a, b), va="center", fontsize=9, bbox=_BEHIND_WORDS)
    ax.set_yticks(at, [text.plain(str(name)) for name in frame[label]])
    ax.invert_yaxis()
    ax.set_xlim(0, widest * 1.15)
    ax.set_xlabel("waited for a CPU (ms); beside the bars: the residual")
    ax.grid(True, axis="x")
    ax.set_title(text.plain(title), pad=24)
    ax.legend(
        frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1, fontsize=9
    )
    return ax


def _residual(measured: float, oracle: float) -> str:
    if not oracle:
        return "n/a"
    points = round(100 * (measured - oracle) / oracle, 2)
    return f"{points:+.2f} %" if points else "0.00 %"


def bars(
    frame: pd.DataFrame,
    *,
    label: str,
    value: str,
    title: str,
    unit: str,
    most: int = 12,
    ax: Axes | None = None,
) -> Axes:
    """Horizontal bars of the largest values, with the numbers on them.

    :param frame: columns ``label`` and ``value``.
    """
    top = frame.nlargest(most, value)
    ax = axes(ax, height=0.9 + 0.32 * max(len(top), 1))
    at = np.arange(len(top))
    values = top[value].to_numpy(dtype=float)
    ax.barh(at, values, color=BLUE, height=0.7)
    widest = float(values.max(initial=1e-9))
    for y, number in enumerate(values):
        ax.text(
            number + widest * 0.01,
            y,
            f"{number:,.4g}" if number % 1 else f"{number:,.0f}",
            va="center",
            fontsize=9,
        )
    ax.set_yticks(at, [text.plain(str(name)) for name in top[label]])
    ax.invert_yaxis()
    ax.set_xlim(0, widest * 1.12)
    ax.set_xlabel(unit)
    ax.grid(True, axis="x")
    ax.set_title(text.plain(title))
    return ax


def delivered_and_lost(course: pd.DataFrame, *, title: str, ax: Axes | None = None) -> Axes:
    """Events delivered and lost so far, over time: what was produced is the upper edge.

    :param course: columns ``ms``, ``delivered``, ``lost``, in the order of time.
    """
    ax = axes(ax)
    at = course["ms"].to_numpy(dtype=float)
    delivered, lost = course["delivered"].to_numpy(dtype=float), course["lost"].to_numpy(dtype=float)
    ax.fill_between(at, 0, delivered, color=BLUE, linewidth=0, label="delivered")
    # Between two events that were kept nothing is known but how many are missing: a straight line says no more.
    ax.fill_between(at, delivered, delivered + lost, color=VERMILION, alpha=0.35, linewidth=0, label="lost")
    ax.plot(at, delivered + lost, color=VERMILION, linewidth=1)
    ax.plot(
        at, np.zeros(len(at)), "|", color="black", markersize=9, clip_on=False, label="a switch that was kept"
    )
    ax.set(xlim=(float(at.min(initial=0)), float(at.max(initial=1))), ylim=(0, None))
    ax.set_xlabel("time since the first event (ms)")
    ax.set_ylabel("events so far")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.grid(True, axis="y")
    ax.set_title(text.plain(title))
    ax.legend(frameon=False, loc="upper left", fontsize=9)
    return ax


def parts(
    frame: pd.DataFrame,
    *,
    title: str,
    unit: str,
    colours: Sequence[str] = (VERMILION, GREY, BLUE, GREEN),
    ax: Axes | None = None,
) -> Axes:
    """Horizontal bars made of parts that add up, with the total and the share of the first part written beside each.

    A share of none or of all is not written: the bar's one colour says it. A part that is nowhere has no entry.

    :param frame: one row per bar (the index is its name), one column per part.
    """
    ax = axes(ax, height=1.2 + 0.5 * max(len(frame), 1))
    at, left = np.arange(len(frame)), np.zeros(len(frame))
    for name, colour in zip(frame.columns, colours, strict=False):
        widths = frame[name].to_numpy(dtype=float)
        if not widths.any():
            continue
        ax.barh(at, widths, left=left, height=0.6, color=colour, label=text.plain(str(name)))
        left += widths
    first = frame.iloc[:, 0].to_numpy(dtype=float)
    widest = max(float(left.max(initial=0)), 1e-9)
    end = widest * 1.05
    for y, (part, total) in enumerate(zip(first, left, strict=True)):
        telling = total and 0 < round(100 * part / total) < 100
        share = f" ({part / total:.0%} {text.plain(str(frame.columns[0]))})" if telling else ""
        words = f"{total:,.0f}{share}"
        ax.text(total + widest * 0.01, y, words, va="center", fontsize=9, bbox=_BEHIND_WORDS)
        # A letter takes about an eightieth of the axis.
        end = max(end, total / max(0.97 - len(words) / 80, 0.4))
    ax.set_yticks(at, [text.plain(str(name)) for name in frame.index])
    ax.invert_yaxis()
    ax.set_xlim(0, end)
    if unit.startswith("%"):
        ax.set_xticks(range(0, 101, 20))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.set_xlabel(unit)
    ax.grid(True, axis="x")
    ax.set_title(text.plain(title), pad=24)
    ax.legend(
        frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1, fontsize=9
    )
    return ax

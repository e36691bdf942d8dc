"""Figures of who waited for whom: the matrix, causes, waits by length, and who was on each CPU when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.patches import Patch

from labkit import text
from labkit.plots.basic import BLUE, GREEN, GREY, ORANGE, VERMILION, axes, histograms
from labkit.sched.cause import CAUSES

__all__ = ["CAUSE_COLOURS", "blame_matrix", "cause_bars", "cpu_timeline", "wait_histograms"]

_SKY, _PURPLE, _PALE = "#56B4E9", "#CC79A7", "#E8E8E8"
#: One colour for each cause, the same in every figure.
CAUSE_COLOURS: Mapping[str, str] = {
    "foreign": VERMILION,
    "self": BLUE,
    "throttled": ORANGE,
    "idle": _SKY,
    "steal": _PURPLE,
    "unknown": GREY,
}
_CAUSE_WORDS = {
    "foreign": "others held the CPU",
    "self": "its own tasks did",
    "throttled": "its quota was used up",
    "idle": "the CPU was waking up",
    "steal": "interrupts or hypervisor",
    "unknown": "unknown",
}
_OCCUPANTS = (VERMILION, BLUE, GREEN, ORANGE, _PURPLE, _SKY)
_LEAST_SHOWN_MS = 0.05


# One hue from nearly white to dark: little reads as little, also without colour and to the colour-blind.
_SHADES = LinearSegmentedColormap.from_list(
    "waited", ["#f4f8fd", "#cfe1f2", "#93c4df", "#4a97c9", "#1764ab", "#08306b"]
)


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1, as WCAG 2 defines it."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]
    )
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


def _name(value: object, most: int = 28) -> str:
    plain = text.plain(str(value))
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def blame_matrix(
    matrix: pd.DataFrame, *, seconds: float, title: str, most: int = 10, ax: Axes | None = None
) -> Axes:
    """The matrix of victims (rows) and occupants (columns) as a heat map, in ms of waiting per second.

    Colours are on a logarithmic scale, so that who waited a little can be seen beside who waited long; the numbers in the
    cells are what counts. The diagonal, where a cgroup waited for its own tasks, is framed.

    :param matrix: ns; see :func:`labkit.sched.blame.matrix`.
    :param seconds: how long was measured.
    :param most: rows and columns shown, the largest.
    """
    shown = matrix.iloc[:most]
    named = [column for column in shown.columns if not str(column).startswith("(")][:most]
    least_ns = _LEAST_SHOWN_MS * 1e6 * seconds
    causes = [c for c in shown.columns if str(c).startswith("(") and shown[c].max() >= least_ns]
    shown = shown[[*named, *causes]]
    rate = shown.to_numpy(dtype=float) / 1e6 / max(seconds, 1e-9)
    if ax is None:
        width, height = 2.9 + 0.85 * max(len(shown.columns), 2), 1.5 + 0.42 * max(len(shown), 2)
        ax = axes(None, width=width, height=height)
    top = max(float(rate.max(initial=0)), 1.0)
    scale = LogNorm(_LEAST_SHOWN_MS, top)
    ax.imshow(
        np.where(rate >= _LEAST_SHOWN_MS, rate, np.nan),
        cmap=_SHADES,
        norm=scale,
        aspect="auto",
    )
    for y, x in np.argwhere(rate >= _LEAST_SHOWN_MS):
        dark = _luminance(_SHADES(scale(rate[y, x]))) < 0.18  # below it white has more contrast than black
        words = f"{rate[y, x]:.0f}" if rate[y, x] >= 10 else f"{rate[y, x]:.1f}"
        ax.text(x, y, words, ha="center", va="center", color="white" if dark else "black", fontsize=9)
    for y, victim in enumerate(shown.index):
        if victim in named:
            x = named.index(victim)
            ax.add_patch(
                plt.Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.2)
            )
    if causes:
        ax.axvline(len(named) - 0.5, color="black", linewidth=0.8)
    ax.set_xticks(
        range(len(shown.columns)),
        [_name(c, 20) for c in shown.columns],
        rotation=35,
        ha="right",
        rotation_mode="anchor",
    )
    ax.set_yticks(range(len(shown)), [_name(v) for v in shown.index])
    ax.set_xlabel("while this one held the CPU")
    ax.set_ylabel("this one waited")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.set_title(f"{text.plain(title)} (ms per second)")
    return ax


def cause_bars(
    causes: pd.DataFrame,
    labels: Mapping[int, str],
    *,
    seconds: float,
    title: str,
    most: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Each cgroup's wait as a bar made of its causes, in ms per second, the longest first.

    :param causes: ``victim_id``, ``wait_ns`` and a column per cause; see :func:`labkit.sched.cause.split`.
    :param labels: cgroup id -> name; see :func:`labkit.sched.blame.labels`. Cgroups without a label are left out.
    """
    shown = causes[causes["victim_id"].isin(list(labels))].nlargest(most, "wait_ns")
    ax = axes(ax, height=1.5 + 0.42 * max(len(shown), 1))
    at, left, drawn = np.arange(len(shown)), np.zeros(len(shown)), 0
    for cause in CAUSES:
        widths = shown[cause].to_numpy(dtype=float) / 1e6 / max(seconds, 1e-9)
        if widths.sum() < max(
            _LEAST_SHOWN_MS, 0.001 * float(shown["wait_ns"].sum()) / 1e6 / max(seconds, 1e-9)
        ):
            continue
        drawn += 1
        ax.barh(at, widths, left=left, height=0.62, color=CAUSE_COLOURS[cause], label=_CAUSE_WORDS[cause])
        left += widths
    widest = max(float(left.max(initial=0)), 1e-9)
    for y, total in enumerate(left):
        ax.text(
            total + widest * 0.01,
            y,
            f"{total:,.0f}" if total >= 100 else f"{total:.3g}",
            va="center",
            fontsize=9,
        )
    ax.set_yticks(at, [_name(labels[int(i)]) for i in shown["victim_id"]])
    ax.invert_yaxis()
    ax.set_xlim(0, widest * 1.12)
    ax.set_xlabel("waited, ms per second (all its tasks together)")
    ax.grid(True, axis="x")
    ax.set_title(text.plain(title), pad=26)
    if drawn:
        ax.legend(
            frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1, fontsize=9
        )
    return ax


def wait_histograms(
    frame: pd.DataFrame, labels: Mapping[int, str], *, title: str, most: int = 4, ax: Axes | None = None
) -> Axes:
    """Waits by length, one outline per cgroup, over a logarithmic axis; eight buckets are joined to an octave.

    :param frame: ``cgroup_id``, ``lo``, ``hi``, ``count``; see ``histograms`` of :class:`labkit.sched.state.Snapshot`.
    :param labels: cgroup id -> name, in the order to draw.
    """
    drawn = {}
    for cgroup_id in list(labels)[:most]:
        mine = frame[frame["cgroup_id"] == cgroup_id]
        octave = np.floor(np.log2(mine["lo"].to_numpy(dtype=float).clip(32))).astype(int)
        counts = pd.Series(mine["count"].to_numpy(dtype="uint64")).groupby(octave).sum()
        drawn[labels[cgroup_id]] = pd.DataFrame(
            {
                "lo": (2 ** counts.index.to_numpy()).astype("uint64"),
                "hi": (2 ** (counts.index.to_numpy() + 1)).astype("uint64"),
                "unit": "ns",
                "count": counts.to_numpy(),
            }
        )
    return histograms(drawn, title=title, what="waits", ax=ax, colours=_OCCUPANTS)


def cpu_timeline(
    occupancy: pd.DataFrame,
    waits: pd.DataFrame,
    labels: Mapping[int, str],
    *,
    victim_id: int,
    cpu: int,
    start_ns: int,
    length_ns: int,
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Who was on one CPU, and below it when the victim waited in that CPU's queue.

    :param occupancy: see :func:`labkit.sched.integral.occupancy`.
    :param waits: see :func:`labkit.sched.integral.waits`.
    :param labels: cgroup id -> name, those to tell apart; all others are one colour.
    :param start_ns: where to begin, on the clock of that CPU.
    """
    ax = axes(ax, height=2.3)
    end_ns = start_ns + length_ns
    held = occupancy[
        (occupancy["cpu"] == cpu) & (occupancy["end_ns"] > start_ns) & (occupancy["start_ns"] < end_ns)
    ]
    colours = dict(zip(labels, _OCCUPANTS, strict=False))
    shade = [
        _PALE if kind == "idle" else colours.get(int(occupant), GREY)
        for kind, occupant in zip(held["kind"], held["occupant_id"], strict=True)
    ]
    _strips(ax, held, start_ns, end_ns, y=1.0, colours=shade)
    mine = waits[
        (waits["victim_id"] == victim_id)
        & (waits["cpu"] == cpu)
        & (waits["end_ns"] > start_ns)
        & (waits["start_ns"] < end_ns)
    ]
    throttled = mine.assign(end_ns=mine["start_ns"] + mine["throttled_ns"])
    _strips(ax, mine, start_ns, end_ns, y=0.0, colours=["black"] * len(mine), height=0.35)
    _strips(ax, throttled, start_ns, end_ns, y=0.0, colours=[ORANGE] * len(mine), height=0.35)
    ax.set_yticks([1.0, 0.0], [f"on CPU {cpu}", f"{_name(labels.get(victim_id, 'victim'), 16)} waits"])
    ax.set_ylim(-0.45, 1.55)
    ax.set_xlim(0, length_ns / 1e6)
    ax.set_xlabel("time (ms)")
    ax.grid(True, axis="x")
    shown = {int(i) for i in held["occupant_id"]}
    entries = [Patch(color=colour, label=_name(labels[i])) for i, colour in colours.items() if i in shown]
    if (held["kind"] == "idle").any():
        entries.append(Patch(color=_PALE, label="idle"))
    others = held[(held["kind"] != "idle") & ~held["occupant_id"].isin([*colours, 0])]
    drawn = others["end_ns"].clip(upper=end_ns) - others["start_ns"].clip(lower=start_ns)
    if (drawn >= length_ns / 1000).any():  # a narrower one is less than a pixel
        entries.append(Patch(color=GREY, label="others"))
    if (mine["throttled_ns"] > 0).any():
        entries.append(Patch(color=ORANGE, label="held back by its quota"))
    ax.set_title(text.plain(title), pad=26)
    ax.legend(
        handles=entries,
        frameon=False,
        ncols=5,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        borderaxespad=0.1,
        fontsize=9,
    )
    return ax


def _strips(
    ax: Axes,
    spans: pd.DataFrame,
    start_ns: int,
    end_ns: int,
    *,
    y: float,
    colours: Sequence[str],
    height: float = 0.7,
) -> None:
    left = spans["start_ns"].to_numpy().clip(start_ns, end_ns) - start_ns
    right = spans["end_ns"].to_numpy().clip(start_ns, end_ns) - start_ns
    ax.barh(
        np.full(len(spans), y),
        (right - left) / 1e6,
        left=left / 1e6,
        height=height,
        color=list(colours),
        linewidth=0,
    )

"""Figures of what Prometheus answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from labkit import plots, text

__all__ = ["waits_over_time"]

#: Okabe and Ito's colours; the last one is for whatever is left over.
_COLOURS = (plots.VERMILION, plots.BLUE, plots.ORANGE, plots.GREEN, "#CC79A7", "#56B4E9")


def waits_over_time(
    graph: pd.DataFrame,
    *,
    by: str,
    title: str,
    marked: Sequence[tuple[float, str]] = (),
    most: int = 5,
    ax: Axes | None = None,
) -> Axes:
    """Rates of waiting, stacked, over time.

    :param graph: columns ``seconds`` (since the beginning), ``value`` (seconds waited per second), and ``by``.
    :param by: the column whose values are stacked, the largest at the bottom.
    :param marked: moments (in ``seconds``) with a word for each.
    :param most: so many are drawn apart, the others together as "others".
    """
    ax = plots.axes(ax, height=3.4)
    total = graph.groupby(by)["value"].sum().sort_values(ascending=False)
    kept = [name for name in total.index if total[name] > 0][:most]
    table = graph.pivot_table(index="seconds", columns=by, values="value", aggfunc="sum").fillna(0.0)
    layers = {name: table[name].to_numpy(dtype=float) for name in kept}
    rest = table.drop(columns=kept).sum(axis=1).to_numpy(dtype=float)
    if rest.any():
        layers["others"] = rest
    at, bottom = table.index.to_numpy(dtype=float), np.zeros(len(table))
    for index, (name, height) in enumerate(layers.items()):
        colour = plots.GREY if name == "others" else _COLOURS[index % len(_COLOURS)]
        ax.fill_between(
            at,
            bottom,
            bottom + height,
            color=colour,
            linewidth=0.6,
            edgecolor="white",
            label=text.plain(str(name)),
        )
        bottom = bottom + height
    ax.set(
        xlim=(at.min(initial=at.max(initial=1)), at.max(initial=1)),
        ylim=(0, max(float(bottom.max(initial=0)) * 1.15, 1e-6)),
    )
    for moment, word in marked:
        ax.axvline(moment, color="black", linestyle=":", linewidth=1)
        ax.annotate(
            word, (moment, 0.98), xycoords=("data", "axes fraction"), xytext=(3, 0), textcoords="offset points",
            fontsize=9, va="top",
        )  # fmt: skip
    ax.set_xlabel("seconds since the beginning")
    ax.set_ylabel("s waited per second")
    ax.grid(True, axis="y")
    ax.set_title(text.plain(title), pad=24)
    ax.legend(
        frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1, fontsize=9
    )
    return ax

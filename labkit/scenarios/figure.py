"""One figure: scenarios down, rules across, in each cell the verdict and how much of the true wait stands behind it."""

from __future__ import annotations

import io
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from labkit.plots import VERMILION
from labkit.scenarios.table import TITLES

__all__ = ["draw"]

# One hue, light to dark: the share is a number, and reads the same without colour.
_SHADES = LinearSegmentedColormap.from_list("share", ["#ffffff", "#c6dbef", "#8cbcdf"])
_TITLE = (
    "What each rule says of the victim, over the same events: its verdict, and the share of the true wait that it saw\n"
    "and that it charged to what it belongs to (placed; the shade). Framed, with a cross: a wrong verdict."
)


def draw(rows: pd.DataFrame) -> bytes:
    """A PNG of the table of :func:`labkit.scenarios.table.table`."""
    scenarios = list(dict.fromkeys(rows["scenario"]))
    placed = rows.pivot(index="scenario", columns="rule", values="placed_share").loc[scenarios, list(TITLES)]
    found = rows.set_index(["scenario", "rule"])
    with plt.rc_context({"font.size": 9, "figure.constrained_layout.use": True}):
        figure, axes = plt.subplots(figsize=(11, 0.43 * len(scenarios) + 1.7))
        axes.pcolormesh(
            np.clip(placed.to_numpy(), 0, 1), cmap=_SHADES, vmin=0, vmax=1, edgecolor="white", linewidth=2
        )
        for y, scenario in enumerate(scenarios):
            for x, rule in enumerate(TITLES):
                _cell(axes, x, y, found.loc[(scenario, rule)])
        axes.set_xticks(np.arange(len(TITLES)) + 0.5, [textwrap.fill(name, 14) for name in TITLES.values()])
        axes.set_yticks(
            np.arange(len(scenarios)) + 0.5,
            [f"{name}\ntruth: {_one(rows, name)}" for name in scenarios],
        )
        axes.invert_yaxis()
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.suptitle(_TITLE, fontsize=10, x=0.01, ha="left")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
        plt.close(figure)
    return file.getvalue()


def _one(rows: pd.DataFrame, scenario: str) -> str:
    return str(rows.loc[rows["scenario"] == scenario, "declared"].iloc[0])


def _cell(axes: Axes, x: int, y: int, row: pd.Series) -> None:
    word = str(row["verdict"])  # the same word as in the tables and of the command
    right = bool(row["right"])
    if not right:
        axes.add_patch(
            Rectangle((x + 0.02, y + 0.06), 0.96, 0.88, fill=False, edgecolor=VERMILION, linewidth=1.6)
        )
    weight = "normal" if right else "bold"
    axes.text(x + 0.5, y + 0.35, word if right else f"✗ {word}", ha="center", va="center", fontweight=weight)
    shares = f"saw {row['seen_share']:.0%}, placed {row['placed_share']:.0%}"
    axes.text(x + 0.5, y + 0.72, shares, ha="center", va="center", fontsize=7.5, color="#222222")

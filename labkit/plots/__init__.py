"""Figures from frames. They draw and compute nothing that a finding says; colours are safe for colour-blind readers.

Palette: Okabe and Ito, https://jfly.uni-koeln.de/color/. Each function returns the Axes it drew on.
"""

from labkit.plots.basic import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    agreement,
    axes,
    bars,
    delivered_and_lost,
    duration,
    histogram,
    histograms,
    parts,
    use_style,
)
from labkit.plots.blame import CAUSE_COLOURS, blame_matrix, cause_bars, cpu_timeline, wait_histograms

__all__ = [
    "BLUE",
    "CAUSE_COLOURS",
    "GREEN",
    "GREY",
    "ORANGE",
    "VERMILION",
    "agreement",
    "axes",
    "bars",
    "blame_matrix",
    "cause_bars",
    "cpu_timeline",
    "delivered_and_lost",
    "duration",
    "histogram",
    "histograms",
    "parts",
    "use_style",
    "wait_histograms",
]

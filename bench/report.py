"""What the bench says: a table, JSON, a figure."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from bench.measure import Row
from bench.peers import versions
from labkit import plots

__all__ = ["document", "draw", "environment", "number", "show", "write_json"]


def environment(*, rounds: int, quick: bool) -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU part")):
            cpu = line.split(":", 1)[1].strip()
            break
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu,
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pandas": pd.__version__,
        "pyarrow": pa.__version__,
        "peers": versions(),
        "rounds": rounds,
        "quick": quick,
    }


def number(value: float | None) -> str:
    """A number as people read it: three digits, thousands and millions by letter.

    >>> number(60_400_000), number(1234), number(0.0312), number(47.26), number(None)
    ('60.4 M', '1.23 k', '0.0312', '47.3', '-')
    """
    if value is None:
        return "-"
    for limit, letter in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def _verdict(row: Row) -> str:
    if row.goal is None:
        return ""
    return f"{row.goal}: " + ("reached" if row.reached else "not reached")


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table, then what is not reached and why."""
    table = Table(title="labkit beside others: medians, and the ratio's range over the rounds")
    for head in ("comparison", "beside", "labkit", "other", "unit", "ratio", "range", "goal"):
        table.add_column(head, justify="right" if head in ("labkit", "other", "ratio", "range") else "left")
    for row in rows:
        spread = f"{number(row.spread[0])} .. {number(row.spread[1])}" if row.spread else "-"
        table.add_row(
            row.name,
            row.peer_name,
            number(row.ours),
            number(row.peer),
            row.unit,
            number(row.ratio),
            spread,
            _verdict(row),
            style="bold red" if row.reached is False else None,
        )
    console.print(table)
    for row in rows:
        if row.reached is False:
            console.print(f"not reached: {row.name} beside {row.peer_name}: {row.reason}", markup=False)
    for row in rows:
        if row.reached is not False and row.reason:
            console.print(f"{row.name} beside {row.peer_name}: {row.reason}", markup=False)


def document(rows: Sequence[Row], around: dict[str, Any]) -> dict[str, Any]:
    """The JSON form: ``{"environment": {...}, "rows": [...]}``."""
    return {"environment": around, "rows": [row.as_dict() for row in rows]}


def write_json(path: Path, rows: Sequence[Row], around: dict[str, Any]) -> None:
    """Write the JSON form, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(document(rows, around), indent=1, ensure_ascii=False) + "\n")
    scratch.replace(path)


def draw(path: Path, rows: Sequence[Row], around: dict[str, Any]) -> None:
    """Bars of the ratios on a log scale, with the range over the rounds and a tick where the goal is."""
    measured = [row for row in rows if row.ratio]
    if not measured:
        return
    figure, ax = plt.subplots(figsize=(9.5, 0.9 + 0.42 * len(measured)), layout="constrained")
    for place, row in enumerate(measured):
        assert row.ratio
        assert row.spread
        colour = plots.GREY if row.goal is None else plots.BLUE if row.reached else plots.VERMILION
        ax.barh(place, row.ratio - 1, left=1, height=0.62, color=colour)
        ax.hlines(place, *row.spread, color="black", linewidth=1)
        if row.goal:
            bound = float(row.goal.split()[1])
            ax.vlines(bound, place - 0.45, place + 0.45, color=plots.ORANGE, linewidth=2.5)
        right = max(row.spread[1], row.ratio, 1.0)
        if row.goal and right < bound < right * 2:  # a number takes about as much: it goes behind the tick
            right = bound
        ax.text(right * 1.08, place, f"{row.ratio:.3g}", va="center", fontsize=9)
    ax.set_xscale("log")
    highest = max(max(row.spread[1], row.ratio) for row in measured if row.spread and row.ratio)
    lowest = min(min(row.spread[0], row.ratio, 1.0) for row in measured if row.spread and row.ratio)
    ax.set_xlim(10 ** math.floor(math.log10(lowest)), highest * 3)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_yticks(
        range(len(measured)), [f"{row.name}\nbeside {row.peer_name}" for row in measured], fontsize=7.5
    )
    ax.invert_yaxis()
    ax.set_xlabel("labkit / other, median of {rounds} rounds (1: equal)".format(**around))
    ax.set_title(
        "Blue: goal reached. Red: not reached. Grey: no goal. Orange tick: the goal.\n"
        "Rates: more is better. ms, ns and MB: less is better.",
        fontsize=9,
        loc="left",
    )
    ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)

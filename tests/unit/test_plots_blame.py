"""Figures of blame: what they show is what the frames say, and odd frames do not break them."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from labkit import plots
from labkit.sched import blame, cause
from labkit.sched.state import SCHEMAS

mpl.use("Agg")

NAMES = pd.DataFrame(
    {
        "cgroup_id": np.array([1, 7, 9], np.uint64),
        "cgroup": ["/", "/web", "/batch"],
        "name": ["root cgroup", "web", "batch\x1b[31m$x$"],
    }
)
CELLS = pd.DataFrame(
    [
        (7, "cgroup", 9, 400_000_000, 3),
        (7, "throttled", 0, 100_000_000, 1),
        (7, "steal", 0, 10, 0),
        (9, "cgroup", 7, 50_000_000, 2),
        (9, "cgroup", 9, 20_000_000, 0),
    ],
    columns=list(SCHEMAS["cells"]),
).astype(SCHEMAS["cells"])


def words(ax: mpl.axes.Axes) -> list[str]:
    return [t.get_text() for t in ax.texts]


def test_the_matrix_shows_ms_per_second_and_no_empty_cause() -> None:
    ax = plots.blame_matrix(blame.matrix(CELLS, NAMES), seconds=2.0, title="t")
    assert sorted(words(ax)) == ["10", "200", "25", "50"]
    columns = [t.get_text() for t in ax.get_xticklabels()]
    assert "(throttled)" in columns
    assert "(steal)" not in columns  # 10 ns are nothing to look at
    ax.figure.canvas.draw()  # names from elsewhere neither colour the terminal nor start mathematics


def test_cause_bars_add_up_to_the_wait() -> None:
    ax = plots.cause_bars(cause.split(CELLS), blame.labels(NAMES), seconds=2.0, title="t")
    assert words(ax) == ["250", "35"]
    widths = sum(bar.get_width() for bar in ax.patches if bar.get_y() < 0.5 and bar.get_height() > 0.5)
    assert widths == pytest.approx(250, rel=1e-3)


def test_buckets_are_joined_to_octaves_without_losing_a_wait() -> None:
    frame = pd.DataFrame(
        {
            "cgroup_id": np.array([7, 7, 7], np.uint64),
            "lo": np.array([1024, 1152, 0], np.uint64),
            "hi": np.array([1152, 1280, 64], np.uint64),
            "count": np.array([3, 4, 2], np.uint64),
        }
    )
    ax = plots.wait_histograms(frame, {7: "web"}, title="t")
    assert sorted(bar.get_height() for bar in ax.patches) == [2, 7]


def test_a_timeline_shows_the_window_and_nothing_beyond() -> None:
    occupancy = pd.DataFrame(
        {
            "cpu": [1, 1, 0],
            "start_ns": [0, 5_000_000, 0],
            "end_ns": [5_000_000, 30_000_000, 9],
            "pid": [4, 0, 9],
            "kind": ["cgroup", "idle", "cgroup"],
            "occupant_id": np.array([9, 0, 9], np.uint64),
        }
    )
    waits = pd.DataFrame(
        {
            "pid": [5],
            "victim_id": np.array([7], np.uint64),
            "cpu": [1],
            "start_ns": [1_000_000],
            "end_ns": [4_000_000],
            "throttled_ns": [1_000_000],
        }
    )
    ax = plots.cpu_timeline(
        occupancy,
        waits,
        {7: "web", 9: "batch"},
        victim_id=7,
        cpu=1,
        start_ns=0,
        length_ns=10_000_000,
        title="t",
    )
    spans = sorted((bar.get_x(), bar.get_width()) for bar in ax.patches)
    assert spans == [(0.0, 5.0), (1.0, 1.0), (1.0, 3.0), (5.0, 5.0)]


def test_empty_frames_give_empty_figures() -> None:
    none = CELLS.iloc[:0]
    plots.cause_bars(cause.split(none), {}, seconds=1.0, title="t")
    plots.wait_histograms(
        pd.DataFrame({"cgroup_id": [], "lo": [], "hi": [], "count": []}), {7: "web"}, title="t"
    )

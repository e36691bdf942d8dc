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


def test_words_in_the_matrix_have_contrast_over_every_shade() -> None:
    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    rates = np.geomspace(0.06, 4000, 36).reshape(6, 6)
    names = [f"n{i}" for i in range(6)]
    ax = plots.blame_matrix(pd.DataFrame(rates * 1e6, index=names, columns=names), seconds=1.0, title="t")
    image = ax.get_images()[0]
    assert len(ax.texts) == 36
    for words in ax.texts:
        x, y = (int(place) for place in words.get_position())
        behind = luminance(image.cmap(image.norm(rates[y, x])))
        written = luminance(mpl.colors.to_rgb(words.get_color()))
        light, dark = max(behind, written), min(behind, written)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, rates[y, x]


def test_parts_write_no_share_that_says_nothing_and_no_percentage_above_100() -> None:
    frame = pd.DataFrame(
        {"others": [0.0, 40.0, 100.0], "own": [100.0, 60.0, 0.0], "nobody": 0.0}, index=["a", "b", "c"]
    )
    ax = plots.parts(frame, title="t", unit="% of the wakeups")
    assert words(ax)[:3] == ["100", "100 (40% others)", "100"]
    assert max(ax.get_xticks()) == 100
    legend = ax.get_legend()
    assert legend is not None
    assert [entry.get_text() for entry in legend.get_texts()] == ["others", "own"]


def test_a_few_short_waits_cost_no_stretch_of_axis_and_are_counted_in_its_name() -> None:
    edges = 2 ** np.arange(3, 16, dtype="uint64")
    counts = np.zeros(12, dtype="uint64")
    counts[0], counts[8:] = 2, 500
    frame = pd.DataFrame({"lo": edges[:-1], "hi": edges[1:], "unit": "ns", "count": counts})
    ax = plots.histogram(frame, title="t")
    assert ax.get_xlim()[0] == pytest.approx(11 - 0.3)
    assert ax.get_xlabel() == "wait (logarithmic; not drawn: 2 below 2.05 µs)"
    counts[0] = 200  # no longer next to nothing
    ax = plots.histogram(frame.assign(count=counts), title="t")
    assert ax.get_xlim()[0] == pytest.approx(3 - 0.3)
    assert ax.get_xlabel() == "wait (logarithmic)"

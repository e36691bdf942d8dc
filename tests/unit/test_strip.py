"""Who was on which CPU: stretches from switches, and the figure of them."""

from __future__ import annotations

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from labkit.plots import BLUE, ORANGE
from labkit.strip import occupancy, strip


def switches(*rows: tuple[int, int, int, int]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["time_ns", "cpu", "prev_pid", "next_pid"])
    return frame.astype("uint64").assign(lost=0)


def test_a_task_has_the_cpu_from_its_switch_in_to_its_switch_out() -> None:
    found = occupancy(switches((10, 0, 5, 7), (12, 1, 0, 9), (25, 0, 7, 0), (30, 0, 0, 5), (40, 1, 9, 0)))
    assert found.to_dict("records") == [
        {"cpu": 0, "pid": 7, "start_ns": 10, "end_ns": 25},
        {"cpu": 0, "pid": 0, "start_ns": 25, "end_ns": 30},
        {"cpu": 1, "pid": 9, "start_ns": 12, "end_ns": 40},
    ]


def test_where_the_two_ends_disagree_nobody_is_named() -> None:
    found = occupancy(switches((10, 0, 5, 7), (25, 0, 8, 0)))
    assert found["pid"].tolist() == [-1]


def test_nothing_and_a_single_switch_give_no_stretch() -> None:
    assert occupancy(switches()).empty
    assert occupancy(switches((10, 0, 5, 7))).empty


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_stretches_of_a_cpu_meet_and_cover_it_whatever_the_order(rows: list[tuple[int, int, int]]) -> None:
    frame = switches(*((at, cpu, 0, pid) for at, cpu, pid in rows))
    found = occupancy(frame)
    for cpu, here in frame.groupby("cpu"):
        mine = found[found["cpu"] == cpu]
        assert (mine["end_ns"] - mine["start_ns"]).sum() == here["time_ns"].max() - here["time_ns"].min()
        assert (mine["start_ns"].to_numpy()[1:] == mine["end_ns"].to_numpy()[:-1]).all()


def test_the_named_have_colours_of_their_own_and_idle_is_blank() -> None:
    frame = switches(
        (0, 0, 1, 7), (10**6, 0, 7, 8), (2 * 10**6, 0, 8, 0), (3 * 10**6, 0, 0, 1), (4 * 10**6, 0, 1, 7)
    )
    ax = strip(frame, {7: "ping", 8: "<b>pong\x1b"}, title="t", window_ms=4, ax=Figure().subplots())
    spans = {
        to_hex(bars.get_facecolor()[0]).upper(): [
            tuple(path.get_extents().intervalx) for path in bars.get_paths()
        ]
        for bars in ax.collections
        if bars.get_paths()
    }
    assert spans[BLUE] == [(0.0, 1.0)]
    assert spans[ORANGE] == [(1.0, 2.0)]
    assert not any(left <= 2.5 <= right for bars in spans.values() for left, right in bars), "idle is blank"
    legend = ax.get_legend()
    assert legend is not None
    assert "<b>pong\\x1b" in [text.get_text() for text in legend.get_texts()], (
        "names are shown as they are, harmless"
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == ["CPU 0"]

"""Who was on which CPU: stretches from switches, and the figure of them."""

from __future__ import annotations

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from labkit.plots import BLUE, ORANGE
from labkit.strip import held_ns, occupancy, strip


def switches(*rows: tuple[int, int, int, int]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["time_ns", "cpu", "prev_pid", "next_pid"])
    return frame.astype("uint64").assign(lost=0)


def test_a_task_has_the_cpu_from_its_switch_in_to_its_switch_out() -> None:
    found = occupancy(switches((10, 0, 5, 7), (12, 1, 0, 9), (25, 0, 7, 0), (30, 0, 0, 5), (40, 1, 9, 0)))
    assert list(found.itertuples(index=False, name=None)) == [
        (0, 7, 10, 25),
        (0, 0, 25, 30),
        (0, 5, 30, 40),
        (1, 0, 10, 12),
        (1, 9, 12, 40),
    ]


def test_a_task_that_never_leaves_its_cpu_has_it_all_the_time() -> None:
    """CPU 0 went to 7 at 10 and nothing more; CPU 1 shows that the record goes on, and when it began."""
    found = occupancy(switches((10, 0, 5, 7), (0, 1, 0, 9), (900, 1, 9, 0)), end_ns=1000)
    mine = found[found["cpu"] == 0]
    assert list(mine[["pid", "start_ns", "end_ns"]].itertuples(index=False, name=None)) == [
        (5, 0, 10),
        (7, 10, 1000),
    ]


def test_where_the_two_ends_disagree_nobody_is_named() -> None:
    found = occupancy(switches((10, 0, 5, 7), (25, 0, 8, 0)))
    assert found["pid"].tolist() == [-1]


def test_at_the_ends_of_the_record_a_loss_makes_unknown_what_one_switch_alone_says() -> None:
    frame = switches((0, 1, 0, 9), (10, 0, 5, 7), (20, 0, 7, 5), (900, 1, 9, 0))
    frame["lost"] = [0, 3, 3, 4]
    assert occupancy(frame).query("cpu == 0")["pid"].tolist() == [-1, 7, -1]
    assert occupancy(frame, end_ns=1000, lost=4).query("cpu == 1")["pid"].tolist() == [9, 0]
    assert occupancy(frame, end_ns=1000, lost=5).query("cpu == 1")["pid"].tolist() == [9, -1]


def test_nothing_gives_no_stretch_and_a_single_switch_one() -> None:
    assert occupancy(switches()).empty
    assert occupancy(switches((10, 0, 5, 7))).empty
    assert occupancy(switches((10, 0, 5, 7)), end_ns=12)["pid"].tolist() == [7]


@settings(deadline=None)  # the first example imports what the others have then
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_stretches_of_a_cpu_meet_and_cover_it_whatever_the_order(rows: list[tuple[int, int, int]]) -> None:
    frame = switches(*((at, cpu, 0, pid) for at, cpu, pid in rows))
    found = occupancy(frame)
    for cpu, here in frame.groupby("cpu"):
        mine = found[found["cpu"] == cpu]
        assert len(here)
        assert (mine["end_ns"] - mine["start_ns"]).sum() == frame["time_ns"].max() - frame["time_ns"].min()
        assert (mine["start_ns"].to_numpy()[1:] == mine["end_ns"].to_numpy()[:-1]).all()


def test_how_long_each_had_a_cpu_between_two_times() -> None:
    frame = switches((0, 0, 1, 7), (10, 1, 0, 9), (60, 1, 9, 7), (90, 0, 7, 0))
    assert held_ns(frame, 20, 200).to_dict() == {0: 110, 7: 70 + 140, 9: 40}
    assert held_ns(frame, 95, 200, lost=1).to_dict() == {-1: 210}


def test_the_named_have_colours_of_their_own_and_idle_is_blank() -> None:
    frame = switches(
        (0, 0, 1, 7), (10**6, 0, 7, 8), (2 * 10**6, 0, 8, 0), (3 * 10**6, 0, 0, 1), (4 * 10**6, 0, 1, 7)
    )
    ax = strip(frame, {7: "ping", 8: "<b>pong\x1b"}, title="t", window_ms=4, ax=Figure().subplots())
    spans = drawn(ax)
    assert spans[BLUE] == [(0, 0.0, 1.0)]
    assert spans[ORANGE] == [(0, 1.0, 2.0)]
    assert not any(left <= 2.5 <= right for bars in spans.values() for _, left, right in bars), (
        "idle is blank"
    )
    legend = ax.get_legend()
    assert legend is not None
    assert "<b>pong\\x1b" in [text.get_text() for text in legend.get_texts()], (
        "names are shown as they are, harmless"
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == ["CPU 0"]


def drawn(ax: Axes) -> dict[str, list[tuple[int, float, float]]]:
    """Colour, or ``hatched``, to what is covered by it: lane, and from where to where on the x axis."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for bars in ax.collections:
        look = "hatched" if bars.get_hatch() else to_hex(bars.get_facecolor()[0]).upper()
        for path in bars.get_paths():
            box = path.get_extents()
            found.setdefault(look, []).append((round(box.y0 + 0.4), box.x0, box.x1))
    return found


def words(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_a_cpu_that_one_task_has_for_the_whole_window_is_full_and_not_idle() -> None:
    ms = 10**6
    frame = switches((0, 0, 1, 7), (999 * ms, 1, 0, 1), (1000 * ms, 1, 1, 0))
    ax = strip(frame, {7: "hog"}, title="t", window_ms=200, cpus=[0], ax=Figure().subplots())
    assert drawn(ax) == {BLUE: [(0, 0.0, 200.0)]}
    assert words(ax) == ["hog", "others", "idle"]


def test_a_cpu_of_which_nothing_is_known_is_hatched_and_the_key_says_so() -> None:
    ms = 10**6
    frame = switches((900 * ms, 0, 1, 7), (950 * ms, 0, 7, 0))
    ax = strip(
        frame, {7: "hog"}, title="t", window_ms=200, until_ns=1000 * ms, cpus=[0, 1], ax=Figure().subplots()
    )
    assert drawn(ax) == {BLUE: [(0, 100.0, 150.0)], "hatched": [(0, 0.0, 100.0), (1, 0.0, 200.0)]}
    assert words(ax) == ["hog", "others", "idle", "not known"]

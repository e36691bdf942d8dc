"""Live figures where nothing can be live: a still figure, and never a widget that does nothing."""

from __future__ import annotations

import pandas as pd
import pytest
from PIL import Image

import labkit as lk
from labkit import widgets, workloads
from labkit.session import Chapter
from labkit.widgets import _grown


@pytest.fixture
def lab() -> Chapter:
    return lk.chapter("06_run_queue_latency", mode="replay")


def opened(png: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(png))


def test_in_replay_it_is_a_still_figure_of_what_was_measured(lab: Chapter) -> None:
    latency = lab.load("runq_latency", label="service_beside_hog").frame("latency")
    figure = widgets.live_histogram(lab, still=latency, workloads=[workloads.service_alone()])
    assert not figure.live
    assert opened(figure.still()).size == (1584, 704)
    nothing = widgets.live_histogram(lab, still=latency.iloc[:0])
    assert nothing.still() != figure.still()


def test_the_strip_shows_the_time_in_which_the_named_ran() -> None:
    events = pd.DataFrame(
        {
            "time_ns": [0, 10, 20, 10**12, 10**12 + 5],
            "cpu": 0,
            "prev_pid": [1, 7, 8, 1, 2],
            "next_pid": [7, 8, 1, 2, 1],
        }
    )
    lab = lk.chapter("04_events_and_loss", mode="replay")
    with_names = widgets.live_cpus(lab, still=events, names={7: "ping", 8: "pong"}, window_ms=1e-5)
    colours = {colour for _, colour in opened(with_names.still()).convert("RGB").getcolors(1 << 24) or []}
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)} <= colours, "both are in the picture, not only in its key"


def test_outside_a_notebook_it_is_not_live_even_where_the_kernel_could(
    lab: Chapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "mode", "live")
    assert not widgets.live_histogram(
        lab, still=pd.DataFrame(columns=["lo", "hi", "unit", "count"]).astype({"count": int})
    ).live


def test_what_came_between_two_looks() -> None:
    def look(**counts: int) -> pd.DataFrame:
        rows = [(2**k, 2 ** (k + 1), "ns", counts[f"k{k}"]) for k in range(3) if f"k{k}" in counts]
        return pd.DataFrame(rows, columns=["lo", "hi", "unit", "count"]).astype({"count": "uint64"})

    grown = _grown(look(k0=3), look(k0=5, k1=0, k2=7))
    assert grown["count"].tolist() == [2, 0, 7]
    assert grown["count"].dtype == "uint64"

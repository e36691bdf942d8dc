"""Live figures where nothing can be live: a still figure, and never a widget that does nothing."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from types import SimpleNamespace
from typing import Any

import IPython.display
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

import labkit as lk
from labkit import plots, widgets, workloads
from labkit.session import Chapter
from labkit.widgets import LiveFigure, _grown


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
            "lost": 0,
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


class Ledger:
    lost = 0


class Loaded:
    """A program in the kernel, as far as the strip sees it: batches of switches, read once each."""

    def __init__(self, *batches: pd.DataFrame) -> None:
        self._batches = list(batches)
        self.ledger = Ledger()

    def ring(self, name: str) -> Loaded:
        assert name == "events"
        return self

    def read(self) -> list[SimpleNamespace]:
        frames = self._batches[:1]
        del self._batches[:1]
        return [SimpleNamespace(kind=SimpleNamespace(name="switched"), frame=lambda: frames[0])] * len(frames)

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


def switched(*rows: tuple[int, int, int, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["time_ns", "cpu", "prev_pid", "next_pid"]).assign(lost=0)


def test_a_task_that_ran_on_since_long_before_the_window_is_still_drawn(
    lab: Chapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look sees the hog come; many windows later nothing has switched on its CPU, and it is no idle CPU."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    clock = iter([2 * 10**9, 60 * 10**9, 61 * 10**9])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(clock))
    source = widgets._Cpus(switched(), {}, "Who", 200.0)
    prog: Any = Loaded(switched((10**9, 0, 1, 7), (10**9, 1, 0, 9)), switched((59 * 10**9, 1, 9, 0)))
    source.begin(prog)
    for _ in range(3):
        figure = Figure()
        assert source.draw(figure, prog, {7: "hog"}) == "hog had 100 % of a CPU"
        (ax,) = figure.axes
        blue = [bars for bars in ax.collections if to_hex(bars.get_facecolor()[0]).upper() == plots.BLUE]
        assert [tuple(path.get_extents().intervalx) for bars in blue for path in bars.get_paths()] == [
            (0, 200)
        ]


@pytest.fixture
def live(lab: Chapter, monkeypatch: pytest.MonkeyPatch) -> LiveFigure:
    """A figure that believes that it is in JupyterLab on a kernel that can be measured."""
    figure = widgets.live_cpus(lab, still=switched(), names={}, every_s=0.01)
    figure.live = True
    monkeypatch.setattr(widgets, "load", lambda *_, **__: Loaded())
    monkeypatch.setattr(IPython.display, "display", lambda *_: None)
    return figure


def test_an_error_of_the_lab_s_own_is_shown_with_its_place(
    live: LiveFigure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("<b>nobody expected this")

    async def watch() -> None:
        live._ipython_display_()
        monkeypatch.setattr(live._source, "draw", broken)
        live.start()
        assert live._watching is not None
        await live._watching

    asyncio.run(watch())
    assert "ZeroDivisionError: &lt;b&gt;nobody expected this" in live._line.value
    assert "in broken" in live._line.value
    assert not live._start.disabled


def test_an_expected_error_is_shown_in_words_and_a_workload_s_stays(live: LiveFigure) -> None:
    def refused() -> None:
        raise lk.LabkitError("it cannot start", why="no CPU is free", remedy="wait")

    async def work() -> None:
        live._ipython_display_()
        live.work(SimpleNamespace(name="two_hogs", start=refused))  # type: ignore[arg-type]
        assert live._working is not None
        assert live._watching is not None
        await live._working
        await asyncio.sleep(0.1)  # pictures are drawn, and their line says so
        live.stop()
        await live._watching

    asyncio.run(work())
    assert live._work_line.value == "it cannot start<br>  why:  no CPU is free<br>  next: wait"
    assert live._line.value == "Stopped."


def test_a_cell_that_is_run_again_ends_the_figure_and_the_workload_that_it_showed_before(
    live: LiveFigure, lab: Chapter
) -> None:
    released: list[bool] = []

    class Running:
        def __init__(self) -> None:
            self.pids = {"hog": 7}
            self._ended = threading.Event()

        def __enter__(self) -> Running:
            return self

        def __exit__(self, *_: object) -> None:
            released.append(True)
            self._ended.set()

        def finish(self) -> None:
            assert self._ended.wait(60)
            raise lk.LabkitError("it was killed")

    async def again() -> None:
        live._ipython_display_()
        live.work(SimpleNamespace(name="hog", start=Running))  # type: ignore[arg-type]
        while not live._names:
            await asyncio.sleep(0.01)
        other = widgets.live_cpus(lab, still=switched(), names={})
        other.live = True
        other._ipython_display_()
        assert live._watching is not None
        assert live._working is not None
        await asyncio.wait_for(asyncio.gather(live._watching, live._working), 30)

    asyncio.run(again())
    assert released == [True]
    assert "killed" not in live._work_line.value


def test_the_histogram_says_how_long_those_of_the_workload_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    tables = iter(
        [
            pd.DataFrame({"pid": [7], "wait_ns": [10**9]}),
            pd.DataFrame(
                {"pid": [7, 7, 8], "wait_ns": [10**9, 5 * 10**8, 10**9]}
            ),  # a pid that was used again
        ]
    )
    empty = pd.DataFrame(columns=["lo", "hi", "unit", "count"]).astype({"count": "uint64"})
    prog: Any = SimpleNamespace(
        maps=["waits"], frame=lambda name: next(tables) if name == "waits" else empty.copy()
    )
    source = widgets._Waits(empty, "runq_latency", "latency", "Waits", 3.0)
    source.begin(prog)
    told = source.draw(Figure(), prog, {7: "hog", 8: "service", 9: "nobody"})
    assert told == "hog waited 25 % of the time, service waited 50 % of the time"


def test_what_came_between_two_looks() -> None:
    def look(**counts: int) -> pd.DataFrame:
        rows = [(2**k, 2 ** (k + 1), "ns", counts[f"k{k}"]) for k in range(3) if f"k{k}" in counts]
        return pd.DataFrame(rows, columns=["lo", "hi", "unit", "count"]).astype({"count": "uint64"})

    grown = _grown(look(k0=3), look(k0=5, k1=0, k2=7))
    assert grown["count"].tolist() == [2, 0, 7]
    assert grown["count"].dtype == "uint64"

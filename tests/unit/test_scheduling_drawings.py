"""Drawings about waiting say what the model and the text beside them say."""

from __future__ import annotations

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes

from labkit.lessons import scheduling
from labkit.lessons.eevdf import Demand, model

mpl.use("Agg")


def bars(ax: Axes, row: float) -> list[tuple[float, float]]:
    """Start and width of the bars in a row, from left to right."""
    found = [
        p for p in ax.patches if hasattr(p, "get_width") and abs(p.get_y() + p.get_height() / 2 - row) < 0.01
    ]
    return sorted((bar.get_x(), bar.get_width()) for bar in found)


def test_the_bars_of_a_task_are_its_runs_and_waits() -> None:
    demands = [Demand("service", 4, 20, 2.3), Demand("hog")]
    played = model(demands, tick_ms=4, slice_ms=1.4, length_ms=40)
    ax = scheduling.lag(played, tick_ms=4, slice_ms=1.4)
    service, hog = bars(ax, 0), bars(ax, 1)
    assert sum(width for _, width in hog) == pytest.approx(40)  # it never sleeps
    assert sum(width for _, width in service) == pytest.approx(
        16, abs=0.2
    )  # twice 4 ms of work and 4 of waiting
    assert service[0][0] == pytest.approx(2.3)


def test_what_a_wait_is_charged_with_adds_up_to_it() -> None:
    ax = scheduling.wait_over_log()
    wait = bars(ax, 3.3)[1][1]
    assert sum(width for _, width in bars(ax, 2.2)) == pytest.approx(wait)
    assert bars(ax, 1.2)[0][1] == pytest.approx(wait)


def test_a_quota_gives_the_same_budget_in_each_period() -> None:
    ax = scheduling.quota_periods()
    row = bars(ax, 2.1)
    assert sum(width for _, width in row) == pytest.approx(200 * 0.0505)
    budget = [line for line in ax.lines if len(line.get_ydata()) > 2]
    assert len(budget) == 2
    assert [max(line.get_ydata()) - min(line.get_ydata()) for line in budget] == pytest.approx([1.2, 1.2])


def test_the_path_of_a_verdict_ends_in_each_verdict_that_a_report_can_have() -> None:
    from labkit.lessons.ch12 import VERDICTS

    words = {text.get_text() for text in scheduling.path_of_a_verdict().texts}
    assert set(VERDICTS) <= words

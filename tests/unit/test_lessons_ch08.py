"""Exercises of chapter 08: typical answers, right and wrong. What needs a kernel is in tests/live."""

from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import labkit as lk
from labkit.lessons import Feedback, exercises
from labkit.sched.state import SCHEMAS
from labkit.spec import read

mpl.use("Agg")
import matplotlib.pyplot as plt

REPLAY = SimpleNamespace(mode="replay")
IDS = {"service": 5, "hog_a": 6, "hog_b": 7}
CELLS = pd.DataFrame(
    [
        (5, "cgroup", 6, 600_000_000, 4),
        (5, "cgroup", 7, 200_000_000, 2),
        (5, "cgroup", 5, 100_000_000, 0),
        (5, "steal", 0, 100_000_000, 0),
    ],
    columns=list(SCHEMAS["cells"]),
).astype(SCHEMAS["cells"])


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("08")[number - 1].check(answer, context)


@pytest.mark.parametrize(
    ("answer", "passed", "said"),
    [
        (0.25, True, ""),
        (np.float64(0.2504), True, ""),
        (0.75, False, "hog_a"),
        (0.2, False, "all its wait"),
        (25, False, "size is not"),
        ("a quarter", False, "number"),
    ],
)
def test_a_share_of_the_foreign_wait(answer: Any, passed: bool, said: str) -> None:
    feedback = judge(1, answer, cells=CELLS, ids=IDS)
    assert feedback.passed is passed
    assert said in feedback.message


def mended(condition: str) -> lk.lessons.Written:
    before = "    if (!next_pid)\n        return 0;\n"
    return lk.write_program(
        "netflix_noisy_neighbor", change={before: f"    if ({condition})\n        enqueued(prev);\n{before}"}
    )


def test_the_mended_program_is_right_in_replay() -> None:
    feedback = judge(2, mended("ctx->args[0] || !prev_state"), lab=REPLAY)
    assert feedback.passed
    assert "without a kernel" in feedback.message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (read("netflix_noisy_neighbor").source, "as it was"),
        ("stamp prev", "whole C program"),
        (lk.write_program("netflix_noisy_neighbor", change={"int lk_swtich(": "x"}), "could not be made"),
        (mended("1"), "would go on"),
    ],
)
def test_what_is_no_mended_program(answer: Any, said: str) -> None:
    feedback = judge(2, answer, lab=REPLAY)
    assert not feedback.passed
    assert said in feedback.message


def test_a_remedy_that_breaks_no_promise() -> None:
    assert judge(3, "move the service to another CPU").passed
    assert "promise" in judge(3, "throttle hog_a").message
    assert "promise" in judge(3, "raise the service's weight").message


def drawn(values: list[float], label: str, *, upright: bool = False) -> plt.Axes:
    ax = plt.subplots()[1]
    (ax.bar if upright else ax.barh)(range(len(values)), values)
    ax.set_xlabel(label)
    return ax


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (drawn([6e8, 2e8, 1e8], "waited (ms)"), "nanoseconds"),
        (drawn([600, 200], "waited (ms)"), "2 bars"),
        (drawn([600, 200, 100], "waited"), "unit"),
        (drawn([600, 200, 90], "waited (ms)"), "not as long"),
        ("a figure", "Axes"),
    ],
)
def test_bars_that_are_not_right(answer: Any, said: str) -> None:
    feedback = judge(4, answer, cells=CELLS)
    assert not feedback.passed
    assert said in feedback.message


def test_bars_that_are_right() -> None:
    assert judge(4, drawn([200, 600, 100], "waited (ms)"), cells=CELLS).passed

"""Exercises of chapter 06: typical answers, right and wrong. What needs a kernel is in tests/live."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import labkit as lk
from labkit import spec
from labkit.lessons import Feedback, exercises
from labkit.notebook_io import read_solutions
from labkit.paths import notebooks_dir

REPLAY = SimpleNamespace(mode="replay")
SOURCE = spec.read("runq_latency").source
HOGS = pd.DataFrame(
    {"role": ["hog_a", "hog_b"], "wait_ns": [990_000_000, 1_010_000_000], "run_ns": [1_010_000_000] * 2}
)


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("06")[number - 1].check(answer, context)


def solution(exercise: str, **names: Any) -> Any:
    section = read_solutions(notebooks_dir() / "solutions" / "06_run_queue_latency.py")[exercise]
    names["lk"] = lk
    exec(section.split("lk.check")[0], names)
    return names["answer"]


class TestWaitShare:
    def test_the_shipped_solution_is_right(self) -> None:
        assert judge(1, solution("06.1", hogs=HOGS), hogs=HOGS).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (49.5, "a percentage"),
            (990 / 1010, "waiting per running"),
            (0.25, "too small"),
            (990_000_000, "too large"),
            ("half", "A number"),
            (HOGS, "A number"),
        ],
    )
    def test_typical_wrong_answers(self, answer: Any, said: str) -> None:
        feedback = judge(1, answer, hogs=HOGS)
        assert not feedback.passed
        assert said in feedback.message


class TestLongWaits:
    def test_the_shipped_solution_is_right(self) -> None:
        assert judge(2, solution("06.2"), lab=REPLAY).passed

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({}, "as it was"),
            (
                {"    u64 preempted_waits;\n": "    u64 preempted_waits;\n    u64 long_waits;\n"},
                "Nothing increments",
            ),
            ({"entry->waits++;": "if (wait_ns >= 1000000)\n        entry->long_waits++;"}, "no member"),
            ({"no such line": "x"}, "could not be made"),
        ],
    )
    def test_typical_wrong_answers(self, change: dict[str, str], said: str) -> None:
        feedback = judge(2, lk.write_program("runq_latency", change=change), lab=REPLAY)
        assert not feedback.passed
        assert said in feedback.message

    @pytest.mark.parametrize("answer", [None, "u64 long_waits;", 7])
    def test_what_is_no_program_is_told(self, answer: Any) -> None:
        assert "write_program" in judge(2, answer, lab=REPLAY).message


@pytest.mark.parametrize(
    ("answer", "said"), [("all", "never sleeps"), ("about half", "begin with a wakeup"), ("none", "One of")]
)
def test_wakeups_alone(answer: str, said: str) -> None:
    assert judge(3, "almost none").passed
    feedback = judge(3, answer)
    assert not feedback.passed
    assert said in feedback.message

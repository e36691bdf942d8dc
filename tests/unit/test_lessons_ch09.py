"""Exercises of chapter 09: typical answers, right and wrong. What needs a kernel is in tests/live."""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import labkit as lk
from labkit.lessons import Feedback, exercises
from labkit.spec import read

REPLAY = SimpleNamespace(mode="replay")
CAUSES = pd.DataFrame(
    {
        "foreign": [20, 400],
        "self": [0, 0],
        "throttled": [980, 600],
        "idle": [0, 0],
        "steal": [0, 0],
        "unknown": [0, 0],
    },
    index=["throttled", "throttled_beside_hog"],
)


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("09")[number - 1].check(answer, context)


@pytest.mark.parametrize(
    ("answer", "passed", "said"),
    [
        (0.4, True, ""),
        (0.6, False, "would vanish"),
        (0.02, False, "beside a hog is asked"),
        (40, False, "size is not"),
        (None, False, "number"),
    ],
)
def test_what_remains_without_the_quota(answer: Any, passed: bool, said: str) -> None:
    feedback = judge(1, answer, causes=CAUSES)
    assert feedback.passed is passed
    assert said in feedback.message


def written(member: str, count: str) -> lk.lessons.Written:
    changes = {
        "    u64 migrations;\n": f"    u64 migrations;\n{member}",
        "    waiter->book->delivered++;\n": f"    waiter->book->delivered++;\n{count}",
    }
    return lk.write_program("noisy_neighbor", change=changes)


def test_counting_is_right_in_replay() -> None:
    answer = written(
        "    u64 throttled_waits;\n", "    if (throttled_ns)\n        waiter->book->throttled_waits++;\n"
    )
    feedback = judge(2, answer, lab=REPLAY)
    assert feedback.passed
    assert "without a kernel" in feedback.message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (read("noisy_neighbor").source, "as it was"),
        (written("", "    waiter->book->throttled_waits++;\n"), "no member"),
        (written("    u64 throttled_waits;\n", "    /* soon */\n"), "Nothing counts"),
        ("throttled_waits++", "whole C program"),
    ],
)
def test_what_does_not_count(answer: Any, said: str) -> None:
    feedback = judge(2, answer, lab=REPLAY)
    assert not feedback.passed
    assert said in feedback.message


def test_one_row_alone_fits_all_that_was_seen() -> None:
    assert judge(3, "quota_on_parent").passed
    for other, said in {
        "throttled": "wrong place",
        "throttled_beside_hog": "somewhat",
        "own_threads": "a single one",
    }.items():
        feedback = judge(3, other)
        assert not feedback.passed
        assert said in feedback.message


@pytest.mark.parametrize(
    ("answer", "passed", "said"),
    [
        ((50, 200), True, ""),
        ([50.0, 200.0], True, ""),
        ((200, 50), False, "other way round"),
        ((50, 50), False, "not the same"),
        (50, False, "Two numbers"),
        ((50, 400), False, "too large"),
        ((12.5, 50), False, "too small"),
    ],
)
def test_wall_time_and_task_time(answer: Any, passed: bool, said: str) -> None:
    feedback = judge(4, answer)
    assert feedback.passed is passed
    assert said in feedback.message

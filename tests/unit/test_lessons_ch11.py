"""Chapter 11: what is reckoned from its batches and samples, and typical answers. What needs a kernel is in tests/live."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from labkit import spec
from labkit.histogram import from_log2, log2_slot
from labkit.lessons import Feedback, exercises, write_program
from labkit.lessons.ch11 import costs, estimates, judge_sample, writer
from labkit.notebook_io import read_solutions
from labkit.paths import notebooks_dir

REPLAY = SimpleNamespace(mode="replay")
SOURCE = spec.read("sampling").source
TRUTH = writer().declared


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("11")[number - 1].check(answer, context)


def solution(exercise: str, **names: Any) -> Any:
    section = read_solutions(notebooks_dir() / "solutions" / "11_the_cost_of_looking.py")[exercise]
    exec(section.split("lk.check")[0], names)
    return names["answer"]


def sample(large: int, small: int) -> pd.DataFrame:
    return from_log2(np.bincount(log2_slot([4096] * large + [8] * small), minlength=65), unit="bytes")


RUNS = pd.DataFrame(
    [
        ("nobody looks", 0, 200.0, math.nan),
        ("nobody looks", 0, 900.0, math.nan),
        ("nobody looks", 1, 210.0, math.nan),
        ("nobody looks", 2, 400.0, math.nan),
        ("nothing", 0, 360.0, 50.0),
        ("nothing", 1, 365.0, 46.0),
        ("and count in a hash", 0, 460.0, 150.0),
    ],
    columns=["rung", "repeat", "ns_per_call", "counted_ns"],
)
SAMPLES = {
    "all": sample(500, 49_500),
    "every": sample(0, 5000),
    "random": sample(52, 4948),
    "window": sample(500, 2),
}


class TestReckoning:
    def test_the_best_batch_of_each_run_counts_and_of_the_runs_the_middle_one(self) -> None:
        ladder = costs(RUNS)
        assert list(ladder.index) == ["nobody looks", "nothing", "and count in a hash"]
        assert ladder.loc["nobody looks", "ns_per_call"] == 210.0
        assert ladder.loc["nobody looks", "spread_ns"] == 200.0
        assert ladder.loc["nothing", "pays_ns"] == 152.5
        assert ladder.loc["nothing", "rest_ns"] == 152.5 - 46.0

    def test_a_fair_sample_says_what_the_whole_says(self) -> None:
        found = estimates(SAMPLES, TRUTH)
        assert found.loc["all", "factor"] == 1.0
        assert found.loc["all", "total_bytes"] == TRUTH["bytes"]
        assert found.loc["every", "large_share"] == 0.0
        assert found.loc["window", "factor"] > 80
        assert found.loc["random", "factor"] == pytest.approx(1.0, abs=0.05)


class TestFairEvery:
    def judge(self, answer: Any) -> Feedback:
        return judge(1, answer, lab=REPLAY, source=SOURCE)

    def test_the_shipped_solution_is_right(self) -> None:
        import labkit

        assert self.judge(solution("11.1", lk=labkit)).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (SOURCE, "as it was"),
            (5, "write_program"),
            (SOURCE.replace("every.lookup", "all.lookup"), "Nothing is put"),
            (SOURCE.replace("where->calls++;", "where->calls += 1;"), "each n-th call"),
            (write_program("sampling", change={"calls % N": "x"}), "could not be made"),
        ],
    )
    def test_typical_wrong_answers(self, answer: Any, said: str) -> None:
        feedback = self.judge(answer)
        assert not feedback.passed
        assert said in feedback.message

    @pytest.mark.parametrize(
        ("drawn", "said"),
        [
            (sample(50, 4950), ""),
            (sample(0, 5000), "keeps step"),
            (sample(500, 4500), "keeps step"),
            (sample(500, 49_500), "one in 10"),
            (sample(0, 0), "nothing is drawn"),
        ],
    )
    def test_a_sample_is_held_against_what_was_written(self, drawn: pd.DataFrame, said: str) -> None:
        feedback = judge_sample(drawn, 50_000, large_share=0.01)
        assert feedback.passed is (said == ""), feedback.message
        assert said in feedback.message


class TestCallsForAPercent:
    LADDER = pd.DataFrame(
        {"ns_per_call": [465.0], "pays_ns": [250.0], "counted_ns": [150.0]}, index=["and count in a hash"]
    )

    def test_the_shipped_solution_is_right(self) -> None:
        answer = solution("11.2", ladder=self.LADDER)
        assert answer == 40_000
        assert judge(2, answer, ladder=self.LADDER).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (1e7 / 150, "what the kernel counts"),
            (1e7 / 465, "*more*"),
            (4_000_000, "a whole CPU"),
            (40, "unit"),
            ("40000", "A number"),
        ],
    )
    def test_typical_wrong_answers(self, answer: Any, said: str) -> None:
        feedback = judge(2, answer, ladder=self.LADDER)
        assert not feedback.passed
        assert said in feedback.message


class TestWindowFactor:
    TABLE = estimates(SAMPLES, TRUTH)

    def test_the_shipped_solution_is_right(self) -> None:
        assert judge(3, solution("11.3", samples=self.TABLE), samples=self.TABLE).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (lambda t: t.loc["window", "large_share"] / t.loc["all", "large_share"], "small ones have bytes"),
            (lambda t: t.loc["all", "total_bytes"] / t.loc["window", "total_bytes"], "other way round"),
            (lambda t: "a lot", "A number"),
        ],
    )
    def test_typical_wrong_answers(self, answer: Any, said: str) -> None:
        feedback = judge(3, answer(self.TABLE), samples=self.TABLE)
        assert not feedback.passed
        assert said in feedback.message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("in the program's two instructions", "a nanosecond"),
        ("in getppid() itself", "the same whether"),
        (100, "One of"),
    ],
)
def test_where_the_rest_goes(answer: Any, said: str) -> None:
    assert judge(4, "on the way to the program").passed
    feedback = judge(4, answer)
    assert not feedback.passed
    assert said in feedback.message

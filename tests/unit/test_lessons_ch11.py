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
        ("nobody looks", False, False, 0, 200.0, math.nan),
        ("nobody looks", False, False, 0, 900.0, math.nan),
        ("nobody looks", False, False, 1, 210.0, math.nan),
        ("nobody looks", False, False, 2, 400.0, math.nan),
        ("nothing", False, False, 0, 280.0, math.nan),
        ("nothing", False, False, 1, 285.0, math.nan),
        ("nothing", True, False, 0, 360.0, 50.0),
        ("nothing", True, False, 1, 366.0, 46.0),
        ("and count in a hash", False, False, 0, 370.0, math.nan),
        ("and count in a hash", True, False, 0, 460.0, 150.0),
    ],
    columns=["rung", "counting", "disturbed", "repeat", "ns_per_call", "counted_ns"],
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
        assert ladder.loc["nothing", "pays_ns"] == 72.5
        assert ladder.loc["nothing", "rest_ns"] == 72.5 - 46.0

    def test_what_is_paid_for_the_counting_is_no_part_of_what_a_rung_costs(self) -> None:
        ladder = costs(RUNS)
        assert ladder.loc["nothing", "pays_while_counted_ns"] == 153.0
        assert ladder.loc["and count in a hash", "pays_ns"] == 160.0
        assert math.isnan(ladder.loc["nobody looks", "pays_while_counted_ns"])

    def test_a_run_in_which_somebody_else_had_the_kernel_count_is_left_out_if_there_are_others(self) -> None:
        columns = list(RUNS.columns)
        disturbed = pd.DataFrame([("nothing", False, True, 2, 360.0, math.nan)] * 3, columns=columns)
        assert costs(pd.concat([RUNS, disturbed])).loc["nothing", "pays_ns"] == 72.5
        none_clean = RUNS.assign(disturbed=(RUNS["rung"] == "nothing") & ~RUNS["counting"])
        assert costs(none_clean).loc["nothing", "pays_ns"] == 72.5

    def test_where_nobody_may_count_the_price_is_the_same(self) -> None:
        ladder = costs(RUNS.assign(counted_ns=math.nan))
        assert ladder.loc["nothing", "pays_ns"] == 72.5
        assert ladder["counted_ns"].isna().all()

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
        {"ns_per_call": [465.0], "pays_ns": [250.0], "pays_while_counted_ns": [330.0], "counted_ns": [150.0]},
        index=["and count in a hash"],
    )

    def test_the_shipped_solution_is_right(self) -> None:
        answer = solution("11.2", ladder=self.LADDER)
        assert answer == 40_000
        assert judge(2, answer, ladder=self.LADDER).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (1e7 / 150, "what the kernel counts"),
            (1e7 / 330, "nobody counts"),
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

"""Exercises of chapter 03: typical answers, right and wrong. What needs a kernel is in tests/live."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import labkit as lk
from labkit.histogram import from_log2, log2_slot
from labkit.lessons import Feedback, exercises, write_program
from labkit.lessons.ch03 import floored, judge_slots, nap_frame, naps, read_as
from labkit.notebook_io import read_solutions
from labkit.paths import notebooks_dir

REPLAY = SimpleNamespace(mode="replay")
FLOORED = floored()
NAPS = pd.DataFrame(
    {
        "asked_us": [50, 50, 50, 50, 1000, 1000],
        "slept_ns": [110_000, 120_000, 130_000, 900_000, 1_090_000, 1_095_000],
    }
)
VALUES = (0, 1, 2, 3, 4, 7, 8, 9, 1023, 1024)


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("03")[number - 1].check(answer, context)


def solution(exercise: str, **names: Any) -> Any:
    section = read_solutions(notebooks_dir() / "solutions" / "03_timing_and_histograms.py")[exercise]
    exec(section.split("lk.check")[0], names)
    return names["answer"]


def counted(slots: Any) -> pd.DataFrame:
    return from_log2(np.bincount(np.asarray(slots), minlength=65), unit="bytes")


class TestSlots:
    def judge(self, answer: Any) -> Feedback:
        return judge(1, answer, lab=REPLAY, floored=FLOORED)

    def test_the_program_to_be_mended_differs_in_its_slot_function_alone(self) -> None:
        mine = write_program("syscall_counts", FLOORED)
        assert FLOORED.count("my_slot") == 2
        assert "lk_log2_slot" not in mine.source

    def test_the_shipped_solution_is_right(self) -> None:
        answer = lk.write_program("syscall_counts", FLOORED, change={"value > 1 &&": "value > 0 &&"})
        assert self.judge(answer).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (FLOORED, "as it was"),
            ("value > 0", "write_program"),
            (3, "write_program"),
            (FLOORED.replace("my_slot(third", "lk_log2_slot(third"), "Nobody calls"),
            (write_program("syscall_counts", FLOORED, change={"value >= 1 &&": "x"}), "could not be made"),
        ],
    )
    def test_typical_wrong_answers(self, answer: Any, said: str) -> None:
        feedback = self.judge(answer)
        assert not feedback.passed
        assert said in feedback.message

    def test_right_buckets(self) -> None:
        assert judge_slots(counted(log2_slot(list(VALUES))), VALUES).passed

    @pytest.mark.parametrize(
        ("slots", "said"),
        [
            ([max(v.bit_length() - 1, 0) for v in VALUES], "one slot too low"),
            ([v.bit_length() + 1 for v in VALUES], "one slot too high"),
            ([v.bit_length() for v in VALUES[:-1]], "out of range"),
            ([0, *[v.bit_length() for v in VALUES[1:-1]], 3], "slot 3"),
        ],
    )
    def test_wrong_buckets_are_named(self, slots: list[int], said: str) -> None:
        feedback = judge_slots(counted(slots), VALUES)
        assert not feedback.passed
        assert said in feedback.message


class TestOverslept:
    def test_the_shipped_solution_is_right(self) -> None:
        answer = solution("03.2", naps_taken=NAPS)
        assert answer == 75.0
        assert judge(2, answer, naps=NAPS).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (125.0, "how long they take"),
            (265.0, "the mean"),
            (85.0, "over all naps"),
            (0.075, "check the unit"),
            (75_000, "check the unit"),
            (-75.0, "sign"),
            ("75", "A number"),
        ],
    )
    def test_typical_wrong_answers(self, answer: Any, said: str) -> None:
        feedback = judge(2, answer, naps=NAPS)
        assert not feedback.passed
        assert said in feedback.message


class TestMeanBetween:
    HISTOGRAM = counted([7, 7, 9])  # 64..128 twice, 256..512 once

    def test_the_shipped_solution_is_right(self) -> None:
        answer = solution("03.3", duration=self.HISTOGRAM)
        assert answer == (128.0, 256.0)
        assert judge(3, answer, duration=self.HISTOGRAM).passed
        assert judge(3, np.array(answer), duration=self.HISTOGRAM).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (192.0, "Two numbers"),
            ((128.0,), "these are 1"),
            ("low", "Two numbers"),
            ((384.0, 768.0), "bounds of the sum"),
            ((256.0, 128.0), "other way round"),
            ((64.0, 512.0), "every single call"),
            ((100.0, 256.0), "lower bound is too small"),
            ((128.0, 300.0), "upper bound is too large"),
        ],
    )
    def test_typical_wrong_answers(self, answer: Any, said: str) -> None:
        feedback = judge(3, answer, duration=self.HISTOGRAM)
        assert not feedback.passed
        assert said in feedback.message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("a fixed share of the nap", "a hundred times"),
        ("random, with no pattern", "medians"),
        ("neither", "One of"),
    ],
)
def test_the_kind_of_overshoot(answer: str, said: str) -> None:
    assert judge(4, "about the same for all").passed
    feedback = judge(4, answer)
    assert not feedback.passed
    assert said in feedback.message


def test_a_histogram_read_off_by_one_cannot_have_its_sum() -> None:
    values = [1] * 8 + [3] * 5 + [100] * 3 + [4096]
    right = counted(log2_slot(values))
    for histogram, possible in ((right, True), (read_as(right, shift=1), False)):
        count = histogram["count"].to_numpy(dtype=float)
        low, high = ((histogram[edge].to_numpy(dtype=float) * count).sum() for edge in ("lo", "hi"))
        assert bool(low <= sum(values) < high) is possible
    assert read_as(right, shift=0).equals(right)


def test_naps_are_declared_and_listed_in_order() -> None:
    workload = naps(threads=4)
    asked = workload.declared["asked_us"]
    assert workload.declared["naps"] == len(asked) == 273
    truth = SimpleNamespace(
        declared=workload.declared, results={"napper": {"slept_ns": [us * 1000 for us in asked]}}
    )
    frame = nap_frame(truth)
    assert (frame["slept_ns"] == 1000 * frame["asked_us"]).all()

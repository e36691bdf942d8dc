"""Exercises of chapter 04: typical answers, right and wrong. What needs a kernel is in tests/live."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import labkit as lk
from labkit import spec
from labkit.ledger import Ledger
from labkit.lessons import Feedback, exercises
from labkit.lessons.ch04 import judge_skipping
from labkit.lessons.rings import course
from labkit.notebook_io import read_solutions
from labkit.paths import notebooks_dir

SOURCE = spec.read("sched_events").source
REPLAY = SimpleNamespace(mode="replay")


def ring(lengths: list[int]) -> bytes:
    """Memory with records of these lengths, cut after 512 bytes as in the chapter."""
    records = [struct.pack("<II", length, 3) + bytes(-(-length // 8) * 8) for length in lengths]
    return b"".join(records)[:512]


LENGTHS = [16, 24, 24, 16, 24, 16, 24, 24, 24, 16, 24, 24, 16, 24]
RAW = ring(LENGTHS)
STARTS = [sum(8 + length for length in LENGTHS[:n]) for n in range(len(LENGTHS))]

SWITCHED = pd.DataFrame(
    {
        "time_ns": np.array([10, 20, 30, 40, 50, 60, 70, 80], np.uint64),
        "lost": np.array([0, 0, 5, 5, 5, 90, 90, 91], np.uint32),
    }
)


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("04")[number - 1].check(answer, context)


def solution(exercise: str, **names: Any) -> Any:
    section = read_solutions(notebooks_dir() / "solutions" / "04_events_and_loss.py")[exercise]
    names["lk"] = lk
    exec(section.split("lk.check")[0], names)
    answer = names["answer"]
    return getattr(answer, "source", answer)


class TestEleventhRecord:
    def test_the_shipped_solution_is_right_whatever_the_sizes(self) -> None:
        for lengths in (LENGTHS, [16] * 20, [24] * 15, [20, 13, 7] * 6):
            raw = ring(lengths)
            assert judge(1, solution("04.1", struct=struct, raw=raw), raw=raw).passed
        assert solution("04.1", struct=struct, raw=RAW) == STARTS[10]

    def test_a_discarded_record_takes_its_room_too(self) -> None:
        discarded = bytearray(RAW)
        struct.pack_into("<I", discarded, STARTS[4], LENGTHS[4] | 1 << 30)
        assert judge(1, STARTS[10], raw=bytes(discarded)).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (STARTS[9], "neighbours"),
            (STARTS[11], "neighbours"),
            (STARTS[10] + 8, "its data begins"),
            (sum(LENGTHS[:10]), "the data alone"),
            (240, "equally long"),
            (11, "too small"),
            ("288", "A number"),
            (True, "A number"),
            (None, "A number"),
        ],
    )
    def test_other_places_are_named(self, answer: Any, said: str) -> None:
        feedback = judge(1, answer, raw=RAW)
        assert not feedback.passed
        assert said in feedback.message


class TestSkipWakeups:
    def check(self, answer: Any) -> Feedback:
        return judge(2, answer, lab=REPLAY, source=SOURCE)

    def test_the_shipped_solution_is_run_in_replay_and_says_that_no_kernel_was_asked(self) -> None:
        answer = solution("04.2", source=SOURCE)
        ledger = spec.parse(answer, name="answer").ledger
        assert ledger is not None
        assert list(ledger.losses) == ["ring_full", "skipped"]
        feedback = self.check(answer)
        assert feedback.passed
        assert "without a kernel" in feedback.message

    @pytest.mark.parametrize(
        ("taken_out", "put_in", "said"),
        [
            ("[ring_full, skipped]", "[ring_full]", "header comment"),
            ("    u64 skipped;\n", "", "no member"),
            ("    book->skipped++;\n", "", "would not balance"),
        ],
    )
    def test_each_missing_part_is_named(self, taken_out: str, put_in: str, said: str) -> None:
        whole = solution("04.2", source=SOURCE)
        assert taken_out in whole
        feedback = self.check(whole.replace(taken_out, put_in))
        assert not feedback.passed
        assert said in feedback.message

    @pytest.mark.parametrize(
        ("answer", "said"), [(SOURCE, "as it was"), ("int x;", "whole C"), (None, "whole C"), (3, "whole C")]
    )
    def test_what_is_no_changed_program_is_told(self, answer: Any, said: str) -> None:
        assert said in self.check(answer).message

    def ledger(self, seen: int, delivered: int, skipped: int) -> Ledger:
        return Ledger("c", "live", seen, delivered, {"ring_full": 0, "skipped": skipped})

    def test_switches_alone_and_a_ledger_that_balances_are_right(self) -> None:
        feedback = judge_skipping({"switched": 400}, self.ledger(700, 400, 300), at_least=200)
        assert feedback.passed
        assert "700 seen" in feedback.message

    @pytest.mark.parametrize(
        ("received", "numbers", "said"),
        [
            ({"switched": 400, "woken": 300}, (700, 700, 0), "300 wakeups were handed over"),
            ({"switched": 400}, (700, 400, 200), "does not balance"),
            ({"switched": 390}, (700, 400, 300), "390 were received"),
            ({}, (700, 0, 700), "The switches are gone"),
            ({"switched": 400}, (400, 400, 0), "`skipped` says 0"),
        ],
    )
    def test_what_is_wrong_with_a_run_is_named(
        self, received: dict[str, int], numbers: tuple[int, int, int], said: str
    ) -> None:
        feedback = judge_skipping(received, self.ledger(*numbers), at_least=200)
        assert not feedback.passed
        assert said in feedback.message


class TestGaps:
    def test_the_shipped_solution_is_right(self) -> None:
        assert solution("04.3", kept={"switched": SWITCHED}) == 3
        assert judge(3, solution("04.3", kept={"switched": SWITCHED}), switched=SWITCHED).passed

    def test_a_recording_without_a_gap_has_none(self) -> None:
        whole = SWITCHED.assign(lost=np.zeros(8, np.uint32))
        assert judge(3, 0, switched=whole).passed
        assert not judge(3, 1, switched=whole).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (91, "how many events were lost"),
            (6, "after any loss"),
            (int(SWITCHED["lost"].sum()), "running totals"),
            (8, "switches were recorded"),
            (SWITCHED["lost"].nunique(), "one too many"),
            (SWITCHED["lost"].diff() > 0, "Series"),
            (2, "too small"),
            (None, "A number"),
            ("3", "A number"),
        ],
    )
    def test_other_counts_are_named(self, answer: Any, said: str) -> None:
        feedback = judge(3, answer, switched=SWITCHED)
        assert not feedback.passed
        assert said in feedback.message

    def test_the_first_row_is_no_gap(self) -> None:
        counted = int((SWITCHED["lost"].astype("int64").diff() != 0).sum())
        assert "first row" in judge(3, counted, switched=SWITCHED).message


class TestCourse:
    def test_delivered_counts_both_kinds_and_lost_is_what_switches_say(self) -> None:
        woken = pd.DataFrame({"time_ns": np.array([5, 25, 45], np.uint64)})
        found = course({"woken": woken, "switched": SWITCHED.iloc[:5]})
        assert found["delivered"].tolist() == [2, 3, 5, 6, 8]
        assert found["lost"].tolist() == [0, 0, 5, 5, 5]
        assert found["ms"].tolist() == [0.000005, 0.000015, 0.000025, 0.000035, 0.000045]

    def test_what_was_lost_stays_lost_where_two_cpus_disagree_for_a_moment(self) -> None:
        crossed = SWITCHED.assign(lost=np.array([0, 5, 4, 5, 5, 6, 6, 6], np.uint32))
        found = course({"woken": pd.DataFrame({"time_ns": np.array([], np.uint64)}), "switched": crossed})
        assert found["lost"].is_monotonic_increasing

    def test_nothing_recorded_is_a_frame_without_rows(self) -> None:
        nothing = SWITCHED.iloc[:0]
        found = course({"woken": nothing[["time_ns"]], "switched": nothing})
        assert list(found.columns) == ["ms", "delivered", "lost"]
        assert found.empty


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("how fast the pair plays", "narrower"),
        ("how large the ring is", "wider"),
        (5, "One of"),
    ],
)
def test_the_distance_of_groups(answer: Any, said: str) -> None:
    assert judge(4, "how often the ring is read").passed
    feedback = judge(4, answer)
    assert not feedback.passed
    assert said in feedback.message

"""Exercises of chapter 02: typical answers, right and wrong. What needs a kernel is in tests/live."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest

import labkit as lk
from labkit import histogram, spec
from labkit.lessons import Feedback, exercises
from labkit.lessons.ch02 import _judge_read_histogram
from labkit.notebook_io import read_solutions
from labkit.paths import notebooks_dir

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SOURCE = spec.read("syscall_counts").source
REPLAY = SimpleNamespace(mode="replay")
COUNTS = pd.DataFrame(
    {
        "tgid": np.array([7, 7, 8, 9], np.uint32),
        "nr": np.array([0, 1, 0, 1], np.uint32),
        "calls": np.array([5, 6, 30, 2], np.uint64),
        "comm": ["a", "a", "b", "b"],
    }
)
SIZES = histogram.from_log2(np.array([0, 4, 0, 3, 1]), unit="bytes")


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("02")[number - 1].check(answer, context)


def solution(exercise: str, **names: Any) -> Any:
    section = read_solutions(notebooks_dir() / "solutions" / "02_maps_to_dataframes.py")[exercise]
    names["lk"] = lk
    exec(section.split("lk.check")[0], names)
    answer = names["answer"]
    return getattr(answer, "source", answer)


class TestReadHistogram:
    def check(self, answer: Any) -> Feedback:
        return judge(1, answer, lab=REPLAY, source=SOURCE)

    def test_the_shipped_solution_is_run_in_replay_and_says_that_no_kernel_was_asked(self) -> None:
        answer = solution("02.1", source=SOURCE)
        assert set(spec.parse(answer, name="answer").maps) == {
            "counts",
            "totals",
            "write_size",
            "read_size",
            "ledger",
        }
        feedback = self.check(answer)
        assert feedback.passed
        assert "without a kernel" in feedback.message

    @pytest.mark.parametrize(
        ("taken_out", "put_in", "said"),
        [
            ("BPF_PERCPU_ARRAY(read_size, u64, 65);", "", "declared"),
            ("BPF_PERCPU_ARRAY(read_size, u64, 65);", "BPF_PERCPU_ARRAY(read_size, u64, 1);", "declared"),
            (" *   read_size:", " *   nothing:", "header comment"),
            ("read_size.lookup", "write_size.lookup", "ever put into"),
            ("LK_NR_read", "LK_NR_write", "Which system call"),
        ],
    )
    def test_each_missing_part_is_named(self, taken_out: str, put_in: str, said: str) -> None:
        whole = solution("02.1", source=SOURCE)
        assert taken_out in whole
        feedback = self.check(whole.replace(taken_out, put_in))
        assert not feedback.passed
        assert said in feedback.message

    @pytest.mark.parametrize(
        ("answer", "said"), [(SOURCE, "as it was"), ("int x;", "whole C"), (None, "whole C")]
    )
    def test_what_is_no_changed_program_is_told(self, answer: Any, said: str) -> None:
        assert said in self.check(answer).message

    def test_a_histogram_that_agrees_with_the_counts_is_right(self) -> None:
        sizes = histogram.from_log2(np.array([0, 1, 2, 4, 8, 16, 1, 0, 5]), unit="bytes")
        assert _judge_read_histogram(sizes, 37).passed
        assert "38 calls of read(), `read_size` 37" in _judge_read_histogram(sizes, 38).message

    def test_another_argument_than_the_size_is_noticed(self) -> None:
        addresses = histogram.from_log2(np.bincount([47] * 40), unit="bytes")
        assert "which argument" in _judge_read_histogram(addresses, 40).message

    def test_a_plain_table_is_no_histogram(self) -> None:
        table = pd.DataFrame({"key": [0], "value": [3]})
        assert "columns key, value" in _judge_read_histogram(table, 3).message


class TestCallsPerProcess:
    def test_sums_by_process_in_descending_order_are_right(self) -> None:
        assert judge(2, solution("02.2", counts=COUNTS), counts=COUNTS).passed
        as_frame = COUNTS.groupby("tgid")[["calls"]].sum().sort_values("calls", ascending=False)
        assert judge(2, as_frame, counts=COUNTS).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (COUNTS.groupby("tgid")["calls"].sum(), "the order is not"),
            (COUNTS.groupby("comm")["calls"].sum(), "names"),
            (COUNTS.groupby("nr")["calls"].sum(), "per system call"),
            (COUNTS.groupby("tgid")["calls"].count(), "counts rows"),
            (COUNTS.groupby("tgid")["calls"].max(), "numbers are not"),
            (COUNTS.set_index("tgid")["calls"], "not added up"),
            (COUNTS.groupby("tgid")["calls"].sum().nlargest(1), "3 processes"),
            (COUNTS, "Series"),
            (43, "Series"),
        ],
    )
    def test_other_groupings_are_named(self, answer: Any, said: str) -> None:
        feedback = judge(2, answer, counts=COUNTS)
        assert not feedback.passed
        assert said in feedback.message


class TestCumulativeShare:
    def drawn(self, x: Any, y: Any) -> Any:
        ax = plt.subplots()[1]
        ax.plot(np.asarray(x, float), np.asarray(y, float))
        return ax

    @pytest.fixture(autouse=True)
    def close(self) -> Any:
        yield
        plt.close("all")

    def test_the_shipped_solution_is_right(self) -> None:
        from labkit import plots

        assert judge(3, solution("02.3", write_size=SIZES, plots=plots), write_size=SIZES).passed

    def test_drawn_by_pandas_or_given_as_lines_or_figure_it_is_right_too(self) -> None:
        share = SIZES.assign(share=SIZES["count"].cumsum() / SIZES["count"].sum())
        ax = share.plot(x="hi", y="share", logx=True)
        assert judge(3, ax, write_size=SIZES).passed
        assert judge(3, list(ax.get_lines()), write_size=SIZES).passed
        assert judge(3, ax.figure, write_size=SIZES).passed

    @pytest.mark.parametrize(
        ("x", "y", "said"),
        [
            ("hi", [0, 4, 0, 3, 1], "single buckets"),
            ("hi", [0, 0.5, 0, 0.375, 0.125], "single buckets"),
            ("hi", [0, 4, 4, 7, 8], "ends at the number"),
            ("hi", [0, 50, 50, 87.5, 100], "per cent"),
            ("lo", [0, 0.5, 0.5, 0.875, 1], "upper edge"),
            ("hi", [0, 0.4, 0.5, 0.875, 1], "running sum"),
        ],
    )
    def test_other_lines_are_named(self, x: str, y: list[float], said: str) -> None:
        feedback = judge(3, self.drawn(SIZES[x], y), write_size=SIZES)
        assert not feedback.passed
        assert said in feedback.message

    def test_too_few_points_other_edges_and_no_line_at_all_are_told(self) -> None:
        assert "5 buckets" in judge(3, self.drawn([1, 2], [0, 1]), write_size=SIZES).message
        other = self.drawn(range(5), [0, 0.5, 0.5, 0.875, 1])
        assert "upper edges" in judge(3, other, write_size=SIZES).message
        for answer in (plt.subplots()[1], 0.5, SIZES, None, []):
            assert "Axes" in judge(3, answer, write_size=SIZES).message

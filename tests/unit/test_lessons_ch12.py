"""The capstone, on each of the cases that were recorded: the shipped report is right, typical wrong ones are told why."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import labkit as lk
from labkit import spec
from labkit.errors import ParameterError
from labkit.lessons import Feedback, exercises
from labkit.lessons.ch12 import CASES, VICTIM, Case, draw, judge_took
from labkit.notebook_io import read_solutions
from labkit.paths import notebooks_dir
from labkit.session import Chapter, chapter

SOURCE = spec.read("took_over").source
SEEN = "    book->seen++;\n"
SOLUTIONS = read_solutions(notebooks_dir() / "solutions" / "12_capstone.py")


@pytest.fixture(scope="module")
def lab() -> Chapter:
    return chapter("12_capstone", "replay")


@pytest.fixture(params=range(1, CASES + 1), scope="module")
def drawn(request: pytest.FixtureRequest, lab: Chapter) -> Case:
    return draw(lab, case=request.param)


def judge(number: int, answer: Any, case: Case, **context: Any) -> Feedback:
    return exercises("12")[number - 1].check(answer, {"case": case} | context)


def report(case: Case) -> list[Any]:
    names: dict[str, Any] = {"drawn": case, "VICTIM": VICTIM, "lk": lk}
    answers = []
    for section in SOLUTIONS.values():
        exec(section.split("lk.check")[0], names)
        answers.append(names["answer"])
    return answers


class TestEachCase:
    def test_the_shipped_report_is_right_and_gets_all_points(self, drawn: Case, lab: Chapter) -> None:
        case = draw(lab, case=drawn.number)
        for number, answer in enumerate(report(case), 1):
            feedback = judge(number, answer, case, lab=lab, source=SOURCE)
            assert feedback.passed, (number, answer, feedback.message)
        graded = case.grade().set_index("exercise")
        assert graded.loc["total", "points"] == 15
        assert str(case.number) in case.reveal()

    def test_it_does_not_say_who_it_was_before_it_is_asked(self, drawn: Case) -> None:
        truth = drawn._measured.truth
        shown = " ".join(map(str, (drawn, drawn.cells["occupant"], drawn.cgroups, drawn.latency)))
        assert truth.name not in shown
        named = set(drawn.labels.values()) | set(drawn.cells["occupant"])
        assert not named & set(drawn._letters)
        fresh = Case(drawn.number, drawn._measured)
        assert "First say" in fresh.reveal()
        assert fresh.verdict == "?"

    def test_its_cells_are_the_services_wait_and_the_kernel_agrees(self, drawn: Case) -> None:
        waited = int(drawn.cells["wait_ns"].sum())
        assert waited == drawn.cgroups.set_index("who").loc[VICTIM, "wait_ns"]
        assert abs(waited - drawn.books["run_delay_ns"]) <= 0.01 * waited + 50_000

    def test_every_other_verdict_is_wrong_and_says_why(self, drawn: Case) -> None:
        fresh = Case(drawn.number, drawn._measured)
        for verdict in ("quiet", "noisy_neighbor", "self_contended", "throttled", "mixed"):
            feedback = judge(1, verdict, fresh)
            if not feedback.passed:
                assert "%" in feedback.message or "ms in each second" in feedback.message
        assert fresh._tries["12.1"].count(True) >= 1
        assert fresh._tries["12.1"].count(False) >= 3

    def test_nobody_else_is_guilty(self, drawn: Case) -> None:
        fresh = Case(drawn.number, drawn._measured)
        right = [who for who in ("nobody", VICTIM, *fresh._letters.values()) if judge(2, who, fresh).passed]
        assert len(right) == 1
        assert (right == ["nobody"]) is (not fresh._declared["guilty"])


class TestWrongAnswers:
    @pytest.fixture
    def case(self, lab: Chapter) -> Case:
        return draw(lab, case=1)

    @pytest.mark.parametrize(
        ("number", "answer", "said"),
        [
            (1, "slow", "One of"),
            (2, "hog", "One of"),
            (3, "half", "A number"),
            (3, 2.0, "too large"),
            (5, "reboot", "One of"),
            (5, "leave everything as it is", "another cause"),
        ],
    )
    def test_they_are_told_why(self, case: Case, number: int, answer: Any, said: str) -> None:
        feedback = judge(number, answer, case)
        assert not feedback.passed
        assert said in feedback.message

    def test_a_percentage_is_told_from_a_share(self, case: Case) -> None:
        share = report(case)[2]
        assert "percentage" in judge(3, 100 * share, case).message

    def test_ones_own_tasks_are_not_others(self, lab: Chapter) -> None:
        case = draw(lab, case=2)
        cells = case.cells
        all_cgroups = cells.loc[cells["kind"] == "cgroup", "wait_ns"].sum() / cells["wait_ns"].sum()
        assert "its own tasks" in judge(3, all_cgroups, case).message

    def test_the_second_try_is_worth_two_points_and_the_third_one(self, case: Case) -> None:
        right = report(case)
        judge(1, "quiet", case)
        judge(1, right[0], case)
        for wrong in ("neighbour Z", "nobody"):
            judge(2, wrong, case)
        judge(2, right[1], case)
        points = case.grade().set_index("exercise")["points"]
        assert (points["12.1"], points["12.2"], points["12.3"], points["total"]) == (2, 1, 0, 3)

    @pytest.mark.parametrize("number", [-1, CASES + 1])
    def test_there_are_no_other_cases(self, lab: Chapter, number: int) -> None:
        with pytest.raises(ParameterError, match="no case"):
            draw(lab, case=number)


class TestWitness:
    TASKS = pd.DataFrame({"pid": [7, 8], "voluntary": [400, 3], "involuntary": [90, 110]})

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (SOURCE, "as it was"),
            (5, "write_program"),
            (lk.write_program("took_over", change={SEEN: SEEN + "    none = 0;\n"}), "Nothing asks"),
            (lk.write_program("took_over", change={"no such": "x"}), "could not be made"),
        ],
    )
    def test_what_reads_wrong_is_told(self, lab: Chapter, answer: Any, said: str) -> None:
        feedback = judge(4, answer, draw(lab, case=1), lab=lab, source=SOURCE)
        assert not feedback.passed
        assert said in feedback.message

    @pytest.mark.parametrize(
        ("pairs", "said"),
        [
            ([(7, 8, 91), (8, 7, 108), (9, 7, 1000)], ""),
            ([(7, 8, 491), (8, 7, 113)], "they slept"),
            ([(7, 8, 91), (8, 7, 108), (0, 7, 3)], "idle task"),
            ([(7, 8, 3)], "put off 200 times"),
        ],
    )
    def test_counts_are_held_against_the_kernels(self, pairs: list[tuple[int, int, int]], said: str) -> None:
        took = pd.DataFrame(pairs, columns=["prev_tgid", "next_tgid", "switches"])
        feedback = judge_took(took, self.TASKS)
        assert feedback.passed is (said == ""), feedback.message
        assert said in feedback.message

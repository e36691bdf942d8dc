"""The capstone, on each of the cases that were recorded: the shipped report is right, typical wrong ones are told why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import labkit as lk
from labkit import spec
from labkit.errors import ParameterError
from labkit.lessons import Feedback, exercises
from labkit.lessons.capstone import REMEDIES, _drawn
from labkit.lessons.ch12 import CASES, REST, VERDICTS, VICTIM, Case, draw, judge_took
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


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A learner who has not answered anything yet."""
    monkeypatch.setenv("LABKIT_WORK", str(tmp_path / "my"))
    monkeypatch.delenv("LABKIT_HEADLESS", raising=False)
    return tmp_path


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
        assert not named & set(drawn.letters)
        fresh = Case(drawn.number, drawn._measured)
        assert "First say" in fresh.reveal()
        assert fresh.verdict == "?"

    def test_its_cells_are_the_services_wait_and_the_kernel_agrees(self, drawn: Case) -> None:
        waited = int(drawn.cells["wait_ns"].sum())
        assert waited == drawn.cgroups.set_index("who").loc[VICTIM, "wait_ns"]
        assert abs(waited - drawn.books["run_delay_ns"]) <= 0.01 * waited + 50_000

    def test_what_is_wrong_says_why_and_never_why_it_would_be_right(self, drawn: Case) -> None:
        fresh = Case(drawn.number, drawn._measured)
        for verdict in VERDICTS:
            feedback = judge(1, verdict, fresh)
            assert feedback.passed is (verdict in drawn.defensible)
            if not feedback.passed:
                assert "%" in feedback.message or "ms in each second" in feedback.message
                assert verdict == "mixed" or "100%" not in feedback.message
        assert fresh._tries["12.1"][0] is not None
        assert len(fresh._tries["12.1"]) == len(VERDICTS)

    def test_by_the_rule_or_by_another_that_can_be_defended_the_whole_report_is_right(
        self, drawn: Case, mine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for verdict in drawn.defensible:
            monkeypatch.setenv("LABKIT_WORK", str(mine / verdict))
            fresh = Case(drawn.number, drawn._measured)
            assert judge(1, verdict, fresh).passed
            assert judge(5, REMEDIES[verdict], fresh).passed
            assert judge(2, fresh.guilty[0], fresh).passed
            assert fresh.verdict == verdict

    def test_nobody_else_is_guilty(self, drawn: Case) -> None:
        fresh = Case(drawn.number, drawn._measured)
        everybody = ("nobody", VICTIM, REST, *fresh.letters.values())
        assert {who for who in everybody if judge(2, who, fresh).passed} == set(fresh.guilty)
        assert ("nobody" in fresh.guilty) is (not fresh._declared["guilty"])
        assert VICTIM not in fresh.guilty

    def test_what_is_revealed_agrees_with_the_grade(self, drawn: Case) -> None:
        fresh = Case(drawn.number, drawn._measured)
        judge(2, fresh.guilty[0], fresh)
        assert ("each of these was a right answer" in fresh.reveal()) is (len(fresh.defensible) > 1)


class TestAlmostNothing:
    """Case 5 waits 2.5 ms per second, all of it for the rest of the machine: two rules call that by two names."""

    @pytest.fixture
    def case(self, lab: Chapter) -> Case:
        return draw(lab, case=5)

    def test_quiet_and_system_are_both_right_and_each_says_what_the_other_rule_says(self, case: Case) -> None:
        assert case.defensible == ("quiet", "system")
        assert judge(1, "quiet", case).passed
        told = judge(1, "system", case)
        assert told.passed
        assert "by the report's own rule it is 'quiet'" in told.message.lower()

    @pytest.mark.parametrize("verdict", ["noisy_neighbor", "self_contended", "throttled", "mixed"])
    def test_everything_else_is_too_much_for_so_little(self, case: Case, verdict: str) -> None:
        feedback = judge(1, verdict, case)
        assert not feedback.passed
        assert "2.5 ms in each second: below 5 ms that is nothing to report" in feedback.message

    def test_nobody_or_the_rest_of_the_machine_and_not_the_neighbour(self, case: Case) -> None:
        assert judge(2, "nobody", case).passed
        assert judge(2, "the rest of the machine", case).passed
        assert "not what the service suffers from" in judge(2, "neighbour A", case).message

    def test_the_question_and_its_first_hint_state_the_threshold(self) -> None:
        asked = exercises("12")[0]
        assert "Below 5 ms of waiting" in asked.question
        assert "Below 5 ms" in asked.hints[0]


class TestGrade:
    def points(self, case: Case) -> dict[str, int]:
        return case.grade().set_index("exercise")["points"].to_dict()

    def test_it_is_kept_when_the_case_is_drawn_again_and_each_case_has_its_own(self, lab: Chapter) -> None:
        judge(1, "quiet", draw(lab, case=1))
        judge(1, "mixed", draw(lab, case=1))
        assert self.points(draw(lab, case=1))["12.1"] == 2
        assert self.points(draw(lab, case=2))["12.1"] == 0
        lk.reset("12")
        assert self.points(draw(lab, case=1))["12.1"] == 0

    def test_the_same_wrong_answer_again_costs_no_point_and_no_hint(self, lab: Chapter) -> None:
        case = draw(lab, case=1)
        told = [lk.check("12.1", "quiet", case=case).hint for _ in range(3)]
        assert told[0] == told[1] == told[2]
        assert "Hint 1 of 3" in told[0]
        assert "Hint 2 of 3" in lk.check("12.1", "throttled", case=case).hint
        lk.check("12.1", "mixed", case=case)
        assert case.grade().set_index("exercise").loc["12.1"].to_dict() == {"tries": 3, "points": 1}
        lk.check("12.1", "mixed", case=case)
        assert case.grade().set_index("exercise").loc["12.1", "tries"] == 3

    def test_a_run_without_a_reader_keeps_nothing(
        self, lab: Chapter, mine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LABKIT_HEADLESS", "1")
        judge(1, "quiet", draw(lab, case=1))
        assert self.points(draw(lab, case=1))["12.1"] == 0
        assert not (mine / "my").exists()


class TestDrawing:
    def test_without_a_reader_a_seed_decides_and_is_printed(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("LABKIT_HEADLESS", "1")
        possible = list(range(1, CASES + 1))
        for seed in range(40):
            monkeypatch.setenv("LABKIT_SEED", str(seed))
            assert _drawn(possible, "live") == _drawn(possible, "live")
            assert f"LABKIT_SEED={seed}\n" in capsys.readouterr().out
        monkeypatch.delenv("LABKIT_SEED")
        made_up = _drawn(possible, "live")
        seed = capsys.readouterr().out.split("=")[1].strip()
        monkeypatch.setenv("LABKIT_SEED", seed)
        assert _drawn(possible, "live") == made_up


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

    def test_the_second_answer_is_worth_two_points_and_the_third_one(self, case: Case) -> None:
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

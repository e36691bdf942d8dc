"""Exercises: what a learner is told about right answers, typical wrong ones, and no answer at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from labkit import lessons
from labkit.errors import ParameterError
from labkit.lessons import (
    Context,
    ExerciseNotSolved,
    Feedback,
    Registry,
    expect_choice,
    expect_number,
    expect_text,
    is_number,
    right,
    wrong,
)

HINTS = ("Two hogs share one CPU.", "Each runs half of the time.", "2 s / 2.")


@pytest.fixture
def demo() -> Registry:
    registry = Registry()

    @registry.exercise("90.1", question="How long did A wait, in ms?", hints=HINTS)
    def hog_wait(answer: object, context: Context) -> Feedback:
        if answer == 2000:
            return wrong("That is the whole time.")
        return expect_number(answer, 1000, unit="ms", within="10 %")

    @registry.exercise("90.2", question="Which task waited longest?", hints=["Sort by wait_ns."])
    def longest(answer: object, context: Context) -> Feedback:
        waits = context["waits"]
        return expect_text(answer, waits.loc[waits["wait_ns"].idxmax(), "comm"])

    return registry


class TestLadder:
    def test_each_wrong_try_shows_the_next_hint_and_the_last_stays(self, demo: Registry) -> None:
        shown = [demo.judge("90.1", answer, {}).hint for answer in (1, 2, 3, 4)]
        assert shown == [f"Hint {n} of 3: {HINTS[n - 1]}" for n in (1, 2, 3, 3)]

    def test_no_answer_costs_no_hint(self, demo: Registry) -> None:
        unanswered = demo.judge("90.1", ..., {})
        assert (unanswered.passed, unanswered.verdict, unanswered.hint) == (False, "Not answered yet", "")
        assert demo.judge("90.1", 1, {}).hint.startswith("Hint 1")

    def test_a_right_answer_starts_the_ladder_anew(self, demo: Registry) -> None:
        demo.judge("90.1", 1, {})
        assert demo.judge("90.1", 1000, {}).passed
        assert demo.judge("90.1", 1, {}).hint.startswith("Hint 1")

    def test_exercises_have_ladders_of_their_own(self, demo: Registry) -> None:
        demo.judge("90.1", 1, {})
        waits = pd.DataFrame({"comm": ["hog", "service"], "wait_ns": [5, 9]})
        assert demo.judge("90.2", "hog", {"waits": waits}).hint == "Hint 1 of 1: Sort by wait_ns."


class TestJudgement:
    def test_a_typical_mistake_is_named(self, demo: Registry) -> None:
        assert demo.judge("90.1", 2000, {}).message == "That is the whole time."

    def test_the_context_is_what_the_learner_measured(self, demo: Registry) -> None:
        waits = pd.DataFrame({"comm": ["hog", "service"], "wait_ns": [5, 9]})
        assert demo.judge("90.2", " Service ", {"waits": waits}).passed

    @pytest.mark.parametrize(
        "answer", [None, "a lot", [1000], pd.DataFrame({"a": [1]}), object(), {}, lambda: 1000]
    )
    def test_any_object_gets_an_answer_and_no_traceback(self, demo: Registry, answer: Any) -> None:
        feedback = demo.judge("90.1", answer, {})
        assert not feedback.passed
        assert feedback.message

    def test_a_check_that_breaks_says_so(self, demo: Registry) -> None:
        assert "KeyError" in demo.judge("90.2", "hog", {}).message

    def test_an_unknown_exercise_names_the_nearest(self, demo: Registry) -> None:
        with pytest.raises(ParameterError, match=r"90\.1"):
            demo.judge("91.1", 1, {})


class TestNumbers:
    @pytest.mark.parametrize("answer", [1000, 1000.0, 905, 1099, np.int64(1000), np.float32(1000)])
    def test_right(self, answer: Any) -> None:
        assert expect_number(answer, 1000, unit="ms", within="10 %").passed

    @pytest.mark.parametrize(
        ("answer", "told"),
        [
            (1, "check the unit"),
            (1_000_000, "check the unit"),
            (-1000, "sign"),
            (1500, "too large"),
            (700, "too small"),
            (True, "A number in ms is asked for"),
            ("1000", "A number in ms is asked for"),
            (float("nan"), "finite"),
        ],
    )
    def test_wrong(self, answer: Any, told: str) -> None:
        feedback = expect_number(answer, 1000, unit="ms", within="10 %")
        assert not feedback.passed
        assert told in feedback.message

    def test_a_wrong_answer_is_not_told_the_truth(self) -> None:
        assert "1,000" not in expect_number(700, 1000, unit="ms").message

    @pytest.mark.parametrize("answer", [23, 0.5, np.int64(23), np.float32(0.5), pd.Series([23]).sum()])
    def test_what_pandas_adds_up_is_a_number_that_a_check_can_reckon_with(self, answer: Any) -> None:
        assert is_number(answer)

    @pytest.mark.parametrize("answer", [True, np.True_, "23", None, pd.Series([23]), np.array([23]), ...])
    def test_what_is_no_single_number_is_told_apart(self, answer: Any) -> None:
        assert not is_number(answer)

    def test_counts_are_exact(self) -> None:
        assert expect_number(23, 23).passed
        assert not expect_number(24, 23).passed
        assert not expect_number(1, 0).passed


class TestChoices:
    def test_by_name_without_case(self) -> None:
        assert expect_choice(" Hog ", "hog", ["hog", "service"]).passed

    def test_with_the_right_one_comes_what_follows_from_it(self) -> None:
        feedback = expect_choice("hog", "hog", ["hog", "service"], why_right="It never sleeps.")
        assert (feedback.passed, feedback.message) == (True, "It never sleeps.")

    def test_a_wrong_choice_is_explained(self) -> None:
        feedback = expect_choice(
            "service", "hog", ["hog", "service"], {"service": "It sleeps most of the time."}
        )
        assert (feedback.passed, feedback.message) == (False, "It sleeps most of the time.")

    @pytest.mark.parametrize("answer", ["neither", 1, None])
    def test_other_answers_are_told_the_options(self, answer: Any) -> None:
        assert "'hog', 'service'" in expect_choice(answer, "hog", ["hog", "service"]).message

    def test_the_right_one_must_be_an_option(self) -> None:
        with pytest.raises(ParameterError):
            expect_choice("a", "c", ["a", "b"])


class TestCheck:
    @pytest.fixture
    def registered(self, demo: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lessons, "_REGISTRY", demo)

    @pytest.mark.usefixtures("registered")
    def test_interactively_it_only_tells(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert not lessons.check("90.1", 1).passed
        assert capsys.readouterr().out.startswith("Not yet. ")

    @pytest.mark.usefixtures("registered")
    @pytest.mark.parametrize("answer", [..., 1])
    def test_headless_it_raises(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
        monkeypatch.setenv("LABKIT_HEADLESS", "1")
        assert lessons.check("90.1", 1000).passed
        with pytest.raises(ExerciseNotSolved, match=r"90\.1"):
            lessons.check("90.1", answer)

    def test_hostile_text_in_an_answer_is_shown_as_text(self) -> None:
        shown = expect_text("<img src=x>\x1b[2J", "hog").bundle()
        assert "<img" not in shown["text/html"]
        assert "\x1b" not in shown["text/plain"]

    def test_right_and_wrong_are_told_apart(self) -> None:
        assert str(right("It follows.")) == "Right. It follows."
        assert (
            str(wrong("Because.").with_hint("Hint 1 of 1: look."))
            == "Not yet. Because.\n  Hint 1 of 1: look."
        )


class TestRegistry:
    def test_every_exercise_has_a_hint(self) -> None:
        with pytest.raises(ParameterError, match="no hint"):
            Registry().exercise("90.3", question="?", hints=[])

    def test_two_checks_of_one_id_are_a_mistake(self, demo: Registry) -> None:
        with pytest.raises(ParameterError, match="twice"):

            @demo.exercise("90.1", question="?", hints=["h"])
            def other(answer: object, context: Context) -> Feedback:
                return right()

    def test_every_chapters_exercises_are_sound(self) -> None:
        for exercise in lessons.exercises():
            chapter, number = exercise.id.split(".")
            assert exercise.check.__module__ == f"labkit.lessons.ch{chapter}"
            assert int(number) >= 1
            assert exercise.question.strip()


def test_code_in_a_message_is_shown_as_code_and_nothing_else_is_markup() -> None:
    shown = wrong("Use `task->pid`, <b>not</b> `pid`.").bundle()
    assert "Use <code>task-&gt;pid</code>, &lt;b&gt;not&lt;/b&gt; <code>pid</code>." in shown["text/html"]
    assert "`task->pid`" in shown["text/plain"]

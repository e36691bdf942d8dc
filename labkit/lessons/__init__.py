"""Exercises with feedback.

A notebook's exercise is a cell tagged ``exercise:NN.k`` that holds ``answer = ...`` and a call of :func:`check`::

    answer = ...
    lk.check("06.2", answer)

``check`` says whether the answer is right, what a typical wrong one mistook, and with each further wrong try the next
hint. An answer that is still ``...`` is "not answered yet" and costs no hint. A program that could not be run in replay is
"not run": it does not count as solved. In headless runs an answer that is not
right raises :class:`ExerciseNotSolved`; ``labkit run`` puts in the solutions of ``notebooks/solutions/NN_name.py``.

Exercises of chapter NN live in ``labkit/lessons/chNN.py``, which is imported when one of them is first checked::

    from labkit.lessons import Context, Feedback, exercise, expect_number, right, wrong

    @exercise(
        "06.2",
        question="How many milliseconds did hog A wait in 2 s, beside one other hog on the same CPU?",
        hints=["Two hogs share one CPU.", "Each runs half of the time.", "2 s / 2, in milliseconds."],
    )
    def hog_wait(answer: object, context: Context) -> Feedback:
        if answer == 2000:
            return wrong("That is the whole time: A would never have run.")
        return expect_number(answer, 1000, unit="ms", within="10 %")

``context`` holds what else was handed to ``check`` by name: ``lk.check("06.3", answer, waits=waits)`` is how an
answer is compared with what the learner measured a moment ago. A check must not change it.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

from labkit.errors import LabkitError, ParameterError
from labkit.lessons import progress
from labkit.lessons.feedback import (
    Feedback,
    expect_choice,
    expect_number,
    expect_text,
    is_number,
    not_run,
    right,
    wrong,
)
from labkit.lessons.programs import Written, explained, rehearse, source_of, try_program, write_program
from labkit.lessons.progress import reset
from labkit.show import headless

__all__ = [
    "Context",
    "Exercise",
    "ExerciseNotSolved",
    "Feedback",
    "Registry",
    "Written",
    "check",
    "exercise",
    "exercises",
    "expect_choice",
    "expect_number",
    "expect_text",
    "explained",
    "is_number",
    "not_run",
    "progress",
    "rehearse",
    "reset",
    "right",
    "source_of",
    "try_program",
    "write_program",
    "wrong",
]

Context = Mapping[str, Any]
Check = Callable[[Any, Context], Feedback]


class ExerciseNotSolved(LabkitError):
    """An exercise's answer is missing or wrong in a headless run."""


@dataclass(frozen=True)
class Exercise:
    """One exercise; made by :func:`exercise`."""

    id: str
    question: str
    hints: tuple[str, ...]
    check: Check


@dataclass
class Registry:
    """Exercises by id, and the wrong answers to each in this session, in order; None for one that cannot be told again."""

    exercises: dict[str, Exercise] = field(default_factory=dict)
    wrong: dict[str, list[str | None]] = field(default_factory=dict)

    def exercise(self, id: str, *, question: str, hints: Sequence[str]) -> Callable[[Check], Check]:
        """Decorator: register a check. See :func:`exercise`."""
        if not hints:
            raise ParameterError(
                f"exercise {id} has no hint", remedy="a learner who is stuck needs at least one"
            )

        def register(function: Check) -> Check:
            known = self.exercises.get(id)
            # Reloading a module while writing it registers its checks again; two different ones are a mistake.
            if known is not None and known.check.__qualname__ != function.__qualname__:
                raise ParameterError(f"exercise {id} is registered twice", why=f"by {function.__module__}")
            self.exercises[id] = Exercise(id, question, tuple(hints), function)
            return function

        return register

    def judge(self, id: str, answer: Any, context: Context) -> Feedback:
        """Feedback for an answer, with the hint that is due; counts wrong tries.

        :raises ParameterError: there is no such exercise.
        """
        known = self._find(id)
        if isinstance(answer, EllipsisType):
            return Feedback(
                passed=False, message="Not answered yet.", answered=False, question=known.question
            )
        feedback = _judged(known, answer, context)
        if feedback.passed:
            self.wrong.pop(id, None)
            return feedback
        if not feedback.ran:
            return dataclasses.replace(feedback, question=known.question)
        # The same answer once more (a notebook that is run again) costs no further hint.
        answers, given = self.wrong.setdefault(id, []), progress.fingerprint(answer)
        if given is None or given not in answers:
            answers.append(given)
        step = min(len(answers) if given is None else answers.index(given) + 1, len(known.hints))
        hint = f"Hint {step} of {len(known.hints)}: {known.hints[step - 1]}"
        return feedback.with_hint(hint, question=known.question)

    def _find(self, id: str) -> Exercise:
        if id in self.exercises:
            return self.exercises[id]
        nearest = difflib.get_close_matches(id, self.exercises, n=1, cutoff=0.5)
        raise ParameterError(
            f"there is no exercise {id!r}",
            remedy=f"did you mean {nearest[0]!r}?" if nearest else "ids look like '06.2'",
        )


def _judged(known: Exercise, answer: Any, context: Context) -> Feedback:
    try:
        return known.check(answer, context)
    except Exception as error:
        # Learners answer with anything: a string, a frame, None. A check that cannot compare it says "wrong", and
        # in headless runs that is an error, so that a broken check does not pass unseen.
        kind = type(answer).__name__
        return wrong(f"An answer of type {kind} cannot be compared here ({type(error).__name__}: {error}).")


_REGISTRY = Registry()


def exercise(id: str, *, question: str, hints: Sequence[str]) -> Callable[[Check], Check]:
    """Register a check for exercise ``id``.

    :param id: ``"NN.k"``: chapter and number.
    :param question: one sentence, shown with the feedback.
    :param hints: from vague to nearly the answer; each further wrong try shows the next, the last one stays.
    """
    return _REGISTRY.exercise(id, question=question, hints=hints)


def exercises(chapter: str | None = None) -> list[Exercise]:
    """The exercises of a chapter (``"06"``), or all, in order."""
    chapters = [chapter] if chapter else [name.removeprefix("ch") for name in _modules()]
    for number in chapters:
        _load(number)
    found = [one for one in _REGISTRY.exercises.values() if one.id.split(".")[0] in chapters]
    return sorted(found, key=lambda one: tuple(int(part) for part in one.id.split(".")))


def check(id: str, answer: Any, **context: Any) -> Feedback:
    """Say whether ``answer`` solves exercise ``id``, and show the hint that is due.

    :raises ParameterError: there is no such exercise.
    :raises ExerciseNotSolved: it does not, in a headless run.
    """
    _load(id.split(".")[0])
    given = progress.fingerprint(answer)
    told_before = given is not None and given in _REGISTRY.wrong.get(id, ())
    feedback = _REGISTRY.judge(id, answer, context)
    if feedback.answered and not headless():
        note = progress.solved if feedback.passed else progress.tried if feedback.ran else progress.not_run
        if note is not progress.tried or not told_before:
            note(id)
    feedback.show()
    if headless() and not feedback.passed:
        raise ExerciseNotSolved(f"exercise {id} is not solved", why=feedback.message, remedy=feedback.hint)
    return feedback


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("ch"))


def _load(chapter: str) -> None:
    name = f"ch{chapter}"
    if name in _modules():
        importlib.import_module(f"{__name__}.{name}")

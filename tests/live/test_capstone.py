"""The witness of the capstone, on the running kernel."""

from __future__ import annotations

import pytest

from labkit import spec
from labkit.lessons import exercises, write_program
from labkit.lessons.ch12 import Case, draw
from labkit.session import Chapter, chapter

pytestmark = pytest.mark.live

SEEN = "    book->seen++;\n"


@pytest.fixture(scope="module")
def case() -> Case:
    return draw(chapter("12_capstone", "replay"), case=1)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("!prev->tgid || !put_off(ctx->args[0], prev_state)", ""),
        ("!prev->tgid || put_off(ctx->args[0], prev_state)", "nonvoluntary"),
    ],
    ids=["right", "the other way round"],
)
def test_involuntary_switches_are_held_against_proc(case: Case, condition: str, said: str) -> None:
    change = {SEEN: f"    if ({condition})\n        return 0;\n{SEEN}"}
    context = {"case": case, "lab": Chapter("12_capstone", "live"), "source": spec.read("took_over").source}
    feedback = exercises("12")[3].check(write_program("took_over", change=change), context)
    assert feedback.passed is (said == ""), feedback.message
    assert said in feedback.message

"""The capstone on the running kernel: every case can be solved by its own rule, and the witness is held against /proc."""

from __future__ import annotations

import pytest

import labkit as lk
from labkit import spec
from labkit.lessons import exercises, write_program
from labkit.lessons.ch12 import CASES, VICTIM, Case, draw
from labkit.notebook_io import read_solutions
from labkit.paths import notebooks_dir
from labkit.session import Chapter, chapter

pytestmark = pytest.mark.live
SOLUTIONS = read_solutions(notebooks_dir() / "solutions" / "12_capstone.py")

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


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, CASES + 1))
def test_the_shipped_report_is_right_on_every_case_that_can_be_drawn(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_HEADLESS", "1")  # nobody's grade is kept
    lab = Chapter("12_capstone", "live")
    drawn = draw(lab, case=number)
    names = {"drawn": drawn, "VICTIM": VICTIM, "lk": lk}
    context = {"case": drawn, "lab": lab, "source": spec.read("took_over").source}
    for exercise, section in SOLUTIONS.items():
        exec(section.split("lk.check")[0], names)
        feedback = exercises("12")[int(exercise[-1]) - 1].check(names["answer"], context)
        assert feedback.passed, (exercise, names["answer"], feedback.message, drawn.cells)
    assert drawn.grade().set_index("exercise").loc["total", "points"] == 15
    lab.release()

"""The refused programs as data, and exercises of chapter 05: typical answers. What needs a kernel is in tests/live."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from labkit import spec
from labkit.errors import ParameterError
from labkit.lessons import Feedback, exercises, write_program
from labkit.lessons.ch05 import loop_of
from labkit.lessons.rejects import Judgement, Reject, explain, reject, rejects
from labkit.paths import bpf_dir

REPLAY = SimpleNamespace(mode="replay")
NO_BOUNDS, UNSUBMITTED = reject("no_bounds").source, reject("unsubmitted").source
COUNT = "    table->cell[nr] += 1;\n"
KEPT = "    if (*event > 300)\n        return 0;\n"


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("05")[number - 1].check(answer, {"lab": REPLAY} | context)


@pytest.mark.parametrize("one", rejects(), ids=lambda one: one.name)
class TestData:
    def test_it_is_a_program_with_words_for_people(self, one: Reject) -> None:
        assert spec.parse(one.source, name=one.name).hooks
        assert one.stage in ("verifier", "compiler")
        assert len(one.why) > 100
        assert one.title
        assert one.mended
        re.compile(one.says)

    def test_the_line_that_is_named_is_there_once(self, one: Reject) -> None:
        assert not one.at or [line.strip() for line in one.source.splitlines()].count(one.at) == 1

    def test_what_mends_it_fits_and_changes_it(self, one: Reject) -> None:
        assert one.mended_program.source != one.source
        assert not one.mended_program.problems

    def test_only_its_own_refusal_fits(self, one: Reject) -> None:
        assert not one.fits(Judgement("verifier", log="something else", line=1))
        assert not one.fits(Judgement("nobody", log=one.says, line=1))
        assert one.fits(Judgement("")) is bool(one.may_be_let_in)


def test_each_file_is_in_the_order_and_each_name_is_known() -> None:
    folder = bpf_dir() / "rejects"
    assert sorted(one.name for one in rejects()) == sorted(path.stem for path in folder.glob("*.c"))
    assert {path.stem for path in folder.glob("*.yaml")} - {"order"} == {one.name for one in rejects()}
    with pytest.raises(ParameterError, match="null_value"):
        reject("nothing")


def test_a_log_finds_its_lesson() -> None:
    assert explain("9: (79) ...\nR1 invalid mem access 'map_value_or_null'\n").name == "null_value"  # type: ignore[union-attr]
    assert explain("Unreleased reference id=3 alloc_insn=12").name == "unsubmitted"  # type: ignore[union-attr]
    assert explain("all is well") is None


def test_the_loop_is_four_instructions_whatever_its_bound() -> None:
    assert len(loop_of(1)) == len(loop_of(499_999)) == 32
    assert loop_of(1000)[20:24] == (1000).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (NO_BOUNDS, "as it was"),
        (17, "write_program"),
        (NO_BOUNDS.replace(COUNT, ""), "Nothing is counted"),
        (write_program("no_bounds", NO_BOUNDS, change={"table.cell": "x"}), "could not be made"),
    ],
)
def test_the_last_cell_wrong_answers(answer: Any, said: str) -> None:
    feedback = judge(1, answer)
    assert not feedback.passed
    assert said in feedback.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({KEPT: ""}, "Every number"),
        ({KEPT: "    if (*event > 300)\n        return 1;\n"}, "still in hand"),
        (
            {"    events.ringbuf_submit(event, 0);\n": "    events.ringbuf_discard(event, 0);\n"},
            "Nothing is handed over",
        ),
    ],
)
def test_giving_back_wrong_answers(change: dict[str, str], said: str) -> None:
    feedback = judge(2, write_program("unsubmitted", UNSUBMITTED, change=change))
    assert not feedback.passed
    assert said in feedback.message


def test_giving_back_in_two_ways_is_right() -> None:
    discard = KEPT.replace("return 0;", "{ events.ringbuf_discard(event, 0); return 0; }")
    assert judge(2, write_program("unsubmitted", UNSUBMITTED, change={KEPT: discard})).passed
    early = {
        KEPT: "",
        "    u64 *event = ": "    if (ctx->args[1] > 300)\n        return 0;\n    u64 *event = ",
    }
    feedback = judge(2, write_program("unsubmitted", UNSUBMITTED, change=early))
    assert feedback.passed
    assert "even better" in feedback.message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (1_000_000, "limit of instructions"),
        (500_000, "So close"),
        (499_998, "too small"),
        (4_999_990, "unit"),
        ("many", "A number"),
    ],
)
def test_the_most_rounds_wrong_answers(answer: Any, said: str) -> None:
    assert judge(3, 499_999).passed
    feedback = judge(3, answer)
    assert not feedback.passed
    assert said in feedback.message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("not at all", "longer"),
        ("with the square", "hundred times"),
        ("exponentially", "double"),
        (2, "One of"),
    ],
)
def test_the_growth_wrong_answers(answer: Any, said: str) -> None:
    assert judge(4, "in proportion").passed
    feedback = judge(4, answer)
    assert not feedback.passed
    assert said in feedback.message

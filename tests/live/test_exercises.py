"""Exercises that ask for C, checked on the running kernel: the program is compiled, loaded, and must count right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import labkit as lk
from labkit import spec
from labkit.lessons import Feedback, exercises
from labkit.notebook_io import chapters, read_solutions

pytestmark = pytest.mark.live

LIVE = SimpleNamespace(mode="live")
HELLO_C = spec.read("hello").source
COUNTS_C = spec.read("syscall_counts").source


def solution(exercise: str, **names: Any) -> str:
    chapter = next(path for path in chapters() if path.stem.startswith(exercise[:2]))
    section = read_solutions(chapter.parent / "solutions" / f"{chapter.stem}.py")[exercise]
    names["lk"] = lk
    exec(section.split("lk.check")[0], names)
    return str(names["answer"].source)


def hello(answer: str) -> Feedback:
    return exercises("01")[0].check(answer, {"lab": LIVE, "hello_c": HELLO_C})


def reads(answer: str) -> Feedback:
    return exercises("02")[0].check(answer, {"lab": LIVE, "source": COUNTS_C})


def test_each_start_is_a_process_of_its_own() -> None:
    feedback = hello(solution("01.1", hello_c=HELLO_C))
    assert feedback.passed, feedback.message
    assert "23 rows" in feedback.message


def test_a_key_filled_after_the_look_up_is_told_from_one_filled_before() -> None:
    late = solution("01.1", hello_c=HELLO_C)
    fill = "    caller.tgid = bpf_get_current_pid_tgid() >> 32;\n"
    late = late.replace(fill, "").replace("    book->delivered++;\n", fill + "    book->delivered++;\n")
    feedback = hello(late)
    assert not feedback.passed
    assert "filled too late" in feedback.message


def test_a_program_that_does_not_compile_is_told_with_the_line() -> None:
    broken = solution("01.1", hello_c=HELLO_C).replace(">> 32;", ">> 32")
    feedback = hello(broken)
    assert not feedback.passed
    assert "does not compile" in feedback.message
    assert "line" in feedback.message


def test_a_program_that_the_verifier_refuses_is_told_with_its_reason() -> None:
    unsafe = solution("01.1", hello_c=HELLO_C).replace("if (!calls) {", "if (0) {")
    feedback = hello(unsafe)
    assert not feedback.passed
    assert "verifier refuses" in feedback.message


def test_a_histogram_of_reads_agrees_with_the_counts() -> None:
    feedback = reads(solution("02.1", source=COUNTS_C))
    assert feedback.passed, feedback.message


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (
            "lk_log2_slot(third_argument);\n        cell = read_size",
            "lk_log2_slot(now);\n        cell = read_size",
            "which argument",
        ),
        ("nr == LK_NR_read)", "nr != LK_NR_read)", "calls of read(), `read_size`"),
    ],
    ids=["not the size", "the other calls"],
)
def test_a_histogram_of_something_else_is_noticed(right: str, wrong: str, said: str) -> None:
    whole = solution("02.1", source=COUNTS_C)
    assert right in whole
    feedback = reads(whole.replace(right, wrong))
    assert not feedback.passed
    assert said in feedback.message


def test_a_hook_that_is_another_is_tried_with_five_processes() -> None:
    answer = solution("00.3")
    context = {"lab": LIVE}
    feedback = exercises("00")[2].check(answer, context)
    assert feedback.passed, feedback.message
    assert "5 processes" in feedback.message


@pytest.mark.parametrize(
    ("limit", "said"),
    [("1000000", ""), ("0", "counted as long"), ("1000000000", "it must be")],
    ids=["right", "no limit", "a second"],
)
def test_long_waits_are_held_against_sums_and_maxima(limit: str, said: str) -> None:
    answer = solution("06.2").replace(">= 1000000)", f">= {limit})")
    feedback = exercises("06")[1].check(answer, {"lab": LIVE})
    assert feedback.passed is (said == ""), feedback.message
    assert said in feedback.message

"""C written in a notebook: changes that fit and that do not, and how it is shown."""

from __future__ import annotations

import re

import pytest

from labkit import spec
from labkit.errors import UnknownProgram
from labkit.lessons import Feedback, source_of, write_program

HELLO = spec.read("hello").source


def test_changes_are_made_and_shown_as_a_difference() -> None:
    mine = write_program("hello", change={"u64 zero = 0,": "u64 zero = 100,"})
    assert mine.source == HELLO.replace("u64 zero = 0,", "u64 zero = 100,")
    assert [line for line in mine.difference if line[0] in "+-"] == [
        "-    u64 zero = 0, *calls;",
        "+    u64 zero = 100, *calls;",
    ]
    assert "zero = 100" in mine._repr_html_()


def test_changes_build_on_each_other_and_on_a_source_of_ones_own() -> None:
    mine = write_program("hello", "int a;\n", change={"int a": "int b", "int b": "int c"})
    assert mine.source == "int c;\n"


def test_a_text_that_is_not_there_is_told_with_the_nearest_line() -> None:
    mine = write_program("hello", change={"bpf_get_curent_comm(&caller.comm": "x"})
    assert mine.source == HELLO
    (problem,) = mine.problems
    assert "is not in the program" in problem
    assert "bpf_get_current_comm(&caller.comm" in problem
    assert problem in str(mine)


def test_a_text_that_is_there_often_is_told_with_how_often() -> None:
    (problem,) = write_program("hello", change={"return 0;": "return 1;"}).problems
    assert f"{HELLO.count('return 0;')} times" in problem


def test_hostile_text_is_shown_as_text() -> None:
    shown = write_program("hello", "x\n", change={"x": "<img src=y>\x1b[2J"})
    assert "<img" not in shown._repr_html_()
    assert "\x1b" not in str(shown)


def test_a_program_that_the_lab_does_not_have_is_an_error() -> None:
    with pytest.raises(UnknownProgram, match="nearest: hello"):
        write_program("helo")


class TestAnswers:
    def told(self, answer: object) -> str:
        feedback = source_of(answer, contains="say_hello", original=HELLO)
        assert isinstance(feedback, Feedback)
        assert not feedback.passed
        return feedback.message

    def test_text_and_written_programs_are_answers(self) -> None:
        mine = write_program("hello", change={"u64 zero = 0,": "u64 zero = 100,"})
        assert source_of(mine, contains="say_hello", original=HELLO) == mine.source
        assert source_of(mine.source, contains="say_hello") == mine.source

    @pytest.mark.parametrize("answer", [None, 23, "int main;", ["say_hello"]])
    def test_anything_else_is_told_what_is_asked_for(self, answer: object) -> None:
        assert "write_program" in self.told(answer)

    def test_no_change_at_all_is_told(self) -> None:
        assert "as it was" in self.told(HELLO)
        assert "as it was" in self.told(write_program("hello"))

    def test_a_change_that_did_not_fit_is_told_again(self) -> None:
        assert "is not in the program" in self.told(write_program("hello", change={"say_helo": "x"}))


def test_what_it_says_of_a_change_that_failed_can_be_read_in_a_light_and_in_a_dark_theme() -> None:
    """WCAG 2.1: 3 to 1 at the least; one colour has to serve on JupyterLab's white and on its #111."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shown = write_program("hello", change={"no such line": ""})._repr_html_()
    (colour,) = re.findall(r'style="color:(#\w{6})"', shown)
    for behind in ("#ffffff", "#111111"):
        low, high = sorted((light(colour), light(behind)))
        assert (high + 0.05) / (low + 0.05) >= 3, behind

"""Exercises of chapter 01: typical answers, right and wrong. What needs a kernel is in tests/live."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import labkit as lk
from labkit import spec
from labkit.lessons import Feedback, exercises
from labkit.lessons.ch01 import _judge_per_process
from labkit.notebook_io import read_solutions
from labkit.paths import notebooks_dir

HELLO_C = spec.read("hello").source
REPLAY = SimpleNamespace(mode="replay")
HELLO = pd.DataFrame({"comm": ["lk-spawner", "python", "sh"], "calls": pd.array([23, 2, 15], dtype="uint64")})
FILL = "    bpf_get_current_comm("


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("01")[number - 1].check(answer, context)


def per_process(answer: Any) -> Feedback:
    return judge(1, answer, lab=REPLAY, hello_c=HELLO_C)


def changed(member: str = "    u32 tgid;\n", fill: str = "") -> str:
    return HELLO_C.replace("struct lk_caller {\n", "struct lk_caller {\n" + member).replace(FILL, fill + FILL)


def solution() -> str:
    section = read_solutions(notebooks_dir() / "solutions" / "01_hello_world.py")["01.1"]
    names: dict[str, Any] = {"hello_c": HELLO_C, "lk": lk}
    exec(section.split("lk.check")[0], names)
    return str(names["answer"].source)


class TestPerProcess:
    def test_the_shipped_solution_is_run_in_replay_and_says_that_no_kernel_was_asked(self) -> None:
        feedback = per_process(solution())
        assert feedback.passed
        assert "without a kernel" in feedback.message

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (HELLO_C, "as it was"),
            ("u32 tgid;", "whole C program"),
            (None, "whole C program"),
            (changed(member="    u64 tgid;\n"), "no member"),
            (changed(), "Nothing is ever put"),
            (changed(fill="    caller.tgid = bpf_get_current_pid_tgid();\n"), "upper half"),
            (changed(fill="    caller.tgid = bpf_get_current_uid_gid() >> 32;\n"), "upper half"),
        ],
    )
    def test_what_is_missing_is_named(self, answer: Any, said: str) -> None:
        feedback = per_process(answer)
        assert not feedback.passed
        assert said in feedback.message

    def test_a_filled_key_written_in_the_initialiser_is_right_too(self) -> None:
        answer = changed().replace(
            "struct lk_caller caller = {};",
            "struct lk_caller caller = {.tgid = bpf_get_current_pid_tgid() >> 32};",
        )
        assert per_process(answer).passed

    def rows(self, tgids: list[int], calls: list[int]) -> pd.DataFrame:
        return pd.DataFrame({"tgid": tgids, "comm": "lk-spawner", "calls": calls})

    def test_one_row_per_start_is_right(self) -> None:
        feedback = _judge_per_process(self.rows(list(range(100, 123)), [1] * 23), parent=99)
        assert feedback.passed
        assert "99" in feedback.message

    @pytest.mark.parametrize(
        ("tgids", "calls", "said"),
        [([], [], "still in the key"), ([0], [23], "`tgid` 0"), ([7, 8], [22, 1], "2 rows with 23 calls")],
    )
    def test_other_maps_are_wrong(self, tgids: list[int], calls: list[int], said: str) -> None:
        feedback = _judge_per_process(self.rows(tgids, calls), parent=99)
        assert not feedback.passed
        assert said in feedback.message


class TestShare:
    def test_the_share_of_all_calls_is_right(self) -> None:
        share = HELLO.loc[HELLO["comm"] == "lk-spawner", "calls"].sum() / HELLO["calls"].sum()
        assert judge(2, share, hello=HELLO).passed
        assert judge(2, 0.575, hello=HELLO).passed

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (57.5, "percentage"),
            (23, "number of calls"),
            (1 / 3, "share of the rows"),
            (23 / 17, "against the others"),
            (0.9, "too large"),
            ("0.575", "number"),
            (HELLO["calls"] / 40, "number"),
        ],
    )
    def test_other_ratios_are_named(self, answer: Any, said: str) -> None:
        feedback = judge(2, answer, hello=HELLO)
        assert not feedback.passed
        assert said in feedback.message

    def test_alone_on_the_machine_the_share_is_one(self) -> None:
        assert judge(2, 1.0, hello=HELLO.iloc[:1]).passed


class TestName:
    def test_after_the_change_the_task_bears_the_programs_name(self) -> None:
        assert judge(3, "true").passed

    @pytest.mark.parametrize(
        ("answer", "said"), [("lk-spawner", "entry"), ("python", "named itself"), (True, "One of")]
    )
    def test_other_names_are_explained(self, answer: Any, said: str) -> None:
        feedback = judge(3, answer)
        assert not feedback.passed
        assert said in feedback.message

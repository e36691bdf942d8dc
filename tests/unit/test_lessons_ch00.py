"""Exercises of chapter 00: typical answers, right and wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from labkit import spec
from labkit.lessons import Feedback, exercises, write_program

TRACEPOINTS = pd.DataFrame(
    {"name": ["sched_switch", "sched_wakeup", "sched_stat_wait", "pelt_sched", "schedule_x", "block_bio"]}
)


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("00")[number - 1].check(answer, context)


@pytest.mark.parametrize(
    ("usable", "first"),
    [
        (["kprobe", "fentry", "tracepoint", "raw tracepoint"], "kprobe"),
        (["fentry", "raw tracepoint"], "fentry"),
        (["tracepoint", "raw tracepoint"], "tracepoint"),
        (["raw tracepoint"], "raw tracepoint"),
    ],
)
def test_the_first_hook_that_is_there_is_taken(usable: list[str], first: str) -> None:
    assert judge(1, first, usable=usable).passed
    assert judge(1, f" {first.upper()} ", usable=usable).passed


def test_a_hook_that_is_missing_and_one_that_comes_later_are_told_apart() -> None:
    usable = ["tracepoint", "raw tracepoint"]
    assert "no kprobe hooks" in judge(1, "kprobe", usable=usable).message
    late = judge(1, "raw tracepoint", usable=usable)
    assert not late.passed
    assert "likes better" in late.message
    assert "One of" in judge(1, "uprobe", usable=usable).message
    assert not judge(1, usable, usable=usable).passed


@pytest.mark.parametrize("answer", [3, 3.0, np.int64(3)])
def test_names_that_begin_with_sched_are_counted(answer: Any) -> None:
    assert judge(2, answer, tracepoints=TRACEPOINTS).passed


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (6, "all of them"),
        (5, "anywhere"),
        (4, "underscore"),
        (2, "too small"),
        (True, "number"),
        (None, "number"),
        (TRACEPOINTS["name"].str.startswith("sched_"), "number"),
    ],
)
def test_other_counts_are_named(answer: Any, said: str) -> None:
    feedback = judge(2, answer, tracepoints=TRACEPOINTS)
    assert not feedback.passed
    assert said in feedback.message


class TestForkInstead:
    HELLO = spec.read("hello").source
    HOOKS = HELLO[HELLO.index(' *     - "kprobe') : HELLO.index(" * maps:")]

    def judge(self, hooks: str) -> Feedback:
        answer = write_program("hello", change={self.HOOKS: hooks})
        return judge(3, answer, lab=SimpleNamespace(mode="replay"))

    def test_the_tracepoint_alone_is_right(self) -> None:
        assert self.judge(' *     - "tracepoint:sched:sched_process_fork"\n').passed

    @pytest.mark.parametrize(
        ("hooks", "said"),
        [
            (
                ' *     - "tracepoint:sched:sched_process_fork"\n *     - "kprobe:{sys}execve"\n',
                "may still hook in",
            ),
            (' *     - "tracepoint:sched:sched_process_exec"\n', "may still hook in"),
            (' *     - "raw_tracepoint:sched_process_fork"\n', "compares the number"),
            (' *     - "kprobe:sched_process_fork"\n', "not a function"),
            (' *     - "sched_process_fork"\n', "cannot be read"),
            (" *     - tracepoint: sched\n", "cannot be read"),
        ],
    )
    def test_typical_wrong_answers(self, hooks: str, said: str) -> None:
        feedback = self.judge(hooks)
        assert not feedback.passed
        assert said in feedback.message

    def test_no_change_and_a_change_that_does_not_fit_are_told(self) -> None:
        context = {"lab": SimpleNamespace(mode="replay")}
        assert "as it was" in judge(3, self.HELLO, **context).message
        assert (
            "could not be made"
            in judge(3, write_program("hello", change={"kprobe:execve": "x"}), **context).message
        )

"""Exercises of chapters 08 and 09 that ask for C, on the running kernel: each refusal is met by the answer it is for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import labkit as lk
from labkit.lessons import Feedback, exercises

pytestmark = [pytest.mark.live, pytest.mark.slow]

LIVE = SimpleNamespace(mode="live")
BEFORE = "    if (!next_pid)\n        return 0;\n"
NOT_IDLE = "    if (!pid) /*"


def stamping(condition: str, **more: str) -> Feedback:
    change = {BEFORE: f"    if ({condition})\n        enqueued(prev);\n{BEFORE}"} | more
    return exercises("08")[1].check(lk.write_program("netflix_noisy_neighbor", change=change), {"lab": LIVE})


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("ctx->args[0] || !prev_state", ""),
        ("!(ctx->args[0] || !prev_state)", "Which of args"),
        ("(ctx->args[0] || !prev_state) && (bpf_get_prandom_u32() & 3)", "Either condition is enough"),
        ("ctx->args[0] || 1", "goes to sleep by itself"),
    ],
    ids=["right", "inverted", "not all", "whoever leaves"],
)
def test_what_a_mended_program_sees_is_held_against_run_delay(condition: str, said: str) -> None:
    feedback = stamping(condition)
    assert feedback.passed is (said == ""), feedback.message
    assert said in feedback.message


def test_the_state_of_the_one_that_leaves_is_there_on_kernels_that_do_not_hand_it_over() -> None:
    feedback = stamping("ctx->args[0] || !prev_state", **{"LK_ARGS_sched_switch >= 4": "0"})  # as before 5.18
    assert feedback.passed, feedback.message


def test_idle_waits_for_nothing() -> None:
    feedback = stamping("ctx->args[0] || !prev_state", **{NOT_IDLE: "    if (pid > 1 << 30) /*"})
    assert not feedback.passed
    assert "Idle (pid 0)" in feedback.message


def test_a_wait_counted_from_before_it_began_is_more_than_there_was() -> None:
    early = {"    u64 ts = bpf_ktime_get_ns();\n": "    u64 ts = bpf_ktime_get_ns() - 20000000;\n"}
    feedback = stamping("ctx->args[0] || !prev_state", **early)
    assert not feedback.passed
    assert "more than there was" in feedback.message


@pytest.mark.parametrize(
    ("count", "said"),
    [
        ("if (throttled_ns)\n        waiter->book->throttled_waits++;", ""),
        ("waiter->book->throttled_waits++;", "only if a part of it was"),
        (
            "if (throttled_ns && !waiter->book)\n        waiter->book->throttled_waits++;",
            "nothing was counted",
        ),
        (
            "if (throttled_ns && !waiter->book->others++)\n        waiter->book->throttled_waits++;",
            "waits were counted",
        ),
    ],
    ids=["right", "every wait", "none", "some"],
)
def test_throttled_waits_are_held_against_the_periods_of_the_quota(count: str, said: str) -> None:
    change = {
        "    u64 migrations;\n": "    u64 migrations;\n    u64 throttled_waits;\n    u64 others;\n",
        "    waiter->book->delivered++;\n": f"    waiter->book->delivered++;\n    {count}\n",
    }
    feedback = exercises("09")[1].check(lk.write_program("noisy_neighbor", change=change), {"lab": LIVE})
    assert feedback.passed is (said == ""), feedback.message
    assert said in feedback.message

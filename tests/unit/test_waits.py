"""Waits against run_delay: when they agree, differ, or cannot be verified."""

import pandas as pd

from labkit.sched import allowed_ns, compare


def _frames(wait_ns: int, run_delay_ns: int, waits: int) -> pd.DataFrame:
    tasks = pd.DataFrame(
        {"role": ["a"], "pid": [7], "run_ns": [10**9], "run_delay_ns": [run_delay_ns], "timeslices": [waits]}
    )
    seen = pd.DataFrame({"pid": [7], "waits": [waits], "wait_ns": [wait_ns], "preempted_wait_ns": [0]})
    return compare(seen, tasks)


def test_two_percent_or_twelve_microseconds_per_event() -> None:
    assert allowed_ns(10**9, 10) == 0.02 * 10**9
    assert allowed_ns(10**6, 10) == 120_000


def test_close_agrees_and_far_differs() -> None:
    assert _frames(1_015_000_000, 10**9, 100)["verdict"].item() == "agrees"
    assert _frames(1_025_000_000, 10**9, 100)["verdict"].item() == "differs"


def test_short_waits_cannot_be_verified_even_if_they_agree() -> None:
    assert _frames(10**6, 10**6, 100)["verdict"].item() == "below what can be verified"


def test_a_task_that_the_program_did_not_see_has_no_waits() -> None:
    tasks = pd.DataFrame(
        {"role": ["a"], "pid": [7], "run_ns": [1], "run_delay_ns": [10**9], "timeslices": [3]}
    )
    seen = pd.DataFrame({"pid": [8], "waits": [1], "wait_ns": [1], "preempted_wait_ns": [0]})
    row = compare(seen, tasks).iloc[0]
    assert (row["waits"], row["verdict"]) == (0, "differs")


def test_an_oracle_of_zero_proves_nothing() -> None:
    assert _frames(0, 0, 0)["verdict"].item() == "below what can be verified"

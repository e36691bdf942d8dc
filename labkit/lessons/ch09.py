"""Exercises of chapter 09, throttled or noisy."""

from __future__ import annotations

import re
from typing import Any

from labkit.lessons import (
    Context,
    Feedback,
    exercise,
    expect_choice,
    expect_number,
    explained,
    is_number,
    rehearsals,
    rehearse,
    right,
    source_of,
    wrong,
)
from labkit.lessons.programs import try_program
from labkit.program import Program
from labkit.spec import read

_PROGRAM = "noisy_neighbor"
#: In replay: tables for the few cgroups and tasks of the model.
_SMALL = {"cpus": 2, "cgroups": 64, "tasks": 1024, "shards": 2, "dense": 16, "dense_shards": 2, "cells": 256}


@exercise(
    "09.1",
    question="What share of the wait in throttled_beside_hog would remain without the quota?",
    hints=[
        "Which of the causes would vanish? What remains is all the others.",
        "Take the row of `causes`; 1 - throttled / sum.",
        "row = causes.loc['throttled_beside_hog']; 1 - row['throttled'] / row.sum()",
    ],
)
def without_the_quota(answer: Any, context: Context) -> Feedback:
    """All but the throttled part."""
    row = context["causes"].loc["throttled_beside_hog"].astype("float64")
    truth = float(1 - row["throttled"] / row.sum())
    if is_number(answer):
        if abs(answer - (1 - truth)) < 0.0005 < abs(1 - 2 * truth):
            return wrong("That is the share that would vanish.")
        other = context["causes"].loc["throttled"].astype("float64")
        if abs(answer - float(1 - other["throttled"] / other.sum())) < 0.0005:
            return wrong("That is the service that is alone; the one beside a hog is asked for.")
    return expect_number(answer, truth, within=0.001)


@exercise(
    "09.2",
    question="Count the waits that a quota had a part in, as `throttled_waits` in the ledger.",
    hints=[
        "A member of `struct lk_noisy_ledger` is a counter; put `u64 throttled_waits;` at its end.",
        "In `entered()` the ledger is `waiter->book`, and `throttled_ns` is set by `throttled_part(...)`.",
        "After `waiter->book->delivered++;` add: if (throttled_ns) waiter->book->throttled_waits++;",
    ],
)
def count_throttled_waits(answer: Any, context: Context) -> Feedback:
    """A throttled service, whose waits are counted; in replay without a kernel."""
    source = source_of(answer, contains="lk_switch", original=read(_PROGRAM).source)
    if isinstance(source, Feedback):
        return source
    tried = _tried if context["lab"].mode == "live" else _rehearsed
    return explained(tried(source), _reading(source))


def _reading(source: str) -> str:
    if not re.search(r"\bthrottled_waits\s*;", source):
        return "`struct lk_noisy_ledger` has no member `u64 throttled_waits`."
    if not re.search(r"throttled_waits\s*(\+\+|\+=)|\+\+\s*[\w>-]*throttled_waits", source):
        return "Nothing counts `throttled_waits` up."
    return ""


def _tried(source: str) -> Feedback:
    from labkit.noisy.plan import plan

    chosen = plan()
    return try_program(
        _PROGRAM, source, lambda program: _judge(program, wakeup=chosen.wakeup), **chosen.params
    )


def _rehearsed(source: str) -> Feedback:
    found: dict[str, int] = {}

    def judge(program: Program) -> Feedback:
        counters = program.counters()
        counted = counters.get("throttled_waits", 0)
        feedback = judge_counts(counted, counters["seen"], found["throttled"])
        if feedback.passed and counted != found["throttled"]:
            return wrong(
                f"{found['throttled']} of {found['waits']} waits had a part of the quota in them; it counts "
                f"{counted}."
            )
        return feedback

    return rehearse(_PROGRAM, source, rehearsals.throttled(found), judge, **_SMALL)


def _judge(program: Program, *, wakeup: bool) -> Feedback:
    from labkit.workloads import scenario

    if wakeup:
        program.attach("wakeup")
    with scenario("throttled", seconds=1.0).run() as truth:
        program.stop()
    counters = program.counters()
    counted, seen = counters.get("throttled_waits", 0), counters["seen"]
    return judge_counts(counted, seen, int(truth.cgroups["nr_throttled"].max()))


def judge_counts(counted: int, seen: int, periods: int) -> Feedback:
    """How many of ``seen`` waits were counted as throttled, where a service was throttled in so many periods."""
    if counted >= seen // 2:
        return wrong(
            f"{counted} of all {seen} waits count as throttled: is it counted only if a part of it was?"
        )
    if counted == 0:
        return wrong("A service was throttled, and nothing was counted.")
    if counted < periods // 3:
        return wrong(f"The service was throttled in {periods} periods; only {counted} waits were counted.")
    return right(
        f"Throttled in {periods} periods, and {counted} of the machine's {seen} waits had a part of it."
    )


@exercise(
    "09.3",
    question="One task, no limit of its own; the neighbour is moved away, and nothing changes. Which row is it most like?",
    hints=[
        "If nothing changes without the neighbour, how large was the foreign part? That leaves three of the four rows.",
        "A single task cannot stand in line behind tasks of its own. That leaves two.",
        "Both are throttled. In which of them does the container's own cpu.max say `max`?",
    ],
)
def moved_away(answer: Any, context: Context) -> Feedback:
    """Throttled by an ancestor's quota: the other rows contradict one of the three things that were seen."""
    return expect_choice(
        answer,
        "quota_on_parent",
        ["throttled", "throttled_beside_hog", "own_threads", "quota_on_parent"],
        {
            "throttled": "Right cause, wrong place: that limit is in the container's own cpu.max, and here it says `max`.",
            "throttled_beside_hog": "There the hog has a part of it: moving it away would help somewhat.",
            "own_threads": "There three tasks stand in each other's way. This container runs a single one.",
        },
    )


@exercise(
    "09.4",
    question="Four tasks throttled together for 50 ms: how much in cpu.stat, how much in the wait? (a tuple, ms)",
    hints=[
        "cpu.stat counts the wall time in which the group was throttled.",
        "The wait of a cgroup is the sum over its tasks.",
        "(50, 200)",
    ],
)
def wall_and_task_time(answer: Any, context: Context) -> Feedback:
    """50 ms of wall time, 200 ms of task time."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return wrong("Two numbers are asked for: (ms in cpu.stat, ms of waiting).")
    wall, waited = answer
    if (wall, waited) == (200, 50):
        return wrong("The other way round: which of the two counts wall time?")
    if wall == waited:
        return wrong("They are not the same: four tasks stand in line at once.")
    first = expect_number(wall, 50, unit="ms")
    return first if not first.passed else expect_number(waited, 200, unit="ms")

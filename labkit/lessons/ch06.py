"""Exercises of chapter 06, run-queue latency."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from labkit.errors import LabkitError
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
from labkit.program import Program
from labkit.spec import read

_LONG_NS = 1_000_000
#: In replay: how long the hogs' turns are. An odd number of kinds, so that both wait for each.
_TURNS = (200_000, 4_000_000, 999_999, 1_000_000, 3_500_000, 50_000, 12_000_000) * 9


@exercise(
    "06.1",
    question="What share (0 to 1) of its life did hog_a spend waiting, out of the time it waited or ran?",
    hints=[
        "Take the row of hog_a in `hogs`; its times are in ns.",
        "Waiting is `wait_ns`, running is `run_ns`; together they are all of a spinning task's time.",
        "wait_ns / (wait_ns + run_ns)",
    ],
)
def wait_share(answer: Any, context: Context) -> Feedback:
    """The wait as a share of runnable time."""
    row = context["hogs"].set_index("role").loc["hog_a"]
    truth = float(row["wait_ns"] / (row["wait_ns"] + row["run_ns"]))
    ratio = float(row["wait_ns"] / row["run_ns"])
    if is_number(answer):
        if abs(answer - truth * 100) < 1:
            return wrong("That is a percentage; a share between 0 and 1 is asked for.")
        if abs(answer - ratio) < 0.001 and abs(ratio - truth) > 0.002:
            return wrong("That is waiting per running. The share is of both together.")
    return expect_number(answer, truth, within=0.001)


@exercise(
    "06.2",
    question="Change the program so that each task also counts its waits of 1 ms and more, as `long_waits`.",
    hints=[
        "A value's columns are the members of `struct lk_waits`: add `u64 long_waits;` there, before `comm`.",
        "`add()` is where one finished wait is added to the task's entry.",
        'change={"    u64 preempted_wait_ns;\\n": "    u64 preempted_wait_ns;\\n    u64 long_waits;\\n", ...}, '
        "and the same with `entry->waits++;` and `if (wait_ns >= 1000000) entry->long_waits++;`",
    ],
)
def long_waits(answer: Any, context: Context) -> Feedback:
    """Live: load the answer, make two hogs wait, and look. In replay: the same without a kernel."""
    answer = source_of(answer, contains="lk_switch", original=read("runq_latency").source)
    if isinstance(answer, Feedback):
        return answer
    tried = _try_long_waits if context["lab"].mode == "live" else _rehearse_long_waits
    return explained(tried(answer), _reading(answer))


def _reading(source: str) -> str:
    if not re.search(r"\bu64\s+long_waits\s*;", source):
        return "The struct of results has no member `u64 long_waits`."
    if not re.search(r"long_waits\s*(\+\+|\+=\s*1)|\+\+\s*entry->long_waits", source):
        return "Nothing increments `long_waits`."
    return ""


def _try_long_waits(source: str) -> Feedback:
    from labkit.program import load
    from labkit.workloads import two_pinned_hogs

    try:
        with load("runq_latency", source=source) as prog, two_pinned_hogs(seconds=0.5).run() as truth:
            waits = prog.frame("waits")
    except LabkitError as error:
        return wrong(f"The program does not load: {error.what}. {error.why}")
    return _judge_long_waits(waits[waits["pid"].isin(truth.tasks["pid"])])


def _rehearse_long_waits(source: str) -> Feedback:
    """Two hogs whose every wait is known, one of exactly a millisecond among them."""
    books: dict[int, int] = {}
    waits: dict[int, list[int]] = {}

    def judge(program: Program) -> Feedback:
        found = program.frame("waits")
        mine = found[found["pid"].isin(waits)]
        feedback = _judge_long_waits(mine)
        if not feedback.passed:
            return feedback
        due = {pid: sum(one >= _LONG_NS for one in all_of_it) for pid, all_of_it in waits.items()}
        counted = dict(zip(mine["pid"].astype(int), mine["long_waits"].astype(int), strict=True))
        if counted != due:
            return wrong(
                f"Of these waits {sum(due.values())} took 1 ms or more, some of them exactly 1 ms; it counts "
                f"{sum(counted.values())}."
            )
        return feedback

    return rehearse("runq_latency", source, rehearsals.hogs(books, waits, turns=_TURNS), judge)


def _judge_long_waits(mine: pd.DataFrame) -> Feedback:
    if "long_waits" not in mine.columns:
        return wrong(f"The map's frame has no column `long_waits`; it has {', '.join(mine.columns)}.")
    long, total = int(mine["long_waits"].sum()), int(mine["waits"].sum())
    least, most = _bounds(mine)
    if long == total and least < total:
        return wrong(f"All {total} waits were counted as long: is the limit {_LONG_NS} ns?")
    if not least <= long <= most:
        return wrong(
            f"Of {total} waits it calls {long} long; from their sums and maxima it must be {least} to {most}."
        )
    return right(f"Of {total} waits of the two hogs, {long} took 1 ms or more.")


def _bounds(waits: pd.DataFrame) -> tuple[int, int]:
    """How many waits of 1 ms there must be at least and can be at most, from sums and maxima alone."""
    over = (waits["wait_ns"].astype("float64") - waits["waits"].astype("float64") * _LONG_NS).clip(lower=0)
    room = (waits["max_wait_ns"].astype("float64") - _LONG_NS).clip(lower=1)
    least = int((over / room).sum())
    most = int((waits["wait_ns"] // _LONG_NS).sum())
    return least, min(most, int(waits["waits"].sum()))


@exercise(
    "06.3",
    question="A program stamps tasks only in sched_wakeup. What does it see of the two hogs' waits?",
    hints=[
        "When does a task that never sleeps get a sched_wakeup?",
        "Look at preempted_wait_ns beside wait_ns in `hogs`.",
    ],
)
def wakeup_only(answer: Any, context: Context) -> Feedback:
    """Nearly nothing: a spinning task is never woken."""
    return expect_choice(
        answer,
        "almost none",
        ["all", "about half", "almost none"],
        {
            "all": "Every wait would have to begin with a wakeup. Does it, for a task that never sleeps?",
            "about half": "Half of the time each hog waits; but which of those waits begin with a wakeup?",
        },
    )

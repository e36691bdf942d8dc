"""Exercises of chapter 01, hello world."""

from __future__ import annotations

import re
from collections.abc import Collection
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

_STARTS = 23
#: In replay: the spawner, and the copies of it.
_PARENT, _CHILDREN = 99, range(3000, 3000 + _STARTS)


@exercise(
    "01.1",
    question="Change the program so that it counts per process and name: the key gets a further member `u32 tgid`.",
    hints=[
        "Two places change: the key's struct, and `say_hello()`, where the key is filled.",
        "Add `u32 tgid;` to `struct lk_caller`; then fill `caller.tgid` before the look-up in `hello`.",
        "In `say_hello()`: caller.tgid = bpf_get_current_pid_tgid() >> 32;",
    ],
)
def count_per_process(answer: Any, context: Context) -> Feedback:
    """Live: load the answer, start 23 programs, and look. In replay: the same without a kernel."""
    answer = source_of(answer, contains="say_hello", original=context["hello_c"])
    if isinstance(answer, Feedback):
        return answer
    if context["lab"].mode == "live":
        return explained(_try_per_process(answer), _reading(answer))
    script = rehearsals.starts(_STARTS, parent=_PARENT)
    feedback = rehearse("hello", answer, script, lambda program: _rows(program, _PARENT, _CHILDREN))
    return explained(feedback, _reading(answer))


def _reading(source: str) -> str:
    key = re.search(r"struct\s+lk_caller\s*\{([^}]*)\}", source)
    if not key or not re.search(r"\bu32\s+tgid\s*;", key[1]):
        return "`struct lk_caller`, the key, has no member `u32 tgid`."
    if not re.search(r"caller\.tgid\s*=|\.tgid\s*=[^=]", source):
        return "Nothing is ever put into `tgid`: each key holds 0 there."
    if "bpf_get_current_pid_tgid" not in source or not re.search(r">>\s*32", source):
        return "The process id is the upper half of the 64 bits; the lower half is the thread's."
    return ""


def _try_per_process(source: str) -> Feedback:
    from labkit.program import load
    from labkit.workloads import exact_spawns

    try:
        with load("hello", source=source) as prog, exact_spawns(_STARTS).run() as truth:
            return _rows(prog, int(truth.tasks["pid"].iloc[0]))
    except LabkitError as error:
        return wrong(f"The program does not load: {error.what}. {error.why}")


def _rows(program: Program, parent: int, children: Collection[int] = ()) -> Feedback:
    hello = program.frame("hello")
    if "tgid" not in hello.columns:
        return wrong(f"The map's frame has no column `tgid`; it has {', '.join(hello.columns)}.")
    mine = hello[hello["comm"] == "lk-spawner"] if "comm" in hello.columns else hello.iloc[:0]
    return _judge_per_process(mine, parent, children)


def _judge_per_process(mine: pd.DataFrame, parent: int, children: Collection[int] = ()) -> Feedback:
    """Rows of lk-spawner: one per start, since each start is a process of its own.

    :param children: the processes, where they are known beforehand.
    """
    if mine.empty:
        return wrong("No row bears the name `lk-spawner`: is `comm` still in the key, and still filled?")
    if len(mine) == 1 and int(mine["tgid"].iloc[0]) == 0:
        return wrong("All calls have `tgid` 0: it is filled too late, or not at all.")
    calls = int(mine["calls"].sum())
    if len(mine) != _STARTS or calls != _STARTS:
        return wrong(
            f"{_STARTS} programs were started; the map has {len(mine)} rows with {calls} calls together."
        )
    if children and set(mine["tgid"].astype(int)) != set(children):
        return wrong(
            "`tgid` holds other numbers than the processes'. The lower half of the 64 bits is the thread's."
        )
    return right(
        f"{len(mine)} rows with one call each, and none of them is the spawner itself (process {parent}): "
        "each start is made by a new copy of it, which then becomes the program."
    )


@exercise(
    "01.2",
    question="Which share (0 to 1) of all execve calls in `hello` did lk-spawner make?",
    hints=[
        "Two sums of the column `calls`: of the rows whose `comm` is lk-spawner, and of all rows.",
        'hello[hello["comm"] == "lk-spawner"] holds the rows of the workload.',
        'hello.loc[hello["comm"] == "lk-spawner", "calls"].sum() / hello["calls"].sum()',
    ],
)
def share_of_calls(answer: Any, context: Context) -> Feedback:
    """Calls of the workload over all calls."""
    hello = context["hello"]
    mine, total = int(hello.loc[hello["comm"] == "lk-spawner", "calls"].sum()), int(hello["calls"].sum())
    truth = mine / total
    if is_number(answer):
        if abs(answer - truth * 100) < 1e-3:
            return wrong("That is a percentage; a share between 0 and 1 is asked for.")
        if answer == mine:
            return wrong("That is the number of calls. The share is of all calls.")
        if len(hello) > 1 and abs(answer - 1 / len(hello)) < 1e-9:
            return wrong("That is its share of the rows. Each row holds a number of calls.")
        if total > mine and abs(answer - mine / (total - mine)) < 1e-9:
            return wrong(
                "That is the workload against the others. The share is of all calls, its own included."
            )
    return expect_number(answer, truth, within=1e-4)


@exercise(
    "01.3",
    question="Under which name do the same 23 events appear at sched:sched_process_exec?",
    hints=[
        "`comm` belongs to a task, and `execve` changes it on its way.",
        "A task's `comm` becomes the file name of the program that it now runs.",
    ],
)
def name_after_exec(answer: Any, context: Context) -> Feedback:
    """execve renames the task before that tracepoint fires (fs/exec.c: begin_new_exec sets comm)."""
    return expect_choice(
        answer,
        "true",
        ["lk-spawner", "true", "python"],
        {
            "lk-spawner": "That is the name at the entry of `execve`. What does a successful one put in its place?",
            "python": "The spawner is a Python script, but it named itself lk-spawner, and its copies inherit that.",
        },
        why_right="Where the hook sits decides what current means: before the change it is the caller, "
        "after it the program.",
    )

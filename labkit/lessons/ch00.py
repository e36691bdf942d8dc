"""Exercises of chapter 00, this machine."""

from __future__ import annotations

from typing import Any

from labkit import spec
from labkit.errors import LabkitError
from labkit.lessons import (
    Context,
    Feedback,
    exercise,
    expect_choice,
    expect_number,
    is_number,
    rehearsals,
    rehearse,
    right,
    source_of,
    try_program,
    wrong,
)
from labkit.program import Program

_PREFERENCE = ("kprobe", "fentry", "tracepoint", "raw tracepoint")


@exercise(
    "00.1",
    question="Which kind of hook will `hello` use on this kernel, preferring kprobe, fentry, tracepoint, raw tracepoint?",
    hints=[
        "It takes the first of its preferences that this kernel has.",
        "`usable` lists the kinds that this kernel has, in the same order.",
    ],
)
def first_hook(answer: Any, context: Context) -> Feedback:
    """The first usable kind."""
    usable = context["usable"]
    truth = next(kind for kind in _PREFERENCE if kind in usable)
    missing = {kind: f"This kernel has no {kind} hooks: see the table of features." for kind in _PREFERENCE}
    late = dict.fromkeys(usable, "It could use that, but one that it likes better is there, too.")
    why = f"Nothing that it prefers to a {truth} is there." if truth != "kprobe" else "Its first choice."
    return expect_choice(answer, truth, _PREFERENCE, missing | late, why_right=why)


@exercise(
    "00.2",
    question="How many tracepoints have a name that begins with `sched_`?",
    hints=[
        "A column of text has methods of its own under `.str`.",
        'tracepoints["name"].str.startswith("sched_") is a column of truths, and truths can be added up.',
    ],
)
def scheduler_tracepoints(answer: Any, context: Context) -> Feedback:
    """Names that begin with sched_."""
    names = context["tracepoints"]["name"]
    truth = int(names.str.startswith("sched_").sum())
    containing, loose = int(names.str.contains("sched").sum()), int(names.str.startswith("sched").sum())
    if not is_number(answer):
        return wrong(f"A number is asked for; this is a {type(answer).__name__}.")
    if answer == len(names) != truth:
        return wrong("That is all of them.")
    if answer == containing != truth:
        return wrong("That counts names that have `sched` anywhere in them. They should begin with `sched_`.")
    if answer == loose != truth:
        return wrong(
            "That counts names that begin with `sched`, whatever follows. The underscore belongs to it."
        )
    return expect_number(answer, truth, unit="tracepoints")


@exercise(
    "00.3",
    question="Make `hello` hook in at the tracepoint sched:sched_process_fork, and at nothing else.",
    hints=[
        "The hooks are the four lines below `exec:` in the first comment, each KIND:PLACE. One is to be left.",
        'Take all four lines as the old text, and one as the new: ` *     - "tracepoint:sched:sched_process_fork"`.',
        'The old text begins with ` *     - "kprobe:{sys}execve"` and ends with ` *     - "raw_tracepoint:sys_enter"`.',
    ],
)
def fork_instead(answer: Any, context: Context) -> Feedback:
    """Live: load the answer, let a process start five others, and look. In replay: the same without a kernel."""
    source = source_of(answer, contains="say_hello", original=spec.read("hello").source)
    if isinstance(source, Feedback):
        return source
    try:
        hooks = [hook for found in spec.parse(source, name="hello").hooks.values() for hook in found]
    except LabkitError as error:
        return wrong(f"The first comment cannot be read any more: {error.why or error.what}.")
    if not hooks:
        return wrong("No hook is left.")
    others = [str(hook) for hook in hooks if "sched_process_fork" not in hook.target]
    if others:
        return wrong(
            f"It may still hook in at {others[0]}: the first of the list that the kernel has is taken."
        )
    if any(hook.kind == "raw_tracepoint" for hook in hooks) and "LK_NR_execve" in source:
        return wrong(
            "At a raw tracepoint the program still compares the number of a system call, and there is none here: take "
            "the kind `tracepoint`, or change `lk_exec`, too."
        )
    if any(hook.kind not in ("tracepoint", "raw_tracepoint") for hook in hooks):
        return wrong("`sched_process_fork` is a tracepoint, not a function of the kernel.")
    if context["lab"].mode == "replay":
        return rehearse("hello", source, rehearsals.starts(5, parent=99), _five)
    return try_program("hello", source, _start_five)


def _start_five(program: Program) -> Feedback:
    from labkit.workloads import exact_spawns

    with exact_spawns(5).run():
        program.stop()
        return _five(program)


def _five(program: Program) -> Feedback:
    hello = program.frame("hello")
    forks = int(hello.loc[hello["comm"] == "lk-spawner", "calls"].sum())
    if forks != 5:
        return wrong(f"lk-spawner started 5 processes; the program counted {forks}.")
    return right(
        "lk-spawner made 5 processes, and the program counted 5. You have changed what the kernel does."
    )

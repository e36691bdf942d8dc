"""Exercises of chapter 00, this machine."""

from __future__ import annotations

from typing import Any

from labkit.lessons import Context, Feedback, exercise, expect_choice, expect_number, right, wrong

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
    feedback = expect_choice(answer, truth, _PREFERENCE, missing | late)
    if not feedback.passed:
        return feedback
    return right(
        f"Nothing that it prefers to a {truth} is there." if truth != "kprobe" else "Its first choice."
    )


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
    if isinstance(answer, bool) or not hasattr(answer, "__int__"):
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

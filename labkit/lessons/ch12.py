"""Chapter 12, the capstone: the report on a drawn case. The cases themselves are in :mod:`labkit.lessons.capstone`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

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
    try_program,
    wrong,
)
from labkit.lessons.capstone import (
    CASES,
    NOBODY,
    QUIET_MS_PER_S,
    REMEDIES,
    REST,
    VERDICTS,
    VICTIM,
    Case,
    draw,
)
from labkit.program import Program
from labkit.workloads import service_beside_hog

__all__ = ["CASES", "NOBODY", "QUIET_MS_PER_S", "REST", "VERDICTS", "VICTIM", "Case", "draw"]


@exercise(
    "12.1",
    question=f"What does the service suffer from: one of {', '.join(VERDICTS)}? Below {QUIET_MS_PER_S:.0f} ms of waiting "
    "in each second it is quiet.",
    hints=[
        f"How much does it wait at all, in each second? Below {QUIET_MS_PER_S:.0f} ms there is nothing to report: quiet.",
        "Add up its cells by cause: its own tasks, its quota, its neighbours, the rest of the machine. Less than a fifth "
        "does not change the story.",
        "Two causes with a fifth or more each: mixed. Else the larger one has the word; for the rest of the machine it is "
        "`system`.",
    ],
)
def verdict_of(answer: Any, context: Context) -> Feedback:
    """By the stated rule, by construction, or as the lab itself would say: what can be defended is right."""
    case: Case = context["case"]
    truth = case.by_rule()
    if isinstance(answer, str) and answer in case.defensible and answer != truth:
        built = (
            f"built as {answer!r}" if answer == case.declared else f"{answer!r} by the rule of `labkit noisy`"
        )
        said = f"That can be defended: it is {built}. By the report's own rule it is {truth!r}."
        return case.note("12.1", answer, right(said))
    feedback = expect_choice(answer, truth, VERDICTS, _why_not(case))
    return case.note("12.1", answer, feedback)


def _why_not(case: Case) -> dict[str, str]:
    """For each verdict why it is not that one; what is said fits the one that it is."""
    parts, per_s = case.parts_ns(), case.ms_per_s
    whole = max(sum(parts.values()), 1)
    share = {name: part / whole for name, part in parts.items()}
    if case.by_rule() == "quiet":
        little = f"It waits {per_s:,.1f} ms in each second: below {QUIET_MS_PER_S:.0f} ms that is nothing to report"
        return dict.fromkeys(VERDICTS, f"{little}, whoever had the CPU meanwhile.")
    of_it = f"of its wait of {per_s:,.1f} ms per second"
    return {
        "quiet": f"It waits {per_s:,.1f} ms in each second: that is not nothing.",
        "noisy_neighbor": f"Its neighbours held the CPU for {share['noisy_neighbor']:.0%} {of_it}.",
        "system": f"The rest of the machine held the CPU for {share['system']:.0%} {of_it}.",
        "self_contended": f"Its own tasks held the CPU for {share['self_contended']:.0%} {of_it}.",
        "throttled": f"Its quota accounts for {share['throttled']:.0%} {of_it}.",
        "mixed": "Two causes with a fifth of the wait each are needed. Which two would that be? "
        + ", ".join(f"{name} {part:.0%}" for name, part in share.items())
        + f" {of_it}.",
    }


@exercise(
    "12.2",
    question='Who is guilty: the neighbour that held the CPU longest while the service waited, or "nobody"?',
    hints=[
        "`case.cells` says who held the CPU while the service waited. But is that wait worth anybody's name?",
        "Where the verdict is quiet, throttled or self_contended, no neighbour is to blame, whoever else was there.",
        "Else: the neighbour with the largest wait_ns. (What the rest of the machine did is nobody's plan.)",
    ],
)
def culprit(answer: Any, context: Context) -> Feedback:
    """Whoever goes with one of the verdicts that can be defended, by how long they held the CPU."""
    case: Case = context["case"]
    truth, *others = case.guilty
    options = [NOBODY, *case.letters.values(), REST, VICTIM]
    chosen = answer.strip().casefold() if isinstance(answer, str) else ""
    if chosen in [name.casefold() for name in others]:
        return case.note("12.2", answer, right("That goes with a verdict that can be defended."))
    blamed = truth in case.letters.values()
    why = {
        VICTIM: "If its own tasks are in each other's way, no neighbour is guilty: say nobody.",
        NOBODY: "Somebody else held the CPU for a good part of its wait. Who, and for how long?",
    }
    for name in (*case.letters.values(), REST):
        held_ms = case.held_ns(name) / 1e6
        told = f"{name} held the CPU during {held_ms:,.1f} ms of the service's wait in {case.seconds:.1f} s."
        why[name] = (
            f"{told} {'Another held it longer.' if blamed else 'That is not what the service suffers from.'}"
        )
    return case.note("12.2", answer, expect_choice(answer, truth, options, why))


@exercise(
    "12.3",
    question="Which share (0 to 1) of the service's wait went by while others held the CPU, not its own tasks?",
    hints=[
        "The rows of `case.cells` add up to the whole wait. Which of them are others?",
        f'kind == "cgroup" and occupant != "{VICTIM}": add up wait_ns, and divide by the sum of all rows.',
    ],
)
def foreign_share(answer: Any, context: Context) -> Feedback:
    """The foreign cells by all cells."""
    case: Case = context["case"]
    causes = case.causes_ns()
    whole = max(sum(causes.values()), 1)
    truth = causes["foreign"] / whole
    if is_number(answer):
        with_own = (causes["foreign"] + causes["self"]) / whole
        if abs(answer - with_own) < 1e-3 < abs(with_own - truth):
            return case.note(
                "12.3", answer, wrong("That holds its own tasks, too: the cgroup kind is not enough.")
            )
        if truth and abs(answer - 100 * truth) < truth:
            return case.note(
                "12.3", answer, wrong("That is a percentage; a share between 0 and 1 is asked for.")
            )
    return case.note("12.3", answer, expect_number(answer, truth, within=0.005))


@exercise(
    "12.4",
    question="Change `took_over` so that it counts only switches at which the task that left would have gone on.",
    hints=[
        "A switch is voluntary when the one that leaves goes to sleep. `put_off()` knows which is which; nobody calls it.",
        "Leave before anything is counted, if the task was not put off. The idle task, tgid 0, is never put off.",
        'change={"    book->seen++;\\n": "    if (!prev->tgid || !put_off(ctx->args[0], prev_state))\\n        return 0;\\n'
        '    book->seen++;\\n"}',
    ],
)
def involuntary_only(answer: Any, context: Context) -> Feedback:
    """Live: run a service beside a hog, and hold the counts against the kernel's own, in /proc/PID/status."""
    source = source_of(answer, contains="lk_switch", original=context["source"])
    case: Case = context["case"]
    if isinstance(source, Feedback):
        return case.note("12.4", answer, source)
    reading = ""
    if source.count("put_off(") < 2 and "args[0]" not in source:
        reading = "Nothing asks whether the task was put off: every switch still counts."
    live = context["lab"].mode == "live"
    tried = try_program("took_over", source, _against_the_books) if live else _rehearsed(source)
    feedback = explained(tried, reading)
    return case.note("12.4", answer, feedback)


def _rehearsed(source: str) -> Feedback:
    books: list[tuple[int, int, int]] = []

    def judge(program: Program) -> Feedback:
        tasks = pd.DataFrame(books, columns=["pid", "voluntary", "involuntary"])
        return judge_took(program.frame("took"), tasks)

    return rehearse("took_over", source, rehearsals.workers(books), judge)


def _against_the_books(program: Program) -> Feedback:
    with service_beside_hog(seconds=1.0).run() as truth:
        program.stop()
        took = program.frame("took")
    return judge_took(took, truth.tasks)


def judge_took(took: pd.DataFrame, tasks: pd.DataFrame) -> Feedback:
    """Counts per process that was put off, against ``nonvoluntary_ctxt_switches``."""
    books: Mapping[int, int] = dict(zip(tasks["pid"], tasks["involuntary"], strict=True))
    voluntary = int(tasks["voluntary"].sum())
    counted = {pid: int(took.loc[took["prev_tgid"] == pid, "switches"].sum()) for pid in books}
    if (took["prev_tgid"] == 0).any():
        return wrong(
            "The idle task is in it as somebody who was put off. It never is: it runs only while nobody else wants to."
        )
    ours, theirs = sum(counted.values()), sum(books.values())
    # A process was let in, worked and was counted from its first switch on; a few at its start escape one of the two.
    allowed = max(5, 0.05 * theirs)
    if abs(ours - theirs) <= allowed:
        return right(f"{ours} times a worker was put off the CPU; its counters in /proc say {theirs}.")
    if abs(ours - theirs - voluntary) <= allowed:
        return wrong(
            f"It counts {ours}, and the workers were put off {theirs} times: the {voluntary} times they slept are in it."
        )
    return wrong(
        f"It counts {ours}; by nonvoluntary_ctxt_switches in /proc the workers were put off {theirs} times."
    )


@exercise(
    "12.5",
    question="What would help: " + "; ".join(repr(one) for one in REMEDIES.values()) + "?",
    hints=["Each remedy is against one verdict. Which was yours?", "What is it that the service waits for?"],
)
def remedy(answer: Any, context: Context) -> Feedback:
    """The one that goes with the verdict, or with another that can be defended."""
    case: Case = context["case"]
    truth, *others = (REMEDIES[verdict] for verdict in case.defensible)
    chosen = answer.strip().casefold() if isinstance(answer, str) else ""
    if chosen in [one.casefold() for one in others]:
        return case.note("12.5", answer, right("That goes with a verdict that can be defended."))
    why = dict.fromkeys(REMEDIES.values(), "That is against another cause than the one it suffers from.")
    why[REMEDIES["throttled"]] = "Its quota is not what it waits for, or not alone."
    return case.note("12.5", answer, expect_choice(answer, truth, list(REMEDIES.values()), why))

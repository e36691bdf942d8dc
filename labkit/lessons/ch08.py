"""Chapter 08, the noisy neighbour: the article's program under workloads that show its flaws, and the exercises."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from labkit.events import drained
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
from labkit.sched import netflix
from labkit.spec import read
from labkit.workloads import Truth, Workload

__all__ = ["Article", "article"]

_ARTICLE = "netflix_noisy_neighbor"
_TURNS = (4_000_000, 3_000_000, 2_500_000, 4_100_000) * 40  # in replay, in ns


class Article(NamedTuple):
    """What the article's program says of a workload.

    ``switch_outs`` and ``latency``: its two metrics (:mod:`labkit.sched.netflix`). ``counters``: its ledger, and
    ``stamps_of_the_dead``: stamps of tasks that are gone. ``truth``: what the kernel says.
    """

    switch_outs: pd.DataFrame
    latency: pd.DataFrame
    counters: dict[str, int]
    truth: Truth


def article(lab: Any, label: str, workload: Workload, **knobs: Any) -> Article:
    """Run a workload under the article's program: without its rate limit and its wakeups, unless ``knobs`` say otherwise.

    :param lab: the chapter's session.
    :param label: what this is called in the capture.
    :param knobs: parameters of ``bpf/netflix_noisy_neighbor.c``.
    """
    parameters = {"rate_limit_ns": 0, "wake": False, "ring_pages": 8192, **knobs}
    with lab.load(_ARTICLE, label=label, **parameters) as prog:
        truth = lab.run(workload, label=label)
        prog.stop()
        taken = lab.read(label, lambda: _said(prog, truth))
        counters = lab.read(f"{label}, counted", lambda: prog.counters() | _stamps_of_the_dead(prog))
    lab.release()
    return Article(taken["switch_outs"], taken["latency"], counters, truth)


def _said(program: Program, truth: Truth) -> dict[str, pd.DataFrame]:
    events = drained(program, "events", "runq")
    containers = dict(zip(truth.cgroups["cgroup_id"].astype(int), truth.cgroups["role"], strict=True))
    return {
        "switch_outs": netflix.switch_outs(events, containers),
        "latency": netflix.latency(events, containers),
    }


def _stamps_of_the_dead(program: Program) -> dict[str, int]:
    stamps = program.frame("runq_enqueued")
    return {"stamps_of_the_dead": sum(not os.path.exists(f"/proc/{pid}") for pid in stamps["pid"])}


def _foreign(context: Context) -> pd.Series:
    cells, ids = context["cells"], context["ids"]
    own = cells["occupant_id"] == ids["service"]
    foreign = cells[(cells["kind"] == "cgroup") & ~own]
    waited: pd.Series = foreign.set_index("occupant_id")["wait_ns"].astype("float64")
    return waited


@exercise(
    "08.1",
    question="What share (0 to 1) of its foreign wait did the service wait for hog_b?",
    hints=[
        "`cells` has the rows of one victim, the service. Which of them are time that *another cgroup* had the CPU?",
        "kind == 'cgroup' and occupant_id != ids['service']; what remains is the whole.",
        "foreign.loc[foreign['occupant_id'] == ids['hog_b'], 'wait_ns'].sum() / foreign['wait_ns'].sum()",
    ],
)
def share_of_hog_b(answer: Any, context: Context) -> Feedback:
    """A share of the foreign wait, not of all of it."""
    foreign, ids = _foreign(context), context["ids"]
    truth = float(foreign.get(ids["hog_b"], 0.0) / foreign.sum())
    if is_number(answer):
        if abs(answer - float(foreign.get(ids["hog_a"], 0.0) / foreign.sum())) < 0.005:
            return wrong("That is hog_a's share.")
        whole = float(context["cells"]["wait_ns"].sum())
        of_all = float(foreign.get(ids["hog_b"], 0.0) / whole)
        if abs(answer - of_all) < 0.0005 < abs(of_all - truth):
            return wrong(
                "That is a share of all its wait; idle, steal and its own tasks are no foreign wait."
            )
    return expect_number(answer, truth, within=0.001)


@exercise(
    "08.2",
    question="Stamp prev as well, if it is put off the CPU while it would go on.",
    hints=[
        "When does prev begin to wait? When it is runnable and not running: `ctx->args[0] || !prev_state`.",
        "The stamp is what `enqueued(task)` sets. It leaves out pid 0 already.",
        'change={"    if (!next_pid)\\n        return 0;\\n": "    if (ctx->args[0] || !prev_state)\\n'
        '        enqueued(prev);\\n    if (!next_pid)\\n        return 0;\\n"}',
    ],
)
def stamp_the_preempted(answer: Any, context: Context) -> Feedback:
    """Two hogs wait, and what the mended program sees is held against run_delay; in replay without a kernel."""
    source = source_of(answer, contains="lk_switch", original=read(_ARTICLE).source)
    if isinstance(source, Feedback):
        return source
    body = source[source.index("int lk_switch") :]
    published = read(_ARTICLE).source
    asked = body.count("prev_state") - published[published.index("int lk_switch") :].count("prev_state")
    reading = ""
    if "args[0]" not in body and not asked:
        reading = "`lk_switch` still does not ask whether prev would go on: args[0] and prev_state tell."
    if context["lab"].mode == "live":
        return explained(try_program(_ARTICLE, source, _two_hogs, rate_limit_ns=0, wake=False), reading)
    return explained(_rehearsed(source), reading)


def _rehearsed(source: str) -> Feedback:
    books: dict[int, int] = {}
    waits: dict[int, list[int]] = {}

    def judge(program: Program) -> Feedback:
        frames = [batch.frame() for batch in program.ring("events").read()]
        events = pd.concat(frames) if frames else pd.DataFrame({"cgroup_id": [], "runq_lat": []})
        return judge_stamps(events, program.frame("runq_enqueued"), pd.Series(books), list(waits))

    script = rehearsals.hogs(books, waits, turns=_TURNS)
    return rehearse(_ARTICLE, source, script, judge, rate_limit_ns=0, wake=False)


def _two_hogs(program: Program) -> Feedback:
    from labkit.workloads import two_pinned_hogs

    with two_pinned_hogs(seconds=0.5).run() as truth:
        program.stop()
        events = drained(program, "events", "runq")
        books = truth.cgroups.set_index("cgroup_id")["run_delay_ns"]  # since they began to spin
        stamps = program.frame("runq_enqueued")
    return judge_stamps(events, stamps, books, truth.tasks["pid"].tolist())


def judge_stamps(
    events: pd.DataFrame, stamps: pd.DataFrame, books: pd.Series, asleep: Sequence[int]
) -> Feedback:
    """What a program saw of two hogs' waits.

    :param events: ``cgroup_id``, ``runq_lat`` (ns).
    :param stamps: what is left in its table of stamps, by ``pid``.
    :param books: cgroup id -> run_delay in ns.
    :param asleep: pids of the hogs, which sleep by now, and went to sleep by themselves.
    """
    seen = float(events[events["cgroup_id"].isin(books.index)]["runq_lat"].sum())
    share = seen / float(books.sum())
    if (stamps["pid"] == 0).any():
        return wrong("Idle (pid 0) was stamped: nobody waits there.")
    if share > 1.15:
        return wrong(
            f"It sees {share:.0%} of run_delay, more than there was: is a task stamped that goes to sleep by itself?"
        )
    if share < 0.25:
        return wrong(
            f"It sees {share:.0%} of the two hogs' run_delay. Which of args[0] and prev_state did you test?"
        )
    if asleep and set(asleep) <= set(stamps["pid"].astype(int)):
        return wrong(
            "The hogs sleep by now, and have a stamp as if they waited: a task goes to sleep by itself, too."
        )
    if share < 0.9:
        return wrong(
            f"It sees {share:.0%} of run_delay: some that were put off are still missed. Either condition is enough."
        )
    return right(f"Now it sees {share:.1%} of what the two hogs waited.")


@exercise(
    "08.3",
    question="What helps the service without taking anything from what the weights promise the others?",
    hints=[
        "The verdict says whether hog_a took more than its share.",
        "Which of the three leaves both hogs with at least what they have now?",
    ],
)
def what_helps(answer: Any, context: Context) -> Feedback:
    """Nobody exceeded their share: placement is the remedy."""
    move = "move the service to another CPU"
    return expect_choice(
        answer,
        move,
        ["throttle hog_a", "raise the service's weight", move],
        {
            "throttle hog_a": "It helps the service, but hog_a was promised three times hog_b's time and took no more: "
            "a quota breaks that promise even while nobody else wants the CPU.",
            "raise the service's weight": "It helps the service at the hogs' expense: it changes what the weights promise.",
        },
    )


@exercise(
    "08.4",
    question="Draw the time the service waited for each cgroup, in ms, as horizontal bars with a labelled axis.",
    hints=[
        "cells[cells['kind'] == 'cgroup'] has one row per bar; wait_ns / 1e6 are ms.",
        "fig, ax = plt.subplots(); ax.barh(names, values); ax.set_xlabel('waited (ms)'); answer = ax",
    ],
)
def draw_the_blame(answer: Any, context: Context) -> Feedback:
    """The bars are read back from the axes."""
    if not hasattr(answer, "patches") or not hasattr(answer, "get_xlabel"):
        return wrong(
            "The Axes is asked for: what plt.subplots() returns second, or what .plot.barh() returns."
        )
    cells = context["cells"]
    wanted = sorted((cells[cells["kind"] == "cgroup"]["wait_ns"].astype("float64") / 1e6).tolist())
    drawn = sorted(float(bar.get_width()) for bar in answer.patches)
    if len(drawn) != len(wanted):
        tall = sorted(float(bar.get_height()) for bar in answer.patches)
        if len(tall) == len(wanted) and _close(tall, wanted):
            return wrong("These bars stand upright; names are easier to read beside bars that lie: barh.")
        return wrong(f"There are {len(drawn)} bars; `cells` has {len(wanted)} rows of kind cgroup.")
    if _close([one / 1e6 for one in drawn], wanted):
        return wrong("The bars are in nanoseconds; ms are asked for.")
    if not _close(drawn, wanted):
        return wrong("The bars are not as long as `wait_ns` says.")
    if "ms" not in answer.get_xlabel():
        return wrong("The axis does not say what it shows: a label with the unit, such as 'waited (ms)'.")
    return right("Who held the CPU while the service waited, at a glance.")


def _close(found: list[float], wanted: list[float]) -> bool:
    return all(abs(a - b) <= 0.001 * max(abs(b), 1e-6) for a, b in zip(found, wanted, strict=True))

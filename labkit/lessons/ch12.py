"""Chapter 12, the capstone: a scenario drawn at random, shown without its names, and the learner's report graded."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from labkit.errors import ParameterError
from labkit.lessons import (
    Context,
    Feedback,
    exercise,
    expect_choice,
    expect_number,
    explained,
    rehearsals,
    rehearse,
    right,
    source_of,
    try_program,
    wrong,
)
from labkit.program import Program
from labkit.sched.cause import CAUSES, split
from labkit.show import headless
from labkit.workloads import scenario, service_beside_hog

if TYPE_CHECKING:
    from labkit.noisy.measure import Measured
    from labkit.session import Chapter

__all__ = ["CASES", "NOBODY", "VERDICTS", "VICTIM", "Case", "draw"]

#: What can be drawn; which number is which is nobody's business.
_POOL = (
    "throttled_beside_hog",
    "own_threads",
    "two_hogs_3_1",
    "quota_on_parent",
    "hog_elsewhere",
    "throttled",
    "niced_hog",
    "bursty_neighbour",
)
CASES = len(_POOL)
VICTIM, NOBODY = "the service", "nobody"
VERDICTS = ("quiet", "noisy_neighbor", "self_contended", "throttled", "mixed")
_REMEDIES = {
    "quiet": "leave everything as it is",
    "noisy_neighbor": "give the service its own CPU, or more weight than its neighbours",
    "self_contended": "let the service run fewer tasks at once, or give it more CPUs",
    "throttled": "raise the quota that bites",
    "mixed": "raise the quota, and keep the neighbours away",
}
_POINTS = {1: 3, 2: 2}
_REST = "the rest of the machine"


class Case:
    """One drawn scenario as the learner sees it: neighbours have letters instead of names.

    :ivar number: which of the cases it is, for drawing it again.
    :ivar latency: the service's own account of its requests: ``requests``, ``p50_ns``, ``p99_ns``, ``max_ns``.
    :ivar cells: who held the CPU while the service waited: ``kind`` (cgroup, idle, throttled, steal, unknown), ``occupant``
        (str; empty unless ``kind`` is cgroup), ``wait_ns`` (uint64). They add up to its wait, exactly.
    :ivar cgroups: ``who`` (str), ``waits``, ``wait_ns``, ``run_ns``, ``involuntary_switches`` of the scenario's cgroups.
    :ivar labels: cgroup id -> who, for the figures of :mod:`labkit.plots`.
    """

    def __init__(self, number: int, measured: Measured) -> None:
        self.number = number
        self._measured, self._declared = measured, measured.truth.declared
        self._tries: dict[str, list[bool]] = {}
        snapshot, ids = measured.snapshot, measured.ids
        self.victim_id = ids[self._declared["victim"]]
        self.seconds = snapshot.seconds
        self.latency = dict(measured.truth.results["service"])
        ran = set(snapshot.cgroups.loc[snapshot.cgroups["run_ns"] > 0, "cgroup_id"].tolist())
        others = [role for role, one in ids.items() if one != self.victim_id and one in ran]
        random.Random(number).shuffle(others)
        self._letters = {role: f"neighbour {chr(ord('A') + at)}" for at, role in enumerate(others)}
        self.labels = {self.victim_id: VICTIM} | {ids[role]: name for role, name in self._letters.items()}
        self.cells = self._cells()
        own = snapshot.cgroups[snapshot.cgroups["cgroup_id"].isin(self.labels)]
        columns = ["waits", "wait_ns", "run_ns", "involuntary_switches"]
        self.cgroups = own.assign(who=own["cgroup_id"].map(self.labels).astype("str"))[["who", *columns]]
        self.histograms = snapshot.histograms[snapshot.histograms["cgroup_id"].isin(self.labels)]

    def _cells(self) -> pd.DataFrame:
        cells = self._measured.snapshot.cells
        mine = cells[cells["victim_id"] == self.victim_id]
        occupant = [
            self.labels.get(int(row.occupant_id), _REST) if row.kind == "cgroup" else ""
            for row in mine.itertuples()
        ]
        flat = mine.assign(occupant=pd.Series(occupant, index=mine.index, dtype="str"))
        summed = flat.groupby(["kind", "occupant"], as_index=False)["wait_ns"].sum()
        return summed.sort_values("wait_ns", ascending=False, ignore_index=True)

    @property
    def books(self) -> dict[str, int]:
        """What the kernel's own counters say of the service over the same time: ``run_delay_ns``, ``timeslices``."""
        rows = self._measured.truth.cgroups.set_index("cgroup_id")
        row = rows.loc[self.victim_id]
        return {"run_delay_ns": int(row["run_delay_ns"]), "timeslices": int(row["timeslices"])}

    @property
    def ledger(self) -> Any:
        """The loss ledger of the measurement."""
        return self._measured.snapshot.ledger

    @property
    def cost(self) -> Any:
        """What the program cost: see :class:`labkit.sched.state.Cost`."""
        return self._measured.snapshot.cost

    @property
    def causes(self) -> pd.DataFrame:
        """Wait by cause of each of the scenario's cgroups; see :func:`labkit.sched.cause.split`."""
        cells = self._measured.snapshot.cells
        return split(cells[cells["victim_id"].isin(self.labels)])

    def _causes(self) -> dict[str, int]:
        row = self.causes[self.causes["victim_id"] == self.victim_id]
        return {name: int(row[name].sum()) for name in CAUSES}

    def note(self, exercise_id: str, feedback: Feedback) -> Feedback:
        """Keep the score: how often it was tried, and whether it was right."""
        self._tries.setdefault(exercise_id, []).append(feedback.passed)
        return feedback

    def grade(self) -> pd.DataFrame:
        """The report, graded: three points for right at once, two for the second try, one for later.

        :returns: columns ``exercise`` (str), ``tries`` (int64), ``points`` (int64), with a row ``total``.
        """
        ids = [f"12.{k}" for k in range(1, 6)]
        rows = []
        for one in ids:
            tries = self._tries.get(one, [])
            at = tries.index(True) + 1 if True in tries else 0
            rows.append((one, len(tries), _POINTS.get(at, 1) if at else 0))
        frame = pd.DataFrame(rows, columns=["exercise", "tries", "points"])
        total = pd.DataFrame([("total", frame["tries"].sum(), frame["points"].sum())], columns=frame.columns)
        graded = pd.concat([frame, total], ignore_index=True)
        return graded.astype({"exercise": "str", "tries": "int64", "points": "int64"})

    @property
    def verdict(self) -> str:
        """What it was, once the report has named a culprit; "?" before."""
        return str(self._declared["verdict"]) if True in self._tries.get("12.2", []) else "?"

    def reveal(self) -> str:
        """What it was, and what the lab's own verdict says: only once the culprit has been named."""
        if True not in self._tries.get("12.2", []):
            return "First say who it was: exercise 12.2."
        names = ", ".join(f"{letter} was {role}" for role, letter in self._letters.items())
        verdict = self._measured.verdict(self._declared["victim"])
        return f"Case {self.number} was {self._measured.truth.name!r}. {names}{'. ' if names else ''}{verdict.sentence}"

    def __repr__(self) -> str:
        return f"Case {self.number} of {CASES}: {self.seconds:.1f} s of a service that may be slow"


def draw(lab: Chapter, *, case: int = 0, seconds: float = 2.5) -> Case:
    """Draw a scenario and measure it with the noisy-neighbour program; in replay, take one of those that were recorded.

    :param case: its number, from 1 to :data:`CASES`, to draw a certain one again; 0 leaves it to chance. (A replay without
        a reader takes the first, so that it says the same each time.)
    :raises ParameterError: if there is no such case.
    """
    if not 0 <= case <= CASES:
        raise ParameterError(
            f"there is no case {case}", why=f"they have numbers from 1 to {CASES}; 0 is chance"
        )
    possible = _possible(lab)
    if case and case not in possible:
        raise ParameterError(f"case {case} needs two CPUs", why="this process may use one")
    if os.environ.get("LABKIT_RECORD") == "1" and lab.mode == "live":
        recorded = {number: _measured(lab, number, seconds) for number in possible}
        return Case(case or possible[0], recorded[case or possible[0]])
    settled = headless() and lab.mode == "replay"
    number = case or (possible[0] if settled else random.SystemRandom().choice(possible))
    return Case(number, _measured(lab, number, seconds))


def _possible(lab: Chapter) -> list[int]:
    alone = lab.mode == "live" and len(os.sched_getaffinity(0)) < 2
    return [at for at, name in enumerate(_POOL, 1) if not (alone and name == "hog_elsewhere")]


def _measured(lab: Chapter, number: int, seconds: float) -> Measured:
    return lab.noisy(scenario(_POOL[number - 1], seconds=seconds), label=f"case-{number}")


@exercise(
    "12.1",
    question=f"What does the service suffer from: one of {', '.join(VERDICTS)}?",
    hints=[
        "How much does it wait at all, in each second? Below a millisecond or so there is nothing to explain.",
        "Add up its cells by cause: its own tasks, its quota, others. Less than a fifth does not change the story.",
        "Two causes with a fifth or more each: mixed. Else the larger one has the word.",
    ],
)
def verdict_of(answer: Any, context: Context) -> Feedback:
    """What holds by construction; or what the lab itself finds, where the machine added something of its own."""
    case: Case = context["case"]
    truth = case._declared["verdict"]
    found = case._measured.verdict(case._declared["victim"]).verdict
    if isinstance(answer, str) and answer == found and found in VERDICTS and found != truth:
        said = f"By the numbers, yes. (It was built as {truth!r}; the rest of this machine had a hand in it.)"
        return case.note("12.1", right(said))
    return case.note("12.1", expect_choice(answer, truth, VERDICTS, _why_not(case)))


def _why_not(case: Case) -> dict[str, str]:
    causes = case._causes()
    whole = max(sum(causes.values()), 1)
    per_s = whole / 1e6 / case.seconds
    share = {name: causes[name] / whole for name in ("foreign", "self", "throttled")}
    return {
        "quiet": f"It waits {per_s:,.1f} ms in each second: that is not nothing.",
        "noisy_neighbor": f"Others held the CPU for {share['foreign']:.0%} of its wait of {per_s:,.1f} ms per second.",
        "self_contended": f"Its own tasks held the CPU for {share['self']:.0%} of its wait.",
        "throttled": f"Its quota accounts for {share['throttled']:.0%} of its wait.",
        "mixed": "Two causes with a fifth of the wait each are needed. Which two would that be? "
        + ", ".join(f"{name} {part:.0%}" for name, part in share.items())
        + f" of {per_s:,.1f} ms per second.",
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
    """The declared guilty with the largest share."""
    case: Case = context["case"]
    options = [NOBODY, *case._letters.values(), VICTIM]
    guilty = case._declared["guilty"]
    truth = case._letters[max(guilty, key=lambda role: guilty[role] or 0)] if guilty else NOBODY
    why = {VICTIM: "If its own tasks are in each other's way, no neighbour is guilty: say nobody."}
    why[NOBODY] = "Somebody else held the CPU for a good part of its wait. Who, and for how long?"
    for name in case._letters.values():
        held = int(case.cells.loc[case.cells["occupant"] == name, "wait_ns"].sum()) / 1e6
        why[name] = (
            f"{name} held the CPU during {held:,.1f} ms of the service's wait in {case.seconds:.1f} s. "
            + ("Another held it longer." if guilty else "That is not what the service suffers from.")
        )
    return case.note("12.2", expect_choice(answer, truth, options, why))


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
    causes = case._causes()
    whole = max(sum(causes.values()), 1)
    truth = causes["foreign"] / whole
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        with_own = (causes["foreign"] + causes["self"]) / whole
        if abs(answer - with_own) < 1e-3 < abs(with_own - truth):
            return case.note("12.3", wrong("That holds its own tasks, too: the cgroup kind is not enough."))
        if truth and abs(answer - 100 * truth) < truth:
            return case.note("12.3", wrong("That is a percentage; a share between 0 and 1 is asked for."))
    return case.note("12.3", expect_number(answer, truth, within=0.005))


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
        return case.note("12.4", source)
    reading = ""
    if source.count("put_off(") < 2 and "args[0]" not in source:
        reading = "Nothing asks whether the task was put off: every switch still counts."
    live = context["lab"].mode == "live"
    tried = try_program("took_over", source, _against_the_books) if live else _rehearsed(source)
    feedback = explained(tried, reading)
    return case.note("12.4", feedback)


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
    question="What would help: " + "; ".join(repr(one) for one in _REMEDIES.values()) + "?",
    hints=["Each remedy is against one verdict. Which was yours?", "What is it that the service waits for?"],
)
def remedy(answer: Any, context: Context) -> Feedback:
    """The one that goes with the verdict."""
    case: Case = context["case"]
    truth = _REMEDIES[case._declared["verdict"]]
    found = _REMEDIES.get(case._measured.verdict(case._declared["victim"]).verdict)
    if isinstance(answer, str) and answer == found:
        return case.note("12.5", right())
    why = dict.fromkeys(_REMEDIES.values(), "That is against another cause than the one it suffers from.")
    why[_REMEDIES["throttled"]] = "Its quota is not what it waits for, or not alone."
    return case.note("12.5", expect_choice(answer, truth, list(_REMEDIES.values()), why))

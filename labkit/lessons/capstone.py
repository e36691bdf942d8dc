"""The capstone's cases: a scenario drawn and shown without its names, what may be said of it, and the report's grade.

One rule goes through all of it, stated to the learner and used by the shipped solution: :meth:`Case.by_rule`. Besides
what the rule says, an answer is right that holds by construction, and one that ``labkit noisy`` gives: where they differ,
each can be defended.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pandas as pd

from labkit.errors import ParameterError
from labkit.lessons import progress
from labkit.lessons.feedback import Feedback
from labkit.sched.cause import CAUSES, split
from labkit.sched.rules import MIXED_SHARE
from labkit.show import headless
from labkit.workloads import scenario

if TYPE_CHECKING:
    from labkit.noisy.measure import Measured
    from labkit.session import Chapter

__all__ = [
    "CASES",
    "NOBODY",
    "QUIET_MS_PER_S",
    "REMEDIES",
    "REST",
    "VERDICTS",
    "VICTIM",
    "Case",
    "draw",
]

#: What can be drawn; which number is which is nobody's business.
POOL = (
    "throttled_beside_hog",
    "own_threads",
    "two_hogs_3_1",
    "quota_on_parent",
    "hog_elsewhere",
    "throttled",
    "niced_hog",
    "bursty_neighbour",
)
CASES = len(POOL)
VICTIM, NOBODY, REST = "the service", "nobody", "the rest of the machine"
VERDICTS = ("quiet", "noisy_neighbor", "system", "self_contended", "throttled", "mixed")
#: Less waiting than that in each second is not worth a report: a request of 4 ms, of which there are 50 in a second, then
#: takes a tenth of a millisecond longer. ``labkit noisy`` calls less quiet (1 ms and 1 %), and both are right answers.
QUIET_MS_PER_S = 5.0
REMEDIES = {
    "quiet": "leave everything as it is",
    "noisy_neighbor": "give the service its own CPU, or more weight than its neighbours",
    "system": "find out what the rest of the machine does",
    "self_contended": "let the service run fewer tasks at once, or give it more CPUs",
    "throttled": "raise the quota that bites",
    "mixed": "raise the quota, and keep the neighbours away",
}
_CHAPTER = "12_capstone"
_EXERCISES = tuple(f"12.{k}" for k in range(1, 6))
_POINTS = {1: 3, 2: 2}


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
        self._tries: dict[str, list[list[Any]]] = {} if headless() else progress.tries(_CHAPTER, str(number))
        snapshot, ids = measured.snapshot, measured.ids
        self.victim_id = ids[self._declared["victim"]]
        self.seconds = snapshot.seconds
        self.latency = dict(measured.truth.results["service"])
        ran = set(snapshot.cgroups.loc[snapshot.cgroups["run_ns"] > 0, "cgroup_id"].tolist())
        others = [role for role, one in ids.items() if one != self.victim_id and one in ran]
        random.Random(number).shuffle(others)
        self.letters = {role: f"neighbour {chr(ord('A') + at)}" for at, role in enumerate(others)}
        self.labels = {self.victim_id: VICTIM} | {ids[role]: name for role, name in self.letters.items()}
        self.cells = self._cells()
        own = snapshot.cgroups[snapshot.cgroups["cgroup_id"].isin(self.labels)]
        columns = ["waits", "wait_ns", "run_ns", "involuntary_switches"]
        self.cgroups = own.assign(who=own["cgroup_id"].map(self.labels).astype("str"))[["who", *columns]]
        self.histograms = snapshot.histograms[snapshot.histograms["cgroup_id"].isin(self.labels)]

    def _cells(self) -> pd.DataFrame:
        cells = self._measured.snapshot.cells
        mine = cells[cells["victim_id"] == self.victim_id]
        occupant = [
            self.labels.get(int(row.occupant_id), REST) if row.kind == "cgroup" else ""
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

    def causes_ns(self) -> dict[str, int]:
        """The service's wait by cause."""
        row = self.causes[self.causes["victim_id"] == self.victim_id]
        return {name: int(row[name].sum()) for name in CAUSES}

    # -- what may be said of it --------------------------------------------------------------------------------------

    def held_ns(self, who: str) -> int:
        """How long somebody held the CPU while the service waited."""
        return int(self.cells.loc[self.cells["occupant"] == who, "wait_ns"].sum())

    def parts_ns(self) -> dict[str, int]:
        """The contended wait by verdict: who or what it was."""
        return {
            "noisy_neighbor": sum(self.held_ns(name) for name in self.letters.values()),
            "system": self.held_ns(REST),
            "self_contended": self.held_ns(VICTIM),
            "throttled": int(self.cells.loc[self.cells["kind"] == "throttled", "wait_ns"].sum()),
        }

    @property
    def ms_per_s(self) -> float:
        """How long the service waits in each second."""
        return float(self.cells["wait_ns"].sum()) / 1e6 / self.seconds

    def by_rule(self) -> str:
        """Below :data:`QUIET_MS_PER_S` quiet; two parts of a fifth or more each are mixed; else the largest."""
        if self.ms_per_s < QUIET_MS_PER_S:
            return "quiet"
        parts = self.parts_ns()
        first, second, *_ = sorted(parts, key=lambda name: parts[name], reverse=True)
        return "mixed" if parts[second] >= MIXED_SHARE * sum(parts.values()) else first

    @property
    def declared(self) -> str:
        """What holds by construction."""
        return str(self._declared["verdict"])

    @property
    def found(self) -> str:
        """What ``labkit noisy`` says of the same measurement."""
        return str(self._measured.verdict(self._declared["victim"]).verdict)

    @property
    def defensible(self) -> tuple[str, ...]:
        """Every verdict that is right: the rule's first."""
        return tuple(
            dict.fromkeys(one for one in (self.by_rule(), self.declared, self.found) if one in VERDICTS)
        )

    @property
    def guilty(self) -> tuple[str, ...]:
        """Whom a report may name, the first choice first: whoever goes with one of its verdicts."""
        names = []
        neighbours = sorted(self.letters.values(), key=self.held_ns, reverse=True)
        for verdict in self.defensible:
            if verdict == "noisy_neighbor" and neighbours:
                names.append(neighbours[0])
            elif verdict == "mixed":
                parts = self.parts_ns()
                enough = neighbours and parts["noisy_neighbor"] >= MIXED_SHARE * sum(parts.values())
                names.append(neighbours[0] if enough else NOBODY)
            elif verdict == "system":
                names += [REST, NOBODY]
            else:
                names.append(NOBODY)
        return tuple(dict.fromkeys(names))

    # -- the report ------------------------------------------------------------------------------------------------

    def note(self, exercise_id: str, answer: object, feedback: Feedback) -> Feedback:
        """Keep the score, also when the same case is drawn again; the same answer once more changes nothing."""
        if not feedback.ran:
            return feedback
        tries = self._tries.setdefault(exercise_id, [])
        known = progress.fingerprint(answer)
        if known is None or all(one != known for one, _ in tries):
            tries.append([known, feedback.passed])
            if not headless():
                progress.keep_tries(_CHAPTER, str(self.number), self._tries)
        return feedback

    def solved(self, exercise_id: str) -> bool:
        """True if it has been answered right."""
        return any(passed for _, passed in self._tries.get(exercise_id, ()))

    def grade(self) -> pd.DataFrame:
        """The report, graded: three points for right at once, two for the second answer, one for later.

        :returns: columns ``exercise`` (str), ``tries`` (int64: different answers), ``points`` (int64); last ``total``.
        """
        rows = []
        for one in _EXERCISES:
            passed = [bool(right) for _, right in self._tries.get(one, ())]
            at = passed.index(True) + 1 if True in passed else 0
            rows.append((one, len(passed), _POINTS.get(at, 1) if at else 0))
        frame = pd.DataFrame(rows, columns=["exercise", "tries", "points"])
        total = pd.DataFrame([("total", frame["tries"].sum(), frame["points"].sum())], columns=frame.columns)
        graded = pd.concat([frame, total], ignore_index=True)
        return graded.astype({"exercise": "str", "tries": "int64", "points": "int64"})

    @property
    def verdict(self) -> str:
        """What it was, once the report has named a culprit ("?" before): your verdict, if it was a right one."""
        if not self.solved("12.2"):
            return "?"
        names = {progress.fingerprint(verdict): verdict for verdict in self.defensible}
        told = [names[known] for known, right in self._tries.get("12.1", ()) if right and known in names]
        return told[0] if told else self.defensible[0]

    def reveal(self) -> str:
        """What it was, and what the lab's own verdict says: only once the culprit has been named."""
        if not self.solved("12.2"):
            return "First say who it was: exercise 12.2."
        names = ", ".join(f"{letter} was {role}" for role, letter in self.letters.items())
        sentence = self._measured.verdict(self._declared["victim"]).sentence
        said = (
            f"Case {self.number} was {self._measured.truth.name!r}. {names}{'. ' if names else ''}{sentence}"
        )
        if len(self.defensible) == 1:
            return said
        rule = f"{self.ms_per_s:.1f} ms of waiting in each second are {self.by_rule()!r} by the report's rule"
        return (
            f"{said} {rule}, it was built as {self.declared!r}, and `labkit noisy` would call it {self.found!r}: "
            "each of these was a right answer."
        )

    def __repr__(self) -> str:
        return f"Case {self.number} of {CASES}: {self.seconds:.1f} s of a service that may be slow"


def draw(lab: Chapter, *, case: int = 0, seconds: float = 2.5) -> Case:
    """Draw a scenario and measure it with the noisy-neighbour program; in replay, take one of those that were recorded.

    A run without a reader in replay takes the first, so that it says the same each time; live it draws by the number in
    ``LABKIT_SEED``, or by one that it makes up and prints.

    :param case: its number, from 1 to :data:`CASES`, to draw a certain one again; 0 leaves it to chance.
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
    number = case or _drawn(possible, lab.mode)
    return Case(number, _measured(lab, number, seconds))


def _drawn(possible: list[int], mode: str) -> int:
    if not headless():
        return random.SystemRandom().choice(possible)
    if mode == "replay":
        return possible[0]
    given = os.environ.get("LABKIT_SEED", "")
    seed = int(given) if given.isdigit() else random.SystemRandom().randrange(1_000_000)
    print(f"drawn with LABKIT_SEED={seed}")
    return random.Random(seed).choice(possible)


def _possible(lab: Chapter) -> list[int]:
    alone = lab.mode == "live" and len(os.sched_getaffinity(0)) < 2
    return [at for at, name in enumerate(POOL, 1) if not (alone and name == "hog_elsewhere")]


def _measured(lab: Chapter, number: int, seconds: float) -> Measured:
    return lab.noisy(scenario(POOL[number - 1], seconds=seconds), label=f"case-{number}")

"""The verdict on each cgroup: by the rules of :mod:`labkit.sched.rules`, with blame, confidence and a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from labkit import histogram
from labkit.sched.blame import shares
from labkit.sched.cause import CAUSES, split
from labkit.sched.fair import Classes, Group, Standing, standing
from labkit.sched.rules import QUIET_WAIT_NS, authors_of, decide, slow_wake, somebodys_fault
from labkit.sched.sentence import sentence
from labkit.sched.state import Snapshot

__all__ = ["Blamed", "Quota", "Verdict", "verdicts"]

#: Shares below this are not worth a name.
_NAMED_SHARE, _MOST_BLAMED = 0.01, 10
#: No more sure than this that nothing is wrong where an idle CPU took long to wake up.
_SLOW_WAKE_SURE = 0.6


@dataclass(frozen=True)
class Blamed:
    """One who held the CPU while the victim waited.

    :param share: of the victim's foreign wait.
    :param run_ns: how long its tasks held CPUs in all, whoever waited.
    """

    cgroup_id: int
    cgroup: str
    name: str
    owner: str
    share: float
    wait_ns: int
    standing: Standing
    run_ns: int = 0


@dataclass(frozen=True)
class Quota:
    """The limit that bit.

    :param holder: path of the cgroup that holds it, the victim's own or an ancestor's; empty if none could be read.
    :param quota_ns: CPU time allowed in each ``period_ns``.
    :param needed_ns: what it was allowed and what it was kept from, in the mean of the periods in which it was throttled:
        an estimate, as single periods may need more, and as it might not have had all that time; 0 if not known.
    :param enough_ns: with so much in each period nothing is ever throttled: all CPUs, all the time.
    :param setting: the file it is set in.
    """

    holder: str
    quota_ns: int = 0
    period_ns: int = 0
    throttled_ns: int = 0
    needed_ns: int = 0
    enough_ns: int = 0
    setting: str = "cpu.max"


@dataclass(frozen=True)
class Verdict:
    """What one cgroup suffers from, over the time of its snapshot.

    :param verdict: one of :data:`VERDICTS`.
    :param confidence: 0.0 to 1.0: the product of what the ``doubts`` are about; see :func:`verdicts`.
    :param sentence: in plain words, control characters written out, with what this measure cannot see at its end.
    :param blame: others' cgroups that held the CPU, the largest share first; empty where no other is at fault.
    :param causes: cause (of :data:`~labkit.sched.cause.CAUSES`) -> ns; they add up to ``wait_ns``.
    :param authors: ``neighbours``, ``system``, ``self``, ``throttled`` -> ns of the contended wait.
    :param p50_ns: and ``p99_ns``: of single waits, within 6.25 %, for display; verdicts weigh waits by time.
    :param slowdown: contended wait as a share of the time in which its tasks wanted to run.
    :param slow_wake_ns: how much of the wait was long waits for an idle CPU; 0 where that does not matter.
    :param doubts: what keeps the confidence from being higher, in words.
    """

    cgroup_id: int
    cgroup: str
    name: str
    verdict: str
    confidence: float
    sentence: str
    blame: tuple[Blamed, ...]
    waits: int
    wait_ns: int
    run_ns: int
    seconds: float
    causes: Mapping[str, int]
    authors: Mapping[str, int]
    p50_ns: float
    p99_ns: float
    involuntary_switches: int
    slowdown: float = 0.0
    slow_wake_ns: int = 0
    quota: Quota | None = None
    doubts: tuple[str, ...] = field(default=())

    @property
    def wait_per_s_ns(self) -> float:
        """Wait in each second of the measurement; with several tasks it may be more than a second."""
        return self.wait_ns / self.seconds if self.seconds > 0 else 0.0


def verdicts(
    snapshot: Snapshot,
    *,
    quotas: pd.DataFrame | None = None,
    weights: pd.DataFrame | None = None,
    classes: pd.DataFrame | None = None,
    oracles: pd.DataFrame | None = None,
    only: Iterable[int] | None = None,
    cpus: int | None = None,
) -> list[Verdict]:
    """A verdict for each cgroup that was seen, the longest wait first.

    The confidence is the product of: the share of switches that were not lost; the share of the contended wait whose
    author is known; 1 - 1/sqrt(waits + 1), as means of so many waits scatter; the agreement with ``run_delay``,
    where it was read; and how far the numbers are from the threshold that decided.

    :param quotas: limits of each cgroup and its ancestors: ``cgroup_id``, ``holder`` (str, path), ``quota_ns``,
        ``period_ns``, ``throttled_ns``, ``throttled_periods`` (int64, in the interval), ``setting`` (str).
    :param weights: groups that the scheduler knows, from the root down: ``cgroup_id``, ``depth`` (int64), ``group`` (str),
        ``weight`` (float64), ``idle`` (bool). The root itself has depth 0 and needs a row: without any, nothing is known
        of a cgroup.
    :param classes: ``cgroup_id``, ``tasks``, ``realtime``, ``idle``, ``nice`` (int64).
    :param oracles: ``cgroup_id``, ``run_delay_ns``, ``timeslices`` (int64).
    :param only: ids to judge, also such as were not seen, which never waited then; all that were seen if None.
    :param cpus: how many the machine has; as the snapshot's cost says if None.
    """
    wanted = None if only is None else {int(cgroup_id) for cgroup_id in only}
    bench = _Bench(snapshot, wanted, quotas, weights, classes, oracles, cpus or snapshot.cost.cpus)
    found = [bench.judge(row) for row in bench.rows]
    return sorted(found, key=lambda verdict: (-verdict.wait_ns, verdict.cgroup_id))


class _Bench:
    """Everything by cgroup id, so that each is judged without searching frames."""

    def __init__(
        self,
        snapshot: Snapshot,
        wanted: set[int] | None,
        quotas: pd.DataFrame | None,
        weights: pd.DataFrame | None,
        classes: pd.DataFrame | None,
        oracles: pd.DataFrame | None,
        cpus: int,
    ) -> None:
        self.seconds = snapshot.seconds
        self.cpus = cpus
        self.lost_share = snapshot.ledger.lost_share
        cgroups, cells, waits = snapshot.cgroups, snapshot.cells, snapshot.histograms
        self.all = {int(row["cgroup_id"]): row for row in cgroups.to_dict("records")}
        nothing = dict.fromkeys(cgroups.columns, 0)
        chosen = self.all if wanted is None else sorted(wanted)
        self.rows = [self.all.get(cgroup_id, nothing | {"cgroup_id": cgroup_id}) for cgroup_id in chosen]
        if wanted is not None:
            listed = pd.Series(sorted(wanted), dtype="uint64")
            waits = waits[waits["cgroup_id"].isin(listed)]
            judged = cells[cells["victim_id"].isin(listed)]
        else:
            judged = cells
        self.behind = _waits_behind(cells)
        self.causes = {int(row["victim_id"]): row for row in split(judged).to_dict("records")}
        self.blamed = _by(shares(judged, snapshot.names), "victim_id")
        self.names = {int(row["cgroup_id"]): row for row in snapshot.names.to_dict("records")}
        self.waits = {
            int(key): part for key, part in waits.sort_values(["cgroup_id", "lo"]).groupby("cgroup_id")
        }
        self.quotas = _by(quotas, "cgroup_id")
        self.groups = {} if weights is None else _groups(weights)
        self.classes = {
            int(row["cgroup_id"]): Classes(*(int(row[k]) for k in ("tasks", "realtime", "idle", "nice")))
            for row in ([] if classes is None else classes.to_dict("records"))
        }
        self.oracles = {
            int(row["cgroup_id"]): row for row in ([] if oracles is None else oracles.to_dict("records"))
        }

    def judge(self, row: Mapping[str, int]) -> Verdict:
        """The verdict on one cgroup."""
        cgroup_id, run_ns = int(row["cgroup_id"]), int(row["run_ns"])
        split_up = self.causes.get(cgroup_id, {})
        causes = {cause: int(split_up.get(cause, 0)) for cause in CAUSES}
        wait_ns = sum(causes.values())
        contended = wait_ns - causes["idle"]
        blamed = self.blamed.get(cgroup_id, [])
        name = self.names.get(cgroup_id, {})
        authors = authors_of(causes, blamed, root=name.get("cgroup") == "/")
        p50, p99, long_ns = self._lengths(cgroup_id)
        slowdown = contended / (run_ns + contended) if run_ns + contended else 0.0
        verdict, margin = decide(contended, self.seconds, slowdown, long_ns, authors)
        slow_ns = slow_wake(long_ns, contended, run_ns + wait_ns, self.seconds) if verdict == "quiet" else 0
        sure = self._sureness(row, contended, causes["unknown"], margin, verdict)
        # The root that waits for itself: the system's doing, and not that of those few for whom it waited besides.
        itself = (
            verdict == "system"
            and authors["self"] < causes["self"]
            and 2 * causes["self"] >= authors["system"]
        )
        if slow_ns:
            sure.append((_SLOW_WAKE_SURE, "an idle CPU was slow to wake up, and why is not in these numbers"))
        found = Verdict(
            cgroup_id=cgroup_id,
            cgroup=str(name.get("cgroup", "")),
            name=str(name.get("name", "unknown")),
            verdict=verdict,
            confidence=_product(factor for factor, _ in sure),
            sentence="",
            blame=self._blame(cgroup_id, blamed) if somebodys_fault(verdict, authors) and not itself else (),
            waits=int(row["waits"]),
            wait_ns=wait_ns,
            run_ns=run_ns,
            seconds=self.seconds,
            causes=causes,
            authors=authors,
            p50_ns=p50,
            p99_ns=p99,
            involuntary_switches=int(row["involuntary_switches"]),
            slowdown=slowdown,
            slow_wake_ns=slow_ns,
            quota=self._quota(cgroup_id)
            if verdict in ("throttled", "mixed") and causes["throttled"]
            else None,
            doubts=tuple(words for factor, words in sure if factor < 0.9),
        )
        return _with_sentence(found)

    def _lengths(self, cgroup_id: int) -> tuple[float, float, float]:
        """Median and p99 of its waits, and how much time lay in long ones, ns."""
        waits = self.waits.get(cgroup_id)
        if waits is None:
            return 0.0, 0.0, 0.0
        long_ns = histogram.wait_in_waits_from(waits, QUIET_WAIT_NS)
        return histogram.wait_quantile(waits, 0.5), histogram.wait_quantile(waits, 0.99), long_ns

    def _blame(self, victim: int, blamed: list[dict[str, Any]]) -> tuple[Blamed, ...]:
        return tuple(
            Blamed(
                cgroup_id=int(one["occupant_id"]),
                cgroup=str(one["cgroup"]),
                name=str(one["name"]),
                owner=str(one["owner"]),
                share=float(one["share"]),
                wait_ns=int(one["wait_ns"]),
                standing=self._standing(victim, one),
                run_ns=self._run_ns(int(one["occupant_id"])),
            )
            for one in blamed[:_MOST_BLAMED]
            if float(one["share"]) >= _NAMED_SHARE
        )

    def _standing(self, victim: int, one: Mapping[str, Any]) -> Standing:
        occupant = int(one["occupant_id"])
        known = {"victim": self.classes.get(victim), "occupant": self.classes.get(occupant)}
        return standing(
            behind_ns=float(one["wait_ns"]),
            ahead_ns=float(self.behind.get((occupant, victim), 0)),
            waiting=self._at_once(victim),
            occupant_waiting=self._at_once(occupant),
            groups=self._two_groups(victim, occupant),
            classes={role: found for role, found in known.items() if found is not None},
        )

    def _at_once(self, cgroup_id: int) -> float:
        """How many of its tasks want a CPU at once where it runs, on average."""
        run_ns = self._run_ns(cgroup_id)
        return 1.0 + self.behind.get((cgroup_id, cgroup_id), 0) / run_ns if run_ns else 1.0

    def _run_ns(self, cgroup_id: int) -> int:
        return int(self.all[cgroup_id]["run_ns"]) if cgroup_id in self.all else 0

    def _two_groups(self, victim: int, occupant: int) -> tuple[list[Group], list[Group]] | None:
        ours, theirs = self.groups.get(victim), self.groups.get(occupant)
        return None if ours is None or theirs is None else (ours, theirs)

    def _quota(self, cgroup_id: int) -> Quota:
        limits = self.quotas.get(cgroup_id, [])
        if not limits:
            return Quota("")
        bit = max(limits, key=lambda q: (q["throttled_ns"], -q["quota_ns"] / q["period_ns"]))
        quota_ns, period_ns, throttled_ns, periods = (
            int(bit[key]) for key in ("quota_ns", "period_ns", "throttled_ns", "throttled_periods")
        )
        # throttled_ns is per CPU, as the kernel adds it up: no more than so much longer could it have run.
        enough = self.cpus * period_ns
        needed = min(quota_ns + throttled_ns / periods, enough) if periods else 0
        return Quota(
            str(bit["holder"]),
            quota_ns,
            period_ns,
            throttled_ns,
            int(needed),
            enough,
            str(bit.get("setting", "cpu.max")),
        )

    def _sureness(
        self, row: Mapping[str, int], contended: int, unknown: int, margin: float, verdict: str
    ) -> list[tuple[float, str]]:
        waits = int(row["waits"])
        found = [
            (1.0 - self.lost_share, f"{self.lost_share:.1%} of the switches were lost"),
            (
                1.0 - unknown / contended if contended else 1.0,
                f"who held the CPU is not known for {unknown / contended if contended else 0:.0%} of the wait",
            ),
            (margin, "the numbers are close to a threshold"),
        ]
        if verdict != "quiet":  # a short sum is a short sum, however few its parts
            found.append((1.0 - (waits + 1) ** -0.5, f"only {waits:,} waits were seen"))
        oracle = self.oracles.get(int(row["cgroup_id"]))
        if oracle is not None and _account_for(int(oracle["timeslices"]), waits):
            true_ns, seen_ns = int(oracle["run_delay_ns"]), int(row["wait_ns"])
            apart = abs(seen_ns - true_ns) / max(seen_ns, true_ns, 1)
            found.append((1.0 - apart, f"run_delay says {apart:.0%} otherwise"))
        return found


def _account_for(timeslices: int, waits: int) -> bool:
    """Do the tasks that can still be asked make up the cgroup? Not if some ended, or came from elsewhere: what is missing
    from their sum then is no disagreement."""
    return waits > 0 and 0.99 <= timeslices / waits <= 1.01


def _with_sentence(verdict: Verdict) -> Verdict:
    return replace(verdict, sentence=sentence(verdict))


def _product(factors: Iterable[float]) -> float:
    product = 1.0
    for factor in factors:
        product *= max(0.0, factor)
    return product


def _by(frame: pd.DataFrame | None, key: str) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in [] if frame is None else frame.to_dict("records"):
        found.setdefault(int(row[key]), []).append(row)
    return found


def _groups(weights: pd.DataFrame) -> dict[int, list[Group]]:
    rows = _by(weights.sort_values(["cgroup_id", "depth"]), "cgroup_id")
    return {
        cgroup_id: [Group(str(r["group"]), float(r["weight"]), bool(r["idle"])) for r in levels if r["depth"]]
        for cgroup_id, levels in rows.items()
    }


def _waits_behind(cells: pd.DataFrame) -> dict[tuple[int, int], int]:
    """(victim, occupant) -> ns."""
    held = cells[cells["kind"] == "cgroup"]
    pairs = zip(held["victim_id"].tolist(), held["occupant_id"].tolist(), strict=True)
    return dict(zip(pairs, held["wait_ns"].tolist(), strict=True))

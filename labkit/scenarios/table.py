"""Truth and verdict side by side: what each rule sees of a victim's wait, whom it blames, and what follows.

All rules are given the same judge (:mod:`labkit.sched.verdict`, with its thresholds), so that what differs is what they
see. *Seen* is the sum of the waits that a rule measures, as a share of what the kernel says (``run_delay``). *Placed* is
the share of the true wait that it charges to what it belongs to: of each occupant, idle, quota and steal, the smaller of
what the rule says and what the exact integral says; *ours* is the program's method replayed, not that integral.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labkit import histogram
from labkit.scenarios.recording import Case
from labkit.sched import integral, kernel_log, netflix, peers
from labkit.sched.state import SCHEMAS, Snapshot
from labkit.sched.verdict import verdicts

__all__ = ["OURS", "TITLES", "published", "table"]

OURS = "ours"
#: Rule -> what to call it.
TITLES: dict[str, str] = {**{name: rule.title for name, rule in peers.RULES.items()}, OURS: "this lab"}
_ROOT = 1
_COLUMNS = {
    "scenario": "str",
    "victim": "str",
    "rule": "str",
    "waits": "int64",
    "wait_ns": "int64",
    "true_wait_ns": "int64",
    "seen_share": "float64",
    "placed_share": "float64",
    "p99_ns": "float64",
    "blamed": "str",
    "blamed_share": "float64",
    "verdict": "str",
    "confidence": "float64",
    "declared": "str",
    "right": "bool",
}


@dataclass(frozen=True)
class _Sight:
    """What a rule sees of one victim: its row of the matrix, and the lengths of its waits."""

    cells: pd.DataFrame
    lengths: np.ndarray


def table(found: Iterable[Case]) -> pd.DataFrame:
    """Each scenario by each rule.

    :returns: one row per scenario and rule: ``scenario``, ``victim``, ``rule`` (str; one of :data:`TITLES`), ``waits``,
        ``wait_ns`` (int64, as seen by the rule), ``true_wait_ns`` (int64, ``run_delay``), ``seen_share``, ``placed_share``
        (float64), ``p99_ns`` (float64, of the waits seen), ``blamed`` (str: what holds the largest part of the wait it
        sees: a role, ``root``, ``idle``, ``throttled``, ``steal``, ``unknown``, ``another``; empty if it sees none),
        ``blamed_share`` (float64, of that wait), ``verdict`` (str), ``confidence`` (float64), ``declared`` (str, the true
        verdict), ``right`` (bool).
    """
    rows = []
    for case in found:
        run, sights, exact = _run(case), _sights(case), integral.cells(case.events)
        exact = exact[exact["victim_id"] == np.uint64(case.victim)]
        rows += [_row(case, rule, sight, exact, run) for rule, sight in sights.items()]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


def published(case: Case) -> pd.DataFrame:
    """The article's own two metrics of the victim, without rate limit.

    :returns: as :func:`labkit.sched.netflix.switch_outs`, one container per role.
    """
    counts = netflix.switch_outs(peers.seen(case.events, "article"), case.roles)
    return counts[counts["container"] == case.declared["victim"]].reset_index(drop=True)


def _sights(case: Case) -> dict[str, _Sight]:
    victim = np.uint64(case.victim)
    sights = {}
    for rule in peers.RULES:
        seen = peers.seen(case.events, rule)
        seen = seen[seen["cgroup_id"] == victim]
        cells = peers.cells(seen, idle_apart=rule != "article")
        sights[rule] = _Sight(cells, seen["runq_lat"].to_numpy())
    cells = kernel_log.cells(case.events)
    waits = integral.waits(case.events)
    mine = waits[waits["victim_id"] == victim]
    sights[OURS] = _Sight(cells[cells["victim_id"] == victim], _whole(mine))
    return sights


def _whole(stretches: pd.DataFrame) -> np.ndarray:
    """Lengths of whole waits: stretches that a move broke are one."""
    ordered = stretches.sort_values(["pid", "end_ns"], kind="stable")
    ends = ~ordered["migrated"].to_numpy()
    number = np.cumsum(ends) - ends
    sums = ordered.groupby([ordered["pid"], number])["wait_ns"].sum()
    return np.asarray(sums.to_numpy())


def _row(case: Case, rule: str, sight: _Sight, exact: pd.DataFrame, run: pd.Series) -> tuple[object, ...]:
    seen_ns, true_ns = int(sight.cells["wait_ns"].sum()), case.true_wait_ns
    found = verdicts(_snapshot(case, sight, run), only=[case.victim], cpus=int(case.environment["cpus"]))[0]
    blamed, share = _blamed(case, sight.cells)
    declared = str(case.declared["verdict"])
    return (
        case.name,
        case.declared["victim"],
        rule,
        len(sight.lengths),
        seen_ns,
        true_ns,
        seen_ns / true_ns,
        _overlap(sight.cells, exact) / true_ns,
        found.p99_ns,
        blamed,
        share,
        found.verdict,
        found.confidence,
        declared,
        found.verdict == declared,
    )


def _overlap(cells: pd.DataFrame, truth: pd.DataFrame) -> int:
    keys = ["kind", "occupant_id"]
    both = cells.merge(truth, on=keys, suffixes=("", "_true"))
    return int(np.minimum(both["wait_ns"].astype("int64"), both["wait_ns_true"].astype("int64")).sum())


def _blamed(case: Case, cells: pd.DataFrame) -> tuple[str, float]:
    """What holds the largest part of the wait."""
    total = int(cells["wait_ns"].sum())
    if not total:
        return "", 0.0
    called = [
        _called(case, kind, int(one)) for kind, one in zip(cells["kind"], cells["occupant_id"], strict=True)
    ]
    sums = cells["wait_ns"].astype("int64").groupby(pd.Series(called, index=cells.index)).sum()
    return str(sums.idxmax()), float(sums.max() / total)


def _called(case: Case, kind: str, occupant: int) -> str:
    if kind != "cgroup":
        return kind
    return "root" if occupant == _ROOT else case.roles.get(occupant, "another")


def _run(case: Case) -> pd.Series:
    """How long each cgroup held a CPU, ns by id."""
    held = integral.occupancy(case.events)
    held = held[held["kind"] == "cgroup"]
    return (held["end_ns"] - held["start_ns"]).groupby(held["occupant_id"]).sum()


def _snapshot(case: Case, sight: _Sight, run: pd.Series) -> Snapshot:
    """What the judge is shown: the rule's waits, with everything else as it was."""
    ids = sorted({int(one) for one in run.index} | {case.victim})
    cgroups = pd.DataFrame({"cgroup_id": pd.Series(ids, dtype="uint64")})
    cgroups["run_ns"] = [int(run.get(np.uint64(one), 0)) for one in ids]
    mine = cgroups["cgroup_id"] == case.victim
    cgroups["waits"] = np.where(mine, len(sight.lengths), 0)
    cgroups["wait_ns"] = np.where(mine, int(sight.cells["wait_ns"].sum()), 0)
    for column in set(SCHEMAS["cgroups"]) - set(cgroups.columns):
        cgroups[column] = 0
    return Snapshot(
        taken_ns=0,
        seconds=case.seconds,
        mode="replay",
        kernel=str(case.environment["kernel"]),
        cgroups=cgroups.astype(SCHEMAS["cgroups"]),
        cells=sight.cells.astype(SCHEMAS["cells"]),
        histograms=_histogram(case.victim, sight.lengths),
        names=_names(case, ids),
        ledger=case.ledger,
    )


def _histogram(victim: int, lengths: np.ndarray) -> pd.DataFrame:
    lo, hi = histogram.wait_edges()
    count = (
        np.bincount(histogram.wait_slot(lengths), minlength=len(lo)) if len(lengths) else np.zeros(len(lo))
    )
    filled = np.flatnonzero(count)
    columns = {"lo": lo[filled], "hi": hi[filled], "count": count[filled]}
    return pd.DataFrame({"cgroup_id": victim, **columns}).astype(SCHEMAS["histograms"])


def _names(case: Case, ids: list[int]) -> pd.DataFrame:
    rows = []
    for one in ids:
        name = _called(case, "cgroup", one)
        kind, owner = {"root": ("root", "system"), "another": ("unknown", "unknown")}.get(
            name, ("container", "workload")
        )
        rows.append((one, f"/{name}" if one != _ROOT else "/", name, kind, "", "", "", owner, True))
    return pd.DataFrame(rows, columns=list(SCHEMAS["names"])).astype(SCHEMAS["names"])

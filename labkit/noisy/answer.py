"""The answer to "who slows whom down?": verdicts, each beside what the kernel's own counters say, in one JSON form.

Everything in it follows from a :class:`~labkit.sched.state.Snapshot`, :class:`~labkit.noisy.witnesses.Evidence` and a
:class:`~labkit.noisy.select.Selection`, so that a recording of these three gives the same answer again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labkit.kernel.cgroup import ancestors
from labkit.ledger import Ledger
from labkit.noisy.select import Selection
from labkit.noisy.witnesses import Evidence
from labkit.sched.state import Snapshot
from labkit.sched.verdict import Verdict, verdicts

__all__ = ["Answer", "residuals"]

_MOST_SILENT = 20


@dataclass(frozen=True)
class Answer:
    """One answer. Made by :meth:`from_snapshot`.

    :param verdicts: the cgroups asked for, the longest wait first.
    :param residuals: cgroup id -> oracle -> numbers; see :func:`residuals`.
    :param cost: ``ns_per_switch``, None where the kernel's statistics are not permitted, and ``cpu_share``, which is of the
        reader alone then.
    :param rules: which rule was chosen for what, where the kernel leaves a choice.
    :param waiting: how many cgroups waited at all, those not asked for too.
    :param asked: how many cgroups were asked for; there may be fewer verdicts.
    """

    mode: str
    kernel: str
    seconds: float
    verdicts: tuple[Verdict, ...]
    residuals: Mapping[int, Mapping[str, Any]]
    ledger: Ledger
    cost: Mapping[str, float | None]
    rules: tuple[str, ...] = ()
    waiting: int = 0
    asked: int = 0

    @classmethod
    def from_snapshot(
        cls,
        snapshot: Snapshot,
        *,
        evidence: Evidence | None = None,
        selection: Selection | None = None,
        most: int | None = None,
    ) -> Answer:
        """Judge what was measured.

        :param most: only so many, those that waited longest.
        :raises NoSuchCgroup: if something was asked for that is not there.
        """
        evidence, selection = evidence or Evidence.none(), selection or Selection()
        asked = _asked(snapshot, selection)
        chosen = asked if most is None else asked[:most]
        judged = verdicts(
            snapshot,
            quotas=evidence.quotas,
            weights=evidence.weights,
            classes=evidence.classes,
            oracles=evidence.oracles,
            only=chosen,
        )
        found = residuals(snapshot, evidence, [verdict.cgroup_id for verdict in judged])
        return cls(
            mode=snapshot.mode,
            kernel=snapshot.kernel,
            seconds=snapshot.seconds,
            verdicts=tuple(judged),
            residuals=found,
            ledger=snapshot.ledger,
            cost={
                "ns_per_switch": snapshot.cost.ns_per_switch,
                "cpu_share": snapshot.cost.cpu_share(snapshot.seconds),
            },
            rules=snapshot.rules,
            waiting=int((snapshot.cgroups["wait_ns"] > 0).sum()),
            asked=len(asked),
        )

    def as_dict(self) -> dict[str, Any]:
        """The answer as JSON has it. Causes are ns and add up to ``wait_ns``; ``share`` is of the foreign wait."""
        return {
            "mode": self.mode,
            "kernel": self.kernel,
            "seconds": round(self.seconds, 6),
            "cgroups": [self._cgroup(verdict) for verdict in self.verdicts],
            "ledger": self._ledger(),
            "cost": {name: _rounded(value, 6) for name, value in self.cost.items()},
        }

    def _ledger(self) -> dict[str, Any]:
        """The ledger; by which rules and in what room it was measured is among its notes."""
        ledger = self.ledger.as_dict()
        return ledger | {"notes": [*ledger["notes"], *self.rules]}

    def as_json(self) -> str:
        """One line of JSON in ASCII: control characters in names are escaped."""
        return json.dumps(self.as_dict(), ensure_ascii=True, allow_nan=False)

    def _cgroup(self, verdict: Verdict) -> dict[str, Any]:
        return {
            "cgroup": verdict.cgroup,
            "name": verdict.name,
            "verdict": verdict.verdict,
            "confidence": round(verdict.confidence, 3),
            "sentence": verdict.sentence,
            "blame": [
                {"cgroup": one.cgroup, "name": one.name, "share": round(one.share, 6)}
                for one in verdict.blame
            ],
            "wait_ns": verdict.wait_ns,
            "wait_by_cause": dict(verdict.causes),
            "p50_ns": round(verdict.p50_ns),
            "p99_ns": round(verdict.p99_ns),
            "involuntary_switches": verdict.involuntary_switches,
            "residual": dict(self.residuals.get(verdict.cgroup_id, {})),
        }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _asked(snapshot: Snapshot, selection: Selection) -> list[int]:
    """Ids of the cgroups asked for, the longest wait first."""
    cgroups = snapshot.cgroups
    asked = [] if selection.everything else selection.ids(snapshot.names)
    if asked:
        cgroups = cgroups[cgroups["cgroup_id"].isin(asked)]
        if cgroups.empty and not selection.min_wait_ms:
            return asked[:_MOST_SILENT]  # they are there, and never wanted a CPU
    least_ns = selection.min_wait_ms * 1e6 * snapshot.seconds
    if least_ns:
        cgroups = cgroups[cgroups["wait_ns"] >= least_ns]
    longest = np.argsort(-cgroups["wait_ns"].to_numpy().astype(np.int64), kind="stable")
    return [int(cgroup_id) for cgroup_id in cgroups["cgroup_id"].to_numpy()[longest]]


def residuals(snapshot: Snapshot, evidence: Evidence, ids: list[int]) -> dict[int, dict[str, Any]]:
    """What was measured, held against the kernel's own counters of the same cgroups.

    ``run_delay``
        sum over the tasks that were alive at the end (``/proc/TID/schedstat``); ``verifiable_share`` is how well their
        switch-ins account for the cgroup's: tasks that ended, or came from or went to another cgroup, have their
        counters elsewhere. ``residual_ns`` is measured less oracle.
    ``involuntary_switches``, ``voluntary_switches``
        the same with ``nonvoluntary_ctxt_switches`` and ``voluntary_ctxt_switches`` of ``/proc/TID/status``; who was
        switched in and did not leave involuntarily left voluntarily. Where a task was on the CPU as measuring began, or
        stands in line as it ends, it has left once more than it was switched in: never below 0 because of that.
        ``/proc`` and the tables are read some ms apart, which is worth a switch or some.
    ``throttled``
        ``cpu.stat.local``: wall time. ``comparable`` only where the cgroup has one task; with more that wait at once it is
        less than what is measured.
    ``pressure``
        "some" of ``cpu.pressure``, wall time in which at least one task waited, with what lies below the cgroup: a bound,
        ``some <= waits <= tasks * some``. ``holds`` is about its first half, with 2 % and 10 ms for reading both at
        different moments.

    ``stamps``
        ``runq_latency`` beside it, in a part of the time: another clock, other moments. What ended in that part is between
        ``measured_ns`` and ``most_ns``, and ``residual_ns`` is 0 if the stamps say so, too.
    ``requests``
        a scenario's victim by its own clock: by how much its requests took longer than the work in them. ``comparable``
        where the victim is one task; timers that are late and waits between requests keep the two apart.

    An oracle that could not be read is None.
    """
    stamps, requests, oracles = (
        {int(row["cgroup_id"]): row for row in frame.to_dict("records")}
        for frame in (evidence.stamps, evidence.requests, evidence.oracles)
    )
    measured = {int(row["cgroup_id"]): row for row in snapshot.cgroups.to_dict("records")}
    below = _with_below(snapshot)
    return {
        cgroup_id: _residual(measured[cgroup_id], oracles.get(cgroup_id), below.get(cgroup_id, 0))
        | {
            "stamps": _stamped(stamps.get(cgroup_id)),
            "requests": _requested(measured[cgroup_id], oracles.get(cgroup_id), requests.get(cgroup_id)),
        }
        for cgroup_id in ids
        if cgroup_id in measured
    }


def _residual(row: Mapping[str, Any], oracle: Mapping[str, Any] | None, below_ns: int) -> dict[str, Any]:
    nothing = dict.fromkeys(
        ("run_delay", "involuntary_switches", "voluntary_switches", "throttled", "pressure")
    )
    if oracle is None or not oracle["tasks"]:
        return nothing
    waits, wait_ns = int(row["waits"]), int(row["wait_ns"])
    # Above 1 where tasks came from elsewhere and brought their counters along: that is no better than tasks that ended.
    share = int(oracle["timeslices"]) / waits if waits else 1.0
    share = 1.0 / share if share > 1.0 else share
    found: dict[str, Any] = nothing | {
        "run_delay": _beside(wait_ns, int(oracle["run_delay_ns"]))
        | {"tasks": int(oracle["tasks"]), "verifiable_share": round(share, 4)},
        "involuntary_switches": {
            "oracle": int(oracle["involuntary"]),
            "residual": int(row["involuntary_switches"]) - int(oracle["involuntary"]),
        },
    }
    if oracle["voluntary"] >= 0:
        # A task put off the CPU that has not got it back left without a switch-in of its own here.
        voluntary = max(0, waits - int(row["involuntary_switches"]))
        found["voluntary_switches"] = {
            "oracle": int(oracle["voluntary"]),
            "residual": voluntary - int(oracle["voluntary"]),
        }
    if oracle["throttled_ns"] >= 0:
        found["throttled"] = _beside(int(row["throttled_ns"]), int(oracle["throttled_ns"])) | {
            "comparable": _one_task(oracle, waits)
        }
    if oracle["some_ns"] >= 0:
        some = int(oracle["some_ns"])
        found["pressure"] = {
            "some_ns": some,
            "waits_ns": below_ns,
            "holds": some <= 1.02 * below_ns + 10_000_000,
        }
    return found


def _one_task(oracle: Mapping[str, Any], waits: int) -> bool:
    """Was the cgroup one task all the time, as far as its switch-ins tell?"""
    return int(oracle["tasks"]) == 1 and abs(int(oracle["timeslices"]) - waits) <= max(2, 0.02 * waits)


def _stamped(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    least_ns, stamped_ns = int(row["measured_ns"]), int(row["stamped_ns"])
    most_ns = max(least_ns, int(row["most_ns"]))  # -1 in old recordings
    nearest_ns = min(max(stamped_ns, least_ns), most_ns)
    return _beside(nearest_ns, stamped_ns) | {
        "measured_ns": least_ns,
        "most_ns": most_ns,
        "waits": int(row["waits"]),
    }


def _requested(
    row: Mapping[str, Any], oracle: Mapping[str, Any] | None, said: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    if said is None:
        return None
    one = oracle is not None and _one_task(oracle, int(row["waits"]))
    beside = _beside(int(row["wait_ns"]), int(said["beyond_ns"]))
    return beside | {"requests": int(said["requests"]), "comparable": one}


def _beside(measured_ns: int, oracle_ns: int) -> dict[str, Any]:
    return {
        "oracle_ns": oracle_ns,
        "residual_ns": measured_ns - oracle_ns,
        "residual_share": round((measured_ns - oracle_ns) / oracle_ns, 6) if oracle_ns else None,
    }


def _with_below(snapshot: Snapshot) -> dict[int, int]:
    """Each cgroup's wait with that of all below it, as pressure counts it."""
    names: pd.DataFrame = snapshot.names
    paths = dict(zip(names["cgroup_id"].tolist(), names["cgroup"].tolist(), strict=True))
    sums: dict[str, int] = {}
    waits = zip(snapshot.cgroups["cgroup_id"].tolist(), snapshot.cgroups["wait_ns"].tolist(), strict=True)
    for cgroup_id, wait_ns in waits:
        for path in ancestors(paths[cgroup_id]) if paths.get(cgroup_id) else []:
            sums[path] = sums.get(path, 0) + wait_ns
    return {cgroup_id: sums.get(path, 0) for cgroup_id, path in paths.items()}

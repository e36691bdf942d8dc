"""Snapshots made up for tests: small ones by hand, large ones by numbers that add up as the kernel's do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from labkit.ledger import Ledger
from labkit.sched.state import SCHEMAS, Cost, Room, Snapshot

ROOT_ID = 1


@dataclass
class Group:
    """One cgroup: what it waited for whom (cell -> ns), and who it is."""

    id: int
    name: str
    cells: Mapping[tuple[str, int], int] = field(default_factory=dict)
    waits: int = 1
    involuntary: int = 0
    run_ns: int = 1_000_000
    buckets: Mapping[tuple[int, int], int] | None = None
    namespace: str = ""
    pod: str = ""
    container: str = ""
    kind: str = "cgroup"
    owner: str = "workload"
    alive: bool = True
    preemptions: int = 0

    @property
    def wait_ns(self) -> int:
        return sum(self.cells.values())


def _frame(name: str, rows: Sequence[Sequence[object]]) -> pd.DataFrame:
    columns = list(SCHEMAS[name])
    return pd.DataFrame(list(rows), columns=columns).astype(SCHEMAS[name])


def snapshot(*groups: Group, at_s: float = 10.0, lost: int = 0, cost: Cost | None = None) -> Snapshot:
    """All of these as one snapshot."""
    ns = [(g, g.wait_ns) for g in groups]
    cgroups = [
        (
            g.id,
            g.waits,
            wait,
            g.cells.get(("throttled", 0), 0),
            g.cells.get(("steal", 0), 0),
            0,
            g.involuntary,
            g.run_ns,
        )
        for g, wait in ns
    ]
    cells = [
        (g.id, kind, occupant, wait, g.preemptions if kind == "cgroup" else 0)
        for g in groups
        for (kind, occupant), wait in g.cells.items()
    ]
    histograms = [
        (g.id, lo, hi, count)
        for g in groups
        for (lo, hi), count in (g.buckets if g.buckets is not None else {(1 << 20, 9 << 17): g.waits}).items()
    ]
    names = [
        (g.id, f"/{g.name}", g.name, g.kind, g.namespace, g.pod, g.container, g.owner, g.alive)
        for g in groups
    ]
    seen = sum(g.waits for g in groups)
    return Snapshot(
        taken_ns=int(at_s * 1e9),
        seconds=at_s,
        mode="live",
        kernel="6.18.0-test",
        cgroups=_frame("cgroups", cgroups),
        cells=_frame("cells", cells),
        histograms=_frame("histograms", histograms),
        names=_frame("names", names),
        ledger=Ledger("test", "live", seen + lost, seen, {"map_full": lost}, unseen=2, event="switch"),
        cost=cost or Cost(switches=1000, kernel_ns=250_000, user_ns=1_000_000, cpus=2),
        rules=("throttled time: by task_struct.throttled",),
        noted={"missed_waits": 3, "missed_ns": 5_000_000, "cgroups_full": 1, "cells_full": 2},
        room=Room({"cgroups": len(groups), "cells": 5}, {"cgroups": 4094, "cells": 16384}, 22_000_000),
    )


def crowd(count: int, *, occupants: int = 8, buckets: int = 40, step: int = 1) -> Snapshot:
    """So many cgroups, each with cells for several occupants and a filled histogram; ``step`` scales all counters."""
    ids = np.arange(100, 100 + count, dtype=np.uint64)
    others = np.tile(np.arange(occupants), count)
    victims = np.repeat(ids, occupants)
    wait = (np.arange(len(victims), dtype=np.uint64) % 997 + 1) * np.uint64(1000 * step)
    cells = pd.DataFrame(
        {
            "victim_id": victims,
            "kind": pd.Series(np.where(others == 0, "idle", "cgroup"), dtype="str"),
            "occupant_id": np.where(others == 0, 0, 100 + others).astype(np.uint64),
            "wait_ns": wait,
            "preemptions": wait // 1000,
        }
    )
    per_victim = wait.reshape(count, occupants).sum(axis=1)
    low = 1 << 13
    edges = [(low << (k // 8)) + (k % 8) * (low << (k // 8)) // 8 for k in range(buckets + 1)]
    histograms = pd.DataFrame(
        {
            "cgroup_id": np.repeat(ids, buckets),
            "lo": np.tile(np.array(edges[:-1], np.uint64), count),
            "hi": np.tile(np.array(edges[1:], np.uint64), count),
            "count": np.full(count * buckets, step, np.uint64),
        }
    )
    zeros = np.zeros(count, np.uint64)
    cgroups = pd.DataFrame(
        {
            "cgroup_id": ids,
            "waits": np.full(count, buckets * step, np.uint64),
            "wait_ns": per_victim,
            "throttled_ns": zeros,
            "steal_ns": zeros,
            "migrated_ns": zeros,
            "involuntary_switches": np.full(count, step, np.uint64),
            "run_ns": per_victim,
        }
    )
    names = pd.DataFrame(
        {
            "cgroup_id": ids,
            "cgroup": pd.Series([f"/kubepods/pod{i}/c" for i in range(count)], dtype="str"),
            "name": pd.Series([f"shop/web-{i}/main" for i in range(count)], dtype="str"),
            "kind": pd.Series(["container"] * count, dtype="str"),
            "namespace": pd.Series(["shop"] * count, dtype="str"),
            "pod": pd.Series([f"web-{i}" for i in range(count)], dtype="str"),
            "container": pd.Series(["main"] * count, dtype="str"),
            "owner": pd.Series(["workload"] * count, dtype="str"),
            "alive": True,
        }
    )
    total = int(cgroups["waits"].sum())
    return Snapshot(
        taken_ns=int(step * 15e9),
        seconds=step * 15.0,
        mode="live",
        kernel="6.18.0-test",
        cgroups=cgroups,
        cells=cells,
        histograms=histograms,
        names=names,
        ledger=Ledger("crowd", "live", total, total, {"map_full": 0}, unseen=0, event="switch"),
        cost=Cost(switches=total, kernel_ns=total * 300, user_ns=1_000_000, cpus=2),
        room=Room({"cgroups": count, "cells": len(cells)}, {"cgroups": 8190, "cells": 16384}, 22_000_000),
    )

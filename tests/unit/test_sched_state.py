"""Snapshots: what came between two of them, also when cgroups died and were forgotten."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from labkit.errors import ParameterError
from labkit.ledger import Ledger
from labkit.sched.state import SCHEMAS, Cost, Snapshot, between, empty


def frame(name: str, rows: list[tuple[object, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(SCHEMAS[name])).astype(SCHEMAS[name]) if rows else empty(name)


def names(*ids: int) -> pd.DataFrame:
    return frame("names", [(i, f"/{i}", str(i), "cgroup", "", "", "", "workload", True) for i in ids])


def snapshot(taken_ns: int, cgroups: list, cells: list, ids: tuple[int, ...], seen: int = 0) -> Snapshot:
    return Snapshot(
        taken_ns=taken_ns,
        seconds=taken_ns / 1e9,
        mode="live",
        kernel="6.18",
        cgroups=frame("cgroups", cgroups),
        cells=frame("cells", cells),
        histograms=empty("histograms"),
        names=names(*ids),
        ledger=Ledger("t", "live", seen, seen, {"x": 0}, unseen=1),
        cost=Cost(seen, 100 * seen, 5, 2),
    )


OLD = snapshot(
    10**9,
    [(5, 10, 100, 0, 0, 0, 1, 50), (6, 1, 30, 0, 0, 0, 0, 0)],
    [(5, "cgroup", 6, 100, 1), (6, "cgroup", 5, 30, 0)],
    (5, 6),
    seen=11,
)


def test_rows_are_differences_and_those_that_stood_still_are_left_out() -> None:
    new = snapshot(
        3 * 10**9,
        [(5, 15, 180, 0, 0, 0, 3, 90), (6, 1, 30, 0, 0, 0, 0, 0), (7, 2, 9, 0, 0, 0, 0, 0)],
        [(5, "cgroup", 6, 150, 3), (5, "idle", 0, 30, 0), (6, "cgroup", 5, 30, 0), (7, "cgroup", 5, 9, 0)],
        (5, 6, 7),
        seen=18,
    )
    found = between(OLD, new)
    assert found.seconds == 2.0
    assert found.cgroups.set_index("cgroup_id")[["waits", "wait_ns"]].T.to_dict() == {
        5: {"waits": 5, "wait_ns": 80},
        7: {"waits": 2, "wait_ns": 9},
    }
    assert found.cells.groupby("victim_id")["wait_ns"].sum().to_dict() == {5: 80, 7: 9}
    assert found.cgroups.dtypes.astype(str).to_dict() == SCHEMAS["cgroups"]
    assert (found.ledger.seen, found.ledger.unseen) == (7, 0)
    assert (found.cost.switches, found.cost.kernel_ns) == (7, 700)
    assert found.cost.ns_per_switch == 100


def test_what_a_ledger_notes_is_told_of_the_interval_not_of_all_the_time_since_it_was_loaded() -> None:
    words = "waits ended unseen"
    older = replace(OLD, ledger=replace(OLD.ledger, counted={words: 100, "odd": 7}))
    newer = replace(older, taken_ns=2 * 10**9, ledger=replace(older.ledger, counted={words: 101, "odd": 7}))
    found = between(older, newer).ledger
    assert found.describe().endswith(f"; 1 {words}")
    assert Ledger.from_dict(found.as_dict()) == found


def test_the_same_snapshot_twice_is_an_empty_interval() -> None:
    found = between(OLD, OLD)
    assert [len(getattr(found, name)) for name in ("cgroups", "cells", "histograms")] == [0, 0, 0]
    assert found.cells.dtypes.astype(str).to_dict() == SCHEMAS["cells"]


def test_what_was_forgotten_in_between_did_not_happen_in_between() -> None:
    """6 died long ago: its row joined that of id 0, and as an occupant it is unknown."""
    new = snapshot(
        2 * 10**9,
        [(5, 12, 140, 0, 0, 0, 1, 50), (0, 1, 30, 0, 0, 0, 0, 0)],
        [(5, "unknown", 0, 100, 1), (5, "idle", 0, 40, 0), (0, "cgroup", 5, 30, 0)],
        (0, 5),
        seen=20,
    )
    found = between(OLD, new)
    assert found.cgroups[["cgroup_id", "waits", "wait_ns"]].to_numpy().tolist() == [[5, 2, 40]]
    assert found.cells[["victim_id", "kind", "wait_ns"]].to_numpy().tolist() == [[5, "idle", 40]]


def test_snapshots_of_two_programs_are_refused() -> None:
    with pytest.raises(ParameterError, match="smaller"):
        between(OLD, replace(OLD, taken_ns=2 * 10**9, cgroups=OLD.cgroups.assign(waits=np.uint64(0))))
    with pytest.raises(ParameterError, match="wrong order"):
        between(replace(OLD, taken_ns=2 * 10**9), OLD)


def test_costs_that_are_not_permitted_are_not_invented() -> None:
    cost = Cost(100, None, 10, 4)
    assert cost.ns_per_switch is None
    assert cost.cpu_share(1.0) == pytest.approx(10 / 4e9)  # what the reader itself took is always known
    assert cost.cpu_share(0.0) is None
    assert Cost(0, 0, 0, 4).ns_per_switch is None
    assert Cost(10, 2_000_000, 2_000_000, 4).cpu_share(1.0) == pytest.approx(0.001)

"""The noisy-neighbour program where quota and weight are cgroup v2's own: what is summed, never how fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import labkit as lk
from labkit.kernel.cgroup import hierarchy
from labkit.noisy import plan as planning
from labkit.noisy.watch import Watch
from labkit.sched.state import Snapshot, between
from labkit.workloads import Truth, scenario

pytestmark = pytest.mark.guest


@contextmanager
def measured(name: str, seconds: float = 2.0) -> Iterator[tuple[Truth, Snapshot]]:
    with Watch() as watch, scenario(name, seconds=seconds).start() as running:
        before = watch.snapshot()
        running.go()
        truth = running.finish()
        watch.stop()
        yield truth, between(before, watch.snapshot())


@pytest.mark.slow
def test_the_verifier_takes_it_with_the_tables_of_a_large_machine() -> None:
    large = planning.sizes(256, 9000, 400_000)
    with lk.load("noisy_neighbor", **planning.plan().params | large) as prog:
        assert prog.ledger.balanced


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("throttled", "quota_on_parent")]


@pytest.fixture(scope="module", params=["throttled_beside_hog", "two_hogs_3_1", *SLOW])
def run(request: pytest.FixtureRequest) -> Iterator[tuple[Truth, Snapshot]]:
    with measured(request.param) as found:
        yield found


def wait_of(found: Snapshot, victim: int, kind: str, occupant: int | None = None) -> int:
    cells = found.cells[(found.cells["victim_id"] == victim) & (found.cells["kind"] == kind)]
    if occupant is not None:
        cells = cells[cells["occupant_id"] == occupant]
    return int(cells["wait_ns"].sum())


def test_each_cgroup_is_one_directory_of_the_one_tree_with_its_limits(run: tuple[Truth, Snapshot]) -> None:
    truth, found = run
    root = hierarchy().unified
    assert root == Path("/sys/fs/cgroup")
    for row in truth.cgroups[truth.cgroups["cgroup"] != "/"].itertuples():
        assert row.cpu_cgroup == row.cgroup
        folder = root / str(row.cgroup).lstrip("/")
        assert folder.stat().st_ino == row.cgroup_id
        quota = f"{row.quota_us} {row.period_us}" if row.quota_us else "max 100000"
        assert (folder / "cpu.max").read_text().strip() == quota
        assert int((folder / "cpu.weight").read_text()) == row.weight
    named = found.names.set_index("cgroup_id")["cgroup"]
    waiting = truth.cgroups[truth.cgroups["run_delay_ns"] > 0].set_index("cgroup_id")["cgroup"]
    assert named.reindex(waiting.index).to_dict() == waiting.to_dict()


def test_waits_are_run_delay_and_their_parts_sum_to_them(run: tuple[Truth, Snapshot]) -> None:
    truth, found = run
    waits = found.cgroups.set_index("cgroup_id")["wait_ns"]
    rows = found.cells.groupby("victim_id")["wait_ns"].sum()
    books = truth.cgroups[truth.cgroups["cgroup"] != "/"].set_index("cgroup_id")["run_delay_ns"]
    for cgroup_id, run_delay_ns in books[books > 0].items():
        assert int(rows[cgroup_id]) == int(waits[cgroup_id])
        assert int(waits[cgroup_id]) == pytest.approx(int(run_delay_ns), rel=0.01)
    assert found.ledger.balanced


def test_a_quota_is_told_from_neighbours(run: tuple[Truth, Snapshot]) -> None:
    truth, found = run
    if truth.declared["quota_ancestor"] == "":
        assert int(truth.cgroups["nr_throttled"].max()) == 0
        assert wait_of(found, int(truth.cgroups["cgroup_id"].iloc[0]), "throttled") == 0
        return
    assert int(truth.cgroups["nr_throttled"].max()) > 0
    service = int(truth.cgroups.set_index("role").loc["service", "cgroup_id"])
    throttled_ns = int(truth.cgroups["throttled_ns"].max())
    # What is summed is the tasks' time, n times cpu.stat's for n tasks that wait. At the start and at the end a period may
    # be in the one account and not yet in the other.
    tasks = int((truth.tasks["cgroup_id"] == service).sum())
    period_ns = 1000 * int(truth.cgroups["period_us"].max())
    found_ns = wait_of(found, service, "throttled")
    assert found_ns > 0
    assert found_ns == pytest.approx(tasks * throttled_ns, abs=2 * period_ns * tasks)


def test_who_weighs_more_runs_more_and_is_blamed_more(run: tuple[Truth, Snapshot]) -> None:
    truth, found = run
    if truth.name != "two_hogs_3_1":
        assert truth.cgroups["weight"].nunique() <= 2
        return
    roles = truth.cgroups[truth.cgroups["role"].str.startswith("hog")].sort_values("weight")
    light, heavy = roles.iloc[0], roles.iloc[-1]
    assert heavy["weight"] == 3 * light["weight"]
    assert (
        heavy["run_ns"] > light["run_ns"]
    )  # by how much, once it is counted long enough: test_scenarios_v2.py
    service = int(truth.cgroups.set_index("role").loc["service", "cgroup_id"])
    assert wait_of(found, service, "cgroup", int(heavy["cgroup_id"])) > wait_of(
        found, service, "cgroup", int(light["cgroup_id"])
    )

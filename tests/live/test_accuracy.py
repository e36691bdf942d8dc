"""Run-queue latency against the scheduler's own account, for every task of contended workloads."""

import pandas as pd
import pytest

from labkit import workloads
from labkit.kernel import cgroup, probe
from labkit.kernel.headers import find
from labkit.program import load
from labkit.sched import compare
from labkit.workloads import Workload

pytestmark = [pytest.mark.live, pytest.mark.needs("schedstat")]

CONTENDED = [workloads.two_pinned_hogs(seconds=1), workloads.service_beside_hog(seconds=1)]


def _measure(workload: Workload) -> tuple[pd.DataFrame, pd.DataFrame]:
    with load("runq_latency") as prog, workload.run() as truth:
        waits = prog.frame("waits")
        ledger = prog.ledger
        assert ledger.balanced, ledger.describe()
        assert ledger.lost_share < 0.01, ledger.describe()
        return compare(waits, truth.tasks), truth.tasks.merge(waits, on="pid", suffixes=("", "_seen"))


@pytest.mark.parametrize("workload", CONTENDED, ids=lambda w: w.name)
def test_waits_agree_with_run_delay_for_every_task(workload: Workload) -> None:
    compared, _ = _measure(workload)
    assert (compared["verdict"] == "agrees").all(), compared.to_string()
    assert (compared["residual_ns"].abs() <= compared["run_delay_ns"] / 2).all()
    assert (compared["run_delay_ns"] > 50_000_000).all(), "the workload did not contend"


@pytest.mark.parametrize("workload", [*CONTENDED, workloads.ping_pong(1000)], ids=lambda w: w.name)
def test_every_switch_in_is_one_wait_exactly_or_stands_in_the_ledger(workload: Workload) -> None:
    with load("runq_latency") as prog, workload.run() as truth:
        compared = compare(prog.frame("waits"), truth.tasks)
        ledger = prog.ledger
    missing = compared["timeslices"] - compared["waits"]
    assert (missing >= 0).all(), compared.to_string()
    assert missing.sum() <= ledger.lost + (ledger.unseen or 0), compared.to_string()


def test_preempted_waits_are_seen_which_stamps_at_wakeup_miss() -> None:
    compared, _ = _measure(workloads.two_pinned_hogs(seconds=1))
    assert (compared["preempted_wait_ns"] > 0.95 * compared["wait_ns"]).all()


def test_a_hog_alone_waits_next_to_nothing_beside_one_that_has_company() -> None:
    alone, _ = _measure(workloads.service_alone(seconds=1))
    beside, _ = _measure(workloads.service_beside_hog(seconds=1))
    service = beside.set_index("role").loc["service", "wait_ns"]
    assert service > 5 * alone["wait_ns"].item()


@pytest.mark.needs("cgroups")
def test_cgroup_ids_are_the_inodes_of_the_tasks_directories_whatever_headers_are_installed() -> None:
    _, tasks = _measure(workloads.two_pinned_hogs(seconds=0.5))
    tree = cgroup.hierarchy()
    for row in tasks.itertuples():
        assert row.cgroup.startswith("/labkit-")
        assert row.cgroup_id_seen == row.cgroup_id
    assert tasks["cgroup_id"].nunique() == 2
    assert tree.unified is not None
    if not find().matches:
        assert probe()["kernel headers"].consequence.startswith("any tree serves")


def test_idle_is_nobody() -> None:
    with load("runq_latency") as prog, workloads.service_alone(seconds=0.5).run():
        assert 0 not in set(prog.frame("waits")["pid"])
        assert 0 not in set(prog.frame("stamps")["pid"])


def test_stamps_are_freed_at_exit_and_results_stay() -> None:
    with load("runq_latency") as prog:
        truth = workloads.two_pinned_hogs(seconds=0.3).run()
        pids = set(truth.tasks["pid"])
        assert pids <= set(prog.frame("stamps")["pid"])
        truth.release()
        assert not pids & set(prog.frame("stamps")["pid"])
        assert pids <= set(prog.frame("waits")["pid"])


def test_one_process_can_be_measured_alone() -> None:
    import os

    with load("runq_latency", tgid=os.getpid()) as prog, workloads.service_alone(seconds=0.2).run():
        seen = prog.frame("waits")
        assert set(seen["tgid"]) <= {os.getpid()}

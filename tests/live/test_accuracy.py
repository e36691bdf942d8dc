"""Run-queue latency against the scheduler's own account, for every task of contended workloads."""

import os
import time
from pathlib import Path

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
        compared = compare(waits, truth.tasks)
        assert ledger.balanced, ledger.describe()
        # The workload's own tasks: what else a quiet machine loses (switches of its init process are hidden from programs
        # on some) may be a large share of the little that happens there.
        missing = compared["timeslices"].sum() - compared["waits"].sum()
        assert missing <= 0.01 * compared["timeslices"].sum() + 2, (
            f"{compared.to_string()}\n{ledger.describe()}"
        )
        return compared, truth.tasks.merge(waits, on="pid", suffixes=("", "_seen"))


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


def test_the_longest_wait_is_at_least_the_mean_and_at_most_all() -> None:
    _, tasks = _measure(workloads.two_pinned_hogs(seconds=0.5))
    assert (tasks["max_wait_ns"] >= tasks["wait_ns"] / tasks["waits"]).all()
    assert (tasks["max_wait_ns"] <= tasks["wait_ns"]).all()


def _busy_ns(cpu: int) -> float:
    """Time that a CPU has worked, or been kept from it by the hypervisor, since boot (/proc/stat)."""
    line = next(one for one in Path("/proc/stat").read_text().splitlines() if one.startswith(f"cpu{cpu} "))
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) * 1e9 / os.sysconf("SC_CLK_TCK")


def test_a_service_waits_while_others_have_its_cpu_and_only_then() -> None:
    """Holds on a busy machine too: whatever else ran there is in the books of the CPU."""
    cpu = max(os.sched_getaffinity(0))
    before = _busy_ns(cpu)
    alone = _measure(workloads.service_alone(seconds=1, cpu=cpu))[0].iloc[0]
    others_ns = _busy_ns(cpu) - before - alone["run_ns"]
    assert alone["wait_ns"] < 1.2 * others_ns + 100_000_000
    beside = _measure(workloads.service_beside_hog(seconds=1))[0].set_index("role").loc["service"]
    assert beside["wait_ns"] > 0.5 * beside["run_ns"]


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


def test_tasks_are_told_apart_by_their_start_so_that_a_reused_pid_is_another() -> None:
    before = time.monotonic_ns()
    with load("runq_latency") as prog, workloads.two_pinned_hogs(seconds=0.2).run() as truth:
        after = time.monotonic_ns()
        seen = prog.frame("waits").merge(truth.tasks, on="pid")
    assert seen["start_time_ns"].nunique() == 2
    assert seen["start_time_ns"].between(before, after).all()


def test_one_process_can_be_measured_alone() -> None:
    with load("runq_latency", tgid=os.getpid()) as prog, workloads.service_alone(seconds=0.2).run():
        seen = prog.frame("waits")
        assert set(seen["tgid"]) <= {os.getpid()}

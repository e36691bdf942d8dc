"""Each scenario makes the contention that it declares, by the kernel's own counters, and leaves nothing behind.

What is asserted holds on a busy machine too: others can only add to waits, and weights and quotas hold whatever they do.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from labkit import oracles
from labkit.errors import UnsupportedKernel
from labkit.kernel.cgroup import hierarchy
from labkit.workloads import SCENARIOS, Truth, scenario

pytestmark = [pytest.mark.live, pytest.mark.needs("schedstat", "cgroups", "root")]

SECONDS = 1.5
MS = 1_000_000


@dataclass(frozen=True)
class Seen:
    """A run of a scenario: what it says, and what was read beside it while its processes stood parked."""

    truth: Truth
    usage: pd.Series
    affinity: dict[str, set[int]]
    niceness: dict[str, int]
    policy: dict[str, int]
    left: list[str]
    stolen_ns: int

    @property
    def cgroups(self) -> pd.DataFrame:
        return self.truth.cgroups.set_index("role")

    @property
    def victim(self) -> pd.Series:
        return self.cgroups.loc[self.truth.declared["victim"]]

    @property
    def guilty(self) -> pd.DataFrame:
        return self.cgroups.loc[list(self.truth.declared["guilty"])]


@functools.cache
def _seen(name: str) -> Seen:
    """One run each, for all tests."""
    tree = hierarchy()
    stolen = _stolen_ns()
    with scenario(name, seconds=SECONDS).run() as truth:
        stolen = _stolen_ns() - stolen
        pids = dict(zip(truth.tasks["role"], truth.tasks["pid"], strict=True))
        folders = [str(tree.unified) + path for path in truth.cgroups["cgroup"]]
        usage = oracles.cpu_stat(folders)["usage_ns"].set_axis(truth.cgroups["role"])
        affinity = {role: os.sched_getaffinity(pid) for role, pid in pids.items()}
        niceness = {role: os.getpriority(os.PRIO_PROCESS, pid) for role, pid in pids.items()}
        policy = {role: os.sched_getscheduler(pid) for role, pid in pids.items()}
    left = [str(folder) for folder in _folders(truth) if folder.exists()]
    left += [f"process {pid}" for pid in pids.values() if Path(f"/proc/{pid}").exists()]
    return Seen(truth, usage, affinity, niceness, policy, left, stolen)


def _stolen_ns() -> int:
    """Time that interrupts and the hypervisor took from tasks, all CPUs together, by /proc/stat (to a clock tick)."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    irq, softirq, steal = (int(word) for word in words[5:8])
    return (irq + softirq + steal) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _folders(truth: Truth) -> list[Path]:
    tree = hierarchy()
    tops = [top for top in (tree.unified, tree.controllers.get("cpu")) if top is not None]
    return [Path(str(top) + path) for top in tops for path in truth.cgroups["cgroup"] if path != "/"]


@pytest.fixture
def seen(name: str) -> Seen:
    try:
        return _seen(name)
    except (
        UnsupportedKernel
    ) as error:  # one CPU, or no real-time tasks: it has said so, which is all it can do
        pytest.xfail(str(error))


every = pytest.mark.parametrize("name", SCENARIOS)


@every
def test_each_role_works_in_a_cgroup_of_its_own_and_its_row_says_which(seen: Seen) -> None:
    rows, tree = seen.cgroups, hierarchy()
    assert rows.index.is_unique
    assert rows["cgroup_id"].is_unique
    told = seen.truth.tasks.merge(seen.truth.cgroups, on="cgroup", suffixes=("", "_row"))
    assert len(told) == len(seen.truth.tasks)
    assert (told["cgroup_id"] == told["cgroup_id_row"]).all()
    if "cpu" not in tree.controllers:
        assert (rows["cpu_cgroup"] == rows["cgroup"]).all()
    assert not seen.truth.notes


@every
def test_the_sums_of_its_tasks_are_what_the_cgroup_itself_counts(seen: Seen) -> None:
    """cpu.stat of the cgroup2 tree counts from its making: what joins late, or is forgotten, would show."""
    rows = seen.cgroups[(seen.cgroups["timeslices"] > 0) & (seen.cgroups["cgroup"] != "/")]
    assert len(rows)
    for role, row in rows.iterrows():
        assert abs(row["run_ns"] - seen.usage[role]) <= 0.01 * row["run_ns"] + 2 * MS, (role, row.to_string())


@every
def test_pressure_bounds_the_wait(seen: Seen) -> None:
    """Some task waited: for no longer than all waits together, and those for no longer than all tasks all that time."""
    if seen.cgroups["psi_some_us"].isna().any():
        return  # this kernel has no PSI, and the frame says so
    tasks = seen.truth.tasks.groupby("cgroup").size()
    rows = (
        seen.truth.cgroups[seen.truth.cgroups["cgroup"].isin(tasks.index)]
        .set_index("cgroup")
        .drop("/", errors="ignore")
    )
    for path, row in rows.iterrows():
        some, wait, slop = row["psi_some_us"] * 1000, row["run_delay_ns"], 20 * MS
        if seen.truth.name != "fork_storm":  # its tasks are not counted
            assert wait <= 1.05 * len(os.sched_getaffinity(0)) * tasks[path] * some + slop, row.to_string()
        assert some <= 1.05 * wait + slop, row.to_string()


@every
def test_the_victims_own_clock_agrees_with_the_kernels_account(seen: Seen) -> None:
    """What the requests took beyond their work is wait; what is not in it are waits between requests and at both ends."""
    victim = seen.truth.declared["victim"]
    said = seen.truth.results[victim]
    one = seen.truth.name != "own_threads"
    wait = (seen.victim if one else seen.truth.tasks.set_index("role").loc[victim])["run_delay_ns"]
    beyond = said["beyond_work_ns"]
    # Timers are a little late, each time; and what was taken from a task while it ran is no wait.
    assert beyond <= 1.05 * wait + seen.stolen_ns + said["requests"] * MS + 20 * MS
    assert beyond >= 0.6 * wait - 200 * MS
    assert seen.truth.results[victim]["p99_ns"] >= seen.truth.results[victim]["p50_ns"] > MS


@every
def test_everything_is_where_it_is_declared_to_be(seen: Seen) -> None:
    cpu = seen.truth.declared["cpu"]
    for role, cpus in seen.affinity.items():
        if seen.truth.name == "migrating":
            assert cpu in cpus
            assert len(cpus) == 2
        elif role in seen.truth.declared["innocent"] and seen.truth.name == "hog_elsewhere":
            assert cpu not in cpus
        else:
            assert cpus == {cpu}


@every
def test_nothing_is_left_when_it_is_over(seen: Seen) -> None:
    assert seen.left == []


FOREIGN = [name for name in SCENARIOS if "foreign" in scenario(name).declared["causes"]]


@pytest.mark.parametrize("name", FOREIGN)
def test_the_victim_waits_and_the_guilty_run(seen: Seen) -> None:
    """Who had the CPU meanwhile is for the program to say; here: there was enough of both."""
    wait, ran = seen.victim["run_delay_ns"], seen.victim["run_ns"]
    rare = seen.truth.name == "bursty_neighbour"
    assert wait > (0.02 if rare else 0.3) * ran, seen.cgroups.to_string()
    assert (seen.guilty["run_ns"] > 20 * MS).all()


@pytest.mark.parametrize("name", ["two_hogs_3_1"])
def test_weights_make_shares(seen: Seen) -> None:
    """All three always want the CPU, so it is divided as 1 to 3 to 1, whatever the rest of the machine does."""
    rows = seen.cgroups
    assert rows["weight"].to_dict() == {"service": 100, "hog_a": 300, "hog_b": 100}
    ran, slices = (
        rows["run_ns"],
        36 * MS,
    )  # a few ticks of 4 ms at either end, which matter where others take most of it
    assert abs(ran["hog_a"] - 3 * ran["hog_b"]) <= 0.1 * ran["hog_a"] + slices, ran.to_string()
    assert abs(ran["service"] - ran["hog_b"]) <= 0.1 * ran["hog_b"] + slices, ran.to_string()
    assert sum(seen.truth.declared["guilty"].values()) == 1


QUOTAS = [name for name in SCENARIOS if scenario(name).declared["quota_ancestor"]]


@pytest.mark.parametrize("name", QUOTAS)
def test_the_quota_bites_and_the_wait_holds_the_time_throttled(seen: Seen) -> None:
    holder = seen.cgroups.loc[seen.truth.declared["quota_ancestor"]]
    assert holder["nr_throttled"] >= 3
    assert 100 * MS < holder["throttled_ns"] <= 1.01 * seen.victim["run_delay_ns"] + 5 * MS
    periods = SECONDS * 1e6 / holder["period_us"] + 2
    assert seen.victim["run_ns"] <= holder["quota_us"] * 1000 * periods
    assert (seen.cgroups.drop(holder.name)["nr_throttled"] == 0).all()
    assert (seen.cgroups.drop(holder.name)["quota_us"] == 0).all()


@pytest.mark.parametrize("name", ["own_threads"])
def test_tasks_of_one_cgroup_wait_for_each_other(seen: Seen) -> None:
    assert list(seen.cgroups.index) == ["service"]
    assert len(seen.truth.tasks) == 3
    assert seen.victim["run_delay_ns"] > 1.2 * seen.victim["run_ns"]


@pytest.mark.parametrize("name", ["hog_outside"])
def test_outside_every_container_is_the_root_cgroup(seen: Seen) -> None:
    assert seen.guilty["cgroup"].tolist() == ["/"]
    assert seen.guilty["cgroup_id"].tolist() == [hierarchy().id_of("/")]
    assert seen.guilty["cpu_cgroup"].tolist() == ["/"]


@pytest.mark.parametrize("name", ["fork_storm"])
def test_children_that_have_ended_are_in_the_books(seen: Seen) -> None:
    said = seen.truth.results["storm"]
    parent = seen.truth.tasks.set_index("role").loc["storm"]
    assert said["forked"] > 50
    assert said["children"]["timeslices"] >= said["forked"]
    assert seen.cgroups.loc["storm", "timeslices"] >= said["forked"] + 1
    assert seen.cgroups.loc["storm", "run_ns"] > parent["run_ns"]


@pytest.mark.parametrize("name", ["wakeup_storm"])
def test_each_byte_passed_is_a_switch(seen: Seen) -> None:
    passed = seen.truth.results["storm_a"]["rounds"]
    assert passed > 1000
    assert seen.cgroups.loc["storm", "timeslices"] >= 1.8 * passed


@pytest.mark.parametrize("name", ["niced_hog"])
def test_a_nice_hog_in_a_cgroup_of_its_own_has_its_full_share(seen: Seen) -> None:
    assert seen.niceness == {"service": 0, "hog": 19}
    assert seen.cgroups["weight"].nunique() == 1
    assert seen.cgroups.loc["hog", "run_ns"] > 0.9 * seen.victim["run_ns"]


@pytest.mark.parametrize("name", ["fifo_hog"])
def test_a_real_time_task_waits_for_nobody_ordinary(seen: Seen) -> None:
    hog = seen.cgroups.loc["hog"]
    assert seen.policy == {"service": os.SCHED_OTHER, "hog": os.SCHED_FIFO}
    assert hog["run_delay_ns"] < 0.05 * hog["run_ns"]
    assert hog["run_ns"] == pytest.approx(0.7 * SECONDS * 1e9, rel=0.1)


@pytest.mark.parametrize("name", ["bursty_neighbour"])
def test_a_tenth_of_the_time_is_a_tenth(seen: Seen) -> None:
    assert seen.guilty["run_ns"].sum() <= 0.12 * SECONDS * 1e9
    assert seen.truth.results["neighbour"]["bursts"] == 8


@pytest.mark.parametrize("name", ["nested"])
def test_tasks_are_in_the_leaves_only(seen: Seen) -> None:
    assert list(seen.cgroups.index) == ["pod_a", "service", "sidecar", "pod_b", "inner", "hog"]
    inner = seen.cgroups.loc[["pod_a", "pod_b", "inner"]]
    assert (inner[["run_ns", "run_delay_ns", "timeslices"]] == 0).all(axis=None)
    assert seen.cgroups.loc["hog", "cgroup"].endswith("/pod_b/inner/hog")
    assert seen.cgroups.loc["sidecar", "run_ns"] < 0.05 * SECONDS * 1e9


@pytest.mark.parametrize("name", ["migrating"])
def test_free_tasks_are_moved(seen: Seen) -> None:
    assert sum(said["moves"] for said in seen.truth.results.values()) > 0
    assert (seen.truth.tasks["cpu"] == -1).all()


@pytest.mark.parametrize("name", ["quiet", "hog_elsewhere"])
def test_the_innocent_are_on_other_cpus_or_are_nobody(seen: Seen) -> None:
    declared = seen.truth.declared
    assert (declared["guilty"], declared["causes"]) == ({}, [])
    assert set(seen.truth.tasks["role"]) == {declared["victim"], *declared["innocent"]}

"""Scenarios where the cgroup2 tree has the cpu controller: weights, quotas and real-time tasks on pure v2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from labkit import oracles
from labkit.cgroups import Group, Scope
from labkit.workloads import scenario

pytestmark = pytest.mark.guest

ROOT = Path("/sys/fs/cgroup")
MS = 1_000_000


@pytest.fixture(autouse=True)
def _nothing_is_left() -> object:
    control = ROOT / "cgroup.subtree_control"
    before = control.read_text()
    yield
    assert list(ROOT.glob("labkit-*")) == []
    assert control.read_text() == before


@pytest.mark.parametrize("name", ["throttled", "throttled_beside_hog", "quota_on_parent"])
def test_a_quota_holds_its_cgroup_back(name: str) -> None:
    with scenario(name, seconds=2).run() as truth:
        rows = truth.cgroups.set_index("role")
    holder, victim = rows.loc[truth.declared["quota_ancestor"]], rows.loc["service"]
    assert (rows["cpu_cgroup"] == rows["cgroup"]).all()
    assert holder["nr_throttled"] >= 3
    assert 100 * MS < holder["throttled_ns"] <= 1.01 * victim["run_delay_ns"] + 5 * MS


def test_weights_make_shares() -> None:
    with scenario("two_hogs_3_1", seconds=3).run() as truth:
        rows = truth.cgroups.set_index("role")
    assert rows["weight"].to_dict() == {"service": 100, "hog_a": 300, "hog_b": 100}
    assert rows.loc["hog_a", "run_ns"] / rows.loc["hog_b", "run_ns"] == pytest.approx(3, rel=0.2)


def test_the_root_cgroup_takes_processes_from_anywhere() -> None:
    with scenario("hog_outside", seconds=1).run() as truth:
        rows = truth.cgroups.set_index("role")
    assert rows.loc["hog", ["cgroup", "cgroup_id"]].tolist() == ["/", ROOT.stat().st_ino]


def test_real_time_tasks_run_in_a_cgroup_of_their_own() -> None:
    with scenario("fifo_hog", seconds=1).run() as truth:
        hog = truth.tasks.set_index("role").loc["hog"]
        assert os.sched_getscheduler(int(hog["pid"])) == os.SCHED_FIFO
        assert hog["cgroup"].endswith("/hog")


def test_processes_live_in_the_leaves_and_limits_above_them() -> None:
    with Scope([Group("pod", quota_us=30_000, weight=250), "pod/a"], cpu=True) as scope:
        scope.add("pod/a", os.getpid())
        assert (scope.folder("pod/a") / "cgroup.procs").read_text().split() == [str(os.getpid())]
        limits = oracles.cpu_limits([scope.folder("pod"), scope.folder("pod/a")])
        scope.add_to_root(os.getpid())
    assert limits["quota_us"].tolist() == [30_000, 0]
    assert limits["weight"].tolist() == [250, 100]

"""Scenarios where the cgroup2 tree has the cpu controller: weights, quotas and real-time tasks on pure v2."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit import oracles
from labkit.cgroups import Group, Scope
from labkit.workloads import scenario
from labkit.workloads.running import Running

pytestmark = pytest.mark.guest

ROOT = Path("/sys/fs/cgroup")


@pytest.fixture(autouse=True)
def _nothing_is_left() -> object:
    control = ROOT / "cgroup.subtree_control"
    before = control.read_text()
    yield
    assert list(ROOT.glob("labkit-*")) == []
    assert control.read_text() == before


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what is bound to come, however slow the machine is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def stat(folder: Path) -> dict[str, int]:
    """``cpu.stat`` of a cgroup."""
    return {key: int(value) for key, value in map(str.split, (folder / "cpu.stat").read_text().splitlines())}


def folders(running: Running) -> dict[str, Path]:
    return {row.role: ROOT / str(row.cgroup).lstrip("/") for row in running.layout.itertuples()}


@pytest.mark.parametrize("name", ["throttled", "throttled_beside_hog", "quota_on_parent"])
def test_a_quota_holds_its_cgroup_back(name: str) -> None:
    work = scenario(name, seconds=90)
    with work.start() as running:
        layout, place = running.layout, folders(running)
        assert (layout["cpu_cgroup"] == layout["cgroup"]).all()
        holder = place[str(work.declared["quota_ancestor"])]
        running.go()
        until(lambda: stat(holder)["nr_throttled"] >= 3 and stat(holder)["throttled_usec"] > 100_000)
        # The victim waited all that time, and may have waited longer.
        throttled_ns = 1000 * stat(holder)["throttled_usec"]
        pid = running.pids["service"]
        until(lambda: int(oracles.schedstat([pid])["run_delay_ns"].sum()) >= throttled_ns)


def test_weights_make_shares() -> None:
    with scenario("two_hogs_3_1", seconds=90).start() as running:
        weights = running.layout.set_index("role")["weight"].to_dict()
        place = folders(running)
        running.go()

        def shared() -> bool:
            """What one got too much while the machine stood still it gives back: the ratio comes to what weights say."""
            heavy, light = (stat(place[role])["usage_usec"] for role in ("hog_a", "hog_b"))
            return light > 300_000 and 2.5 < heavy / light < 3.5

        until(shared)
    assert weights == {"service": 100, "hog_a": 300, "hog_b": 100}


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

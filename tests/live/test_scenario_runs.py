"""A workload while it runs: seen from outside, ended early, killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit import cgroups, oracles
from labkit.errors import CgroupError
from labkit.kernel.cgroup import hierarchy
from labkit.workloads import Running, scenario

pytestmark = [pytest.mark.live, pytest.mark.needs("schedstat", "cgroups", "root")]

HOLD = """
import sys, time
from labkit.workloads import scenario
running = scenario(sys.argv[1], seconds=60).start()
running.go()
print(*running.pids.values(), flush=True)
time.sleep(60)
"""


def _trees() -> list[Path]:
    tree = hierarchy()
    return [top for top in (tree.unified, tree.controllers.get("cpu")) if top is not None]


def _cgroups_of(owner: int) -> list[Path]:
    return [folder for top in _trees() for folder in top.glob(f"labkit-{owner}-*")]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _eventually(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("name", ["throttled_beside_hog", "hog_outside", "fork_storm", "quota_on_parent"])
def test_a_scenario_whose_owner_is_killed_leaves_nothing_in_either_tree(name: str) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLD, name], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == len(scenario(name).workers)
    made = _cgroups_of(owner.pid)
    assert len(made) == len(_trees())
    time.sleep(0.2)  # into the middle of its work
    owner.kill()
    owner.wait(timeout=20)
    owner.stdout.close()
    assert _eventually(lambda: not _cgroups_of(owner.pid)), _cgroups_of(owner.pid)
    assert _eventually(lambda: not any(_alive(pid) for pid in pids))


def test_the_command_shows_who_is_where_and_cleans_up_at_ctrl_c() -> None:
    command = [sys.executable, "-m", "labkit.cli", "workload", "nested", "--seconds", "60"]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert run.stdout is not None
    lines = []
    while not lines or not lines[-1].startswith("working"):
        lines.append(run.stdout.readline())
        assert lines[-1], "".join(lines)
    text = "".join(lines)
    assert "noisy_neighbor; because of hog" in text
    for folder in _cgroups_of(run.pid):
        assert f"/{folder.name}/pod_b/inner/hog" in text
    pids = [int(w.rstrip(",")) for w in lines[-3].split() if w.rstrip(",").isdigit()]
    assert len(pids) == 3
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = run.communicate(timeout=30)
    assert (run.returncode, err) == (130, "")
    assert "ended early" in out
    assert _cgroups_of(run.pid) == []
    assert not any(_alive(pid) for pid in pids)


def test_the_command_ends_with_what_the_kernel_counted() -> None:
    command = [sys.executable, "-m", "labkit.cli", "workload", "throttled", "--seconds", "0.5"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert "quota 10 ms in 100" in run.stdout
    assert "requests, half of them within" in run.stdout


def test_workers_stand_still_until_they_are_told_to_go_and_again_when_they_are_done() -> None:
    with scenario("hog", seconds=2).start() as running:
        pids = list(running.pids.values())
        assert running.layout["role"].tolist() == ["service", "hog"]
        assert not running.working
        before = oracles.schedstat(pids)
        time.sleep(0.1)
        assert oracles.schedstat(pids).equals(before)
        running.go()
        assert running.working
        while running.working:
            time.sleep(0.01)
        truth = running.finish()
        assert running.finish() is truth
        assert not running.working
        after = oracles.schedstat(pids)
        difference = after["run_delay_ns"] - before["run_delay_ns"]
        assert truth.cgroups["run_delay_ns"].tolist() == difference.tolist()
        assert truth.cgroups["cgroup_id"].tolist() == running.layout["cgroup_id"].tolist()
    assert not any(_alive(pid) for pid in pids)
    assert _cgroups_of(os.getpid()) == []


def test_during_is_called_while_the_workers_work() -> None:
    samples: list[int] = []

    def sample(running: Running) -> None:
        """Until three readings differ: there is a second of work, however late we come to look."""
        while running.working and len(samples) < 3:
            now = int(oracles.schedstat(running.pids.values())["run_ns"].sum())
            if now > max(samples, default=0):
                samples.append(now)
            time.sleep(0.01)

    with scenario("hog", seconds=2).run(during=sample) as truth:
        assert len(samples) == 3
        assert samples[-1] <= truth.tasks["run_ns"].sum()


def test_a_failure_meanwhile_ends_the_workload() -> None:
    seen: list[int] = []

    def fail(running: Running) -> None:
        seen.extend(running.pids.values())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scenario("hog", seconds=30).run(during=fail)
    assert seen
    assert not any(_alive(pid) for pid in seen)
    assert _cgroups_of(os.getpid()) == []


def test_cgroups_left_in_the_cpu_tree_are_swept_too() -> None:
    orphans = [top / "labkit-999999999-2-0" for top in _trees()]
    for orphan in orphans:
        (orphan / "inner").mkdir(parents=True)
    assert cgroups.sweep() == ["labkit-999999999-2-0"]
    assert not any(orphan.exists() for orphan in orphans)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, of util-linux")
def test_cgroups_of_the_lab_in_a_container_are_not_swept_from_outside() -> None:
    """In there the owner's pid is another, so that by its name the cgroup looks abandoned."""
    before = {folder for top in _trees() for folder in top.glob("labkit-*")}
    inside = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        sys.executable,
        "-c",
        HOLD,
        "throttled",
    ]
    owner = subprocess.Popen(inside, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline().split()
    made = {f for top in _trees() for f in top.glob("labkit-1-*")} - before  # the first process in there
    assert len(made) == len(_trees())
    assert not {folder.name for folder in made} & set(cgroups.sweep())
    assert all(folder.exists() for folder in made)
    owner.kill()
    owner.wait(timeout=20)
    owner.stdout.close()
    assert _eventually(lambda: cgroups.sweep() is not None and not any(folder.exists() for folder in made))


def test_a_cgroup_that_cannot_be_made_undoes_those_before_it() -> None:
    scope = cgroups.Scope(["a", cgroups.Group("b", quota_us=1)], cpu=True)  # the kernel's least is 1000 us
    with pytest.raises(CgroupError, match="cannot"):
        scope.__enter__()
    assert _cgroups_of(os.getpid()) == []


def test_a_weight_needs_the_cpu_controller() -> None:
    with pytest.raises(CgroupError, match="no cpu controller was asked for"):
        cgroups.Scope([cgroups.Group("b", weight=300)]).__enter__()
    assert _cgroups_of(os.getpid()) == []


def test_limits_are_as_asked_for_and_read_back_alike_in_both_kinds_of_tree() -> None:
    groups = [
        cgroups.Group("pod", weight=250, quota_us=30_000, period_us=50_000),
        cgroups.Group("pod/a", weight=1),
    ]
    with cgroups.Scope(groups, cpu=True, weight=1000) as scope:
        folders = [scope.cpu_folder(name) for name in ("pod", "pod/a", "")]
        limits = oracles.cpu_limits([f for f in folders if f is not None])
    assert limits["quota_us"].tolist() == [30_000, 0, 0]
    assert limits["period_us"].tolist() == [50_000, 100_000, 100_000]
    assert limits["weight"].tolist() == [250, 1, 1000]

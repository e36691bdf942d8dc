"""noisy_neighbor under what wears tables out: cgroups and tasks that come and go, and the highest rate of switches."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labkit import workloads
from labkit.cgroups import Scope
from labkit.kernel.cgroup import hierarchy
from labkit.names import Directory
from labkit.noisy import command
from labkit.noisy.select import Selection
from labkit.noisy.stamps import Stamps
from labkit.noisy.watch import Watch
from labkit.sched.state import Snapshot, between

pytestmark = [pytest.mark.live, pytest.mark.slow]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Sampler(threading.Thread):
    """Notes again and again how large we and the tables are; with a snapshot each time, as the live table takes them."""

    def __init__(self, watch: Watch, every_s: float, *, snapshots: bool = True) -> None:
        super().__init__(daemon=True)
        self.watch, self.every_s, self.snapshots = watch, every_s, snapshots
        self.sizes: list[tuple[int, int, int]] = []
        self.done = threading.Event()
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.done.wait(self.every_s):
                if self.snapshots:
                    self.watch.snapshot()
                used = self.watch.tables.occupancy
                self.sizes.append(
                    (resident_bytes(), int(used["in_use"] + used["resting"]), int(used["cells"]))
                )
        except BaseException as error:
            self.failed = error


@contextlib.contextmanager
def sampled(watch: Watch, every_s: float = 0.25, *, snapshots: bool = True) -> Iterator[Sampler]:
    sampler = Sampler(watch, every_s, snapshots=snapshots)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.done.set()
        sampler.join()
    if sampler.failed is not None:
        raise sampler.failed


def assert_all_counted(watch: Watch, snapshot: Snapshot) -> None:
    """Nothing got lost between the hook and the frames: every wait is in some row, those of the dead and unnamed too."""
    assert snapshot.ledger.balanced
    assert int(snapshot.cgroups["waits"].sum()) == snapshot.ledger.delivered
    assert int(snapshot.cgroups["wait_ns"].sum()) == int(watch.tables.totals().sum())


def assert_all_counted_in(interval: Snapshot) -> None:
    """The same of an interval that was read while all went on: counters are read one after the other."""
    waits, delivered = int(interval.cgroups["waits"].sum()), interval.ledger.delivered
    assert interval.ledger.balanced
    assert abs(waits - delivered) <= 0.001 * delivered + 100


def assert_still_right(truth: workloads.Truth, found: Snapshot) -> None:
    books = truth.cgroups.set_index("cgroup_id")["run_delay_ns"]
    waits = found.cgroups.set_index("cgroup_id")["wait_ns"].reindex(books.index).astype("float")
    pd.testing.assert_series_equal(waits, books.astype("float"), rtol=1e-3, check_names=False)


# One process joins a new cgroup, sleeps for a moment, goes on to the next and removes the last.
WANDERER = """
    import os, sys, time
    root, count = sys.argv[1], int(sys.argv[2])
    last = None
    for number in range(count):
        place = f"{root}/n{number}"
        os.mkdir(place)
        with open(f"{place}/cgroup.procs", "w") as file:
            file.write("0")
        time.sleep(0)
        time.sleep(0.0001)
        if last:
            os.rmdir(last)
        last = place
    with open(f"{root}/cgroup.procs", "w") as file:
        file.write("0")
    os.rmdir(last)
"""


def wander(count: int) -> None:
    tree = hierarchy()
    assert tree.unified is not None
    with Scope(["wanderer"]) as scope:
        root = tree.unified / scope.path("wanderer").lstrip("/")
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(WANDERER), str(root), str(count)], check=True, timeout=300
        )


def test_ten_thousand_cgroups_come_and_go_while_the_command_measures() -> None:
    """In the command's own loop, with its own pauses and rests: who comes after ten thousand that died has a place."""
    found: list[workloads.Truth] = []
    failed: list[BaseException] = []

    def storm(watch: Watch) -> None:
        try:
            with workloads.scenario("hog", seconds=8).start() as early:
                early.go()
                wander(10_000)
                found.append(early.finish())
                end = time.monotonic() + 60
                while watch.tables.crowded and time.monotonic() < end:
                    time.sleep(0.1)
                late = stack.enter_context(workloads.scenario("hog", seconds=2).start())
                late.go()
                found.append(late.finish())
        except BaseException as error:
            failed.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does: it answers

    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(Directory())
        watch = stack.enter_context(Watch(directory=directory))
        second = stack.enter_context(Stamps(watch))
        before = watch.tables.occupancy
        sampler = stack.enter_context(sampled(watch, snapshots=False))
        thread = threading.Thread(target=storm, args=[watch], daemon=True)
        session = command._Session(watch, Selection(), (), second)
        thread.start()
        recording = session.once(600, say=False)
        thread.join()
        assert not failed, failed
        snapshot = recording.snapshot
        assert_all_counted_in(snapshot)
        for truth in found:
            assert_still_right(truth, snapshot)
        late = found[-1]
        names = snapshot.names.set_index("cgroup_id")["name"]
        rows = {verdict.cgroup_id: verdict for verdict in recording.answer().verdicts}
        for role, cgroup_id in zip(late.cgroups["role"], late.cgroups["cgroup_id"], strict=True):
            assert names[np.uint64(cgroup_id)] == role
            assert rows[int(cgroup_id)].causes["foreign"] > 0
        # The thousand that died last have rows of their own; all others are added up in one, of nobody in particular.
        assert (snapshot.cgroups["cgroup_id"] == 0).sum() <= 1
        used = watch.tables.occupancy
        assert used["in_use"] + used["resting"] <= watch.tables.room - 2
        assert used["in_use"] <= before["in_use"] + 50, "places of dead cgroups are given back"
        third = len(sampler.sizes) // 3
        assert sampler.sizes[-1][0] - sampler.sizes[third][0] < 32 << 20


def test_a_hundred_thousand_short_lived_tasks() -> None:
    """A victim of known truth beside them: its books and ours agree to a thousandth, whatever comes and goes."""
    with Watch() as watch, workloads.scenario("hog", seconds=20).start() as running:
        before = watch.snapshot()
        with sampled(watch) as sampler:
            running.go()
            subprocess.run(
                ["stress-ng", "--fork", "2", "--fork-ops", "100000", "--quiet"], check=True, timeout=300
            )
            truth = running.finish()
        watch.stop()
        last = watch.snapshot()
        assert_all_counted(watch, last)
        found = between(before, last)
        assert_still_right(truth, found)
    assert last.ledger.seen > 100_000
    sizes = np.array(sampler.sizes)
    settled = sizes[len(sizes) // 4 :]
    assert settled[-1, 0] - settled[0, 0] < 16 << 20
    assert settled[-1, 1] <= settled[0, 1] + 20, "tasks take no places"


def test_the_highest_rate_of_switches_for_a_minute() -> None:
    with Watch() as watch, workloads.scenario("hog", seconds=60).start() as running:
        before = watch.snapshot()
        with sampled(watch, 1.0) as sampler:
            running.go()
            storm = subprocess.Popen(["stress-ng", "--switch", "2", "--timeout", "55", "--quiet"])
            truth = running.finish()
            storm.wait(timeout=60)
        watch.stop()
        found = between(before, watch.snapshot())
        assert_all_counted(watch, watch.snapshot())
        assert_still_right(truth, found)
    print(found.ledger.describe(), found.cost, found.cost.cpu_share(found.seconds))
    assert found.ledger.seen > 1_000_000
    assert found.ledger.unseen is not None
    assert found.ledger.unseen < 1e-3 * found.ledger.seen
    sizes = np.array(sampler.sizes)
    settled = sizes[len(sizes) // 4 :]
    assert settled[-1, 0] - settled[0, 0] < 8 << 20

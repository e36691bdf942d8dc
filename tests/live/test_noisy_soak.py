"""noisy_neighbor under what wears tables out: cgroups and tasks that come and go, and the highest rate of switches."""

import contextlib
import os
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
from labkit.noisy.watch import Watch
from labkit.sched.state import Snapshot, between

pytestmark = [pytest.mark.live, pytest.mark.slow]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Sampler(threading.Thread):
    """Takes a snapshot again and again, as the live table does, and notes how large we and the tables are."""

    def __init__(self, watch: Watch, every_s: float) -> None:
        super().__init__(daemon=True)
        self.watch, self.every_s = watch, every_s
        self.sizes: list[tuple[int, int, int]] = []
        self.done = threading.Event()
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.done.wait(self.every_s):
                self.watch.snapshot()
                used = self.watch.tables.occupancy
                self.sizes.append(
                    (resident_bytes(), int(used["in_use"] + used["resting"]), int(used["cells"]))
                )
        except BaseException as error:
            self.failed = error


@contextlib.contextmanager
def sampled(watch: Watch, every_s: float = 0.25) -> Iterator[Sampler]:
    sampler = Sampler(watch, every_s)
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
    assert snapshot.ledger.lost == 0
    assert int(snapshot.cgroups["waits"].sum()) == snapshot.ledger.delivered
    assert int(snapshot.cgroups["wait_ns"].sum()) == int(watch.tables.totals().sum())


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


def test_ten_thousand_cgroups_come_and_go() -> None:
    tree = hierarchy()
    assert tree.unified is not None
    with Watch(rest_s=0.5) as watch, Scope(["wanderer"]) as scope:
        root = tree.unified / scope.path("wanderer").lstrip("/")
        with workloads.scenario("hog", seconds=8).start() as running:
            before = watch.snapshot()
            with sampled(watch, 0.1) as sampler:
                running.go()
                subprocess.run(
                    [sys.executable, "-c", textwrap.dedent(WANDERER), str(root), "10000"],
                    check=True,
                    timeout=300,
                )
                truth = running.finish()
            watch.stop()
            found = between(before, watch.snapshot())
            last = watch.snapshot()
            assert_all_counted(watch, last)
            assert_still_right(truth, found)
        used = watch.tables.occupancy
        assert used["in_use"] + used["resting"] <= watch.tables.room - 2
        assert used["in_use"] < 100, "places of dead cgroups are given back"
        # The thousand that died last have rows of their own; all others are added up in one, of nobody in particular.
        assert 1000 < len(last.cgroups) < 1200
        assert (last.cgroups["cgroup_id"] == 0).sum() == 1
        grown = sampler.sizes[-1][0] - sampler.sizes[len(sampler.sizes) // 3][0]
        assert grown < 32 << 20
        watch.snapshot()  # those of the scenario begin to rest
        time.sleep(0.6)
        watch.snapshot()
        assert watch.tables.occupancy["resting"] < 20  # others on this machine may come and go, too


def test_a_hundred_thousand_short_lived_tasks() -> None:
    with Watch() as watch, sampled(watch) as sampler:
        subprocess.run(
            ["stress-ng", "--fork", "2", "--fork-ops", "100000", "--quiet"], check=True, timeout=300
        )
        watch.stop()
        last = watch.snapshot()
        assert_all_counted(watch, last)
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
    # The reader: less than 1 % of one CPU, a snapshot every second.
    assert found.cost.user_ns < 0.01 * found.seconds * 1e9 * 2

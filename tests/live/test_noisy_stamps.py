"""The same waits in two ways at once: the kernel's own notes, and stamps of another clock."""

import pytest

from labkit import workloads
from labkit.noisy import stamps
from labkit.noisy.watch import Watch
from labkit.sched import allowed_ns

pytestmark = [pytest.mark.live, pytest.mark.needs("cgroups")]


@pytest.mark.parametrize("name", ["hog", "throttled_beside_hog"])
def test_two_ways_to_measure_agree(name: str) -> None:
    with workloads.scenario(name, seconds=4.0).start() as running, Watch() as watch:
        running.go()
        found = stamps.check(watch, 1.5).set_index("cgroup_id")
        truth = running.finish()
    ids = dict(zip(truth.cgroups["role"], truth.cgroups["cgroup_id"], strict=True))
    for role in ("service", "hog"):
        row = found.loc[ids[role]]
        assert row["waits"] > 20
        # Both frames are read while it goes on: a wait or two may be in one of them only.
        longest_ns = 60e6
        residual = row["measured_ns"] - row["stamped_ns"]
        assert abs(residual) <= allowed_ns(row["stamped_ns"], row["waits"]) + longest_ns, found
        assert row["stamped_ns"] > 3 * longest_ns

"""The same waits in two ways at once: the kernel's own notes, and stamps of another clock."""

import pytest

from labkit import workloads
from labkit.noisy.stamps import Stamps
from labkit.noisy.watch import Watch
from labkit.sched import allowed_ns

pytestmark = [pytest.mark.live, pytest.mark.needs("cgroups")]


@pytest.mark.parametrize("name", ["hog", "throttled_beside_hog"])
def test_two_ways_to_measure_agree_time_and_again(name: str) -> None:
    """What ended while the stamps were attached is bounded from both sides, however long reading takes. The second time
    there are no stamps of the first: a wait would seem to last since then."""
    with workloads.scenario(name, seconds=4.0).start() as running, Watch() as watch, Stamps(watch) as second:
        assert second.problem == ""
        running.go()
        twice = [second.check(0.8) for _ in range(2)]
        truth = running.finish()
        assert second.run_time_ns > 0
    ids = dict(zip(truth.cgroups["role"], truth.cgroups["cgroup_id"], strict=True))
    for found in twice:
        assert found is not None
        for role in ("service", "hog"):
            row = found.set_index("cgroup_id").loc[ids[role]]
            allowed = allowed_ns(row["stamped_ns"], row["waits"])
            assert row["measured_ns"] - allowed <= row["stamped_ns"] <= row["most_ns"] + allowed, found
            assert row["waits"] > 10
            assert row["stamped_ns"] > 50e6

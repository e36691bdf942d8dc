"""The event stream and its exact integral on the running kernel: against run_delay, cpu.stat, the kernel's count of
switches, and other programs over the same time."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labkit import workloads
from labkit.events import record_events, stream_events
from labkit.program import load
from labkit.scenarios import OURS, Case, record, table
from labkit.sched import integral, netflix, peers
from labkit.sched.trace import trace

pytestmark = [pytest.mark.live, pytest.mark.needs("ring buffer", "schedstat")]


@pytest.fixture(scope="module", params=["hog", "throttled_beside_hog", "migrating"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return record(request.param, tmp_path_factory.mktemp("events") / request.param)


def test_the_waits_of_each_cgroup_are_its_run_delay(case: Case) -> None:
    waits = integral.waits(case.events).groupby("victim_id")["wait_ns"].sum()
    for row in case.cgroups.itertuples():
        seen = int(waits.get(np.uint64(row.cgroup_id), 0))
        # A task that is still to rest when the recording ends keeps its last waits to itself.
        assert seen == pytest.approx(row.run_delay_ns, rel=0.001, abs=100_000), row.role
    assert case.true_wait_ns > 50_000_000, "the scenario did not contend"


def test_rows_of_the_matrix_add_up_to_the_waits(case: Case) -> None:
    cells = integral.cells(case.events).groupby("victim_id")["wait_ns"].sum().astype("int64")
    waits = integral.waits(case.events).groupby("victim_id")["wait_ns"].sum()
    pd.testing.assert_series_equal(cells, waits[waits > 0])


def test_throttled_time_is_cpu_stat_s(case: Case) -> None:
    said = case.cgroups.set_index("role")["throttled_ns"].get(case.declared["quota_ancestor"], 0)
    cells = integral.cells(case.events)
    mine = cells[(cells["victim_id"] == np.uint64(case.victim)) & (cells["kind"] == "throttled")]
    assert int(mine["wait_ns"].sum()) == pytest.approx(said, rel=0.01, abs=1_000_000)
    assert (said > 100_000_000) == bool(case.declared["quota_ancestor"])


def test_little_is_unknown_and_nothing_is_lost(case: Case) -> None:
    cells = integral.cells(case.events)
    unknown = int(cells.loc[cells["kind"] == "unknown", "wait_ns"].sum())
    assert unknown <= 0.02 * int(cells["wait_ns"].sum())
    assert case.ledger.balanced
    assert case.ledger.lost == 0
    assert case.ledger.unseen is not None


def test_no_rule_sees_more_than_this_lab(case: Case) -> None:
    rows = table([case]).set_index("rule")
    assert rows.loc[OURS, "seen_share"] == pytest.approx(1, abs=0.001)
    assert rows.loc["article", "seen_share"] < 0.9
    assert (rows["placed_share"] <= rows.loc[OURS, "placed_share"] + 1e-9).all()


def test_time_on_each_cpu_is_what_tasks_were_charged_for(case: Case) -> None:
    """occupancy() against the CPU time of the scenario's tasks, which does not hold what interrupts and the hypervisor took
    from them meanwhile: no more of it than was taken from those CPUs in all."""
    held = integral.occupancy(case.events)
    switched = pd.DataFrame({name: case.events.switched[name] for name in ("cpu", "stolen_ns")})
    by_cpu = switched.groupby("cpu")["stolen_ns"]
    stolen = int((by_cpu.max() - by_cpu.min()).sum())
    run = (held["end_ns"] - held["start_ns"]).groupby(held["occupant_id"]).sum()
    for row in case.cgroups[
        (case.cgroups["run_ns"] > 10_000_000) & (case.cgroups["cgroup_id"] != 1)
    ].itertuples():
        longer = int(run[np.uint64(row.cgroup_id)]) - row.run_ns
        assert -0.01 * row.run_ns - 1_000_000 <= longer <= stolen + 0.01 * row.run_ns + 1_000_000, row.role


def test_a_ring_that_is_too_small_is_counted_and_the_waits_stay_right(tmp_path: Path) -> None:
    """What was lost shows as gaps, and run_delay tells how long the waits in them were."""
    with (
        workloads.scenario("hog", seconds=2.0).start() as running,
        load("sched_trace", ring_pages=2) as program,
    ):
        running.go()
        while program.ledger.losses["ring_full"] < 50 and running.working:
            time.sleep(0.01)  # nobody reads, until events were lost
        with ThreadPoolExecutor(1) as beside:
            finished = beside.submit(running.finish)
            recording = record_events(
                program,
                "events",
                tmp_path,
                seconds=0.1,
                latency_s=0.01,
                going=lambda: not finished.done(),
            )
            truth = finished.result()
    assert recording.ledger.losses["ring_full"] >= 50
    assert recording.ledger.balanced
    assert recording.ledger.delivered == recording.count
    waits = integral.waits(tmp_path)
    hog = truth.tasks.set_index("role").loc["hog"]
    seen = waits[(waits["pid"] == hog["pid"])]["wait_ns"].sum()
    # What came before the first event of the task, and after the last, is not known.
    worked_ns = truth.cgroups.set_index("role").loc["hog", "run_delay_ns"]
    assert 0.2 * worked_ns < seen <= hog["run_delay_ns"]
    assert int(integral.cells(tmp_path)["wait_ns"].sum()) == int(waits["wait_ns"].sum())


def test_the_article_s_program_says_what_its_rule_says_in_replay() -> None:
    with (
        workloads.scenario("hog", seconds=1.0).start() as running,
        load("sched_trace") as tracer,
        load("netflix_noisy_neighbor", rate_limit_ns=0, wake=False) as program,
    ):
        running.go()
        truth = running.finish()
        program.stop()
        tracer.stop()
        events = pd.concat(
            [group.frame("runq") for group in stream_events(program, "events", seconds=0.01)],
            ignore_index=True,
        )
        replayed = peers.seen(trace(stream_events(tracer, "events", seconds=0.01)), "article")
        ledger = program.ledger
    assert ledger.balanced
    assert ledger.delivered == len(events)
    assert ledger.losses["missed_enqueue"] > 0
    service = truth.cgroups.set_index("role").loc["service"]
    live = events[events["cgroup_id"] == service["cgroup_id"]]
    again = replayed[replayed["cgroup_id"] == service["cgroup_id"]]
    assert len(live) == pytest.approx(len(again), abs=2)
    # Each sleep ends with a wakeup, and each wakeup with a switch that the rule sees.
    assert len(live) >= 0.5 * service["voluntary"] > 0
    # Two clocks, each read at its own moment of the switch.
    apart = abs(int(live["runq_lat"].sum()) - int(again["runq_lat"].sum()))
    assert apart <= 12_000 * len(again) + 2 * int(again["runq_lat"].max())
    assert live["runq_lat"].sum() < 0.9 * service["run_delay_ns"]
    counts = netflix.switch_outs(
        live, {int(i): role for role, i in truth.cgroups.set_index("role")["cgroup_id"].items()}
    )
    assert counts["count"].sum() == len(live)
    assert counts.set_index("cause").loc["other_container", "count"] > 0


def test_the_article_s_rate_limit_keeps_one_event_per_window_and_counts_the_rest() -> None:
    window = 50_000_000
    with (
        workloads.scenario("hog", seconds=0.6).start() as running,
        load("netflix_noisy_neighbor", rate_limit_ns=window, wake=False) as program,
    ):
        running.go()
        running.finish()
        program.stop()
        groups = [group.frame("runq") for group in stream_events(program, "events", seconds=0.01)]
        ledger = program.ledger
        limits = program.frame("cgroup_id_to_last_event_ts", per_cpu=True)
    events = pd.concat(groups, ignore_index=True)
    assert ledger.balanced
    assert ledger.losses["rate_limited"] > ledger.delivered == len(events)
    # Per CPU: so no more in a window than there are CPUs.
    spans = events.sort_values("ts").groupby("cgroup_id")["ts"].diff(os.cpu_count() or 1).dropna()
    assert (spans >= window).all()
    assert set(events["cgroup_id"]) <= set(limits["cgroup_id"])

"""The rules of others, replayed: each against a plain loop that keeps stamps in a dict, as their programs do."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scheduler_model import Machine

from labkit.errors import ParameterError
from labkit.sched import netflix, peers
from labkit.sched.trace import PREEMPT, Trace, trace

COLUMNS = ["pid", "cpu", "ts", "runq_lat", "cgroup_id", "prev_cgroup_id", "prev_pid"]


def one_by_one(found: Trace, rule: str) -> list[tuple[int, ...]]:
    """What the program of that name does, event by event."""
    lines = [(w["time_ns"], 0, w) for w in _rows(found.woken)] + [
        (s["time_ns"], 1, s) for s in _rows(found.switched)
    ]
    stamps: dict[int, int] = {}
    seen = []
    for time, kind, row in sorted(lines, key=lambda line: line[:2]):
        if kind == 0:
            if rule != "article" or row["pid"] not in stamps:
                stamps[row["pid"]] = time
            continue
        preempt, state = row["flags"] & PREEMPT, row["prev_state"]
        formatted = 0x100 if preempt else state  # __trace_sched_switch_state()
        if {"article": False, "preempt": preempt, "bpftrace": formatted == 0, "bcc": state == 0}[rule]:
            stamps[row["prev_pid"]] = time
        if row["next_pid"] and row["next_pid"] in stamps:
            latency = max(0, time - stamps.pop(row["next_pid"]))
            names = ("next_pid", "cpu", "time_ns", "next_cgroup_id", "prev_cgroup_id", "prev_pid")
            pid, cpu, at, *rest = (row[name] for name in names)
            seen.append((pid, cpu, at, latency, *rest))
    return sorted(seen)


def _rows(columns: dict[str, np.ndarray]) -> list[dict[str, int]]:
    names = list(columns)
    return [dict(zip(names, map(int, row), strict=True)) for row in zip(*columns.values(), strict=True)]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), steps=st.integers(0, 300), rule=st.sampled_from(list(peers.RULES)))
@example(seed=169, steps=1, rule="preempt")
def test_a_rule_sees_what_its_program_would(seed: int, steps: int, rule: str) -> None:
    machine = Machine(seed, apart=1)  # these programs have one clock for all CPUs
    found = trace(machine.run(steps).frames())
    seen = peers.seen(found, rule)
    assert sorted(seen[COLUMNS].itertuples(index=False, name=None)) == one_by_one(found, rule)


def test_only_the_article_keeps_the_stamp_of_a_wakeup_that_came_too_early() -> None:
    """Woken while it still ran, it slept from 20 to 100: the article takes it all for one wait."""
    woken = [(5, 0), (10, 2), (100, 0)]
    zero = dict.fromkeys(
        ("run_delay_ns", "stolen_ns", "prev_throttle_clock_ns", "next_throttle_clock_ns", "lost"), 0
    )
    switched = [(7, 0, 9, 1), (20, 9, 0, 1), (103, 0, 9, 1)]
    frames = {
        "woken": pd.DataFrame(
            [{"time_ns": t, "cpu": 0, "flags": f, "pid": 9, "throttle_clock_ns": 0, "stolen_ns": 0} for t, f in woken]
        ),
        "switched": pd.DataFrame(
            [
                {"time_ns": t, "cpu": 0, "flags": 0, "prev_pid": p, "next_pid": n, "prev_state": state, "switches": i,
                 "prev_cgroup_id": 1, "next_cgroup_id": 7, "prev_arrived_ns": 0, "queued_ns": t, **zero}
                for i, (t, p, n, state) in enumerate(switched)
            ]
        ),
        "migrated": pd.DataFrame(
            columns=["time_ns", "cpu", "pid", "cgroup_id", "run_delay_ns", "throttle_clock_ns", "stolen_ns"]
        ),
    }  # fmt: skip
    assert peers.seen(frames, "article")["runq_lat"].tolist() == [2, 93]
    assert peers.seen(frames, "bcc")["runq_lat"].tolist() == [2, 3]


def test_idle_is_the_root_cgroup_to_the_article_and_nobody_to_the_others() -> None:
    found = pd.DataFrame(
        {"cgroup_id": [7, 7, 7], "prev_cgroup_id": [1, 1, 8], "prev_pid": [0, 5, 6], "runq_lat": [10, 20, 40]}
    ).astype("uint64")

    found.index = pd.Index([5, 2, 9])  # as after a selection

    def charged(*, idle_apart: bool) -> dict[tuple[str, int], tuple[int, int]]:
        cells = peers.cells(found, idle_apart=idle_apart)
        return {(c.kind, c.occupant_id): (c.wait_ns, c.preemptions) for c in cells.itertuples()}

    assert charged(idle_apart=False) == {("cgroup", 1): (30, 2), ("cgroup", 8): (40, 1)}
    assert charged(idle_apart=True) == {("idle", 0): (10, 1), ("cgroup", 1): (20, 1), ("cgroup", 8): (40, 1)}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(70, 72), st.integers(0, 60)), max_size=60),
    st.integers(1, 30),
)
def test_the_rate_limit_keeps_the_first_of_each_window_per_cgroup_and_cpu(
    rows: list[tuple[int, int, int]], limit: int
) -> None:
    rows = sorted(rows, key=lambda row: row[2])
    last: dict[tuple[int, int], int] = {}
    kept = []
    for number, (cpu, cgroup, ts) in enumerate(rows):
        if ts - last.get((cpu, cgroup), -limit) >= limit:
            last[cpu, cgroup] = ts
            kept.append(number)
    found = pd.DataFrame(rows, columns=["cpu", "cgroup_id", "ts"]).astype({"cgroup_id": "uint64"})
    assert peers.rate_limited(found, limit).index.tolist() == kept


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ParameterError, match="there are: article, preempt, bpftrace, bcc"):
        peers.seen(Machine(0).frames(), "mine")


# -- the article's two metrics -----------------------------------------------------------------------------------

CONTAINERS = {71: "web", 72: "web", 73: "batch"}


def _events(*rows: tuple[int, int, int]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["prev_cgroup_id", "cgroup_id", "runq_lat"]).astype("uint64")
    return frame.assign(ts=np.arange(len(frame), dtype=np.uint64))


def test_switch_outs_are_classed_by_container_and_what_is_unknown_is_the_system() -> None:
    events = _events((72, 71, 5), (71, 71, 5), (73, 71, 5), (1, 71, 5), (99, 72, 5), (71, 73, 5), (71, 1, 5))
    counts = netflix.switch_outs(events, CONTAINERS).set_index(["container", "cause"])["count"]
    assert counts.to_dict() == {
        ("batch", "same_container"): 0,
        ("batch", "other_container"): 1,
        ("batch", "system"): 0,
        ("web", "same_container"): 2,
        ("web", "other_container"): 1,
        ("web", "system"): 2,
    }


def test_latency_percentiles_are_those_of_the_container() -> None:
    events = _events(*[(1, 71 + n % 2, n) for n in range(1, 101)], (1, 73, 7), (1, 1, 10**9))
    found = netflix.latency(events, CONTAINERS).set_index("container")
    assert found.loc["web"].to_dict() == {
        "samples": 100,
        "p50_ns": 50.5,
        "p90_ns": pytest.approx(90.1),
        "p99_ns": pytest.approx(99.01),
        "max_ns": 100,
    }
    assert found.loc["batch", "max_ns"] == 7
    assert len(found) == 2


def test_no_events_give_empty_metrics_of_the_same_form() -> None:
    none, some = _events(), _events((1, 71, 5))
    for metric in (netflix.latency, netflix.switch_outs):
        assert len(metric(none, CONTAINERS)) == 0
        pd.testing.assert_series_equal(metric(none, CONTAINERS).dtypes, metric(some, CONTAINERS).dtypes)

"""The exact integral over recorded events against a toy machine that counts the truth tick by tick."""

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scheduler_model import Machine

from labkit.errors import CaptureMismatch
from labkit.sched import integral
from labkit.sched.state import SCHEMAS
from labkit.sched.trace import COLUMNS, NEW, THROTTLED_KNOWN

KEYS = ["victim_id", "kind", "occupant_id"]


def _sorted(cells: pd.DataFrame) -> pd.DataFrame:
    types = {
        "victim_id": "int64",
        "occupant_id": "int64",
        "wait_ns": "int64",
        "preemptions": "int64",
        "kind": "str",
    }
    return cells.astype(types).sort_values(KEYS, ignore_index=True)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    steps=st.integers(0, 400),
    cpus=st.integers(1, 3),
    tasks=st.integers(1, 8),
    cgroups=st.integers(1, 4),
)
@example(seed=1482, steps=53, cpus=3, tasks=2, cgroups=2)  # moved twice in one tick, by clocks that are apart
def test_the_integral_is_what_a_tick_by_tick_count_says(
    seed: int, steps: int, cpus: int, tasks: int, cgroups: int
) -> None:
    machine = Machine(seed, cpus=cpus, tasks=tasks, cgroups=cgroups).run(steps)
    cells = integral.cells(machine.frames())
    pd.testing.assert_frame_equal(_sorted(cells), _sorted(machine.cells()))
    waits = integral.waits(machine.frames())
    waited = {pid: ticks for pid, ticks in machine.waited.items() if ticks}
    assert waits.groupby("pid")["wait_ns"].sum().loc[lambda s: s > 0].to_dict() == waited


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), steps=st.integers(100, 400), unseen=st.sampled_from([0.05, 0.3]))
def test_waits_that_ended_unseen_are_known_from_run_delay(seed: int, steps: int, unseen: float) -> None:
    """Where switches are missing, who held the CPU may be unknown; how long each task waited is not."""
    machine = Machine(seed, unseen=unseen).run(steps)
    frames = machine.frames()
    waits, cells = integral.waits(frames), integral.cells(frames)
    entered = frames["switched"].astype("int64").query("next_pid != 0 and next_pid < 200")
    last = entered.groupby("next_pid").tail(1).set_index("next_pid")
    others = {*frames["migrated"]["pid"], *frames["woken"].query(f"flags == {NEW}")["pid"]}
    found = waits.groupby("pid")["wait_ns"].sum()
    first = entered.groupby("next_pid").head(1).set_index("next_pid")
    for pid, row in last.iterrows():
        if pid in others:  # of these, what came before the first event is not known
            continue
        began = first.loc[pid]
        assert found[pid] == row["run_delay_ns"] + row["time_ns"] - row["queued_ns"] - began["run_delay_ns"]
    assert cells["wait_ns"].sum() == waits["wait_ns"].sum()
    assert set(cells["kind"]) <= {"cgroup", "idle", "throttled", "steal", "unknown"}


def _frames(**rows: list[dict[str, int]]) -> dict[str, pd.DataFrame]:
    return {
        kind: pd.DataFrame(
            [{name: row.get(name, 0) for name in names} for row in rows.get(kind, [])], columns=list(names)
        ).astype("uint64")
        for kind, names in COLUMNS.items()
    }


def _switch(
    time: int, number: int, prev: tuple[int, int], following: tuple[int, int], **more: int
) -> dict[str, int]:
    """Who (pid, cgroup) leaves and who gets the CPU."""
    names = ("prev_pid", "prev_cgroup_id", "next_pid", "next_cgroup_id")
    row = dict(zip(names, (*prev, *following), strict=True))
    return {"time_ns": time, "switches": number, "flags": THROTTLED_KNOWN, **row, **more}


IDLE, HOG, ODD, VICTIM = (0, 1), (11, 71), (12, 72), (13, 73)


def _of(frames: dict[str, pd.DataFrame], victim: int = 73) -> dict[tuple[str, int], int]:
    cells = integral.cells(frames)
    mine = cells[cells["victim_id"] == victim]
    return {(row.kind, row.occupant_id): row.wait_ns for row in mine.itertuples() if row.wait_ns}


def test_one_missing_switch_is_bridged_by_when_the_next_task_arrived() -> None:
    frames = _frames(
        switched=[
            _switch(100, 1, IDLE, HOG, queued_ns=100),
            _switch(200, 3, ODD, VICTIM, prev_arrived_ns=160, queued_ns=110),
        ]
    )
    assert _of(frames) == {("cgroup", 71): 50, ("cgroup", 72): 40}


def test_of_more_missing_switches_only_the_last_is_known() -> None:
    frames = _frames(
        switched=[
            _switch(100, 1, IDLE, HOG, queued_ns=100),
            _switch(200, 4, ODD, VICTIM, prev_arrived_ns=160, queued_ns=110),
        ]
    )
    assert _of(frames) == {("unknown", 0): 50, ("cgroup", 72): 40}
    held = integral.occupancy(frames)
    assert held[["start_ns", "end_ns", "pid", "kind"]].to_numpy().tolist() == [
        [100, 160, -1, "unknown"],
        [160, 200, 12, "cgroup"],
    ]


@pytest.mark.parametrize(("number", "known"), [(0, 90), (2, 40)])
def test_the_counter_of_switches_may_wrap(number: int, known: int) -> None:
    """From 2^32 - 1 to 0 nothing is missing, to 2 two are."""
    frames = _frames(
        switched=[
            _switch(100, 2**32 - 1, IDLE, HOG, queued_ns=100),
            _switch(200, number, HOG, VICTIM, prev_arrived_ns=160, queued_ns=110),
        ]
    )
    assert _of(frames)["cgroup", 71] == known


def test_before_the_first_event_the_first_task_is_known_since_it_arrived() -> None:
    frames = _frames(switched=[_switch(200, 9, HOG, VICTIM, prev_arrived_ns=150, queued_ns=110)])
    assert _of(frames) == {("unknown", 0): 40, ("cgroup", 71): 50}


def test_a_wait_that_ended_unseen_is_found_where_its_task_leaves() -> None:
    frames = _frames(
        switched=[
            _switch(100, 1, IDLE, VICTIM, queued_ns=100, run_delay_ns=5),
            _switch(200, 2, VICTIM, HOG, prev_arrived_ns=100, queued_ns=190),
            # unseen: at 300 the victim got the CPU, for which it had waited 60
            _switch(400, 4, VICTIM, HOG, prev_arrived_ns=300, queued_ns=300),
            _switch(500, 5, HOG, VICTIM, prev_arrived_ns=400, queued_ns=480, run_delay_ns=5 + 60),
        ]
    )
    assert _of(frames) == {("cgroup", 71): 60 + 20}
    assert integral.waits(frames).query("pid == 13")["end_ns"].tolist() == [100, 300, 500]


def test_a_wait_that_only_run_delay_knows_is_unknown() -> None:
    frames = _frames(
        switched=[
            _switch(100, 1, IDLE, VICTIM, queued_ns=100, run_delay_ns=5),
            _switch(500, 9, HOG, VICTIM, prev_arrived_ns=400, queued_ns=480, run_delay_ns=5 + 60),
        ]
    )
    assert _of(frames) == {("unknown", 0): 60, ("cgroup", 71): 20}
    assert integral.waits(frames)["cpu"].tolist() == [-1, 0, 0]


def test_on_older_kernels_the_throttle_clock_at_the_wakeup_tells_the_throttled_head() -> None:
    frames = _frames(
        switched=[
            _switch(100, 1, IDLE, HOG, queued_ns=100, flags=0),
            _switch(200, 2, HOG, VICTIM, queued_ns=110, next_throttle_clock_ns=1030, flags=0),
        ],
        woken=[{"time_ns": 110, "pid": 13, "throttle_clock_ns": 1000}],
    )
    assert _of(frames) == {("throttled", 0): 30, ("cgroup", 71): 60}


def test_steal_counts_for_the_occupant_if_it_is_not_set_apart() -> None:
    frames = _frames(
        switched=[
            _switch(100, 1, IDLE, HOG, queued_ns=100, stolen_ns=7),
            _switch(200, 2, HOG, VICTIM, queued_ns=150, stolen_ns=27),
        ]
    )
    assert _of(frames) == {("cgroup", 71): 40, ("steal", 0): 10}
    together = integral.cells(frames, steal=False)
    assert together.query("victim_id == 73")["wait_ns"].tolist() == [50]


def test_many_waits_are_worked_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = Machine(5).run(600).frames()
    at_once = integral.cells(frames)
    monkeypatch.setattr(integral, "_PIECES", 3)
    pd.testing.assert_frame_equal(integral.cells(frames), at_once)


def test_no_events_give_frames_of_the_same_form() -> None:
    cells = integral.cells(_frames())
    assert cells.dtypes.astype(str).to_dict() == SCHEMAS["cells"]
    assert len(cells) == len(integral.waits(_frames())) == len(integral.occupancy(_frames())) == 0
    filled = Machine(1).run(100).frames()
    assert integral.cells(filled).dtypes.astype(str).to_dict() == SCHEMAS["cells"]
    for measure in (integral.waits, integral.occupancy):
        pd.testing.assert_series_equal(measure(_frames()).dtypes, measure(filled).dtypes)


def test_other_events_are_refused() -> None:
    with pytest.raises(CaptureMismatch, match="record the program sched_trace"):
        integral.cells({"woken": pd.DataFrame(), "switched": pd.DataFrame()})
    frames = _frames()
    with pytest.raises(CaptureMismatch, match="lack stolen_ns"):
        integral.cells(frames | {"woken": frames["woken"].drop(columns="stolen_ns")})

"""Waits out of recorded events: the columns against a plain loop, for any events, however they are cut into groups."""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import CaptureMismatch
from labkit.recordings import Group
from labkit.sched.from_events import task_waits

WOKEN = {"time_ns": "uint64", "pid": "uint32", "kind": "uint8", "unused": "uint8", "cpu": "uint16"}
SWITCHED = {
    "time_ns": "uint64",
    "prev_pid": "uint32",
    "kind": "uint8",
    "runnable": "uint8",
    "cpu": "uint16",
    "next_pid": "uint32",
    "lost": "uint32",
}


def woken(time_ns: int, pid: int) -> dict[str, int]:
    return {"time_ns": time_ns, "pid": pid, "kind": 1}


def switch(
    time_ns: int, prev: int, following: int, *, runnable: int = 0, cpu: int = 0, lost: int = 0
) -> dict[str, int]:
    return {
        "time_ns": time_ns,
        "prev_pid": prev,
        "next_pid": following,
        "runnable": runnable,
        "cpu": cpu,
        "lost": lost,
        "kind": 2,
    }


def group(events: list[dict[str, int]], run: int = 0) -> Group:
    def table(kind: int, columns: dict[str, str]) -> pa.Table:
        rows = [event for event in events if event["kind"] == kind]
        return pa.table(
            {name: np.array([row.get(name, 0) for row in rows], dtype) for name, dtype in columns.items()}
        )

    return Group({"woken": table(1, WOKEN), "switched": table(2, SWITCHED)}, run)


@dataclass
class Task:
    """What the plain loop knows of a task."""

    doing: str = "unknown"  # runs, waits, away
    since: int = 0
    preempted: bool = False
    cpu: int = -1
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            [
                "waits",
                "wait_ns",
                "max_wait_ns",
                "preempted_waits",
                "preempted_wait_ns",
                "uncertain_waits",
                "uncertain_wait_ns",
                "unmatched",
                "open",
            ],
            0,
        )
    )
    named: bool = False

    def add(self, **values: int) -> None:
        self.named = True
        for name, value in values.items():
            self.counts[name] += value

    def arrive(self, now: int, cpu: int, lost_at: int) -> None:
        if self.doing != "waits":
            self.add(unmatched=1)
        else:
            wait = now - self.since
            self.add(waits=1, wait_ns=wait)
            self.counts["max_wait_ns"] = max(self.counts["max_wait_ns"], wait)
            if self.preempted:
                self.add(preempted_waits=1, preempted_wait_ns=wait)
            if lost_at > self.since:
                self.add(uncertain_waits=1, uncertain_wait_ns=wait)
        self.doing, self.cpu, self.since = "runs", cpu, now

    def leave(self, now: int, runnable: int) -> None:
        if self.doing in ("waits", "away"):
            self.add(unmatched=1)
        self.doing, self.since, self.preempted = ("waits" if runnable else "away"), now, True


def one_by_one(groups: list[Group]) -> pd.DataFrame:
    """The rules, event by event."""
    tasks: dict[int, Task] = {}
    current: dict[int, int] = {}
    lost, lost_at, run = 0, -1, 0

    def forget() -> None:
        for task in tasks.values():
            if task.doing == "waits":
                task.add(open=1)
            task.doing = "unknown"

    for part in groups:
        if part.run != run:
            forget()
            current.clear()
            lost, lost_at, run = 0, -1, part.run
        rows = [row for table in part.tables.values() for row in table.to_pylist()]
        for row in sorted(rows, key=lambda row: row["time_ns"]):
            now = row["time_ns"]
            if row["kind"] == 1:
                if row["pid"]:
                    task = tasks.setdefault(row["pid"], Task())
                    if task.doing not in ("runs", "waits"):
                        task.doing, task.since, task.preempted = "waits", now, False
                continue
            if row["lost"] > lost:
                lost, lost_at = row["lost"], now
            expected = current.get(row["cpu"], row["prev_pid"])
            if expected != row["prev_pid"] and expected:
                task = tasks[expected]
                if task.doing == "runs" and task.cpu == row["cpu"]:
                    task.doing = "away"
            if row["prev_pid"]:
                tasks.setdefault(row["prev_pid"], Task()).leave(now, row["runnable"])
            if row["next_pid"]:
                tasks.setdefault(row["next_pid"], Task()).arrive(now, row["cpu"], lost_at)
            current[row["cpu"]] = row["next_pid"]
    forget()
    named = {pid: task.counts for pid, task in sorted(tasks.items()) if task.named}
    frame = pd.DataFrame.from_dict(named, orient="index", columns=list(Task().counts)).astype("int64")
    frame.insert(0, "pid", np.array(list(named), np.uint32))
    return frame.reset_index(drop=True)


@st.composite
def recordings(draw: st.DrawFn) -> list[Group]:
    """Any events at all: also such as no scheduler makes, and as losses leave them."""
    groups, now, lost, run = [], draw(st.integers(1, 10**15)), 0, 0
    for _ in range(draw(st.integers(1, 4))):
        events: list[dict[str, int]] = []
        for _ in range(draw(st.integers(0, 15))):
            now += draw(st.one_of(st.integers(1, 1000), st.integers(1, 2**41)))
            if draw(st.booleans()):
                events.append(woken(now, draw(st.integers(0, 4))))
                continue
            lost += draw(st.sampled_from([0, 0, 0, 1, 7]))
            prev, following = draw(st.permutations(range(5)))[:2]
            cpu, runnable = draw(st.integers(0, 2)), draw(st.integers(0, 1))
            events.append(switch(now, prev, following, runnable=runnable, cpu=cpu, lost=lost))
        groups.append(group(events, run))
        if draw(st.integers(0, 5)) == 0:
            run, lost = run + 1, 0
    return groups


@settings(max_examples=200, deadline=None)
@given(recordings())
def test_columns_and_loop_agree_on_any_events(groups: list[Group]) -> None:
    pd.testing.assert_frame_equal(task_waits(groups), one_by_one(groups), check_like=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 199), max_size=6), st.integers(0, 2**32 - 1))
def test_where_groups_are_cut_changes_nothing(cuts: list[int], seed: int) -> None:
    """A consistent stream of two CPUs and ten tasks, cut anywhere."""
    random = np.random.default_rng(seed)
    events, now, current = [], 1, {0: 0, 1: 0}
    for _ in range(200):
        now += int(random.integers(1, 10**9))
        cpu, pid = int(random.integers(2)), int(random.integers(1, 11))
        if random.random() < 0.4:
            events.append(woken(now, pid))
        elif pid not in current.values():
            events.append(switch(now, current[cpu], pid, runnable=int(random.integers(2)), cpu=cpu))
            current[cpu] = pid
    edges = [0, *sorted(cuts), len(events)]
    pieces = [group(events[a:b]) for a, b in itertools.pairwise(edges)]
    pd.testing.assert_frame_equal(task_waits(pieces), task_waits([group(events)]))


def _row(events: list[dict[str, int]], pid: int) -> pd.Series:
    return task_waits([group(events)]).set_index("pid").loc[pid]


def test_a_wait_begins_at_the_wakeup_and_ends_at_the_switch() -> None:
    row = _row([woken(100, 7), switch(350, 0, 7)], 7)
    assert (row["waits"], row["wait_ns"], row["max_wait_ns"], row["preempted_waits"]) == (1, 250, 250, 0)


def test_a_preempted_task_waits_from_its_switch_out_whoever_wakes_it_meanwhile() -> None:
    row = _row(
        [woken(1, 7), switch(2, 0, 7), switch(10, 7, 8, runnable=1), woken(15, 7), switch(40, 8, 7)], 7
    )
    assert (row["waits"], row["wait_ns"], row["preempted_wait_ns"]) == (2, 31, 30)


def test_idle_is_nobody() -> None:
    assert task_waits([group([switch(1, 5, 0), woken(2, 5), switch(9, 0, 5)])])["pid"].tolist() == [5]


def test_a_wakeup_of_a_running_task_begins_no_wait() -> None:
    row = _row(
        [woken(1, 7), switch(2, 0, 7), woken(5, 7), switch(9, 7, 0), woken(20, 7), switch(21, 0, 7)], 7
    )
    assert (row["waits"], row["wait_ns"]) == (2, 2)


def test_a_wait_with_losses_inside_is_uncertain_and_one_after_them_is_not() -> None:
    events = [
        woken(10, 7),
        switch(20, 0, 7, lost=5),
        switch(30, 7, 0, lost=5),
        woken(40, 7),
        switch(45, 0, 7, lost=5),
    ]
    row = _row(events, 7)
    assert (row["waits"], row["uncertain_waits"], row["uncertain_wait_ns"]) == (2, 1, 10)


def test_a_task_that_left_unseen_is_unmatched_at_its_next_switch_in() -> None:
    row = _row([woken(1, 7), switch(2, 0, 7), switch(10, 8, 9), switch(20, 9, 7)], 7)
    assert (row["waits"], row["unmatched"]) == (1, 1)


def test_a_wait_that_does_not_end_is_open() -> None:
    row = _row([switch(2, 0, 8), woken(3, 7)], 7)
    assert (row["waits"], row["open"]) == (0, 1)


def test_no_events_give_no_rows_of_the_same_types() -> None:
    nothing, something = task_waits([]), task_waits([group([woken(1, 7), switch(2, 0, 7)])])
    assert len(nothing) == 0
    assert (nothing.dtypes == something.dtypes).all()
    assert task_waits([group([])]).equals(nothing)


def test_events_of_another_program_are_refused() -> None:
    with pytest.raises(CaptureMismatch, match="not wakeups and switches"):
        task_waits([Group({"other": pa.table({"time_ns": [1]})})])

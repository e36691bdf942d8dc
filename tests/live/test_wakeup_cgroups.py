"""Wakeups by the task's cgroup and by current's: known sleepers and known wakers, against the kernel's count of sleeps."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pandas as pd
import pytest

import labkit as lk
from labkit.kernel.cgroup import hierarchy
from labkit.lessons import Feedback, ch07, exercises
from labkit.program import load
from labkit.workloads import Truth, Workload, ping_pong, scenario

pytestmark = pytest.mark.live


def counted(workload: Workload) -> tuple[pd.DataFrame, Truth]:
    with load("wakeup_cgroups") as prog, workload.run() as truth:
        prog.stop()
        wakeups, ledger = prog.frame("wakeups"), prog.ledger
    assert ledger.balanced
    assert wakeups["wakeups"].sum() == ledger.delivered == ledger.seen
    return wakeups, truth


def ids_of(truth: Truth) -> dict[str, int]:
    return truth.cgroups.set_index("role")["cgroup_id"].astype(int).to_dict()


def slept(truth: Truth, role: str) -> int:
    return int(truth.cgroups.set_index("role").loc[role, "voluntary"])


def woken(wakeups: pd.DataFrame, woken_id: int) -> int:
    return int(wakeups.loc[wakeups["woken_id"] == woken_id, "wakeups"].sum())


def agrees(found: int, oracle: int) -> bool:
    """Some few are at the edges, or came while a task was still on its way to sleep."""
    return abs(found - oracle) <= 0.02 * oracle + 8


def test_each_sleep_is_one_wakeup_of_the_sleepers_cgroup_and_current_is_the_hog() -> None:
    wakeups, truth = counted(scenario("hog", seconds=1.0))
    ids = ids_of(truth)
    assert agrees(woken(wakeups, ids["service"]), slept(truth, "service"))
    assert woken(wakeups, ids["hog"]) <= 8
    who = ch07.current_at_wakeups(wakeups, ids["service"])
    assert who["another cgroup"] > 0.8 * who.sum()
    assert who["itself"] <= 0.05 * who.sum()


def test_alone_the_service_is_woken_on_top_of_the_idle_task() -> None:
    wakeups, truth = counted(scenario("quiet", seconds=1.0))
    who = ch07.current_at_wakeups(wakeups, ids_of(truth)["service"])
    assert agrees(int(who.sum()), slept(truth, "service"))
    assert who["itself"] <= 0.05 * who.sum()
    assert (wakeups["while_idle"] <= wakeups["wakeups"]).all()
    assert wakeups["while_idle"].sum() > 0
    assert set(wakeups.loc[wakeups["while_idle"] > 0, "current_id"]) <= {ch07.ROOT_ID}


def test_each_of_a_pair_is_woken_by_the_other() -> None:
    wakeups, truth = counted(ping_pong(rounds=500))
    ids = ids_of(truth)
    pairs = wakeups.set_index(["woken_id", "current_id"])["wakeups"]
    for role, other in (("ping", "pong"), ("pong", "ping")):
        own = woken(wakeups, ids[role])
        assert agrees(own, slept(truth, role))
        assert pairs.get((ids[role], ids[other]), 0) >= 0.9 * own


def test_an_id_is_the_inode_of_the_cgroups_directory() -> None:
    with load("wakeup_cgroups") as prog, ping_pong(rounds=20).run() as truth:
        prog.stop()
        tree = hierarchy().identity
        inodes = {os.stat(f"{tree}{path}").st_ino for path in truth.tasks["cgroup"]}
        assert len(inodes) == 2
        assert inodes <= set(prog.frame("wakeups")["woken_id"].astype(int))


def test_a_cgroup_that_was_known_keeps_its_name_and_another_is_unknown() -> None:
    found = ch07.short_lives().set_index("asked")
    assert found["name"].tolist() == ["asked_in_time", "asked_in_time", "unknown"]
    assert found["owner"].tolist() == ["workload", "workload", "unknown"]
    assert found["alive"].tolist() == [True, False, False]


PARAMETER = ' * params:\n *   cgroup: {type: u64, default: 0, help: "only this"}\n * maps:\n'
SEEN = "    book->seen++;\n"
LOOKUP = "    book = ledger.lookup(&first);\n"


def asked(before: str, condition: str) -> Feedback:
    change = {" * maps:\n": PARAMETER, before: f"    if ({condition})\n        return 0;\n{before}"}
    answer = lk.write_program("wakeup_cgroups", change=change)
    return exercises("07")[1].check(answer, {"lab": SimpleNamespace(mode="live")})


@pytest.mark.parametrize(
    ("before", "condition", "said"),
    [
        (LOOKUP, "LK_PARAM_CGROUP && pair.woken_id != LK_PARAM_CGROUP", ""),
        (LOOKUP, "LK_PARAM_CGROUP && pair.current_id != LK_PARAM_CGROUP", "Which of the two"),
        (LOOKUP, "LK_PARAM_CGROUP && bpf_get_current_cgroup_id() != LK_PARAM_CGROUP", "Which of the two"),
        (LOOKUP, "LK_PARAM_CGROUP && pair.woken_id == LK_PARAM_CGROUP", "counts 0 wakeups"),
        (LOOKUP, "pair.woken_id != LK_PARAM_CGROUP", "0 was to mean"),
        (LOOKUP, "LK_PARAM_CGROUP && pair.woken_id < LK_PARAM_CGROUP", "other cgroups"),
        ("    count = wakeups", "LK_PARAM_CGROUP && pair.woken_id != LK_PARAM_CGROUP", "as seen"),
        (SEEN, "LK_PARAM_CGROUP &&", "does not compile"),
    ],
    ids=["right", "current", "helper", "inverted", "no default", "not equal", "after seen", "syntax"],
)
def test_a_filter_is_tried_on_a_service_beside_a_hog(before: str, condition: str, said: str) -> None:
    feedback = asked(before, condition)
    assert feedback.passed is (said == ""), feedback.message
    assert said in feedback.message

"""Chapter 07: who was current, what a filter on current shows, names; and its exercises. The live part is in tests/live."""

from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import labkit as lk
from labkit.lessons import Feedback, ch07, exercises
from labkit.spec import read

mpl.use("Agg")
import matplotlib.pyplot as plt

REPLAY = SimpleNamespace(mode="replay")
SERVICE, HOG = 5, 6
WAKEUPS = pd.DataFrame(
    [(HOG, SERVICE, 80, 0), (1, SERVICE, 15, 10), (SERVICE, SERVICE, 5, 0), (1, 1, 300, 250)],
    columns=["current_id", "woken_id", "wakeups", "while_idle"],
).astype("uint64")
KEYED = pd.DataFrame({"by task": [100, 1], "by current": [5, 80]}, index=["service", "hog"])


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("07")[number - 1].check(answer, context)


def test_the_parts_of_who_was_current_add_up() -> None:
    found = ch07.current_at_wakeups(WAKEUPS, SERVICE)
    assert found.to_dict() == {
        "another cgroup": 80.0,
        "the idle task": 10.0,
        "a task of the root cgroup": 5.0,
        "itself": 5.0,
    }


def stretches(rows: list[tuple[int, int, int, str]]) -> pd.DataFrame:
    """Who held CPU 0: start, end, occupant, kind."""
    frame = pd.DataFrame(rows, columns=["start_ns", "end_ns", "occupant_id", "kind"])
    return frame.assign(cpu=0).astype(
        {"start_ns": "int64", "end_ns": "int64", "cpu": "int64", "occupant_id": "uint64"}
    )


def waits(rows: list[tuple[int, int, int]]) -> pd.DataFrame:
    """Waits on CPU 0: victim, start, end."""
    frame = pd.DataFrame(rows, columns=["victim_id", "start_ns", "end_ns"])
    frame = frame.assign(cpu=0, wait_ns=frame["end_ns"] - frame["start_ns"])
    return frame.astype({"victim_id": "uint64", "cpu": "int64", "wait_ns": "uint64"})


class TestTimedByCurrent:
    def test_a_wait_that_began_with_a_wakeup_is_the_running_ones(self) -> None:
        found = ch07.timed_by_current(stretches([(0, 100, HOG, "cgroup")]), waits([(SERVICE, 40, 100)]))
        assert found.values.tolist() == [[HOG, SERVICE, 1, 60]]

    def test_a_wait_after_preemption_is_nobodys(self) -> None:
        """It begins while the victim itself is current, and ends while another is."""
        held = stretches([(0, 100, SERVICE, "cgroup"), (100, 200, HOG, "cgroup")])
        assert ch07.timed_by_current(held, waits([(SERVICE, 100, 200)])).empty

    def test_idle_is_the_root_cgroup_to_the_helper(self) -> None:
        found = ch07.timed_by_current(stretches([(0, 100, 0, "idle")]), waits([(SERVICE, 90, 100)]))
        assert found["cgroup_id"].tolist() == [ch07.ROOT_ID]

    def test_stretches_need_not_be_in_the_order_of_time(self) -> None:
        held = stretches([(100, 200, HOG, "cgroup"), (0, 100, 0, "idle")])
        found = ch07.timed_by_current(held, waits([(SERVICE, 50, 100), (SERVICE, 150, 200)]))
        assert found["cgroup_id"].tolist() == [ch07.ROOT_ID, HOG]


def test_examples_of_paths_have_the_kinds_that_the_text_speaks_of() -> None:
    names = ch07.names_of()
    assert set(names["kind"]) == {"root", "unit", "container", "cgroup"}
    assert (names.loc[names["kind"] == "container", "owner"] == "workload").all()
    assert names["cgroup"].str.len().max() <= 50, "pandas would cut it"
    assert names["pod_uid"].tolist().count("8f1c2a9e") == 1


@pytest.mark.parametrize(
    ("answer", "passed", "said"),
    [
        (95 / 400, True, "idle is in the root"),
        (np.float64(0.2374), True, ""),
        (305 / 400, False, "same cgroup"),
        (0.5, False, "rows"),
        (23.75, False, "size is not"),
        (95, False, "too large"),
        ("a quarter", False, "number"),
    ],
)
def test_a_share_of_wakeups_not_of_rows(answer: Any, passed: bool, said: str) -> None:
    feedback = judge(1, answer, wakeups=WAKEUPS)
    assert feedback.passed is passed
    assert said in feedback.message


HEADER = {
    " * maps:\n": ' * params:\n *   cgroup: {type: u64, default: 0, help: "only this"}\n * maps:\n',
}
BEFORE = "    book = ledger.lookup(&first);\n"


def filtered(condition: str, header: dict[str, str] = HEADER) -> lk.lessons.Written:
    return lk.write_program(
        "wakeup_cgroups", change={**header, BEFORE: f"    if ({condition})\n        return 0;\n{BEFORE}"}
    )


def test_a_filter_by_the_task_is_right_in_replay() -> None:
    feedback = judge(2, filtered("LK_PARAM_CGROUP && pair.woken_id != LK_PARAM_CGROUP"), lab=REPLAY)
    assert feedback.passed
    assert "without a kernel" in feedback.message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (read("wakeup_cgroups").source, "as it was"),
        ("if (cgroup)", "whole C program"),
        (lk.write_program("wakeup_cgroups", change={"int lk_wekaup(": "x"}), "could not be made"),
        (filtered("LK_PARAM_CGROUP && pair.woken_id != LK_PARAM_CGROUP", {}), "no parameter"),
        (filtered("0"), "nothing in C"),
        (filtered("LK_PARAM_CGROUP && pair.current_id != LK_PARAM_CGROUP"), "which of the two"),
        (filtered("LK_PARAM_CGROUP && LK_PARAM_CGROUP != bpf_get_current_cgroup_id()"), "which of the two"),
        (filtered("LK_PARAM_CGROUP != pair.woken_id"), "0 was to mean"),
        (filtered("0", {" * maps:\n": " * params:\n *   cgroup: {type: u32}\n * maps:\n"}), "u64"),
        (filtered("0", {" * maps:\n": " * params: [\n * maps:\n"}), "cannot be read"),
    ],
    ids=[
        "unchanged",
        "text",
        "typo",
        "undeclared",
        "unused",
        "current",
        "helper",
        "no default",
        "u32",
        "not YAML",
    ],
)
def test_what_is_no_filter_by_the_task(answer: Any, said: str) -> None:
    feedback = judge(2, answer, lab=REPLAY)
    assert not feedback.passed
    assert said in feedback.message.replace("Which", "which")


def test_unknown_is_unknown() -> None:
    assert judge(3, "40 % by a cgroup that nobody could name").passed
    assert "unknown" in judge(3, "40 % by the system").message
    assert "run_delay" in judge(3, "60 % of the wait; the rest is left out").message


def drawn(frame: pd.DataFrame = KEYED, *, label: str = "wakeups", legend: bool = True) -> plt.Axes:
    ax = frame.plot.barh(legend=legend)
    ax.set_xlabel(label)
    return ax


@pytest.mark.parametrize("upright", [False, True])
def test_bars_of_both_keys_lying_or_upright(upright: bool) -> None:
    ax = KEYED.plot.bar() if upright else KEYED.plot.barh()
    (ax.set_ylabel if upright else ax.set_xlabel)("wakeups")
    assert judge(4, ax, keyed=KEYED).passed


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (drawn(KEYED[["by task"]]), "2 bars"),
        (drawn(KEYED * 2), "not as long"),
        (drawn(label="n"), "what they count"),
        (drawn(legend=False), "legend"),
        (KEYED, "Axes"),
    ],
    ids=["one key", "other numbers", "label", "no legend", "a frame"],
)
def test_bars_that_are_not_right(answer: Any, said: str) -> None:
    feedback = judge(4, answer, keyed=KEYED)
    assert not feedback.passed
    assert said in feedback.message

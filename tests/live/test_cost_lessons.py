"""The ladder does on each rung what it says, and a sample is judged by what was written."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from labkit import spec
from labkit.lessons import exercises, write_program
from labkit.lessons.ch11 import COMM8, LARGE, caller, writer
from labkit.program import load

pytestmark = pytest.mark.live

LIVE = SimpleNamespace(mode="live")
EVERY = "where->calls % LK_PARAM_N == 0"


@pytest.mark.parametrize("rung", range(7))
def test_each_rung_sees_every_call_and_accounts_for_it(rung: int) -> None:
    with load("ladder", rung=rung) as prog, caller().run() as truth:
        prog.stop()
        calls, ledger = prog.frame("calls"), prog.ledger
    made = truth.declared["calls"]
    assert ledger.balanced
    assert ledger.seen >= made if rung else ledger.seen == 0
    mine = calls[calls["tgid"] == truth.tasks["pid"].iloc[0]]
    if rung in (3, 4):
        assert mine["calls"].max() == made
        assert mine.loc[mine["calls"].idxmax(), "comm"] == ("lk-caller" if rung == 4 else "")
    else:
        assert mine.empty


@pytest.mark.needs("root")
def test_counting_can_be_switched_off() -> None:
    with load("ladder", rung=1) as prog:
        assert len(prog.cost()) == 1
        prog.uncounted()
        assert len(prog.cost()) == 0
        assert prog.cost_note == "counting was switched off"


@pytest.mark.needs("root")
def test_somebody_elses_counting_is_noticed() -> None:
    with load("ladder", rung=1) as prog:
        prog.uncounted()
        with load("hello"):  # which has the kernel count, all programs
            os.getppid()
        assert prog.counted_by_others


def test_all_writes_are_seen_and_the_rhythm_fools_the_samples_that_keep_step() -> None:
    with load("sampling", comm8=COMM8) as prog, writer().run() as truth:
        prog.stop()
        found = {name: prog.frame(name) for name in ("all", "every", "random", "window")}
        ledger = prog.ledger
    large = {name: int(frame.loc[frame["lo"] == LARGE, "count"].sum()) for name, frame in found.items()}
    kept = {name: int(frame["count"].sum()) for name, frame in found.items()}
    assert large["all"] == truth.declared["large"]
    assert kept["all"] == ledger.seen == ledger.delivered
    # The pause between rounds is at least as long as a window, so each round's large block is the first of one. (More
    # windows begin in a round that takes long, because somebody else had the CPU.)
    assert large["window"] == truth.declared["large"]
    assert large["every"] in (0, truth.declared["large"])
    assert abs(large["random"] - kept["random"] / 100) < 5 * (kept["random"] / 100) ** 0.5


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        ("bpf_get_prandom_u32() % LK_PARAM_N == 0", ""),
        ("bpf_get_prandom_u32() % 2 == 0", "one in 10"),
        ("where->calls % LK_PARAM_N == 2", "step"),
        ("bpf_get_prandom_u32() % LK_PARAM_N = 0", "does not compile"),
    ],
    ids=["at random", "too many", "in step at another place", "not C"],
)
def test_the_exercise_runs_the_writer(instead: str, said: str) -> None:
    answer = write_program("sampling", change={EVERY: instead})
    context = {"lab": LIVE, "source": spec.read("sampling").source}
    feedback = exercises("11")[0].check(answer, context)
    assert feedback.passed is (said == ""), feedback.message
    assert said in feedback.message

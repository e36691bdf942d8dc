"""Demonstrations and the C exercise of chapter 04, on the running kernel."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

import labkit as lk
from labkit import spec
from labkit.lessons import Feedback, exercises
from labkit.lessons.rings import Reader, delivery_speed, memory, watch
from labkit.notebook_io import read_solutions
from labkit.paths import notebooks_dir
from labkit.program import load
from labkit.workloads import ping_pong

pytestmark = [pytest.mark.live, pytest.mark.needs("ring buffer")]

SOURCE = spec.read("sched_events").source


def skipping(answer: str) -> Feedback:
    return exercises("04")[1].check(answer, {"lab": SimpleNamespace(mode="live"), "source": SOURCE})


def solution() -> str:
    names = {"source": SOURCE, "lk": lk}
    section = read_solutions(notebooks_dir() / "solutions" / "04_events_and_loss.py")["04.2"]
    exec(section.split("lk.check")[0], names)
    return names["answer"].source


def test_both_ways_to_read_give_the_same_and_leave_the_ring_as_it_was() -> None:
    with load("sched_events") as prog:
        with ping_pong(rounds=100).run():
            prog.stop()
        raw = memory(prog)
        speed = delivery_speed(prog)  # raises if the two differ
        assert memory(prog) == raw
        assert speed["records"].tolist() == [prog.ledger.delivered] * 2
        assert sum(len(batch) for batch in prog.ring("events").read()) == prog.ledger.delivered
        assert memory(prog) == b""


def test_memory_is_cut_where_it_is_asked_to_be() -> None:
    with load("sched_events") as prog:
        with ping_pong(rounds=100).run():
            prog.stop()
        assert len(memory(prog)) > 512
        assert memory(prog, most=512) == memory(prog)[:512]


def test_a_reader_beside_a_workload_gets_all_that_was_not_lost() -> None:
    with load("sched_events", ring_pages=1) as prog, Reader(prog, every_s=0.005) as reader:
        with ping_pong(rounds=2000).run():
            pass
        prog.stop()
        ledger = prog.ledger
    frames = reader.frames()
    assert ledger.balanced
    assert ledger.lost > 0
    assert len(frames["woken"]) + len(frames["switched"]) == ledger.delivered
    assert int(frames["switched"]["lost"].max()) <= ledger.lost
    assert not any(thread.name == "reader" for thread in threading.enumerate())


def test_the_woken_recorders_own_switches_are_those_that_the_scheduler_counted() -> None:
    with load("sched_events", wake=True) as prog:
        seen = watch(prog, 0.3, woken=True)
    assert 0 <= seen["counted_switch_outs"] - seen["own_switch_outs"] <= seen["unseen"]
    # It goes to sleep when it has read all; not after each read, since more may have come meanwhile.
    assert seen["own_switch_outs"] > 0
    assert seen["reads"] > 0
    assert seen["own_switches"] >= seen["own_switch_outs"]
    assert seen["own_switches"] <= seen["switches"]


def test_a_recorder_that_is_woken_records_itself_and_one_that_looks_now_and_then_does_not() -> None:
    seen = {}
    for wake in (False, True):
        with load("sched_events", wake=wake) as prog:
            seen[wake] = watch(prog, 0.5, woken=wake, every_s=0.1)
    # Nobody wakes it: it sleeps as often as it looks, five times, plus what it was put off the CPU.
    assert seen[False]["reads"] <= 6
    # However busy the machine is, a reader that is woken finds its own arrival and reads again: far more often.
    assert seen[True]["reads"] > 3 * seen[False]["reads"]
    assert seen[True]["own_switches"] > seen[False]["reads"]


def test_wakeups_left_out_on_purpose_are_accounted_for() -> None:
    feedback = skipping(solution())
    assert feedback.passed, feedback.message


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("    book->skipped++;\n    return 0;\n", "    book->skipped++;\n", "wakeups were handed over"),
        ("    book->skipped++;\n", "    if (pid & 1)\n        book->skipped++;\n", "does not balance"),
        ("book->skipped++;", "book->skipped++", "does not load"),
    ],
    ids=["handed over too", "not each is counted", "does not compile"],
)
def test_what_is_wrong_with_a_changed_program_is_told(right: str, wrong: str, said: str) -> None:
    whole = solution()
    assert right in whole
    feedback = skipping(whole.replace(right, wrong))
    assert not feedback.passed
    assert said in feedback.message

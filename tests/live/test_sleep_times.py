"""Times between two hooks: bracketed by what was asked for and by the sleeper's own clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from labkit import spec
from labkit.histogram import from_log2, log2_slot
from labkit.lessons import exercises, write_program
from labkit.lessons.ch03 import floored, half_seen, known_writes, nap_frame, naps
from labkit.program import load

pytestmark = pytest.mark.live

SOURCE = spec.read("sleep_times").source


@pytest.mark.parametrize("hooks", [None, {"enter": "raw_tracepoint", "leave": "raw_tracepoint"}])
@pytest.mark.parametrize("threads", [1, 4])
def test_each_nap_is_timed_between_what_was_asked_and_its_own_clock(
    hooks: dict[str, str] | None, threads: int
) -> None:
    with load("sleep_times", hooks=hooks) as prog, naps(threads).run() as truth:
        prog.stop()
        sleeps, duration, ledger = prog.frame("sleeps"), prog.frame("duration"), prog.ledger
    mine = sleeps[sleeps["tgid"] == truth.tasks["pid"].iloc[0]]
    taken = nap_frame(truth)
    assert mine["calls"].sum() == len(taken) == 273
    assert 1000 * taken["asked_us"].sum() <= mine["total_ns"].sum() <= taken["slept_ns"].sum()
    assert 1000 * taken["asked_us"].max() <= mine["longest_ns"].max() <= taken["slept_ns"].max()
    assert ledger.balanced
    assert duration["count"].sum() == sleeps["calls"].sum() == ledger.delivered


def test_stamps_by_process_lose_most_of_the_time_of_four_threads() -> None:
    by_process = SOURCE.replace("u32 thread = id,", "u32 thread = id >> 32,")
    with load("sleep_times", source=by_process) as prog, naps(threads=4).run() as truth:
        prog.stop()
        sleeps = prog.frame("sleeps")
    mine = sleeps[sleeps["tgid"] == truth.tasks["pid"].iloc[0]]
    assert mine["total_ns"].sum() < nap_frame(truth)["slept_ns"].sum() / 2


def test_what_began_before_and_what_does_not_end_are_told_apart() -> None:
    seen = half_seen()
    assert (seen["returns"], seen["timed"], seen["unmatched"], seen["inside"]) == (1, 0, 1, 1)


class TestSlots:
    VALUES = (0, 1, 2, 3, 4, 7, 8, 4095, 4096)

    def test_known_values_go_to_the_slots_that_python_says(self) -> None:
        counts = [0] * 65
        for slot in log2_slot(list(self.VALUES)):
            counts[slot] += 1
        written = known_writes(self.VALUES)
        assert written.equals(from_log2(counts, unit="bytes"))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"value > 1 &&": "value > 0 &&"}, ""),
            ({"value > 1 &&": "value > 2 &&"}, "slot"),
            ({"return slot;": "return slot + 1;"}, "slot 0"),
            ({"value >>= 1;": "value >>= 1"}, "does not compile"),
        ],
        ids=["mended", "worse", "0 is not 1", "no semicolon"],
    )
    def test_the_exercise_finds_out_by_writing(self, change: dict[str, str], said: str) -> None:
        answer = write_program("syscall_counts", floored(), change=change)
        context = {"lab": SimpleNamespace(mode="live"), "floored": floored()}
        feedback = exercises("03")[0].check(answer, context)
        assert feedback.passed is (said == ""), feedback.message
        assert said in feedback.message

"""A kprobe at a function's entry and a kretprobe at its return time a call as the tracepoints do."""

from __future__ import annotations

import pytest

from labkit.lessons.ch03 import nap_frame, naps
from labkit.program import load

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("hooks", [None, {"enter": "kprobe", "leave": "kretprobe"}])
def test_each_nap_is_timed_between_what_was_asked_and_its_own_clock(hooks: dict[str, str] | None) -> None:
    with load("sleep_times", hooks=hooks) as prog, naps().run() as truth:
        prog.stop()
        chosen, sleeps, ledger = prog.hooks, prog.frame("sleeps"), prog.ledger
    if hooks:
        assert [one.partition(":")[0] for one in chosen["hook"][:2]] == ["kprobe", "kretprobe"]
    mine = sleeps[sleeps["tgid"] == truth.tasks["pid"].iloc[0]]
    taken = nap_frame(truth)
    assert mine["calls"].sum() == len(taken)
    assert 1000 * taken["asked_us"].sum() <= mine["total_ns"].sum() <= taken["slept_ns"].sum()
    assert ledger.balanced

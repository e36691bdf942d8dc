"""Which hook is chosen where the kernel has them all, and that each kind counts the same."""

from __future__ import annotations

import subprocess
import time

import pytest

from labkit.kernel.hooks import kprobe_pmu
from labkit.program import load, stale_programs

pytestmark = pytest.mark.guest

CALLS = 23


def run_programs() -> None:
    """A shell of a name of its own starts a program 23 times."""
    script = f"for i in {{1..{CALLS}}}; do /bin/true; done; :"
    subprocess.run(["bash", "-c", f"printf lk_shell >/proc/self/comm; {script}"], check=True)


def test_the_guest_kernel_has_kprobes() -> None:
    assert kprobe_pmu() is not None


def test_a_kprobe_is_chosen_first_and_no_hook_is_passed_over() -> None:
    with load("hello") as program:
        hooks = program.hooks
    assert list(hooks["label"]) == ["exec"]
    assert hooks["hook"][0].startswith("kprobe:")
    assert hooks["hook"][0].endswith("execve")
    assert hooks["passed_over"][0] == ""


@pytest.mark.parametrize("kind", ["kprobe", "fentry", "tracepoint", "raw_tracepoint"])
def test_every_kind_of_hook_counts_the_same_23_calls(kind: str) -> None:
    with load("hello", hooks={"exec": kind}) as program:
        run_programs()
        program.stop()
        hooks, calls, ledger = program.hooks, program.frame("hello"), program.ledger
    assert hooks["hook"][0].startswith(f"{kind}:")
    assert calls.loc[calls["comm"] == "lk_shell", "calls"].sum() == CALLS
    assert ledger.balanced
    assert ledger.delivered == calls["calls"].sum()


def test_nothing_of_ours_stays_in_the_kernel() -> None:
    with load("hello"):
        assert stale_programs()
    deadline = time.monotonic() + 30
    while stale_programs() and time.monotonic() < deadline:  # the kernel frees them after a grace period
        time.sleep(0.05)
    assert stale_programs() == []

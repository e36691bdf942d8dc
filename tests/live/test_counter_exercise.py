"""Exercise 10.5 on the running kernel: the answer is loaded, a process writes, what is scraped is held against /proc."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import labkit as lk
from labkit.lessons import Feedback, exercises
from labkit.lessons.counters import BURSTS, Writer
from labkit.notebook_io import read_solutions
from labkit.paths import notebooks_dir

pytestmark = pytest.mark.live

SOLUTION = read_solutions(notebooks_dir() / "solutions" / "10_metrics.py")["10.5"].split("lk.check")[0]
ADDS = "        __sync_fetch_and_add(&entry->bytes, third_argument);"


def judge(line: str = ADDS) -> Feedback:
    names: dict[str, object] = {"lk": lk}
    exec(SOLUTION, names)
    source = names["answer"].source.replace(ADDS, line)  # type: ignore[attr-defined]
    return exercises("10")[4].check(source, {"lab": SimpleNamespace(mode="live")})


def test_the_writers_account_is_the_kernels() -> None:
    with Writer() as writer:
        for burst in BURSTS:
            writer.write(burst)
        assert writer.written == sum(map(sum, BURSTS))
        if os.access(f"/proc/{writer.pid}/io", os.R_OK):
            assert writer.account == writer.written
    assert not Path(f"/proc/{writer.pid}").exists()


def test_the_solution_agrees_with_the_kernels_own_account() -> None:
    feedback = judge()
    assert feedback.passed, feedback.message
    assert f"{sum(map(sum, BURSTS)):,}" in feedback.message


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("        entry->bytes = third_argument;", "never goes back"),
        ("        __sync_fetch_and_add(&entry->bytes, 1);", "those are the calls"),
        ("        ; __sync_fetch_and_add(&entry->bytes, third_argument);", "third argument"),
        ("        __sync_fetch_and_add(&entry->bytes, third_argument)", "does not compile"),
        ("        __sync_fetch_and_add((u32 *)&entry->bytes, (u32)third_argument);", "as 32 bits do"),
        ("        entry->bytes += third_argument;", "one is lost"),
    ],
    ids=["put in its place", "calls", "of every call", "semicolon", "32 bits", "not atomic"],
)
def test_a_typical_mistake_is_seen_in_what_is_scraped(line: str, word: str) -> None:
    feedback = judge(line)
    assert not feedback.passed
    assert word in feedback.message

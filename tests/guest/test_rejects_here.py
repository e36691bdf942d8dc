"""The refusals of chapter 05 keep their words on this kernel, too, and a mended program is let in."""

from __future__ import annotations

import pytest

from labkit import program
from labkit.lessons.ch05 import LIMIT, walk
from labkit.lessons.rejects import Judgement, Reject, judge, reject, rejects

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("one", rejects(), ids=lambda one: one.name)
def test_it_is_refused_with_these_words(one: Reject, monkeypatch: pytest.MonkeyPatch) -> None:
    # The line of C needs another compilation, which takes seconds in here; the host's tests look at it.
    monkeypatch.setattr(program, "source_lines", lambda *_: {})
    told = one.judge()
    line = next((n for n, text in enumerate(one.source.splitlines(), 1) if text.strip() == one.at), 0)
    assert one.fits(Judgement(told.refused_by, told.says, line, told.log)), told


@pytest.mark.parametrize("name", ["null_value", "signed_index", "unsubmitted"])
def test_it_is_let_in_when_mended(name: str) -> None:
    assert judge(reject(name).mended_program).refused_by == ""


def test_the_verifier_walks_each_round_of_a_loop() -> None:
    found = walk((10, 1000, 500_000))
    assert list(found["walked"]) == [22, 2002, LIMIT + 1]

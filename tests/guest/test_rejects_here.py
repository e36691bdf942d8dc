"""The refusals of chapter 05 keep their words on this kernel, too, and a mended program is let in."""

from __future__ import annotations

import pytest

from labkit import loader
from labkit.lessons.ch05 import LIMIT, walk
from labkit.lessons.rejects import Reject, judge, rejects

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("one", rejects(), ids=lambda one: one.name)
def test_it_is_refused_with_these_words(one: Reject, monkeypatch: pytest.MonkeyPatch) -> None:
    # The line of C needs another compilation, which takes seconds in here.
    monkeypatch.setattr(loader, "source_lines", lambda *_: {})
    told = one.judge()
    assert one.fits(told, line=False), told


@pytest.mark.slow
@pytest.mark.parametrize("one", [one for one in rejects() if one.at], ids=lambda one: one.name)
def test_the_line_of_c_is_the_one_that_is_described(one: Reject) -> None:
    told = one.judge()
    assert one.fits(told), (told.line, told.says)


QUICK = ("null_value", "signed_index", "unsubmitted")  # each takes seconds in here


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(one, id=one.name, marks=() if one.name in QUICK else pytest.mark.slow)
        for one in rejects()
    ],
)
def test_it_is_let_in_when_mended(one: Reject) -> None:
    told = judge(one.mended_program)
    assert told.refused_by == "", told.says


def test_the_verifier_walks_each_round_of_a_loop() -> None:
    found = walk((10, 1000, 500_000))
    assert list(found["walked"]) == [22, 2002, LIMIT + 1]

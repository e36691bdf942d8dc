"""Each refused program is refused as its description says, and let in once it is mended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from labkit.errors import HookNotFound
from labkit.lessons import exercises, write_program
from labkit.lessons.ch05 import LIMIT, walk
from labkit.lessons.rejects import Reject, judge, reject, rejects

pytestmark = pytest.mark.live

LIVE = SimpleNamespace(mode="live")
COUNT = "    table->cell[nr] += 1;\n"
KEPT = "    if (*event > 300)\n        return 0;\n"


@pytest.mark.parametrize("one", rejects(), ids=lambda one: one.name)
def test_it_is_refused_as_described_and_let_in_when_mended(one: Reject) -> None:
    told = one.judge()
    assert one.fits(told), told
    mended = judge(one.mended_program)
    assert mended.refused_by == "", mended.log[-500:]


@pytest.mark.parametrize(("argument", "attached"), [(1, True), (2, False), (5, False), (11, False)])
def test_an_argument_that_the_tracepoint_lacks_passes_the_verifier_and_is_refused_at_attaching(
    argument: int, attached: bool
) -> None:
    program = write_program(
        "context_too_far", reject("context_too_far").source, change={"args[12]": f"args[{argument}]"}
    )
    if attached:
        program.load().close()
        return
    with pytest.raises(HookNotFound) as refused:
        program.load()
    assert "attaching failed: Invalid argument" in str(refused.value)


def test_the_verifier_walks_each_round_of_a_loop_and_stops_at_a_million() -> None:
    found = walk((1, 7, 1000, 499_999, 500_000))
    assert list(found["walked"]) == [4, 16, 2002, LIMIT, LIMIT + 1]
    assert list(found["let_in"]) == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    if (nr > 15)\n        nr = 15;\n" + COUNT, ""),
        ("    if (nr < 16)\n    " + COUNT, "left out"),
        ("    table->cell[15] += 1;\n", "everything is counted in the last"),
        ("    if (nr > 16)\n        nr = 15;\n" + COUNT, "`off_by_one`"),
    ],
    ids=["right", "left out", "all in one", "one too large"],
)
def test_the_last_cell_is_looked_into(body: str, said: str) -> None:
    answer = write_program("no_bounds", reject("no_bounds").source, change={COUNT: body})
    feedback = exercises("05")[0].check(answer, {"lab": LIVE})
    assert feedback.passed is (said == ""), feedback.message
    assert said in feedback.message


def test_a_discard_that_forgets_to_return_is_refused_by_the_verifier_itself() -> None:
    forgotten = KEPT.replace("return 0;", "events.ringbuf_discard(event, 0);")
    answer = write_program("unsubmitted", reject("unsubmitted").source, change={KEPT: forgotten})
    feedback = exercises("05")[1].check(answer, {"lab": LIVE})
    assert not feedback.passed
    assert "the verifier refuses" in feedback.message


def test_the_kernel_is_asked_for_the_most_rounds() -> None:
    feedback = exercises("05")[2].check(499_999, {"lab": LIVE})
    assert feedback.passed
    assert "500,000 are not" in feedback.message

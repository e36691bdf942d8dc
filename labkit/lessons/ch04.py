"""Exercises of chapter 04, events and loss."""

from __future__ import annotations

import re
import struct
from typing import Any

import pandas as pd

from labkit.capture import Capture
from labkit.errors import LabkitError
from labkit.ledger import Ledger
from labkit.lessons import (
    Context,
    Feedback,
    exercise,
    expect_choice,
    expect_number,
    explained,
    is_number,
    rehearsals,
    rehearse,
    right,
    source_of,
    wrong,
)
from labkit.paths import captures_dir
from labkit.program import Program
from labkit.ring import DISCARD

_ASKED = 11
_RECORDED = 400  # wakeups and switches of the recording that an answer is run on in replay


def _starts(raw: bytes, *, header: int = 8) -> list[int]:
    """Where each record begins, if headers had that many bytes."""
    found, at = [], 0
    while at + 8 <= len(raw):
        found.append(at)
        length = struct.unpack_from("<I", raw, at)[0] & (DISCARD - 1)
        at += header + (length + 7) // 8 * 8
    return found


@exercise(
    "04.1",
    question=f"At which byte of `raw` does the {_ASKED}th record begin? The first begins at byte 0.",
    hints=[
        "A record is its header of 8 bytes and its data; the header's lower 30 bits say how long the data is.",
        "Go from header to header as the loop above does, and stop after ten steps.",
        f"at = 0; then {_ASKED - 1} times: at += 8 + (struct.unpack_from('<I', raw, at)[0] & 0x3FFFFFFF)",
    ],
)
def eleventh_record(answer: Any, context: Context) -> Feedback:
    """The chain of headers, walked for ten records."""
    raw = context["raw"]
    starts = _starts(raw)
    truth = starts[_ASKED - 1]
    if is_number(answer):
        if answer in (starts[_ASKED - 2], starts[_ASKED]):
            return wrong(
                f"That is where one of its neighbours begins: the {_ASKED}th comes after ten others."
            )
        if answer == truth + 8:
            return wrong("That is where its data begins. The record begins with its header, 8 bytes before.")
        if answer == truth - 8 * (_ASKED - 1):
            return wrong("That adds up the data alone: each record has a header of 8 bytes, too.")
        same = {(_ASKED - 1) * stride for stride in (24, 32)}
        if answer in same - {truth}:
            return wrong("That takes all records for equally long. Each header says how long its own is.")
    return expect_number(answer, truth, unit="bytes")


@exercise(
    "04.2",
    question="Change the program so that wakeups are not handed over, but counted as a loss of their own, `skipped`.",
    hints=[
        "Three places: `losses:` in the header comment, `struct lk_events_ledger`, and `on_wakeup()`.",
        "`losses: [ring_full, skipped]`; `u64 skipped;` behind `u64 ring_full;`; and after `book->seen++;` in on_wakeup "
        "count it, and return before anything is reserved.",
        'In on_wakeup(), with enough around it to be there once: "book->seen++;\\n    event = '
        'events.ringbuf_reserve(sizeof(struct lk_woken))" becomes "book->seen++; book->skipped++; return 0; ..."',
    ],
)
def skip_wakeups(answer: Any, context: Context) -> Feedback:
    """Live: load the answer, run a ping-pong, and hold what was received against the ledger. In replay: the recording."""
    answer = source_of(answer, contains="on_wakeup", original=context["source"])
    if isinstance(answer, Feedback):
        return answer
    if context["lab"].mode == "live":
        return explained(_try_skipping(answer), _reading(answer))
    feedback = rehearse("sched_events", answer, rehearsals.recorded(*_recording()), _received)
    return explained(feedback, _reading(answer))


def _reading(source: str) -> str:
    if not re.search(r"^ \* ledger:.*losses:.*\bskipped\b", source, re.M):
        return "The header comment does not name `skipped` as a loss, so the ledger would not know of it."
    if not re.search(r"\bu64\s+skipped\s*;", source):
        return "`struct lk_events_ledger` has no member `u64 skipped`."
    if not re.search(r"skipped\s*(\+\+|\+=\s*1)|\+\+\s*book->skipped", source):
        return "Nothing increments `skipped`: the ledger would not balance."
    return ""


def _try_skipping(source: str) -> Feedback:
    from labkit.program import load
    from labkit.workloads import ping_pong

    rounds = 200
    try:
        with load("sched_events", source=source) as prog, ping_pong(rounds=rounds).run():
            prog.stop()
            return _received(prog, at_least=rounds)
    except LabkitError as error:
        return wrong(f"The program does not load: {error.what}. {error.why}")


def _recording() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The beginning of the chapter's own recording: wakeups and switches."""
    events = Capture(captures_dir() / "04_events_and_loss").reading("events")
    return events["woken"].head(_RECORDED), events["switched"].head(_RECORDED)


def _received(program: Program, at_least: int = _RECORDED) -> Feedback:
    batches = program.ring("events").read()
    return judge_skipping({b.kind.name: len(b) for b in batches}, program.ledger, at_least=at_least)


def judge_skipping(received: dict[str, int], ledger: Ledger, *, at_least: int) -> Feedback:
    """What was received, by kind, against the ledger; ``at_least`` so many wakeups and switches there were."""
    skipped = ledger.losses.get("skipped", 0)
    if received.get("woken"):
        return wrong(f"{received['woken']} wakeups were handed over.")
    if not ledger.balanced:
        return wrong(f"The ledger does not balance: {ledger.describe()}.")
    if sum(received.values()) != ledger.delivered:
        return wrong(f"The ledger says {ledger.delivered} delivered, {sum(received.values())} were received.")
    if received.get("switched", 0) < at_least:
        return wrong("The switches are gone, too: only wakeups are to be skipped.")
    if skipped < at_least:
        return wrong(f"There were at least {at_least} wakeups; `skipped` says {skipped}.")
    return right(f"{skipped} wakeups skipped and {ledger.delivered} switches delivered: {ledger.seen} seen.")


@exercise(
    "04.3",
    question="How many gaps has the recording `switched`: between how many switches and the next were events lost?",
    hints=[
        "Each switch carries in `lost` how many events had been lost before it. What does a gap do to that number?",
        "`diff()` of a column is the difference to the row before. A gap is where it is above 0.",
        '(switched["lost"].diff() > 0).sum()',
    ],
)
def gaps(answer: Any, context: Context) -> Feedback:
    """The number of rises of ``lost`` from one switch to the next."""
    lost = context["switched"]["lost"].astype("int64")
    truth = int((lost.diff() > 0).sum())
    wrong_ones = {
        int(lost.max()): "That is how many events were lost. In how many places?",
        int((lost > 0).sum()): "That counts the switches that come after any loss at all.",
        int(lost.sum()): "Those are running totals: adding them up counts each loss many times.",
        len(lost): "That is how many switches were recorded.",
        int(
            lost.nunique()
        ): "That is one too many: the first row has none before it, and n totals have n - 1 rises.",
    }
    if isinstance(answer, pd.Series):
        return wrong("A number is asked for; this is a Series. How many of its values are above 0?")
    if is_number(answer) and answer != truth and answer in wrong_ones:
        return wrong(wrong_ones[answer])
    return expect_number(answer, truth, unit="gaps")


@exercise(
    "04.4",
    question="What sets the distance from one group of kept switches to the next, in the figure of the overloaded ring?",
    hints=[
        "A group ends when the ring is full. What has to happen before the next one can begin?",
        "Measure it on the axis: about how many milliseconds? Which of the numbers in the chapter is of that size?",
    ],
)
def distance_of_groups(answer: Any, context: Context) -> Feedback:
    """The reader's pause: the ring's size and the pair's pace set how wide a group is."""
    return expect_choice(
        answer,
        "how often the ring is read",
        ["how fast the pair plays", "how often the ring is read", "how large the ring is"],
        {
            "how fast the pair plays": "A faster pair fills the page sooner: narrower groups. When does the next begin?",
            "how large the ring is": "A larger ring holds a wider group. When does the next one begin?",
        },
        why_right="The ring stays full until it is read. Its size and the pair's pace set how wide the groups are.",
    )

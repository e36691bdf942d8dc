"""Chapter 05, the verifier: how far it walks, and its exercises. The refused programs are data, in ``bpf/rejects``."""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from labkit import bpfsys
from labkit.lessons import (
    Context,
    Feedback,
    exercise,
    expect_choice,
    expect_number,
    explained,
    rehearsals,
    rehearse,
    right,
    source_of,
    try_program,
    wrong,
)
from labkit.lessons.c_model import DryProgram
from labkit.lessons.c_model.kernel import SYSCALLS
from labkit.lessons.rejects import reject
from labkit.program import Program

__all__ = ["LIMIT", "ROUNDS", "loop_of", "walk"]

#: BPF_COMPLEXITY_LIMIT_INSNS in include/linux/bpf.h, since 5.2 (commit c04c0d2b968a).
LIMIT = 1_000_000
ROUNDS = (1, 10, 100, 1_000, 10_000, 100_000, 499_999, 500_000)
_MOST = (LIMIT - 2) // 2
_ASKED = 1000
#: Numbers of system calls for replay: on both sides of each limit, and one that no system call has.
_NUMBERS = (0, 1, 7, 14, 15, 16, 17, 64, 110, 299, 300, 301, 450, 1 << 40)


def loop_of(rounds: int) -> bytes:
    """Four instructions: r0 = 0; r0 += 1; if r0 < rounds, back by one; exit. The code is that of RFC 9669."""

    def instruction(code: int, offset: int = 0, immediate: int = 0) -> bytes:
        return struct.pack("=BBhi", code, 0, offset, immediate)

    return instruction(0xB7) + instruction(0x07, 0, 1) + instruction(0xA5, -2, rounds) + instruction(0x95)


def walk(rounds: Sequence[int] = ROUNDS) -> pd.DataFrame:
    """Have the verifier walk loops of four instructions, and ask it how far it walked.

    :returns: columns ``rounds``, ``walked`` (instructions, by the verifier's own count, int64), ``ms`` (of verification,
        float64), ``let_in`` (bool), ``says`` (str, if not).
    """
    rows = []
    for number in rounds:
        log = ctypes.create_string_buffer(1 << 16)
        said = ""
        try:
            # BPF_LOG_STATS: the summary alone (include/linux/bpf_verifier.h)
            program = loop_of(number)
            os.close(
                bpfsys.prog_load(
                    bpfsys.ProgType.RAW_TRACEPOINT, program, name="lk_walk", log=log, log_level=4
                )
            )
        except OSError as error:
            said = error.strerror or str(error)
        text = log.value.decode("ascii", "replace")
        if said and text:
            said = text.splitlines()[0]
        walked, usec = (
            re.search(r"processed (\d+) insns", text),
            re.search(r"verification time (\d+) usec", text),
        )
        rows.append(
            (number, int(walked[1]) if walked else 0, int(usec[1]) / 1000 if usec else 0.0, not said, said)
        )
    return pd.DataFrame(rows, columns=["rounds", "walked", "ms", "let_in", "says"])


@exercise(
    "05.1",
    question="Mend `no_bounds` so that nothing is left out: all calls from number 15 on are counted in the last cell.",
    hints=[
        "The verifier wants to see, on the path to the access, that `nr` is below 16. What if it is not?",
        "Before the access: a number that is too large is replaced by 15, and not sent away.",
        'change={"    table->cell[nr] += 1;\\n": "    if (nr > 15)\\n        nr = 15;\\n    table->cell[nr] += 1;\\n"}',
    ],
)
def last_cell(answer: Any, context: Context) -> Feedback:
    """Live: load the answer, call getppid() a thousand times (its number is above 15), and look into the last cell."""
    source = source_of(answer, contains="lk_enter", original=reject("no_bounds").source)
    if isinstance(source, Feedback):
        return source
    reading = "" if re.search(r"(->|\.)cell\s*\[", source) else "Nothing is counted in `cell[...]` any more."
    if context["lab"].mode == "replay":
        made = [*_NUMBERS, *[SYSCALLS["getppid"]] * _ASKED]
        feedback = rehearse("no_bounds", source, rehearsals.calls((number, 0) for number in made), _last_cell)
        return explained(feedback, reading)
    return explained(try_program("no_bounds", source, _ask_many), reading)


def _ask_many(program: Program) -> Feedback:
    for _ in range(_ASKED):
        os.getppid()
    program.stop()
    return _last_cell(program)


def _last_cell(program: Program) -> Feedback:
    cells = program.maps["calls"].raw()[1].reshape(-1).view(np.uint64)
    if cells[15] < _ASKED:
        told = "are left out" if cells.sum() < _ASKED else "are counted elsewhere"
        return wrong(
            f"It is let in. But getppid() was called {_ASKED} times, its number is above 15, and the last cell holds "
            f"{cells[15]}: such calls {told}."
        )
    if not cells[:15].any():
        return wrong(
            "It is let in. But everything is counted in the last cell, also the calls that have one of their own."
        )
    return right(
        f"It is let in, and the last cell counted {cells[15]:,} calls, among them {_ASKED} of getppid()."
    )


@exercise(
    "05.2",
    question="Mend `unsubmitted`, so that no path keeps a record: large numbers are still not handed over.",
    hints=[
        "Follow each path from ringbuf_reserve() to a return. On which one is the record neither submitted nor discarded?",
        "`events.ringbuf_discard(event, 0);` gives it back. Or ask before you reserve: then there is nothing to give back.",
        'change={"    if (*event > 300)\\n        return 0;\\n": "    if (*event > 300) {\\n'
        '        events.ringbuf_discard(event, 0);\\n        return 0;\\n    }\\n"}',
    ],
)
def give_back(answer: Any, context: Context) -> Feedback:
    """Live the verifier has the word on records that stay in hand; what is handed over is seen without a kernel."""
    source = source_of(answer, contains="lk_enter", original=reject("unsubmitted").source)
    if isinstance(source, Feedback):
        return source
    before = re.search(r"args\[1\]\s*>\s*300", source)
    said = (
        "Nothing is reserved for a number that is not wanted: even better than discarding." if before else ""
    )
    script = rehearsals.calls((number, 0) for number in _NUMBERS)
    rehearsed = rehearse("unsubmitted", source, script, _handed_over(said))
    if context["lab"].mode == "replay":
        return explained(rehearsed, _reading(source))
    let_in = try_program(
        "unsubmitted", source, lambda _: right(said or "No path keeps a record: it is let in.")
    )
    # The verifier does not ask what is handed over: that the model knows, where it can run the program.
    mistaken = let_in.passed and rehearsed.ran and not rehearsed.passed
    return explained(rehearsed if mistaken else let_in, _reading(source))


def _reading(source: str) -> str:
    if "ringbuf_submit" not in source and "ringbuf_output" not in source:
        return "Nothing is handed over any more: the small numbers still should be."
    if "300" not in source:
        return "Every number is handed over now: those above 300 should not be."
    return ""


def _handed_over(said: str) -> Callable[[DryProgram], Feedback]:
    """Which of the numbers came through the ring."""

    def judge(program: DryProgram) -> Feedback:
        records = program.machine.rings["events"].submitted
        found = [int.from_bytes(record[:8], "little") for record in records]
        if any(number > 300 for number in found):
            return wrong("Every number is handed over now: those above 300 should not be.")
        missing = sorted({number for number in _NUMBERS if number <= 300} - set(found))
        if missing:
            return wrong(f"Small numbers are not handed over any more: {missing[0]} is missing.")
        return right(said or "No path keeps a record.")

    return judge


@exercise(
    "05.3",
    question="What is the largest number of rounds that the verifier lets in, for the loop of four instructions?",
    hints=[
        "The table says how many instructions it walked for how many rounds. How do the two hang together?",
        "One instruction before the loop, two in each round, one after it; and a million is the limit.",
        "2 * rounds + 2 <= 1,000,000",
    ],
)
def most_rounds(answer: Any, context: Context) -> Feedback:
    """Live: the kernel is asked for this number and the next. In replay: by the formula."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        if answer in (LIMIT, LIMIT - 1):
            return wrong("That is the limit of instructions. How many instructions is a round?")
        if answer == LIMIT // 2:
            return wrong("So close: before the loop and after it there is an instruction, too.")
        if context["lab"].mode == "live" and 0 < answer < 2**31 - 1:
            let_in = walk((answer, answer + 1))["let_in"]
            if let_in.iloc[0] and not let_in.iloc[1]:
                return right(f"The kernel was asked: {answer:,} rounds are let in, {answer + 1:,} are not.")
    return expect_number(answer, _MOST, unit="rounds")


@exercise(
    "05.4",
    question="Draw how long verification takes against the rounds of the loop, both axes logarithmic. How does it grow?",
    hints=[
        'plt.loglog(walked["rounds"], walked["ms"], "o-"): what does a straight line mean there, and how steep is it?',
        "Ten times the rounds: about how many times the milliseconds, from 1,000 to 10,000 to 100,000?",
    ],
)
def growth(answer: Any, context: Context) -> Feedback:
    """The verifier walks each round by itself: linear."""
    return expect_choice(
        answer,
        "in proportion",
        ["not at all", "in proportion", "with the square", "exponentially"],
        {
            "not at all": "That is the program's run time while it is not attached. Loading it takes longer and longer.",
            "with the square": "Then ten times the rounds would take a hundred times as long.",
            "exponentially": "Then one round more would double the time, and a thousand rounds would never be let in.",
        },
        why_right="Each round is walked by itself, and costs the same. "
        "A bound of a thousand is cheap, one of a million refused.",
    )

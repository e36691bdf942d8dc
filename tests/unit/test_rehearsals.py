"""Exercises that ask for C, where there is no kernel: the answer is run in a model, and must count right.

Each program here compiles and loads; each was once called right in replay by its looks, or is a typical mistake that a
live check refuses: it must be refused here in the same words.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import labkit as lk
from labkit import spec
from labkit.lessons import Feedback, exercises
from labkit.lessons.ch03 import floored
from labkit.lessons.ch12 import draw
from labkit.lessons.rejects import reject
from labkit.notebook_io import chapters, read_solutions
from labkit.session import chapter

REPLAY = SimpleNamespace(mode="replay")
FLOORED_C, NO_BOUNDS_C, UNSUBMITTED_C = floored(), reject("no_bounds").source, reject("unsubmitted").source
CONTEXTS: dict[str, dict[str, Any]] = {
    "01.1": {"hello_c": spec.read("hello").source},
    "02.1": {"source": spec.read("syscall_counts").source},
    "03.1": {"floored": FLOORED_C},
    "04.2": {"source": spec.read("sched_events").source},
    "11.1": {"source": spec.read("sampling").source},
    "12.4": {"source": spec.read("took_over").source},
}
WITH_C = (
    "00.3",
    "01.1",
    "02.1",
    "03.1",
    "04.2",
    "05.1",
    "05.2",
    "06.2",
    "07.2",
    "08.2",
    "09.2",
    "10.5",
    "11.1",
    "12.4",
)


def judge(exercise: str, answer: Any) -> Feedback:
    number, at = exercise.split(".")
    context = CONTEXTS.get(exercise, {}) | {"lab": REPLAY}
    if exercise == "12.4":
        context["case"] = draw(chapter("12_capstone", "replay"), case=1)
    return exercises(number)[int(at) - 1].check(answer, context)


def solution(exercise: str) -> str:
    path = next(path for path in chapters() if path.stem.startswith(exercise[:2]))
    section = read_solutions(path.parent / "solutions" / f"{path.stem}.py")[exercise]
    names: dict[str, Any] = {
        "lk": lk,
        "reject": reject,
        "floored_c": FLOORED_C,
        "no_bounds_c": NO_BOUNDS_C,
    }
    exec(section.split("lk.check")[0], names)
    return str(names["answer"].source)


@pytest.mark.parametrize("exercise", WITH_C)
def test_the_shipped_solution_is_run_and_right(exercise: str) -> None:
    feedback = judge(exercise, solution(exercise))
    assert feedback.passed, feedback.message
    assert feedback.ran
    assert "run without a kernel" in feedback.message


def test_every_exercise_that_asks_for_a_program_is_among_them() -> None:
    asked = {
        exercise
        for path in chapters()
        for exercise, code in read_solutions(path.parent / "solutions" / f"{path.stem}.py").items()
        if "lk.write_program(" in code
    }
    assert asked == set(WITH_C)


COUNT = "    table->cell[nr] += 1;\n"
BOUNDED = "    if (nr > 15)\n        nr = 15;\n" + COUNT
ADDS = "__sync_fetch_and_add(&entry->bytes, third_argument);"
SWITCH = "    if (ctx->args[0] || !prev_state)\n"
EVERY = "bpf_get_prandom_u32() % LK_PARAM_N == 0) {\n        cell = every"
PUT_OFF = "!prev->tgid || !put_off(ctx->args[0], prev_state)"
THROTTLED = "    if (throttled_ns)\n        waiter->book->throttled_waits++;\n"
LATE = "    caller.tgid = bpf_get_current_pid_tgid() >> 32;\n"

#: exercise, what of the shipped solution is changed into what, what must be said
WRONG = {
    # by their looks all of these were right
    "05.1 a comment": ("05.1", {BOUNDED: f"    /* mended */\n{COUNT}"}, "verifier refuses"),
    "05.1 left out": ("05.1", {BOUNDED: f"    if (nr < 16)\n    {COUNT}"}, "left out"),
    "03.1 above five": ("03.1", {"value > 0 &&": "value > 5 &&"}, "Into slot"),
    "06.2 always": (
        "06.2",
        {"    if (wait_ns >= 1000000)\n        entry->long": "    entry->long"},
        "counted as long",
    ),
    "08.2 preempt alone": ("08.2", {SWITCH: "    if (ctx->args[0])\n"}, "Either condition is enough"),
    "08.2 inverted": ("08.2", {SWITCH: "    if (!(ctx->args[0] || !prev_state))\n"}, "Which of args"),
    "09.2 always": ("09.2", {THROTTLED: "    waiter->book->throttled_waits++;\n"}, "only if a part"),
    "11.1 one in seven": (
        "11.1",
        {EVERY: EVERY.replace("bpf_get_prandom_u32() % LK_PARAM_N", "where->calls % 7")},
        "one in 10",
    ),
    "11.1 in step": (
        "11.1",
        {EVERY: EVERY.replace("bpf_get_prandom_u32() % LK_PARAM_N == 0", "where->calls % LK_PARAM_N == 3")},
        "keeps step",
    ),
    "12.4 inverted": ("12.4", {PUT_OFF: "!prev->tgid || put_off(ctx->args[0], prev_state)"}, "nonvoluntary"),
    "04.2 no return": (
        "04.2",
        {"book->skipped++;\n    return 0;\n": "book->skipped++;\n"},
        "wakeups were handed over",
    ),
    "02.1 all but reads": ("02.1", {"nr == LK_NR_read)": "nr != LK_NR_read)"}, "`read_size`"),
    # what the live checks refuse
    "00.3 elsewhere": (
        "00.3",
        {"return 0;\n    book->seen++;": "return 0;\n    return 0;\n    book->seen++;"},
        "counted 0",
    ),
    "01.1 filled late": (
        "01.1",
        {LATE: "", "    book->delivered++;\n": f"{LATE}    book->delivered++;\n"},
        "filled too late",
    ),
    "01.1 the thread": (
        "01.1",
        {"bpf_get_current_pid_tgid() >> 32;": "(u32)bpf_get_current_pid_tgid(); /* >> 32 */"},
        "thread",
    ),
    "01.1 semicolon": ("01.1", {">> 32;": ">> 32"}, "does not compile"),
    "01.1 no NULL check": ("01.1", {"if (!calls) {": "if (0) {"}, "hello.lookup_or_try_init() in line"),
    "01.1 a name": ("01.1", {"caller.tgid =": "caller.tgip ="}, "ever put"),
    "02.1 not the size": (
        "02.1",
        {
            "lk_log2_slot(third_argument);\n        cell = read_size": "lk_log2_slot(now);\n        cell = read_size"
        },
        "which argument",
    ),
    "03.1 one too high": ("03.1", {"slot = 0; value > 0 &&": "slot = 1; value > 0 &&"}, "one slot too high"),
    "03.1 in vain": ("03.1", {"value > 0 &&": "value >= 1 + 1 &&"}, "one slot too low"),
    "04.2 not balanced": (
        "04.2",
        {"book->skipped++;\n    return 0;\n": "return 0;\n    book->skipped++;\n"},
        "balance",
    ),
    "05.1 all in one": (
        "05.1",
        {BOUNDED: "    table->cell[15] += 1;\n"},
        "everything is counted in the last",
    ),
    "05.1 one too large": ("05.1", {"nr > 15": "nr > 16"}, "verifier refuses"),
    "05.1 no NULL check": ("05.1", {"    if (!table)\n        return 0;\n": ""}, "may return NULL"),
    "05.2 forgets to return": (
        "05.2",
        {"(event, 0);\n        return 0;\n    }": "(event, 0);\n    }"},
        "verifier refuses",
    ),
    "05.2 hands all over": (
        "05.2",
        {"events.ringbuf_discard(event, 0);": "events.ringbuf_submit(event, 0);"},
        "Every number",
    ),
    "05.2 too few": ("05.2", {"*event > 300": "*event > 30 && 300"}, "Small numbers"),
    "06.2 no limit": ("06.2", {">= 1000000)": ">= 0)"}, "counted as long"),
    "06.2 a second": ("06.2", {">= 1000000)": ">= 1000000000)"}, "it must be"),
    "06.2 beyond": ("06.2", {">= 1000000)": "> 1000000)"}, "exactly 1 ms"),
    "07.2 current": ("07.2", {"pair.woken_id != LK": "pair.current_id != LK"}, "Which of the two"),
    "07.2 helper": ("07.2", {"pair.woken_id != LK": "bpf_get_current_cgroup_id() != LK"}, "Which of the two"),
    "07.2 inverted": ("07.2", {"pair.woken_id != LK": "pair.woken_id == LK"}, "counts 0 wakeups"),
    "07.2 no default": ("07.2", {"LK_PARAM_CGROUP && pair": "pair"}, "0 was to mean"),
    "07.2 not equal": ("07.2", {"pair.woken_id != LK": "pair.woken_id < LK"}, "other cgroups"),
    "07.2 after seen": (
        "07.2",
        {
            "    if (LK_PARAM_CGROUP && pair.woken_id != LK_PARAM_CGROUP)\n        return 0;\n": "",
            "    count = wakeups": "    if (LK_PARAM_CGROUP && pair.woken_id != LK_PARAM_CGROUP)\n"
            "        return 0;\n    count = wakeups",
        },
        "as seen",
    ),
    "07.2 syntax": (
        "07.2",
        {"LK_PARAM_CGROUP && pair.woken_id != LK_PARAM_CGROUP)": "LK_PARAM_CGROUP &&)"},
        "does not compile",
    ),
    "08.2 whoever leaves": (
        "08.2",
        {SWITCH: "    if (ctx->args[0] || !prev_state || 1)\n"},
        "have a stamp as if they waited",
    ),
    "08.2 idle": (
        "08.2",
        {"    if (!pid) /*": "    if (pid > 1 << 30) /*"},
        "Idle (pid 0)",
    ),
    "09.2 never": ("09.2", {THROTTLED: THROTTLED.replace("_ns)", "_ns && 0)")}, "nothing was counted"),
    "09.2 too seldom": (
        "09.2",
        {THROTTLED: THROTTLED.replace("_ns)", "_ns > 100000000000ULL)")},
        "nothing was counted",
    ),
    "10.5 in its place": ("10.5", {ADDS: "entry->bytes = third_argument;"}, "never goes back"),
    "10.5 the calls": ("10.5", {ADDS: "__sync_fetch_and_add(&entry->bytes, 1);"}, "those are the calls"),
    "10.5 of every call": ("10.5", {ADDS: f"; {ADDS}"}, "third argument"),
    "10.5 semicolon": ("10.5", {ADDS: ADDS[:-1]}, "does not compile"),
    "11.1 too many": ("11.1", {EVERY: EVERY.replace("LK_PARAM_N", "2")}, "one in 10"),
    "11.1 not C": ("11.1", {EVERY: EVERY.replace("== 0", "= 0")}, "does not compile"),
    "12.4 idle is in it": ("12.4", {"!prev->tgid || !put_off(": "prev->tgid && !put_off("}, "idle task"),
    "12.4 the state alone": (
        "12.4",
        {"!put_off(ctx->args[0], prev_state)": "prev_state == 0"},
        "Nothing asks",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_refused_in_the_words_of_the_live_check(name: str) -> None:
    exercise, change, said = WRONG[name]
    answer = solution(exercise)
    for old, new in change.items():
        assert answer.count(old) == 1, old
        answer = answer.replace(old, new)
    feedback = judge(exercise, answer)
    assert not feedback.passed
    assert feedback.ran
    assert said in feedback.message, feedback.message


RIGHT = {
    "01.1 by a variable": (
        "01.1",
        {LATE: "    u64 id = bpf_get_current_pid_tgid();\n\n    caller.tgid = id >> 32;\n"},
    ),
    "02.1 by increment": (
        "02.1",
        {
            "        cell = read_size.lookup(&slot);\n        if (cell)\n            *cell += 1;\n": (
                "        read_size.increment(slot);\n"
            )
        },
    ),
    "03.1 the lab's own": (
        "03.1",
        {
            "    for (slot = 0; value > 0 && slot < 64; slot++)\n        value >>= 1;\n    return slot;": (
                "    slot = lk_log2_slot(value);\n    return slot;"
            )
        },
    ),
    "05.1 by a ternary": ("05.1", {BOUNDED: "    table->cell[nr > 15 ? 15 : nr] += 1;\n"}),
    "06.2 with a name": ("06.2", {">= 1000000)": ">= 1000ULL * 1000)"}),
    "08.2 the other order": ("08.2", {SWITCH: "    if (prev_state == 0 || ctx->args[0] != 0)\n"}),
    "09.2 in one line": (
        "09.2",
        {THROTTLED: "    waiter->book->throttled_waits += throttled_ns ? 1 : 0; // or += 1\n"},
    ),
    "12.4 by hand": ("12.4", {PUT_OFF: "prev->tgid == 0 || (!ctx->args[0] && prev_state)"}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_another_way_to_the_same_counts_is_right(name: str) -> None:
    exercise, change = RIGHT[name]
    answer = solution(exercise)
    for old, new in change.items():
        assert answer.count(old) == 1, old
        answer = answer.replace(old, new)
    feedback = judge(exercise, answer)
    assert feedback.passed, feedback.message


class TestWhatCannotBeRun:
    def answer(self) -> str:
        return solution("11.1").replace(
            "    book->seen++;\n", "    book->seen++;\n    bpf_send_signal(0);\n", 1
        )

    def test_it_is_not_called_right(self) -> None:
        feedback = judge("11.1", self.answer())
        assert (feedback.passed, feedback.ran, feedback.verdict) == (False, False, "Not run")
        assert "bpf_send_signal(), in line" in feedback.message

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("    book->seen++;\n", '    book->seen++;\n    asm volatile("r1 = 1");\n'),
            ('#include "lk.h"', '#include "lk.h"\n#include <linux/sched.h>'),
            ("types: [", "types: [task_struct.no_such_thing, "),
        ],
        ids=["assembler", "a header", "a field"],
    )
    def test_neither_is_what_the_model_does_not_know(self, old: str, new: str) -> None:
        feedback = judge("11.1", solution("11.1").replace(old, new, 1))
        assert (feedback.passed, feedback.ran) == (False, False), feedback.message

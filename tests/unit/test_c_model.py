"""C without a kernel: it counts as C does, refuses what the verifier refuses, and says what it does not know.

That it does as the running kernel does is held by tests/live/test_c_model_live.py.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import spec
from labkit.capture import Capture
from labkit.histogram import log2_slot
from labkit.lessons import rehearsals
from labkit.lessons.c_model import DryProgram, NotC, NotRun, Refused, run
from labkit.lessons.c_model.source import preprocess
from labkit.lessons.rejects import Reject, rejects
from labkit.paths import captures_dir

HEADER = """/*
 * purpose: A test.
 * hooks: {enter: ["raw_tracepoint:sys_enter"]}
 * maps: {out: {holds: "results"}}
 */
#include "lk.h"

BPF_ARRAY(out, s64, 8);
"""


def program(body: str, above: str = "") -> str:
    return (
        f"{HEADER}{above}\nint lk_enter(struct bpf_raw_tracepoint_args *ctx)\n{{\n{body}\n    return 0;\n}}\n"
    )


def once(*arguments: int) -> rehearsals.Script:
    return rehearsals.calls([(39, one) for one in arguments or (0,)])


def value(expression: str, *, above: str = "", before: str = "") -> int:
    body = f"""    int first = 0;
    s64 *cell = out.lookup(&first);

    {before}
    if (cell)
        *cell = {expression};"""
    return int(run("test", program(body, above), once()).frame("out")["value"].iloc[0])


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("7 / 2 + 7 % 4", 6),
        ("-7 / 2", -3),
        ("-7 % 4", -3),
        ("(u8)300", 44),
        ("(s8)200", -56),
        ("(u32)-1", 4294967295),
        ("-1 > 0u", 1),
        ("(u32)1 - (u32)2 > 0", 1),
        ("1 << 31 >> 31", -1),
        ("(u64)1 << 40", 1 << 40),
        ("(u32)0x80000000 >> 31", 1),
        ("0xFFFFFFFF + 1", 0),
        ("4294967295 + 1", 1 << 32),
        ("~0", -1),
        ("!5 + !0", 1),
        ("1 ? 2 : 3", 2),
        ("(1, 2, 3)", 3),
        ("5 & 3 | 8 ^ 1", 9),
        ("010 + 'a' + '\\n'", 8 + 97 + 10),
        ("sizeof(u16) + sizeof(struct lk_both) + sizeof(cell)", 2 + 24 + 8),
        ("__builtin_offsetof(struct lk_both, c)", 16),
        ("LK_TWICE(3 + 1)", 8),
        ("LK_JOIN(LK_, TEN)", 10),
        ("LK_THIRD", 2),
        ("sum(4)", 10),
    ],
)
def test_expressions_are_what_they_are_in_c(expression: str, found: int) -> None:
    above = """
struct lk_both { u8 a; u64 b; u16 c; };
enum lk_order { LK_FIRST, LK_SECOND, LK_THIRD };
#define LK_TEN 10
#define LK_TWICE(x) (2 * (x))
#define LK_JOIN(a, b) a##b

static __always_inline int sum(int n)
{
    int total = 0;

    while (n) {
        if (n == 100)
            continue;
        total += n--;
    }
    return total;
}
"""
    assert value(expression, above=above) == found


def test_structs_arrays_and_pointers_are_in_memory() -> None:
    before = """struct lk_pair { u32 left; u32 right[3]; } one = {.right = {1, 2, 3}}, other = {};
    u32 *walk = &one.right[0];
    other = one;
    other.right[1] += 40;
    walk++;
    do { other.left++; } while (other.left < 5);"""
    expression = "other.right[1] * 1000 + *walk * 100 + other.left * 10 + (&one.right[2] - walk)"
    assert value(expression, before=before) == 42 * 1000 + 2 * 100 + 50 + 1


def test_what_is_not_compiled_does_not_matter_and_what_is_does() -> None:
    text = "#if defined(LK_X) || LK_Y >= 2\nno C\n#elif !LK_X && 1\nint a;\n#else\nno C\n#endif"
    assert preprocess(text, "t.c", {}).split("\n") == ["", "", "", "int a;", "", "", ""]


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_the_slots_of_histograms_are_those_of_the_library(number: int) -> None:
    assert value(f"lk_log2_slot({number}ULL)") == int(log2_slot([number])[0])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    u64 *p = NULL;\n    *p = 1;", "NULL is followed, in line 13: `*p = 1;`"),
        (
            "    int k = 0;\n    s64 *c = out.lookup(&k);\n    *c = 1;",
            "out.lookup() in line 13 may return NULL",
        ),
        ("    u64 x;\n    if (x)\n        return 1;", "`x` is read before"),
        ("    u64 a[2] = {};\n    a[ctx->args[0] ? 2 : 3] = 1;", "of `a` are used"),
        ("    ctx->args[0] = 1;", "belongs to the kernel"),
        ("    u64 x = ctx->args[2];\n    return x;", "of the context of the hook"),
        ("    while (1)\n        ;", "does not end"),
    ],
)
def test_what_no_program_may_do_is_refused_with_the_line(body: str, said: str) -> None:
    with pytest.raises(Refused) as error:
        run("test", program(body), once())
    assert said.split(",")[0] in error.value.what


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    return 1", "before `return`, in line 13"),
        ("    return 1 +;", "invalid expression"),
        ("    return nobody;", "`nobody` is not declared, in line 12"),
        ("    return ctx->argz[0];", "no member `argz`"),
        ("    missing(1);", "no function missing()"),
        ("    other.lookup(&ctx);", "no map `other`"),
        ("    int x = 1;\n    return *x;", "no pointer"),
        ("    1 = 2;", "assigned"),
        ("    bpf_ktime_get_ns(1);", "takes 0 arguments"),
    ],
)
def test_what_no_compiler_takes_is_told_with_the_line(body: str, said: str) -> None:
    with pytest.raises(NotC) as error:
        run("test", program(body), once())
    assert said in error.value.what


@pytest.mark.parametrize(
    "body",
    ["    goto out;\nout:", "    bpf_tail_call(ctx, 0, 0);", "    return 1.5;", "    out.call(ctx, 1);"],
)
def test_what_is_not_known_is_not_judged(body: str) -> None:
    with pytest.raises(NotRun):
        run("test", program(body), once())


def test_a_full_table_and_a_stale_record_are_as_in_the_kernel() -> None:
    source = (
        HEADER.replace("out, s64, 8", "out, s64, 8);\nBPF_HASH(small, u32, u64, 2")
        + """
int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    u32 key = ctx->args[1];
    u64 one = 1;
    int first = 0;
    s64 *cell = out.lookup(&first);

    if (!cell)
        return 0;
    if (small.update(&key, &one) == -7)
        *cell += 1;
    if (small.insert(&key, &one) == -17)
        *cell += 100;
    if (small.delete(&key) == -2)
        *cell += 10000;
    small.update(&key, &one);
    return 0;
}
"""
    )
    script = rehearsals.calls([(number, 0) for number in (1, 2, 3, 1)])
    assert int(run("test", source, script).frame("out")["value"].iloc[0]) == 1 + 300 + 10000


@pytest.mark.parametrize(
    "one", [one for one in rejects() if one.stage == "verifier"], ids=lambda one: one.name
)
def test_no_refused_program_of_the_lab_is_taken_for_a_right_one(one: Reject) -> None:
    """The model sees what a program does, not what it might do: what it lets pass is listed here, with the reason."""
    let_pass = {
        "big_stack": "the size of the stack is the compiler's business",
        "stack_gap": "padding is zero here",
        "signed_index": "no number that it is fed is below zero",
        "kernel_pointer": "reads through pointers are all alike here",
    }
    numbers = (0, 1, 7, 14, 15, 16, 17, 64, 300, 301, 1 << 40)
    script = rehearsals.calls([(number, number) for number in numbers])
    try:
        run(one.name, one.source, script)
    except (Refused, NotRun, NotC):
        assert not let_pass.get(one.name)
    else:
        assert let_pass.get(one.name), "it went through"


def test_a_recording_run_through_the_program_that_made_it_gives_the_recording() -> None:
    events = Capture(captures_dir() / "04_events_and_loss").reading("events")
    woken, switched = events["woken"].head(3000), events["switched"].head(3000)
    source = spec.read("sched_events").source
    program = run("sched_events", source, rehearsals.recorded(woken, switched))
    again = {batch.kind.name: batch.frame() for batch in program.ring("events").read()}
    columns = ["time_ns", "prev_pid", "next_pid", "runnable", "cpu", "lost"]
    for name, truth, compared in (
        ("woken", woken, ["time_ns", "pid", "cpu"]),
        ("switched", switched, columns),
    ):
        ours = again[name][compared].sort_values("time_ns", ignore_index=True)
        theirs = truth[compared].sort_values("time_ns", ignore_index=True)
        pd.testing.assert_frame_equal(ours.astype("int64"), theirs.astype("int64"))
    ledger = program.ledger
    assert ledger.balanced
    assert (ledger.seen, ledger.mode) == (len(woken) + len(switched), "replay")


class TestOneCpu:
    """Programs that are exact add up to the model's own books of waits, to the nanosecond."""

    TURNS = (4_000_000, 1_000_000, 250_000) * 20

    def test_run_queue_latency(self) -> None:
        books: dict[int, int] = {}
        waits: dict[int, list[int]] = {}
        script = rehearsals.hogs(books, waits, turns=self.TURNS)
        program = run("runq_latency", spec.read("runq_latency").source, script)
        frame = program.frame("waits").set_index("pid")
        for pid, mine in waits.items():
            assert int(frame.loc[pid, "wait_ns"]) >= sum(mine)
            assert int(frame.loc[pid, "max_wait_ns"]) >= max(mine)
        assert program.ledger.balanced
        assert program.ledger.lost == 0

    def test_the_noisy_neighbour_charges_each_nanosecond_once(self) -> None:
        found: dict[str, int] = {}
        small = {"cpus": 2, "cgroups": 64, "tasks": 1024, "shards": 2, "dense": 16, "dense_shards": 2}
        program = run(
            "noisy_neighbor", spec.read("noisy_neighbor").source, rehearsals.throttled(found), **small
        )
        sums = program.frame("cgroups")
        pairs = program.frame("pairs")
        named = ["wait_ns", "throttled_ns", "steal_ns", "unknown_ns"]
        wait, throttled, steal, unknown = (int(sums[name].sum()) for name in named)
        assert throttled == 24 * 40_000_000
        assert wait == throttled + steal + unknown + int(pairs["wait_ns"].sum())
        assert program.ledger.delivered == found["waits"]
        assert np.all(sums["migrated_ns"] == 0)


def test_a_program_is_as_it_was_loaded_before_it_is_judged() -> None:
    """Look-ups that are made to fail leave no trace in what is judged."""
    program = run("took_over", spec.read("took_over").source, rehearsals.workers([]))
    assert isinstance(program, DryProgram)
    assert program.ledger.losses == {"map_full": 0}
    assert program.ledger.seen == int(program.frame("took")["switches"].sum())

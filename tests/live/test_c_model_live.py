"""The model that runs programs in replay does as compiler and kernel do: same tables, same numbers, same counts."""

from __future__ import annotations

import os

import pandas as pd
import pytest

from labkit import lessons, spec
from labkit.lessons import rehearsals
from labkit.lessons.c_model import DryProgram, run
from labkit.program import Program, load
from labkit.workloads import Workload, ping_pong, service_beside_hog

pytestmark = pytest.mark.live

#: The lab's programs that the model knows; sched_trace reads fields that no exercise turns on.
PROGRAMS = (
    "hello",
    "syscall_counts",
    "syscall_rates",
    "sleep_times",
    "sched_events",
    "took_over",
    "wakeup_cgroups",
    "sampling",
    "ladder",
    "runq_latency",
    "netflix_noisy_neighbor",
    "noisy_neighbor",
)
SMALL = {"noisy_neighbor": {"cgroups": 64, "tasks": 1024, "shards": 2, "dense": 16, "dense_shards": 2}}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_table_has_the_types_that_the_compiler_gives_it(name: str) -> None:
    params = SMALL.get(name, {})
    dry = DryProgram(name, spec.read(name).source, params)
    with load(name, **params) as real:
        assert set(real.maps) == set(dry.maps)
        for table, mine in real.maps.items():
            theirs, ours = mine.definition, dry.maps[table].definition
            for what in ("kind", "key_size", "value_size", "max_entries"):
                assert getattr(theirs, what) == getattr(ours, what), (table, what)
            if theirs.key_size:
                assert mine.layouts == dry.maps[table].layouts, table


#: Expressions whose value a wrong width, sign, order or conversion would change.
EXPRESSIONS = (
    "-7 / 2 + a",
    "(u8)(a + 300)",
    "(s8)(a + 200)",
    "(s64)(s32)(a + 0x80000000ULL)",
    "(u32)a - 1u > 0",
    "(int)a - 1 > 0u",
    "(s64)(a - 1) >> 63",
    "(a - 1) >> 63",
    "((u32)a - 1) >> 31",
    "((int)a - 1) >> 31",
    "(u64)1 << (a + 40)",
    "~(u8)a",
    "(u16)~(u8)a",
    "a ? 1 : (u32)-1",
    "!a + !!(a + 5)",
    "(a + 7) % 4 * 10 + (a + 7) / 2",
    "(a + 0x9E3779B97F4A7C15ULL) * 0x9E3779B97F4A7C15ULL >> 32",
    "(u32)(a + 5) * (u32)0xFFFFFFFF",
    "sizeof(struct lk_mixed)",
    "__builtin_offsetof(struct lk_mixed, last)",
    "lk_log2_slot(a + 1023) * 100 + lk_log2_slot(a)",
    "(a + 3) & 1 | (a + 4) ^ 2",
    "mixed.first + mixed.middle[1] + mixed.last",
    "count(a + 5)",
)
SOURCE = f"""/*
 * purpose: Expressions, evaluated.
 * hooks: {{enter: ["raw_tracepoint:sys_enter"]}}
 * maps: {{out: {{holds: "results"}}, in: {{holds: "zeros, of which the compiler does not know"}}}}
 */
#include "lk.h"

struct lk_mixed {{
    u8 first;
    u64 middle[2];
    u16 last;
}};

BPF_ARRAY(out, s64, {len(EXPRESSIONS)});
BPF_ARRAY(in, u64, 1);

static __always_inline u64 count(u64 most)
{{
    u64 total = 0;
    int i;

    for (i = 0; i < 10; i++) {{
        if (i == 2)
            continue;
        if (i > most)
            break;
        total = total * 3 + i;
    }}
    return total;
}}

int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{{
    struct lk_mixed mixed = {{.first = 200, .middle = {{1, 2}}, .last = 65535}};
    int at = 0;
    u64 *zero = in.lookup(&at), a;
    s64 *cell;

    if (!zero)
        return 0;
    a = *zero;
    mixed.first += a + 100;
{
    "".join(
        f'''    at = {at};
    cell = out.lookup(&at);
    if (cell)
        *cell = {expression};
'''
        for at, expression in enumerate(EXPRESSIONS)
    )
}    return 0;
}}
"""


def test_expressions_have_the_values_that_the_kernel_gives_them() -> None:
    dry = run("expressions", SOURCE, rehearsals.calls([(39, 0)])).frame("out")["value"]
    with load("expressions", source=SOURCE) as real:
        os.getppid()
        real.stop()
        kernel = real.frame("out")["value"]
    assert kernel.any()
    differ = {one: (int(a), int(b)) for one, a, b in zip(EXPRESSIONS, dry, kernel, strict=True) if a != b}
    assert not differ


def involuntary_only() -> str:
    seen = "    book->seen++;\n"
    off = "    if (!prev->tgid || !put_off(ctx->args[0], prev_state))\n        return 0;\n"
    return lessons.write_program("took_over", change={seen: off + seen}).source


@pytest.mark.parametrize(
    ("source", "workload"),
    [
        (spec.read("took_over").source, ping_pong(rounds=300)),
        (involuntary_only(), service_beside_hog(seconds=0.6)),
    ],
    ids=["every switch", "involuntary switches"],
)
def test_a_program_counts_live_what_the_model_counts_from_a_recording_beside_it(
    source: str, workload: Workload
) -> None:
    with (
        load("sched_events", ring_pages=8192) as recorder,
        load("took_over", source=source) as real,
        workload.run() as truth,
    ):
        real.stop()
        recorder.stop()
        assert recorder.ledger.lost == 0
        events = _frames(recorder)
        took = real.frame("took")
        pids = set(truth.tasks["pid"].astype(int))
    script = rehearsals.recorded(events["woken"], events["switched"])
    dry = run("took_over", source, script).frame("took")
    ours, theirs = (_among(frame, pids) for frame in (dry, took))
    assert sum(theirs.values()) > 0
    # The recorder was there before the program and after it: what happened to the workers alone happened to both.
    assert ours == theirs


def _frames(recorder: Program) -> dict[str, pd.DataFrame]:
    found: dict[str, list[pd.DataFrame]] = {}
    while batches := recorder.ring("events").read():
        for batch in batches:
            found.setdefault(batch.kind.name, []).append(batch.frame())
    return {name: pd.concat(frames, ignore_index=True) for name, frames in found.items()}


def _among(took: pd.DataFrame, pids: set[int]) -> dict[tuple[int, int], int]:
    mine = took[took["prev_tgid"].isin(pids) & took["next_tgid"].isin(pids)]
    return {(int(row.prev_tgid), int(row.next_tgid)): int(row.switches) for row in mine.itertuples()}

"""Chapter 11, the cost of looking: its ladder of probes, its sampled workload, its exercises."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

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
    try_program,
    wrong,
)
from labkit.program import Program, load
from labkit.workloads import Worker, Workload
from labkit.workloads.known import last_cpu

__all__ = ["COMM8", "LARGE", "RUNGS", "caller", "climb", "costs", "estimates", "writer"]

#: What a program does at each rung of bpf/ladder.c; None: no program is there.
RUNGS: Mapping[str, int | None] = {
    "nobody looks": None,
    "nothing": 0,
    "count per CPU": 1,
    "and read the clock": 2,
    "and count in a hash": 3,
    "and keep the name": 4,
    "an event in a ring": 5,
    "and wake the reader": 6,
}
_CALLS, _BATCHES, _REPEATS = 20_000, 11, 5
_PATIENCE_S = 8.0  # with others who have the kernel count
_REHEARSED = 500  # rounds in replay, of 20 writes: shorter rounds show a rhythm in fewer calls
LARGE, _SMALL, _SMALL_PER_ROUND, _ROUNDS = 4096, 8, 99, 500
#: The first eight bytes of the writer's name, as the program compares them.
COMM8 = int.from_bytes(b"lk-write", "little")


def caller() -> Workload:
    """A process that calls ``getppid()`` in batches, and times each by the CPU time of its own thread."""
    return Workload(
        "timed_calls",
        f"one process, {_BATCHES} batches of {_CALLS:,} calls of getppid(), each timed by its own CPU clock",
        (Worker("caller", "timed_calls", last_cpu(), {"count": _CALLS, "batches": _BATCHES}),),
        {"calls": _CALLS * _BATCHES},
        5.0,
    )


def writer() -> Workload:
    """A process that writes in rounds: one large block, 99 small ones, a pause of a millisecond."""
    sizes = [LARGE] + [_SMALL] * _SMALL_PER_ROUND
    return Workload(
        "writes",
        f"{_ROUNDS} rounds of one write of {LARGE:,} bytes and {_SMALL_PER_ROUND} of {_SMALL}, each with a pause of 1 ms",
        (Worker("writer", "writes", last_cpu(), {"sizes": sizes, "rounds": _ROUNDS, "pause_us": 1000}),),
        {"writes": _ROUNDS * len(sizes), "large": _ROUNDS, "bytes": _ROUNDS * sum(sizes)},
        10.0,
    )


def climb(repeats: int = _REPEATS) -> pd.DataFrame:
    """Run the caller beside each rung of the ladder, several times, and again with the kernel counting; in random order.

    The kernel's counting of what programs cost (``BPF_ENABLE_STATS``) reads a clock twice at each run, and whoever is
    looked at pays for that too. So what a rung costs is measured with counting switched off, as it is in production, and
    what the kernel counts in runs of its own. The first batch of each run is dropped: caches are cold in it.

    Somebody else on the machine may ask the kernel to count, and it counts all programs then. A run that this happened to
    is made again, for some seconds in all; after that it is kept, and marked.

    :param repeats: runs of each rung without counting.
    :returns: one row per batch: ``rung`` (str), ``counting`` (bool, whether the kernel was asked to count), ``disturbed``
        (bool, whether it counted although it was not), ``repeat`` (int64), ``ns_per_call`` (float64, CPU time of the
        caller), ``counted_ns`` (float64, the kernel's count per run of the program; NaN where there is none).
    """
    turns = [(name, rung, False, repeat) for name, rung in RUNGS.items() for repeat in range(repeats)]
    turns += [
        (name, rung, True, repeat) for name, rung in RUNGS.items() if rung is not None for repeat in range(2)
    ]
    random.Random(repeats).shuffle(turns)
    rows, until = [], time.monotonic() + _PATIENCE_S
    for name, rung, counting, repeat in turns:
        run = _one_run(rung, counting=counting)
        while run.disturbed and time.monotonic() < until:
            time.sleep(0.2)
            run = _one_run(rung, counting=counting)
        rows += [(name, counting, run.disturbed, repeat, ns, run.counted_ns) for ns in run.batches]
    columns = ["rung", "counting", "disturbed", "repeat", "ns_per_call", "counted_ns"]
    return pd.DataFrame(rows, columns=columns).astype({"rung": "str", "repeat": "int64"})


class _Run(NamedTuple):
    batches: list[float]
    counted_ns: float = math.nan
    disturbed: bool = False


def _one_run(rung: int | None, *, counting: bool) -> _Run:
    if rung is None:
        with caller().run() as truth:
            return _Run(_batches(truth))
    with load("ladder", rung=rung) as prog:
        if not counting:
            prog.uncounted()
        with caller().run() as truth:
            prog.stop()
            cost = prog.cost()
            disturbed = not counting and prog.counted_by_others
            return _Run(
                _batches(truth), float(cost["ns_per_run"].iloc[0]) if len(cost) else math.nan, disturbed
            )


def _batches(truth: Any) -> list[float]:
    return [ns / _CALLS for ns in truth.results["caller"]["cpu_ns"][1:]]


def costs(runs: pd.DataFrame) -> pd.DataFrame:
    """What each rung costs the caller while nobody counts, beside what the kernel counts when it is asked to.

    Of the caller's times the smallest batch of each repeat counts, and of these the median: what disturbs a batch can only
    make it longer. Runs in which somebody else had the kernel count are left out, if a rung has others.

    :param runs: as :func:`climb` returns.
    :returns: indexed by rung, in order: ``ns_per_call``, ``spread_ns`` (largest minus smallest repeat), ``pays_ns`` (more
        than with nobody looking), all of these without counting; ``pays_while_counted_ns`` (the same while the kernel
        counts), ``counted_ns`` (what it counts), ``rest_ns`` (paid without counting, minus counted); all float64.
    """
    clean = runs[
        ~runs["disturbed"] | ~runs["rung"].isin(runs.loc[~runs["disturbed"] & ~runs["counting"], "rung"])
    ]
    best = clean.groupby(["counting", "rung", "repeat"])["ns_per_call"].min()
    alone, watched = (_of(best, counting) for counting in (False, True))
    frame = pd.DataFrame({"ns_per_call": alone.median(), "spread_ns": alone.max() - alone.min()})
    ground = frame.loc["nobody looks", "ns_per_call"]
    frame["pays_ns"] = frame["ns_per_call"] - ground
    frame["pays_while_counted_ns"] = watched.median() - ground
    frame["counted_ns"] = runs.groupby("rung")["counted_ns"].min()
    frame["rest_ns"] = frame["pays_ns"] - frame["counted_ns"]
    return frame.reindex([name for name in RUNGS if name in frame.index])


def _of(best: pd.Series, counting: bool) -> Any:
    """The best batches with or without counting, by rung."""
    return best[best.index.get_level_values("counting") == counting].groupby("rung")


def estimates(samples: Mapping[str, pd.DataFrame], truth: Mapping[str, int]) -> pd.DataFrame:
    """What each sample says of the whole, if it is scaled up as if it had been drawn fairly.

    The sizes are powers of two, so each lies at the lower edge of its bucket: for once a log2 histogram is exact.

    :param samples: name -> histogram; "all" is one of them.
    :returns: indexed by name: ``kept`` (int64), ``large_share`` (float64), ``total_bytes`` (int64, scaled up), ``factor``
        (float64, of the true total).
    """
    seen = int(samples["all"]["count"].sum())
    rows = {}
    for name, histogram in samples.items():
        count = histogram["count"].astype("int64")
        kept = int(count.sum())
        total = float((histogram["lo"].astype("int64") * count).sum()) * seen / max(kept, 1)
        large = int(count[histogram["lo"] == LARGE].sum())
        rows[name] = (kept, large / max(kept, 1), round(total), total / truth["bytes"])
    columns = ["kept", "large_share", "total_bytes", "factor"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).astype(
        {"kept": "int64", "total_bytes": "int64"}
    )


@exercise(
    "11.1",
    question="Change `sampling` so that `every` is no longer fooled by the rhythm: one call in n, at random moments.",
    hints=[
        "`where->calls % LK_PARAM_N == 0` picks the 10th, 20th, 30th call. The writer's rounds are 100 calls long.",
        "The program has a source of chance already: `bpf_get_prandom_u32()`, used for `random`.",
        'change={"where->calls % LK_PARAM_N == 0": "bpf_get_prandom_u32() % LK_PARAM_N == 0"}',
    ],
)
def fair_every(answer: Any, context: Context) -> Feedback:
    """Run the writer, and hold both shares in `every` against what was written; in replay without a kernel."""
    source = source_of(answer, contains="lk_enter", original=context["source"])
    if isinstance(source, Feedback):
        return source
    if context["lab"].mode == "live":
        return explained(try_program("sampling", source, _run_writer, comm8=COMM8), _reading(source))
    script = rehearsals.writes([LARGE] + [_SMALL] * 19, _REHEARSED, "lk-writer")
    return explained(rehearse("sampling", source, script, _rehearsed, comm8=COMM8), _reading(source))


def _reading(source: str) -> str:
    if not re.search(r"every\.(lookup|increment|atomic_increment)", source):
        return "Nothing is put into `every` any more."
    if re.search(r"if \(where->calls % LK_PARAM_N == 0\)", source):
        return "`every` still takes each n-th call, in step with the writer's rounds."
    return ""


def _run_writer(program: Program) -> Feedback:
    with writer().run() as truth:
        program.stop()
        every, seen = program.frame("every"), program.ledger.seen
    return judge_sample(every, seen, large_share=truth.declared["large"] / truth.declared["writes"])


def _rehearsed(program: Program) -> Feedback:
    return judge_sample(program.frame("every"), program.ledger.seen, large_share=1 / 20)


def judge_sample(sample: pd.DataFrame, seen: int, *, large_share: float, n: int = 10) -> Feedback:
    """A sample of about one in n, whose share of large writes must be that of the whole, as far as chance allows."""
    kept = int(sample["count"].sum())
    large = int(sample.loc[sample["lo"] == LARGE, "count"].sum())
    if not kept:
        return wrong("`every` is empty now: nothing is drawn.")
    expected = seen / n
    if abs(kept - expected) > 5 * math.sqrt(expected):
        return wrong(f"{kept:,} of {seen:,} calls were drawn; one in {n} would be about {expected:,.0f}.")
    allowed = 5 * math.sqrt(large_share * (1 - large_share) / kept)
    if abs(large / kept - large_share) > allowed:
        return wrong(
            f"{large / kept:.1%} of the {kept:,} that were drawn are large; of what was written it was {large_share:.1%}. "
            f"Chance explains {allowed:.1%} at most: the sample still keeps step with the writer."
        )
    return right(
        f"{kept:,} drawn, {large / kept:.2%} of them large; of what was written it was {large_share:.1%}."
    )


@exercise(
    "11.2",
    question="From how many system calls per second on does `and count in a hash` cost one percent of a CPU?",
    hints=[
        "One percent of a CPU is 10 ms per second, or 10,000,000 ns. What does one call pay, by `ladder`?",
        "What the caller pays while nobody counts is the price, `pays_ns`: not what the kernel counts.",
        'ten million ns by the price: 1e7 / ladder.loc["and count in a hash", "pays_ns"]',
    ],
)
def calls_for_a_percent(answer: Any, context: Context) -> Feedback:
    """A hundredth of a second in nanoseconds, by the price of a call."""
    row = context["ladder"].loc["and count in a hash"]
    truth = 1e7 / float(row["pays_ns"])
    if is_number(answer):
        for column, message in (
            (
                "counted_ns",
                "That reckons with what the kernel counts of the program. The caller pays for the way there, too.",
            ),
            (
                "pays_while_counted_ns",
                "That reckons with the price while the kernel counts. In production nobody counts.",
            ),
            (
                "ns_per_call",
                "That reckons with the whole call. Only what it pays *more* is the price of looking.",
            ),
        ):
            if float(row[column]) > 0 and _near(answer, 1e7 / float(row[column]), truth):
                return wrong(message)
        if abs(answer - 100 * truth) < truth:
            return wrong("That many cost a whole CPU.")
    return expect_number(answer, truth, unit="calls per second", within="1 %")


def _near(answer: float, mistaken: float, truth: float) -> bool:
    """Is the answer that mistake, and is the mistake not the truth (a machine where nobody can count)?"""
    return abs(answer - mistaken) < 0.01 * truth < abs(mistaken - truth)


@exercise(
    "11.3",
    question="By which factor is the total of bytes too large, if the first of each window is taken for a fair sample?",
    hints=[
        "`samples` has a row per way of drawing; `total_bytes` is the sample's sum, scaled up to all calls.",
        "Divide the total by `window` by the one of `all`.",
        'samples.loc["window", "total_bytes"] / samples.loc["all", "total_bytes"]',
    ],
)
def window_factor(answer: Any, context: Context) -> Feedback:
    """The scaled total by windows, by the total of all."""
    samples = context["samples"]
    truth = float(samples.loc["window", "total_bytes"] / samples.loc["all", "total_bytes"])
    if is_number(answer):
        share = float(samples.loc["window", "large_share"] / samples.loc["all", "large_share"])
        kept = float(samples.loc["all", "kept"] / samples.loc["window", "kept"])
        if abs(answer - share) < 0.01 * share and abs(share - truth) > 0.02 * truth:
            return wrong("By that factor there are too many large writes. The small ones have bytes, too.")
        if abs(answer - kept) < 0.01 * kept and abs(kept - truth) > 0.02 * truth:
            return wrong("That is how much it must be scaled up. How far off is it then?")
        if abs(answer * truth - 1) < 0.01:
            return wrong("The other way round: the biased total by the true one.")
    return expect_number(answer, truth, within="1 %")


@exercise(
    "11.4",
    question="An empty program has two instructions. Where does most of what the caller pays for it go?",
    hints=[
        "Two instructions take a nanosecond. What else has the CPU to do once somebody is attached to sys_enter?",
        "Read the paragraph about the way to a program again: a flag on every task, and a path that is not the usual one.",
    ],
)
def where_the_rest_goes(answer: Any, context: Context) -> Feedback:
    """To the way there: the slow path of system calls, and the tracepoint's own call."""
    return expect_choice(
        answer,
        "on the way to the program",
        ["on the way to the program", "in the program's two instructions", "in getppid() itself"],
        {
            "in the program's two instructions": "Those take a nanosecond.",
            "in getppid() itself": "It does the same whether somebody looks or not.",
        },
    )

"""Chapter 03, timing and histograms: its workloads, its demonstrations, its exercises."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd

from labkit import spec
from labkit.errors import LabkitError, WorkloadFailed
from labkit.histogram import log2_edges, log2_slot
from labkit.lessons import (
    Context,
    Feedback,
    exercise,
    expect_choice,
    expect_number,
    is_number,
    rehearsals,
    rehearse,
    right,
    source_of,
    wrong,
)
from labkit.program import Program, load
from labkit.workloads import Worker, Workload

__all__ = [
    "bracket",
    "floored",
    "half_seen",
    "known_writes",
    "nap_frame",
    "naps",
    "of_napper",
    "read_as",
    "timed_by_keys",
]

#: How often to sleep, for how many microseconds. 23 naps of the longest kind: their number is not a round one.
_NAPS = {50: 100, 200: 100, 1000: 50, 5000: 23}
_WRITER = 4000  # its process id, in replay
_EDGE_CASES = (0, 1, 2, 3, 4, 7, 8, 9, 1023, 1024, 65536)

_SLOT = """static __always_inline unsigned int my_slot(u64 value)
{
    unsigned int slot;

    for (slot = 0; value > 1 && slot < 64; slot++)
        value >>= 1;
    return slot;
}

"""


def naps(threads: int = 1) -> Workload:
    """A process that sleeps 273 times, for 50 µs to 5 ms, and times each sleep by its own clock.

    :param threads: how many threads share the naps.
    """
    asked = [us for us, times in _NAPS.items() for _ in range(times)]
    whose = "one thread" if threads == 1 else f"{threads} threads of one process"
    return Workload(
        "naps",
        f"{whose}: {', '.join(f'{times} naps of {us:,} µs' for us, times in _NAPS.items())}",
        (Worker("napper", "naps", options={"naps_us": asked, "threads": threads}),),
        {"naps": len(asked), "asked_us": asked},
        5.0,
    )


def nap_frame(truth: Any) -> pd.DataFrame:
    """Each nap: how long was asked for, and how long it took by the sleeper's own clock.

    :returns: columns ``asked_us``, ``slept_ns`` (int64), in the order in which they were declared.
    """
    slept = truth.results["napper"]["slept_ns"]
    frame = pd.DataFrame({"asked_us": truth.declared["asked_us"], "slept_ns": slept})
    return frame.astype("int64")


class _Child:
    """A Python process that waits for :meth:`go` before it runs ``script``; so it can be looked at from its first step."""

    def __init__(self, script: str) -> None:
        start = "import sys, os, time, threading; os.write(1, b'ready\\n'); sys.stdin.readline()\n"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", start + script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        self.pid = self._process.pid
        self.line()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def line(self) -> str:
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            raise WorkloadFailed("the child process of this demonstration ended early")
        return said.strip()

    def wait(self) -> None:
        if self._process.wait(timeout=30):
            raise WorkloadFailed(f"the child process ended with status {self._process.returncode}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def half_seen() -> dict[str, int]:
    """Look for a second at a process of which one sleep began before, and one will not end in time.

    :returns: ``returns`` (seen), ``timed``, ``unmatched`` (returned, entry not seen), ``inside`` (entered, not returned)
        and ``inside_for_ms`` (how long that one has lasted when we stop looking).
    """
    script = (
        "threading.Thread(target=lambda: (time.sleep(2), os.write(1, b'slept\\n')), daemon=True).start()\n"
        "sys.stdin.readline()\n"
        "time.sleep(60)\n"
    )
    with _Child(script) as child:
        with load("sleep_times", tgid=child.pid) as before:
            child.go()
            _until_inside(
                before
            )  # its thread sleeps now, and will for two seconds less what it takes to load again
        with load("sleep_times", tgid=child.pid) as prog:
            child.go()
            child.line()
            _until_inside(prog)
            prog.stop()
            now, stamps, ledger = time.monotonic_ns(), prog.frame("stamps"), prog.ledger
    return {
        "returns": ledger.seen,
        "timed": ledger.delivered,
        "unmatched": ledger.losses["unmatched"],
        "inside": len(stamps),
        "inside_for_ms": int((now - stamps["since_ns"].min()) // 1_000_000) if len(stamps) else 0,
    }


def _until_inside(program: Program) -> None:
    """Wait until the program says that somebody is inside a call."""
    until = time.monotonic() + 30
    while program.frame("stamps").empty:
        if time.monotonic() > until:
            raise WorkloadFailed("the child process of this demonstration does not go to sleep")
        time.sleep(0.005)


def timed_by_keys(
    lab: Any, programs: Mapping[str, str], workload: Workload
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Time the same naps by programs that keep their stamps by different keys.

    :param lab: the chapter's session.
    :param programs: what it is keyed by -> C text of ``sleep_times``.
    :returns: a frame indexed by key, columns ``calls timed``, ``returns unmatched``, ``total, ms`` and
        ``by the threads' own clocks, ms`` (float64); and for each key the map ``duration``.
    """
    rows, durations = {}, {}
    for key, text in programs.items():
        with lab.load("sleep_times", label=key, source=text) as prog:
            truth = lab.run(workload, label=key)
            prog.stop()
            sleeps, durations[key], ledger = prog.frame("sleeps"), prog.frame("duration"), prog.ledger
        lab.release()
        mine = of_napper(sleeps, truth).sum(numeric_only=True)
        rows[key] = {
            "calls timed": mine["calls"],
            "returns unmatched": ledger.losses["unmatched"],
            "total, ms": mine["total_ns"] / 1e6,
            "by the threads' own clocks, ms": sum(truth.results["napper"]["slept_ns"]) / 1e6,
        }
    return pd.DataFrame(rows).T.astype("float64"), durations


def of_napper(sleeps: pd.DataFrame, truth: Any) -> pd.DataFrame:
    """The rows of the workload's own process: by its process id, since anybody may bear its name."""
    return sleeps[sleeps["tgid"] == truth.tasks["pid"].iloc[0]]


def bracket(row: pd.Series, truth: Any) -> pd.DataFrame:
    """A napper's row between what was asked for and what its own clock says.

    :returns: columns ``of`` (str), ``at least``, ``measured``, ``at most`` (float64), ``inside`` (bool).
    """
    clocked, asked = truth.results["napper"]["slept_ns"], [1000 * us for us in truth.declared["asked_us"]]
    rows = [
        ("naps", len(asked), row["calls"], len(clocked)),
        ("total, ms", sum(asked) / 1e6, row["total_ns"] / 1e6, sum(clocked) / 1e6),
        ("longest, ms", max(asked) / 1e6, row["longest_ns"] / 1e6, max(clocked) / 1e6),
    ]
    frame = pd.DataFrame(rows, columns=["of", "at least", "measured", "at most"])
    frame = frame.astype(dict.fromkeys(frame.columns[1:], "float64"))
    return frame.assign(inside=frame["measured"].between(frame["at least"], frame["at most"]))


def known_writes(sizes: Sequence[int], source: str | None = None) -> pd.DataFrame:
    """What the histogram of ``syscall_counts`` holds after a process has written blocks of exactly these sizes.

    :param source: the program's C text; that of ``bpf/syscall_counts.c`` if None.
    :returns: columns ``lo``, ``hi`` (uint64), ``unit`` (str), ``count`` (uint64).
    """
    script = (
        f"sink = os.open('/dev/null', os.O_WRONLY)\nfor size in {list(sizes)}: os.write(sink, bytes(size))\n"
    )
    with _Child(script) as child, load("syscall_counts", source=source, tgid=child.pid) as prog:
        child.go()
        child.wait()
        prog.stop()
        return prog.frame("write_size")


def read_as(histogram: pd.DataFrame, *, shift: int) -> pd.DataFrame:
    """The same counts, read as if each slot stood for the bucket ``shift`` higher: what an off-by-one does.

    :returns: columns ``lo``, ``hi`` (uint64), ``unit`` (str), ``count`` (uint64).
    """
    lo, hi = log2_edges(len(histogram) + shift)
    return histogram.assign(lo=lo[shift:], hi=hi[shift:])


def floored() -> str:
    """``syscall_counts`` with a slot function of its own, which rounds log2 down: exercise 03.1 mends it."""
    source = spec.read("syscall_counts").source
    first = "static __always_inline int count_call"
    return source.replace(first, _SLOT + first).replace("lk_log2_slot(third", "my_slot(third")


@exercise(
    "03.1",
    question="Mend `my_slot()`, so that 0 goes to slot 0, and 2^(k-1) up to, not including, 2^k to slot k.",
    hints=[
        "Which slot do 0, 1, 2, 3 and 4 get now, and which should they get? Go through the loop by hand.",
        "The slot is how many bits the value has: how often it can be halved until nothing is left.",
        "The loop stops when 1 is left; it should stop when 0 is left: `value > 1` becomes `value > 0`.",
    ],
)
def slot_of(answer: Any, context: Context) -> Feedback:
    """Live: known sizes are written, and each must be in its bucket. In replay: the same without a kernel."""
    source = source_of(answer, contains="my_slot", original=context["floored"])
    if isinstance(source, Feedback):
        return source
    if "my_slot(third_argument)" not in source:
        return wrong(
            "Nobody calls `my_slot(third_argument)` any more: it is that function that is to be mended."
        )
    if context["lab"].mode == "replay":
        script = rehearsals.named_calls(_EDGE_CASES, name="write", tgid=_WRITER)
        return rehearse(
            "syscall_counts",
            source,
            script,
            lambda program: judge_slots(program.frame("write_size"), _EDGE_CASES),
            tgid=_WRITER,
        )
    try:
        counted = known_writes(_EDGE_CASES, source)
    except LabkitError as error:
        return wrong(f"The program does not load: {error.what}. {error.why}")
    return judge_slots(counted, _EDGE_CASES)


def judge_slots(counted: pd.DataFrame, values: Sequence[int]) -> Feedback:
    """A histogram of known values, bucket by bucket."""
    lo, hi = log2_edges()
    got = np.zeros(len(lo), dtype=int)
    got[: len(counted)] = counted["count"].to_numpy(dtype=int)
    due = np.bincount(log2_slot(list(values)), minlength=len(lo))
    if (got == due).all():
        return right(f"All {len(values)} values from 0 to {max(values):,} are in their buckets.")
    if got.sum() != due.sum():
        return wrong(
            f"{due.sum()} blocks were written, the histogram holds {got.sum()}: some slot is out of range."
        )
    at = int(np.flatnonzero(got != due)[0])
    mine = [value for value in values if lo[at] <= value < hi[at]]
    told = f"Into slot {at}, for {lo[at]:,} up to {hi[at]:,}, belong {mine or 'none'} of the values written"
    hint = ""
    if (got[1:-1] == due[2:]).all():
        hint = " All values but the smallest are one slot too low."
    elif (got[1:] == due[:-1]).all():
        hint = " All values are one slot too high."
    return wrong(f"{told}: {due[at]}. The program counted {got[at]} there.{hint}")


@exercise(
    "03.2",
    question="By how many µs do the naps of 50 µs take longer than asked, in the median?",
    hints=[
        "In `naps`, take the rows with asked_us == 50; what is too long is slept_ns minus what was asked, in one unit.",
        "naps.slept_ns / 1000 is in µs, like asked_us. The median of the difference, over those rows.",
        'short = naps[naps["asked_us"] == 50]; (short["slept_ns"] / 1000 - 50).median()',
    ],
)
def overslept(answer: Any, context: Context) -> Feedback:
    """The median of slept minus asked, for one kind of nap."""
    frame = context["naps"]
    over = frame["slept_ns"] / 1000 - frame["asked_us"]
    short = frame["asked_us"] == 50
    truth = float(over[short].median())
    if is_number(answer):
        for mistaken, message in (
            (
                float(frame.loc[short, "slept_ns"].median()) / 1000,
                "That is how long they take. By how much is it too long?",
            ),
            (float(over.median()), "That is over all naps. Only those of 50 µs are asked for."),
            (
                float(over[short].mean()),
                "That is the mean: a few late naps pull it up. The median is asked for.",
            ),
        ):
            if abs(answer - mistaken) < 1e-6 * max(mistaken, 1) and abs(mistaken - truth) > 0.5:
                return wrong(message)
    return expect_number(answer, truth, unit="µs", within=0.5)


@exercise(
    "03.3",
    question="From the histogram `duration` alone: between which two values (in ns) must the mean duration lie?",
    hints=[
        "Nobody knows where in its bucket a value lies. What would the sum be if each lay at the lower edge?",
        "The sum is at least sum(lo * count) and less than sum(hi * count); the mean is the sum by the number.",
        "With count = duration['count']: ((duration.lo * count).sum() / count.sum(), and the same with duration.hi)",
    ],
)
def mean_between(answer: Any, context: Context) -> Feedback:
    """The two weighted means of the edges."""
    histogram = context["duration"]
    count = histogram["count"].to_numpy(dtype=float)
    low, high = (float((histogram[edge].to_numpy(dtype=float) * count).sum()) for edge in ("lo", "hi"))
    if isinstance(answer, (int, float)):
        return wrong("Two numbers are asked for, (low, high): no single one follows from buckets.")
    try:
        mine = tuple(float(one) for one in answer)
    except (TypeError, ValueError):
        return wrong("Two numbers in ns are asked for, as (low, high).")
    if len(mine) != 2:
        return wrong(f"Two numbers are asked for, (low, high); these are {len(mine)}.")
    if np.allclose(mine, (low, high)):
        return wrong("Those are bounds of the sum. The mean is the sum by the number of calls.")
    truth = (low / count.sum(), high / count.sum())
    if np.allclose(mine, truth[::-1]):
        return wrong("The other way round: (low, high).")
    filled = histogram[histogram["count"] > 0]
    if np.allclose(mine, (float(filled["lo"].min()), float(filled["hi"].max()))):
        return wrong(
            "Between those lies every single call. The mean can be told much closer: weigh each bucket by its count."
        )
    if np.allclose(mine, truth, rtol=1e-3):
        return right(
            "Whatever lies where within its bucket, the mean is in there. A factor of two is the price of log2 buckets."
        )
    for name, ours, due in zip(("lower", "upper"), mine, truth, strict=True):
        if not np.isclose(ours, due, rtol=1e-3):
            return wrong(f"The {name} bound is too {'large' if ours > due else 'small'}.")
    return wrong("Not quite.")


@exercise(
    "03.4",
    question="Draw how much longer than asked each nap took against how long was asked. What is it?",
    hints=[
        'over = naps["slept_ns"] / 1000 - naps["asked_us"]; plt.semilogx(naps["asked_us"], over, ".")',
        "From 50 µs to 5 ms what was asked grows a hundredfold. How does what is too much grow?",
    ],
)
def kind_of_overshoot(answer: Any, context: Context) -> Feedback:
    """Nearly the same for all: timer slack and the way back to a CPU."""
    return expect_choice(
        answer,
        "about the same for all",
        ["about the same for all", "a fixed share of the nap", "random, with no pattern"],
        {
            "a fixed share of the nap": "Then naps of 5 ms would be a hundred times as much too long as naps of 50 µs.",
            "random, with no pattern": "It spreads, but around what? Look at the medians of the four kinds of nap.",
        },
        why_right="The slack that the kernel may add to a timer, and the way back to a CPU, "
        "are the same for a short and a long nap.",
    )

"""Exercises of chapter 02, maps to DataFrames, and its demonstration of how fast maps are read."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from labkit import bpfsys
from labkit.bpfsys import MapType
from labkit.compiler import MapDef
from labkit.errors import LabkitError, ParameterError
from labkit.lessons import (
    Context,
    Feedback,
    exercise,
    explained,
    rehearsals,
    rehearse,
    right,
    source_of,
    wrong,
)
from labkit.lessons.c_model.kernel import SYSCALLS
from labkit.maps import Map
from labkit.program import Program
from labkit.spec import MapSpec

__all__ = ["reading_speed"]

_KEY, _VALUE = 4, 8


def reading_speed(entries: int = 20_000) -> pd.DataFrame:
    """Fill a hash map, and read it whole in two ways: in bulk, and entry by entry.

    :returns: columns ``how`` (str), ``entries`` (int64), ``ms`` (float64), ``entries_per_s`` (int64).
    :raises ParameterError: if there is nothing to read.
    """
    if entries < 1:
        raise ParameterError(f"a map of {entries} entries cannot be timed")
    u32, u64 = '"unsigned int"', '"unsigned long long"'
    definition = MapDef("speed", MapType.HASH, _KEY, _VALUE, entries, 0, u32, u64)
    table = Map(definition, MapSpec(holds="numbers"))
    table.create()
    try:
        for number in range(entries):
            key, value = np.array([number], np.uint32), np.array([number], np.uint64)
            bpfsys.map_update(table.fd, key.view(np.uint8), value.view(np.uint8))
        ways: dict[str, Callable[[], int]] = {
            "in bulk": lambda: len(table.raw()[0]),
            "entry by entry": lambda: _one_by_one(table.fd),
        }
        rows = [(how, *_timed(read)) for how, read in ways.items()]
    finally:
        table.close()
    frame = pd.DataFrame(rows, columns=["how", "entries", "ms"])
    return frame.assign(entries_per_s=(frame["entries"] / frame["ms"] * 1000).astype("int64"))


def _timed(read: Callable[[], int]) -> tuple[int, float]:
    start = time.perf_counter()
    count = read()
    return count, (time.perf_counter() - start) * 1000


def _one_by_one(fd: int) -> int:
    """The way of most tools: ask for the next key, then for its value; two system calls for each entry."""
    count = 0
    key: np.ndarray | None = None
    following, value = np.zeros(_KEY, np.uint8), np.zeros((1, _VALUE), np.uint8)
    while bpfsys.map_next_key(fd, key, following):
        key = following.copy()
        count += bpfsys.map_lookup(fd, key, value)
    return count


@exercise(
    "02.1",
    question="Give the program a second histogram, `read_size`: the bytes that read() was asked to read.",
    hints=[
        "Three places: the map is declared, described in the header comment, and filled. `write_size` shows each of them.",
        "Copy what there is of `write_size`, as `read_size` with `LK_NR_read`: the BPF_PERCPU_ARRAY, the line "
        "under `maps:`, and the block `if (nr == LK_NR_write) {...}`.",
        "The block is: if (nr == LK_NR_read) { slot = lk_log2_slot(third_argument); cell = read_size.lookup(&slot); "
        "if (cell) *cell += 1; }",
    ],
)
def read_histogram(answer: Any, context: Context) -> Feedback:
    """Live: load the answer, let this process read, and compare two maps of it. In replay: the same without a kernel."""
    answer = source_of(answer, contains="count_call", original=context["source"])
    if isinstance(answer, Feedback):
        return answer
    if context["lab"].mode == "live":
        return explained(_try_read_histogram(answer), _reading(answer))
    script = rehearsals.named_calls(range(1, 33), name="read", tgid=4000)
    feedback = rehearse("syscall_counts", answer, script, lambda program: _reads(program, SYSCALLS["read"]))
    return explained(feedback, _reading(answer))


def _reading(source: str) -> str:
    if not re.search(r"BPF_(PERCPU_)?ARRAY\(\s*read_size\s*,\s*u64\s*,\s*65\s*\)", source):
        return "No map `read_size` of 65 u64 is declared."
    if not re.search(r"^ \*\s+read_size:.*histogram", source, re.M):
        return "The header comment does not say that `read_size` is a histogram: its frame would be a plain table."
    if not re.search(r"read_size\.(lookup|increment|atomic_increment)", source):
        return "Nothing is ever put into `read_size`."
    return "" if "LK_NR_read" in source else "Which system call is it? Its number is `LK_NR_read`."


def _try_read_histogram(source: str) -> Feedback:
    from labkit.kernel.probe import environment
    from labkit.program import load

    try:
        with load("syscall_counts", source=source) as prog:
            _read_sizes(range(1, 33))
            prog.stop()
            return _reads(prog, {"x86_64": 0, "aarch64": 63}[environment()["arch"]])
    except LabkitError as error:
        return wrong(f"The program does not load: {error.what}. {error.why}")


def _reads(program: Program, number: int) -> Feedback:
    counts, sizes = program.frame("counts"), program.frame("read_size")
    return _judge_read_histogram(sizes, int(counts.loc[counts["nr"] == number, "calls"].sum()))


def _read_sizes(sizes: range) -> None:
    """One read() of each size, so that the histogram has something to hold."""
    with open("/dev/zero", "rb", buffering=0) as zero:
        for size in sizes:
            zero.read(size)


def _judge_read_histogram(sizes: pd.DataFrame, reads: int) -> Feedback:
    if list(sizes.columns) != ["lo", "hi", "unit", "count"]:
        return wrong(
            f"The frame of `read_size` has columns {', '.join(sizes.columns)}, not those of a histogram."
        )
    total = int(sizes["count"].sum())
    if total != reads:
        return wrong(f"`counts` holds {reads} calls of read(), `read_size` {total}.")
    small = int(sizes.loc[sizes["hi"] <= 64, "count"].sum())
    if small < 32:
        return wrong(
            "32 reads of 1 to 32 bytes were made, and are not in the small buckets: which argument is the size?"
        )
    return right(f"Both maps agree: {reads} calls of read().")


@exercise(
    "02.2",
    question="How many system calls did each process make: a Series by `tgid`, largest first?",
    hints=[
        "`counts` has one row per process *and* system call: rows of one process must be added up.",
        'counts.groupby("tgid")["calls"].sum(), and then sort.',
        'counts.groupby("tgid")["calls"].sum().sort_values(ascending=False)',
    ],
)
def calls_per_process(answer: Any, context: Context) -> Feedback:
    """The sum of calls by tgid, in descending order."""
    if isinstance(answer, pd.DataFrame) and answer.shape[1] == 1:
        answer = answer.iloc[:, 0]
    if not isinstance(answer, pd.Series):
        return wrong(f"A pandas Series is asked for; this is a {type(answer).__name__}.")
    counts = context["counts"]
    truth = counts.groupby("tgid")["calls"].sum()
    feedback = _wrong_grouping(answer, counts, truth)
    if feedback is not None:
        return feedback
    if not answer.is_monotonic_decreasing:
        return wrong("The numbers are right, the order is not: largest first.")
    return right(f"{len(truth)} processes; the busiest made {int(answer.iloc[0]):,} calls.")


def _wrong_grouping(answer: pd.Series, counts: pd.DataFrame, truth: pd.Series) -> Feedback | None:
    if len(answer) == len(counts) > len(truth):
        return wrong(
            "There is a row for each process and system call: the rows of one process are not added up."
        )
    if answer.index.name == "comm" or answer.index.inferred_type == "string":
        return wrong("These are names, and several processes may share one: group by `tgid`.")
    if set(answer.index) == set(counts["nr"]) != set(truth.index):
        return wrong("That is per system call. Which column says whose call it was?")
    if set(answer.index) != set(truth.index):
        return wrong(f"There are {len(truth)} processes in `counts`; the answer has {len(answer)} rows.")
    matched = answer.reindex(truth.index)
    if (matched.to_numpy() == truth.to_numpy()).all():
        return None
    if (matched.to_numpy() == counts.groupby("tgid").size().to_numpy()).all():
        return wrong("That counts rows, which is how many *different* calls each made. Add up `calls`.")
    return wrong("The processes are right, the numbers are not: add up `calls`.")


@exercise(
    "02.3",
    question="Draw which share of all writes asked for at most so many bytes: cumulative counts over `hi`, ending at 1.",
    hints=[
        "A cumulative share is a running sum divided by the total.",
        'share = write_size["count"].cumsum() / write_size["count"].sum(); draw it over write_size["hi"].',
        'ax = plt.subplots()[1]; ax.step(write_size["hi"], share, where="post"); ax.set_xscale("log", base=2); answer = ax',
    ],
)
def cumulative_share(answer: Any, context: Context) -> Feedback:
    """Axes with one line: x the upper edges, y the cumulative share."""
    points = _first_line(answer)
    if points is None:
        return wrong(
            f"Axes with a line drawn on them are asked for; this is a {type(answer).__name__} without one."
        )
    sizes = context["write_size"]
    upper, counts = sizes["hi"].to_numpy(dtype=float), sizes["count"].to_numpy(dtype=float)
    total = counts.sum()
    share = counts.cumsum() / total
    x, y = points[:, 0], points[:, 1]
    if len(x) != len(upper):
        return wrong(f"The histogram has {len(upper)} buckets, the line {len(x)} points.")
    if np.allclose(y, counts) or np.allclose(y, counts / total):
        return wrong("Those are the single buckets. How many writes asked for *at most* so much?")
    if np.isclose(y[-1], total) and total != 1:
        return wrong("The line ends at the number of writes. A share of all ends at 1.")
    if np.isclose(y[-1], 100):
        return wrong("The line ends at 100: that is per cent. A share ends at 1.")
    if np.allclose(x, sizes["lo"].to_numpy(dtype=float)):
        return wrong("What is summed up to a bucket lies below its upper edge `hi`; `lo` says too little.")
    if not np.allclose(x, upper):
        return wrong("The x values are not the upper edges `hi`.")
    if not np.allclose(y, share):
        return wrong("The y values are not the running sum of `count` divided by its total.")
    return right(
        "Such a line is read backwards: go from 0.5 to the right, then down, and there is the median."
    )


def _first_line(answer: Any) -> np.ndarray | None:
    """The points of the first line on Axes (or on what holds them), without matplotlib's help."""
    axes = answer[0].axes if isinstance(answer, list) and answer and hasattr(answer[0], "axes") else answer
    axes = axes.axes[0] if isinstance(getattr(axes, "axes", None), list) and axes.axes else axes
    lines = axes.get_lines() if hasattr(axes, "get_lines") else []
    if not len(lines):
        return None
    return np.asarray(lines[0].get_xydata(), dtype=float)

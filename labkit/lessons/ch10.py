"""Chapter 10, metrics: what its cells use beside its stage, and the checks of its exercises."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from labkit.errors import LabkitError
from labkit.lessons import (
    Context,
    Feedback,
    exercise,
    expect_number,
    explained,
    is_number,
    right,
    source_of,
    wrong,
)
from labkit.lessons.counters import race, reading, samples, try_live, try_without_a_kernel
from labkit.lessons.stage import STEP_S, Stage, mode_with_prometheus
from labkit.spec import read

__all__ = ["Stage", "foreign", "mode_with_prometheus", "samples", "table"]

_PROGRAM = "syscall_counts"
#: Number of write(), by architecture (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
_WRITE = {"x86_64": "1", "aarch64": "64"}


def foreign(maps: Mapping[str, pd.DataFrame], cgroup_id: int) -> pd.DataFrame:
    """Who had the CPU while a cgroup waited, itself left out.

    :returns: ``occupant_id`` (uint64), ``name`` (str), ``wait_ns`` (uint64), the longest first.
    """
    cells = maps["cells"]
    mine = cells[
        (cells["victim_id"] == cgroup_id) & (cells["kind"] == "cgroup") & (cells["occupant_id"] != cgroup_id)
    ]
    names = maps["names"].rename(columns={"cgroup_id": "occupant_id"})[["occupant_id", "name"]]
    found = mine.merge(names, on="occupant_id", how="left")[["occupant_id", "name", "wait_ns"]]
    return found.sort_values("wait_ns", ascending=False, ignore_index=True)


def table(rows: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Where a number was read -> what it was; with the largest difference in each row as ``apart``."""
    frame = pd.DataFrame(rows).T.astype("float64")
    return frame.assign(apart=frame.max(axis=1) - frame.min(axis=1))


@exercise(
    "10.1",
    question="A counter is scraped as 100, 160, 20, 50. By how much did what it counts grow, as far as is known?",
    hints=[
        "A counter never goes back. What must have happened between 160 and 20?",
        "After a restart it begins at 0: of the 20, all is new.",
        "60 + 20 + 30",
    ],
)
def counter_reset(answer: Any, context: Context) -> Feedback:
    """Increase over a reset."""
    if answer == -50:
        return wrong("Last minus first is what a counter is *not* for: it was started anew in between.")
    if answer == 90:
        return wrong("What it counted between its restart and the next scrape is known too.")
    return expect_number(answer, 110)


@exercise(
    "10.2",
    question="How many waits of the service took longer than 4.194304 ms, by the buckets in `scraped`?",
    hints=[
        "Each bucket counts all waits up to its bound `le`, the shorter ones too.",
        "Longer than a bound is everything less those up to it; everything is the bucket +Inf.",
        'buckets = scraped[...].set_index("le")["value"]; buckets["+Inf"] - buckets["0.004194304"]',
    ],
)
def longer_than(answer: Any, context: Context) -> Feedback:
    """The tail of a cumulative histogram."""
    scraped, service = context["scraped"], context["service"]
    mine = scraped[(scraped["sample"] == "labkit_runq_latency_seconds_bucket") & (scraped["name"] == service)]
    buckets = mine.set_index("le")["value"]
    truth = float(buckets["+Inf"] - buckets["0.004194304"])
    if answer == float(buckets["0.004194304"]) != truth:
        return wrong("Those are the waits up to the bound.")
    return expect_number(answer, truth, unit="waits")


@exercise(
    "10.3",
    question="Write a PromQL expression: the one cgroup that cost the service most wait per second, over the last minute.",
    hints=[
        "labkit_runq_wait_by_occupant_seconds_total has a label `occupant`; it is a counter, so ask for its rate().",
        'rate(...[1m]) of the service\'s series only: {name="..."}; topk(1, ...) keeps the largest.',
        "f'topk(1, rate(labkit_runq_wait_by_occupant_seconds_total{{name=\"{service}\"}}[1m]))'",
    ],
)
def who_costs_most(answer: Any, context: Context) -> Feedback:
    """Live: ask Prometheus. In replay: read the expression."""
    if not isinstance(answer, str):
        return wrong("An expression is asked for, as text.")
    if "labkit_runq_wait_by_occupant_seconds_total" not in answer:
        return wrong("Which counter has the label `occupant`?")
    if not re.search(r"\b(rate|increase|irate)\s*\(", answer):
        return wrong("A counter's height says how long it has been counting. Ask for its rate.")
    stage: Stage = context["stage"]
    if stage.prometheus is None:
        if not re.search(r"\b(topk|max)\b", answer):
            return wrong("That gives all of them; which function keeps the largest?")
        return right(
            "It reads right. There is no Prometheus to ask: a replay, or the stage has been taken down."
        )
    try:
        found = stage.prometheus.query(answer, at_s=stage.settled_s)
    except LabkitError as error:
        return wrong(f"Prometheus does not take it: {error.why}")
    if "occupant" not in found.columns or len(found) != 1:
        return wrong(f"It gives {len(found)} series; one is asked for, with the label `occupant`.")
    truth = context["graph"].groupby("occupant")["value"].sum().idxmax()
    if found["occupant"].iloc[0] != truth:
        return wrong(f"It says {found['occupant'].iloc[0]!r}. Are those the waits of the service?")
    return right(f"It is {truth!r}.")


@exercise(
    "10.4",
    question="40 nodes, 200 cgroups on each, one histogram with 25 buckets for each: how many series in Prometheus?",
    hints=[
        "Each combination of labels is a series, and `le` is a label.",
        "Beside its buckets a histogram has two more series.",
        "40 * 200 * (25 + 2)",
    ],
)
def cardinality(answer: Any, context: Context) -> Feedback:
    """Nodes times cgroups times (buckets, sum and count)."""
    if answer == 40 * 200 * 25:
        return wrong("Nearly: a histogram also has `_sum` and `_count`.")
    return expect_number(answer, 40 * 200 * 27, unit="series")


@exercise(
    "10.5",
    question="Give `syscall_counts` a counter `bytes`: how much the calls of write() in that row asked for, all together.",
    hints=[
        "A row of `counts` is a `struct lk_calls`: a member `u64 bytes` there becomes a column, and the column a metric.",
        "`count_call()` gets the third argument of each call; of write(), number LK_NR_write, it is the size. Add it to "
        "`entry->bytes` the way `entry->calls` is added to: other CPUs may do so at this moment.",
        'change={"    u64 last_ns;\\n": "    u64 last_ns;\\n    u64 bytes;\\n", ...}, and after `entry->last_ns = now;`: '
        "if (nr == LK_NR_write) __sync_fetch_and_add(&entry->bytes, third_argument);",
    ],
)
def counter_of_bytes(answer: Any, context: Context) -> Feedback:
    """Live: load it, expose it, and hold what is scraped against /proc/PID/io. In replay: the same without a kernel."""
    source = source_of(answer, contains="count_call", original=read(_PROGRAM).source)
    if isinstance(source, Feedback):
        return source
    if context["lab"].mode == "live":
        feedback = try_live(source, nr=_WRITE[os.uname().machine])
    else:
        feedback = try_without_a_kernel(source)
    if feedback.passed and (words := race(source)):
        return wrong(words)
    return explained(feedback, reading(source))


@exercise(
    "10.6",
    question="Draw the service's waits per second over time: what rate(...[5s]) makes of the counter in `course`.",
    hints=[
        "Per second: the counter now, less the counter five seconds ago, divided by five.",
        '`course` has a row each half second, so five seconds are ten rows: course["value"].diff(10) / 5.',
        'ax = plt.subplots()[1]; ax.plot(course["seconds"], course["value"].diff(10) / 5); '
        'ax.set(xlabel="seconds", ylabel="waits per second"); answer = ax',
    ],
)
def rate_by_hand(answer: Any, context: Context) -> Feedback:
    """Axes with one line: x the seconds, y the increase over ten rows by five; both axes named."""
    axes = answer[0].axes if isinstance(answer, list) and answer and hasattr(answer[0], "axes") else answer
    lines = axes.get_lines() if hasattr(axes, "get_lines") else []
    if not len(lines):
        return wrong(
            f"Axes with a line drawn on them are asked for; this is a {type(answer).__name__} without one."
        )
    points = np.asarray(lines[0].get_xydata(), dtype=float)
    points = points[np.isfinite(points).all(axis=1)]
    course = context["course"].reset_index(drop=True)
    seconds, value = course["seconds"].to_numpy(dtype=float), course["value"]
    at = {round(moment, 3): row for row, moment in enumerate(seconds)}
    rows = [at.get(round(moment, 3)) for moment in points[:, 0]]
    if not rows or None in rows:
        return wrong("The x values are not the moments of `course`, in its column `seconds`.")
    y = points[:, 1]

    def is_(series: pd.Series) -> bool:
        return bool(np.allclose(y, series.to_numpy(dtype=float)[rows], equal_nan=False))

    if is_(value):
        return wrong("That is the counter itself: its height says how long it has been counting.")
    if is_(value.diff(10)):
        return wrong("That is what came in five seconds. How much is it per second?")
    if is_(value.diff()) or is_(value.diff() / STEP_S):
        return wrong("That looks back by one row, half a second. The window of [5s] is five seconds long.")
    if is_(value.diff(5) / 5):
        return wrong("Five rows are two and a half seconds.")
    if not is_(value.diff(10) / 5):
        return wrong("The y values are not the increase over the last ten rows, divided by five.")
    if not axes.get_xlabel() or not axes.get_ylabel():
        return wrong(
            "The line is right. What do the axes say, in which unit? A graph without that is a guess."
        )
    return right(
        f"At most {y.max():,.0f} per second. Prometheus' own curve is as steep; at its ends it differs, for there rate() "
        "extends what it has of the window to the whole of it."
    )


@exercise(
    "10.7",
    question="In the graph above [5s] is replaced by [1m]. How high is the hog's part when the workload ends, in s per s?",
    hints=[
        "A rate is an increase, divided by the whole window, whether something happened all the time or not.",
        "What the service waited because of the hog, all in all, is in `others`, in ns.",
        'others.loc[others["name"] == "hog", "wait_ns"].sum() / 1e9 / 60',
    ],
)
def a_minutes_window(answer: Any, context: Context) -> Feedback:
    """All that was waited because of the hog, over a minute."""
    others, graph = context["others"], context["graph"]
    waited_s = float(others.loc[others["name"] == "hog", "wait_ns"].sum()) / 1e9
    peak = float(graph.loc[graph["occupant"] == "hog", "value"].max())
    if is_number(answer):
        if abs(answer / peak - 1) < 0.15:
            return wrong("So high it is with [5s], when the hog had been there for the whole window.")
        if abs(answer / waited_s - 1) < 0.05:
            return wrong("So much it waited in all. A rate is per second of the window.")
        if abs(answer / (waited_s / 5) - 1) < 0.05:
            return wrong("Of a window of a minute, how many seconds are there to divide by?")
    feedback = expect_number(answer, waited_s / 60, unit="s/s", within="10 %")
    if not feedback.passed:
        return feedback
    return right(
        f"Some {waited_s / 60:.3f} s/s, where [5s] shows {peak:.2f}: of that minute the hog was there for a few seconds. "
        "A long window hides a short burst, and a short one drowns a slow change in noise."
    )

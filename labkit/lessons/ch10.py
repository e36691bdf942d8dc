"""Chapter 10, metrics: its stage (program, exporter and Prometheus together), and the checks of its exercises."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.request
from collections.abc import Mapping
from typing import Any, Self

import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from labkit.errors import LabkitError
from labkit.ledger import Ledger
from labkit.lessons import Context, Feedback, exercise, expect_number, right, wrong
from labkit.metrics import Exporter, Labels, Settings
from labkit.metrics.prometheus import Prometheus, PrometheusError, binaries
from labkit.metrics.server import MetricsServer
from labkit.metrics.table import Layout
from labkit.session import Chapter
from labkit.workloads import Truth, Workload

__all__ = ["Stage", "foreign", "mode_with_prometheus", "samples", "table"]

_FRAMES = ("cgroups", "cells", "histograms", "names")


def mode_with_prometheus(mode: str) -> str:
    """``auto`` is replay where there is no Prometheus and none can be had; anything else stays."""
    if mode != "auto":
        return mode
    try:
        binaries(fetch=True)
    except PrometheusError as error:
        print(f"no Prometheus here, so this is a replay: {error.what} ({error.why})")
        return "replay"
    return mode


class Stage:
    """Live: the noisy-neighbour program, an exporter on a free port, and a Prometheus that scrapes it each second.

    In replay it asks the capture instead. Each reading has a label, as with ``lab.read``.

    :param lab: the chapter's session.
    """

    def __init__(self, lab: Chapter) -> None:
        self.lab = lab
        self._stack = contextlib.ExitStack()
        self._ended_s = 0.0
        self.prometheus: Prometheus | None = None
        if lab.mode == "live":
            self._start()

    def _start(self) -> None:
        from labkit.noisy.watch import Watch

        self._watch = self._stack.enter_context(Watch(label=f"{self.lab.name}/noisy_neighbor"))
        self._server = self._stack.enter_context(MetricsServer(0))
        # Others on this machine may have a service too: the label is the path of the cgroup.
        settings = Settings(Labels.parse("name=cgroup"), layout=Layout(8), min_interval_s=0.1)
        self._server.exporter = Exporter(self._watch.snapshot, settings=settings)
        self.prometheus = self._stack.enter_context(
            Prometheus([f"127.0.0.1:{self._server.port}"], every_s=1.0, fetch=True)
        )
        self._began_s = time.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End Prometheus, the exporter and the program. May be called twice."""
        self._stack.close()
        self.prometheus = None

    def run(self, workload: Workload) -> Truth:
        """Run a workload; then detach the program, so that from now on nothing moves."""
        if self.prometheus is not None:
            self.prometheus.until(lambda: len(self.prometheus.query("up")), what="a first scrape")  # type: ignore[union-attr]
        truth = self.lab.run(workload)
        if self.prometheus is not None:
            self._watch.stop()
            self._ended_s = time.time()
            time.sleep(3.0)  # some scrapes of what stands still now
        return truth

    def frames(self) -> dict[str, pd.DataFrame]:
        """What the program's maps hold: see :class:`labkit.sched.state.Snapshot`."""

        def take() -> dict[str, pd.DataFrame]:
            snapshot = self._watch.snapshot()
            return {name: getattr(snapshot, name) for name in _FRAMES}

        found: dict[str, pd.DataFrame] = self.lab.read("maps", take)
        return found

    def ledger(self) -> Ledger:
        """What the program saw and lost."""
        kept = self.lab.read("ledger", lambda: self._watch.snapshot().ledger.as_dict())
        return Ledger.from_dict(kept, mode=self.lab.mode)

    def cost(self) -> dict[str, Any]:
        """``switches``, ``kernel_ns`` (None where not permitted), and what scraping took: ``scrapes``, ``scrape_cpu_s``."""

        def take() -> dict[str, Any]:
            cost, exporter = self._watch.snapshot().cost, self._server.exporter
            assert exporter is not None
            return {
                "switches": cost.switches,
                "kernel_ns": cost.kernel_ns,
                "scrapes": exporter.own.collects,
                "scrape_cpu_s": round(exporter.own.collect_cpu_seconds, 4),
            }

        found: dict[str, Any] = self.lab.read("cost", take)
        return found

    def scrape(self) -> str:
        """The exposition, fetched over HTTP as Prometheus does; without the exporter's own ``process_*`` metrics."""

        def take() -> str:
            with urllib.request.urlopen(self._server.url, timeout=30) as answer:
                text: str = answer.read().decode()
            return text[text.index("# HELP labkit_") :]

        found: str = self.lab.read("exposition", take)
        return found

    def ask(self, label: str, expression: str) -> pd.DataFrame:
        """PromQL, at this moment; see :meth:`labkit.metrics.prometheus.Prometheus.query`."""

        def take() -> pd.DataFrame:
            assert self.prometheus is not None
            return self.prometheus.query(expression)

        found: pd.DataFrame = self.lab.read(label, take)
        return found

    def ask_over_time(self, label: str, expression: str) -> pd.DataFrame:
        """PromQL from the beginning until now; column ``seconds`` counts from there.

        :returns: a row per series and moment: its labels, ``seconds`` and ``value`` (float64).
        """

        def take() -> pd.DataFrame:
            assert self.prometheus is not None
            graph = self.prometheus.query_range(
                expression, start_s=self._began_s, end_s=time.time(), step_s=0.5
            )
            began = pd.Timestamp(self._began_s, unit="s", tz="UTC")
            graph["seconds"] = (graph.pop("time") - began).dt.total_seconds()
            return graph

        found: pd.DataFrame = self.lab.read(label, take)
        return found


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


def samples(exposition: str) -> pd.DataFrame:
    """An exposition as a frame.

    :returns: ``sample`` (str), one column per label (str, empty where there is none), ``value`` (float64).
    """
    rows = [
        {"sample": sample.name, **sample.labels, "value": float(sample.value)}
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    ]
    frame = pd.DataFrame(rows)
    words = [column for column in frame.columns if column != "value"]
    return frame.assign(**{column: frame[column].fillna("").astype("str") for column in words})


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
        found = stage.prometheus.query(answer)
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

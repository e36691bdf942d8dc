"""The stage of chapter 10: the noisy-neighbour program, an exporter and a Prometheus together, or what they once said."""

from __future__ import annotations

import contextlib
import math
import re
import time
import urllib.request
from typing import Any

import pandas as pd

from labkit.closing import Closing
from labkit.ledger import Ledger
from labkit.lessons.counters import samples
from labkit.metrics import Exporter, Labels, Settings
from labkit.metrics.prometheus import Prometheus, PrometheusError, binaries
from labkit.metrics.server import MetricsServer
from labkit.metrics.table import Layout
from labkit.session import Chapter
from labkit.workloads import Truth, Workload

__all__ = ["STEP_S", "Stage", "mode_with_prometheus"]

#: Between two points of a graph.
STEP_S = 0.5
_FRAMES = ("cgroups", "cells", "histograms", "names")
_CACHED_S = 0.1  # an exposition that is younger than this is given out again
#: Counters that a scrape of the frozen state must hold as the exposition has them.
_FROZEN = ("labkit_waits_total", "labkit_runq_latency_seconds_sum")


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


class Stage(Closing):
    """Live: the noisy-neighbour program, an exporter on a free port, and a Prometheus that scrapes it each second.

    In replay it asks the capture instead. Each reading has a label, as with ``lab.read``.

    :param lab: the chapter's session.
    :ivar settled_s: Unix time of the first sample that Prometheus has of what stands still; all questions are about that
        moment, whatever is scraped or not scraped later.
    """

    def __init__(self, lab: Chapter) -> None:
        self.lab = lab
        self._stack = contextlib.ExitStack()
        self.settled_s: float | None = None
        self.prometheus: Prometheus | None = None
        if lab.mode == "live":
            self._start()

    def _start(self) -> None:
        from labkit.noisy.watch import Watch

        self._watch = self._stack.enter_context(Watch(label=f"{self.lab.name}/noisy_neighbor"))
        self._server = self._stack.enter_context(MetricsServer(0))
        # Others on this machine may have a service too: the label is the path of the cgroup.
        settings = Settings(Labels.parse("name=cgroup"), layout=Layout(8), min_interval_s=_CACHED_S)
        self._server.exporter = Exporter(self._watch.snapshot, settings=settings)
        self.prometheus = self._stack.enter_context(
            Prometheus([f"127.0.0.1:{self._server.port}"], every_s=1.0, fetch=True)
        )
        self._began_s = time.time()

    def close(self) -> None:
        """End Prometheus, the exporter and the program. May be called twice."""
        self._stack.close()
        self.prometheus = None

    def run(self, workload: Workload) -> Truth:
        """Run a workload; then detach the program, so that from now on nothing moves, and wait for Prometheus to know."""
        if self.prometheus is not None:
            self.prometheus.until(lambda: len(self.prometheus.query("up == 1")), what="a first scrape")  # type: ignore[union-attr]
        truth = self.lab.run(workload)
        if self.prometheus is not None:
            self._watch.stop()
            self._settle(self.prometheus, time.time() + _CACHED_S, truth.cgroups["cgroup"].tolist())
        return truth

    def _settle(self, prometheus: Prometheus, after_s: float, cgroups: list[str]) -> None:
        """Wait for a scrape that began when nothing moved any more, and holds what the exposition says.

        All samples of a scrape have one time, so the others of that moment are of the same exposition.
        """
        names = "|".join(re.escape(name) for name in cgroups).replace("\\", "\\\\").replace('"', '\\"')

        def settled() -> float:
            stamps = prometheus.query(f'timestamp({_FROZEN[0]}{{name=~"{names}"}})')
            if not len(stamps) or stamps["value"].nunique() != 1 or stamps["value"].iloc[0] <= after_s:
                return 0.0
            at_s = float(stamps["value"].iloc[0])
            known = prometheus.query(f'{{__name__=~"{"|".join(_FROZEN)}", name=~"{names}"}}', at_s=at_s)
            told = samples(self._fetch())
            told = told[told["sample"].isin(_FROZEN) & told["name"].isin(cgroups)]
            pairs = known[["__name__", "name"]].itertuples(index=False, name=None)
            same = dict(zip(pairs, known["value"], strict=True)) == {
                (one.sample, one.name): one.value for one in told.itertuples(index=False)
            }
            return at_s if same else 0.0

        self.settled_s = prometheus.until(settled, what="Prometheus to scrape what stands still", seconds=60)

    def _fetch(self) -> str:
        with urllib.request.urlopen(self._server.url, timeout=30) as answer:
            text: str = answer.read().decode()
        return text[text.index("# HELP labkit_") :]

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
        found: str = self.lab.read("exposition", self._fetch)
        return found

    def ask(self, label: str, expression: str) -> pd.DataFrame:
        """PromQL, at the moment when all stood still; see :meth:`labkit.metrics.prometheus.Prometheus.query`."""

        def take() -> pd.DataFrame:
            assert self.prometheus is not None
            return self.prometheus.query(expression, at_s=self.settled_s)

        found: pd.DataFrame = self.lab.read(label, take)
        return found

    def ask_over_time(self, label: str, expression: str) -> pd.DataFrame:
        """PromQL from the beginning until all stood still, every half second; column ``seconds`` counts from the beginning.

        :returns: a row per series and moment: its labels, ``seconds`` and ``value`` (float64).
        """

        def take() -> pd.DataFrame:
            assert self.prometheus is not None
            assert self.settled_s is not None
            steps = math.ceil((self.settled_s - self._began_s) / STEP_S)
            start_s = self.settled_s - steps * STEP_S  # so that the last point is that moment
            graph = self.prometheus.query_range(
                expression, start_s=start_s, end_s=self.settled_s, step_s=STEP_S
            )
            began = pd.Timestamp(self._began_s, unit="s", tz="UTC")
            graph["seconds"] = (graph.pop("time") - began).dt.total_seconds()
            return graph

        found: pd.DataFrame = self.lab.read(label, take)
        return found

"""The exporter without its server: asks a source for snapshots, keeps the book of series, judges, writes text.

One snapshot serves all who ask within ``min_interval_s``; whoever asks meanwhile waits for the one under way. So ten
clients cost little more than one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from labkit.errors import LabkitError, ParameterError
from labkit.metrics.families import Judgement, Own, families, own_families
from labkit.metrics.labels import Labels
from labkit.metrics.series import Book, Limits
from labkit.metrics.table import Layout
from labkit.metrics.text import (
    CONTENT_TYPE_OPENMETRICS,
    CONTENT_TYPE_PLAIN_0_0_4,
    wants_openmetrics,
    write,
)
from labkit.sched.state import Snapshot, between

__all__ = ["Exporter", "Judge", "Settings", "exposition", "narrowed"]

Judge = Callable[[Snapshot], Mapping[int, Judgement]]


@dataclass(frozen=True)
class Settings:
    """What an exporter shows.

    :param labels: see :meth:`labkit.metrics.labels.Labels.parse`.
    :param limits: how much of it.
    :param layout: the buckets of the histogram.
    :param window_s: verdicts are about so many seconds up to now. :meth:`Exporter.refresh` makes them anew after an eighth
        of it; a scrape, which shall be quick, only if they are older than half of it.
    :param min_interval_s: a snapshot that is younger is used once more.
    """

    labels: Labels = field(default_factory=Labels.parse)
    limits: Limits = field(default_factory=Limits)
    layout: Layout = field(default_factory=Layout)
    window_s: float = 60.0
    min_interval_s: float = 0.5

    def __post_init__(self) -> None:
        if not self.window_s > 0 or not self.min_interval_s >= 0:
            raise ParameterError(
                "a window must be longer than 0 s, and an interval not negative",
                why=f"window {self.window_s}, least interval {self.min_interval_s}",
            )


def no_verdicts(_: Snapshot) -> Mapping[int, Judgement]:
    """Judges nobody."""
    return {}


class Exporter(Collector):
    """Takes snapshots and turns them into metrics.

    :param source: gives the snapshot of this moment.
    :param judge: verdicts by cgroup id on a snapshot of an interval.
    :param join: adds to the frame ``names`` what is known elsewhere, such as the names of pods.
    :param extra: further families, such as those about the connection to Kubernetes.
    :ivar own: what it knows about itself.
    :ivar latest: the latest snapshot, names joined; None before the first.
    """

    def __init__(
        self,
        source: Callable[[], Snapshot],
        *,
        settings: Settings | None = None,
        judge: Judge = no_verdicts,
        join: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
        extra: Callable[[], Iterable[Metric]] | None = None,
        program: str = "noisy_neighbor",
    ) -> None:
        self.settings = settings or Settings()
        self.book = Book(self.settings.labels, self.settings.limits, self.settings.layout)
        self.own = Own(program=program)
        self.latest: Snapshot | None = None
        self._source = source
        self._judge = judge
        self._join = join
        self._extra = extra
        self._history: deque[Snapshot] = deque()
        self._judgements: Mapping[int, Judgement] = {}
        self._taken_s = -float("inf")
        self._judged_ns = -(1 << 63)
        self._families: list[Metric] = []
        self._lock = threading.Lock()
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The families of the latest snapshot; taken anew by :meth:`refresh`, not here."""
        yield from self._families
        yield from own_families(self.own)
        if self._extra is not None:
            yield from self._extra()

    def refresh(self) -> Snapshot:
        """Take a snapshot, unless the latest is younger than ``min_interval_s``.

        :raises LabkitError: if the kernel's maps cannot be read; what was known before stays.
        """
        with self._lock:
            return self._refresh(judge_after=1 / 8)

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: plain text 0.0.4, or OpenMetrics for those that ask for it.

        :raises LabkitError: as :meth:`refresh`.
        """
        openmetrics = wants_openmetrics(accept)
        with self._lock:
            self._refresh(judge_after=1 / 2)  # usually :meth:`refresh` has done that lately
            text = write(self.registry.collect(), openmetrics=openmetrics)
            self.book.shown()
        return text, CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_PLAIN_0_0_4

    def failed(self, reason: str) -> None:
        """Count a failure."""
        self.own.errors[reason] = self.own.errors.get(reason, 0) + 1

    def _refresh(self, *, judge_after: float) -> Snapshot:
        if self.latest is not None and time.monotonic() - self._taken_s < self.settings.min_interval_s:
            return self.latest
        began, cpu = time.monotonic(), time.process_time()
        try:
            snapshot = self._source()
        except Exception:
            self.failed("snapshot")
            raise
        if self._join is not None:
            snapshot = replace(snapshot, names=self._join(snapshot.names))
        self.book.advance(snapshot)
        if self._due(snapshot, judge_after):
            self._judgements = self._judged(snapshot)
        self._families = list(families(self.book, snapshot, self._judgements))
        self.latest, self._taken_s = snapshot, time.monotonic()
        self.own.collects += 1
        self.own.collect_seconds += self._taken_s - began
        self.own.collect_cpu_seconds += time.process_time() - cpu
        return snapshot

    def _due(self, snapshot: Snapshot, part: float) -> bool:
        """Verdicts are about a window, and need not be newer than a part of it."""
        due = snapshot.taken_ns >= self._judged_ns + self.settings.window_s * 1e9 * part
        if due:
            self._judged_ns = snapshot.taken_ns
        return due

    def _judged(self, snapshot: Snapshot) -> Mapping[int, Judgement]:
        """Verdicts on those that have a series, about the window up to now, or all there is if it is shorter."""
        members = self.book.members()
        window_ns = self.settings.window_s * 1e9
        history = self._history
        while len(history) > 1 and snapshot.taken_ns - history[1].taken_ns >= window_ns:
            history.popleft()
        judged = snapshot
        if history:
            try:
                judged = between(narrowed(history[0], members), narrowed(snapshot, members))
            except ParameterError:  # the kernel's table began anew, or lost a row: so does the window
                history.clear()
        if not history or snapshot.taken_ns - history[-1].taken_ns >= window_ns / 4:
            history.append(snapshot)
        self.own.window_s = judged.seconds
        try:
            return self._judge(narrowed(judged, members))
        except LabkitError:
            self.failed("verdict")
            return {}


def narrowed(snapshot: Snapshot, victims: np.ndarray) -> Snapshot:
    """The same with these victims only, and those who held the CPU while they waited."""
    cells, histograms = snapshot.cells, snapshot.histograms
    cells = cells[np.isin(cells["victim_id"].to_numpy(np.uint64), victims)]
    ids = np.union1d(victims, cells["occupant_id"].to_numpy(np.uint64))
    return replace(
        snapshot,
        cgroups=snapshot.cgroups[np.isin(snapshot.cgroups["cgroup_id"].to_numpy(np.uint64), ids)],
        cells=cells,
        names=snapshot.names[np.isin(snapshot.names["cgroup_id"].to_numpy(np.uint64), ids)],
        histograms=histograms[np.isin(histograms["cgroup_id"].to_numpy(np.uint64), victims)],
    )


def exposition(
    snapshot: Snapshot,
    judgements: Mapping[int, Judgement] | None = None,
    *,
    settings: Settings | None = None,
) -> str:
    """One snapshot as Prometheus text, as an exporter that has just started would say it.

    :param judgements: verdicts by cgroup id.
    """
    settings = settings or Settings()
    book = Book(settings.labels, settings.limits, settings.layout)
    book.advance(snapshot)
    return write(families(book, snapshot, judgements or {})).decode()

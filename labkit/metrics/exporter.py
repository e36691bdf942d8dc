"""The exporter without its server: asks a source for snapshots, keeps the book of series, judges on its beat, writes text.

One snapshot serves all who ask within ``min_interval_s``; whoever asks meanwhile waits for the one under way. So ten
clients cost little more than one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from labkit.errors import ParameterError
from labkit.metrics.families import Judgement, families
from labkit.metrics.judge import Judge, Window, Witness
from labkit.metrics.labels import Labels
from labkit.metrics.own import Own, own_families
from labkit.metrics.series import Book, Limits
from labkit.metrics.table import Layout
from labkit.metrics.text import (
    CONTENT_TYPE_OPENMETRICS,
    CONTENT_TYPE_PLAIN_0_0_4,
    wants_openmetrics,
    write,
)
from labkit.noisy.witnesses import Evidence
from labkit.sched.state import Snapshot

__all__ = ["Exporter", "Judge", "Settings", "exposition", "no_verdicts"]

#: Nobody is judged by less than a second.
LEAST_S = 1.0


@dataclass(frozen=True)
class Settings:
    """What an exporter shows.

    :param labels: see :meth:`labkit.metrics.labels.Labels.parse`.
    :param limits: how much of it.
    :param layout: the buckets of the histogram.
    :param window_s: verdicts are about so many seconds up to now. :meth:`Exporter.refresh` makes them anew after an eighth
        of it; a scrape, which shall be quick, never.
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


def no_verdicts(
    _interval: Snapshot, _evidence: Evidence, _members: Collection[int]
) -> Mapping[int, Judgement]:
    """Judges nobody."""
    return {}


class Exporter(Collector):
    """Takes snapshots and turns them into metrics. Its methods may be called from any thread.

    :param source: gives the snapshot of this moment.
    :param judge: verdicts by cgroup id; see :mod:`labkit.metrics.judge`.
    :param witness: reads the kernel's own counters beside a snapshot, for the judge.
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
        witness: Witness | None = None,
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
        self._window = Window(self.settings.window_s, witness)
        self._judgements: Mapping[int, Judgement] = {}
        self._taken_s = -float("inf")
        self._judged_ns = -(1 << 63)
        self._families: list[Metric] | None = None
        self._lock = threading.RLock()
        self._judging = threading.Lock()
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The families of the latest snapshot; taken anew by :meth:`refresh`, not here."""
        with self._lock:
            if self._families is None:
                latest = self.latest
                self._families = [] if latest is None else list(families(self.book, latest, self._judgements))
            made = [*self._families, *own_families(self.own)]
        yield from made
        if self._extra is not None:
            yield from self._extra()

    def begin(self) -> None:
        """What verdicts look back to begins now; the series are left as they are."""
        with self._lock, self._judging:
            snapshot = self._source()
            self._window.upto(snapshot, snapshot.cgroups["cgroup_id"].to_numpy(np.uint64))

    def refresh(self) -> Snapshot:
        """Take a snapshot, unless the latest is younger than ``min_interval_s``, and judge, if the last verdicts are old.

        :raises LabkitError: if the kernel's maps cannot be read; what was known before stays.
        """
        with self._lock:
            snapshot = self._refresh()
            due = self._due(snapshot)
            members = self.book.members()
        if due:  # scrapes go on meanwhile
            with self._judging:
                judgements = self._judged(snapshot, members)
            with self._lock:
                self._judgements, self._families = judgements, None
        return snapshot

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: plain text 0.0.4, or OpenMetrics for those that ask for it.

        Verdicts are those that :meth:`refresh` has made: see :meth:`beating`.

        :raises LabkitError: as :meth:`refresh`.
        """
        openmetrics = wants_openmetrics(accept)
        with self._lock:
            self._refresh()
            text = write(self.registry.collect(), openmetrics=openmetrics)
            self.book.shown()
        return text, CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_PLAIN_0_0_4

    def file_text(self) -> bytes:
        """The latest snapshot for a textfile: without ``process_*``, which node_exporter has of itself."""
        with self._lock:
            text = write(self.collect())
            self.book.shown()
        return text

    @contextlib.contextmanager
    def beating(self, every_s: float = 1.0) -> Iterator[None]:
        """Refresh and judge so often, in a thread, while the block lasts; a failure is counted, and tried again."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(every_s):
                with contextlib.suppress(Exception):
                    self.refresh()

        thread = threading.Thread(target=beat, name="labkit-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def failed(self, reason: str) -> None:
        """Count a failure."""
        self.own.failed(reason)

    def _refresh(self) -> Snapshot:
        if self.latest is not None and time.monotonic() - self._taken_s < self.settings.min_interval_s:
            return self.latest
        began, cpu = time.monotonic(), time.thread_time()
        try:
            snapshot = self._source()
        except Exception:
            self.failed("snapshot")
            raise
        if self._join is not None:
            snapshot = replace(snapshot, names=self._join(snapshot.names))
        self.book.advance(snapshot)
        self._families = None
        self.latest, self._taken_s = snapshot, time.monotonic()
        self.own.collects += 1
        self.own.collect_seconds += self._taken_s - began
        self.own.collect_cpu_seconds += time.thread_time() - cpu
        return snapshot

    def _due(self, snapshot: Snapshot) -> bool:
        """Verdicts are about a window, and need not be newer than a part of it."""
        return snapshot.taken_ns >= self._judged_ns + self.settings.window_s * 1e9 / 8

    def _judged(self, snapshot: Snapshot, members: np.ndarray) -> Mapping[int, Judgement]:
        """Verdicts on those that have a series, about the window up to now, or all there is if it is shorter."""
        cpu = time.thread_time()
        reason = "evidence"
        try:
            interval, evidence = self._window.upto(snapshot, members)
            if interval.seconds < LEAST_S:
                return {}  # what verdicts will look back to has begun, and this is all
            self._judged_ns, self.own.window_s = snapshot.taken_ns, interval.seconds
            reason = "verdict"
            return self._judge(interval, evidence, members.tolist())
        except (
            Exception
        ):  # a verdict is no reason to go without the numbers; this one is counted, and the next is tried
            self.failed(reason)
            return {}
        finally:
            self.own.judge_cpu_seconds += time.thread_time() - cpu


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

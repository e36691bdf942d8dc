"""``labkit serve`` put together: the program, names, verdicts, and what the command line asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from labkit.errors import ParameterError
from labkit.metrics.exporter import Exporter, Settings
from labkit.metrics.judge import Judge, judged, waited_most
from labkit.metrics.labels import Labels
from labkit.metrics.serve import Options, Source, serve, serve_once
from labkit.names import Directory
from labkit.names.kubernetes import Pods
from labkit.names.kubernetes_api import ApiAccess, PodWatch
from labkit.noisy import witnesses
from labkit.noisy.witnesses import Reading
from labkit.sched.state import Snapshot
from labkit.until import UntilAsked

__all__ = ["Kubernetes", "kubernetes_families", "serve_command"]

#: At each turn so many cgroups, and so many tasks of theirs (0.2 ms each), are asked for the kernel's own counters.
_WITNESSED, _MOST_TASKS = 20, 150


@dataclass
class Kubernetes:
    """The connection to the API, if there is one."""

    watch: PodWatch | None = None

    @classmethod
    def choose(cls, wish: str, labels: Labels) -> Kubernetes:
        """:param wish: ``auto`` (inside a cluster), ``on`` or ``off``.

        :raises ParameterError: if it is to be on and this is no pod.
        """
        access = ApiAccess.in_cluster() if wish in ("auto", "on") else None
        if access is None and wish == "on":
            raise ParameterError(
                "there is no Kubernetes API to ask",
                why="this process has no service account, or KUBERNETES_SERVICE_HOST is not set",
                remedy="run it as a pod (see k8s/), or leave out --kubernetes on",
            )
        return cls(PodWatch(access, Pods(labels.pod_labels)) if access is not None else None)

    @property
    def enrichers(self) -> list[Pods]:
        """For :class:`labkit.names.Directory`."""
        return [] if self.watch is None else [self.watch.pods]

    def join(self, names: pd.DataFrame) -> pd.DataFrame:
        """The frame of names with the pods' labels."""
        return names if self.watch is None else self.watch.pods.label_columns(names)

    def families(self) -> Iterator[Metric]:
        """What there is to say about the connection."""
        if self.watch is not None:
            yield from kubernetes_families(self.watch)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch while the block lasts."""
        if self.watch is None:
            yield
            return
        with self.watch:
            # Names from the first scrape on, if the API answers soon; without them otherwise.
            self.watch.synced.wait(2.0)
            yield


def kubernetes_families(watch: PodWatch) -> Iterator[Metric]:
    """Metrics about the names of pods: whether they can be trusted to be new."""
    yield GaugeMetricFamily(
        "labkit_kubernetes_synced",
        "1 once the pods of this node have been listed.",
        value=watch.synced.is_set(),
    )
    yield GaugeMetricFamily(
        "labkit_kubernetes_pods", "Pods of this node that are known.", value=len(watch.pods)
    )
    if watch.age_s is not None:
        yield GaugeMetricFamily(
            "labkit_kubernetes_last_heard_seconds",
            "Time since the API server last answered.",
            value=watch.age_s,
        )
    errors = CounterMetricFamily(
        "labkit_kubernetes_errors", "Failures in asking the API server, by kind.", labels=["reason"]
    )
    for reason, count in sorted(({"api": 0, "gone": 0} | dict(watch.errors)).items()):
        errors.add_metric([reason], count)
    yield errors
    yield CounterMetricFamily(
        "labkit_kubernetes_malformed",
        "Objects and events that were not what the API promises.",
        value=watch.pods.malformed,
    )
    yield CounterMetricFamily(
        "labkit_kubernetes_refused", "Pods beyond the number that is kept.", value=watch.pods.refused
    )


class _Watched:
    """The program and the directory of names that belongs to it."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        from labkit.noisy.watch import Watch

        self.watch = Watch(directory=Directory(enrichers=kubernetes.enrichers))
        self._read = False

    def snapshot(self) -> Snapshot:
        return self.watch.snapshot()

    def reading(self, interval: Snapshot) -> Reading:
        """The kernel's own counters of those that waited most: what the confidence of their verdicts is held against.

        The first time of all cgroups: who will wait is not known yet.
        """
        directory = self.watch.directory
        first, self._read = not self._read, True
        names = directory.all() if first else directory.names(waited_most(interval, _WITNESSED))
        paths = {i: name.cgroup for i, name in names.items() if name.cgroup and directory.alive(i)}
        most = witnesses.MOST_TASKS if first else _MOST_TASKS
        return witnesses.read(directory.tree, paths, everything=first, most_tasks=most)

    def close(self) -> None:
        self.watch.close()


def serve_command(
    options: Options, *, kubernetes: str = "auto", once: bool = False, seconds: float = 5.0
) -> int:
    """`labkit serve`; returns the exit code.

    :raises LabkitError: if it cannot listen, load, or write.
    """
    chosen = Kubernetes.choose(kubernetes, options.settings.labels)

    def wire(source: Source, settings: Settings, judge: Judge) -> Exporter:
        return Exporter(
            source.snapshot,
            settings=settings,
            judge=judge,
            witness=source.reading if isinstance(source, _Watched) else None,
            join=chosen.join,
            extra=chosen.families,
        )

    def load() -> Source:
        return _Watched(chosen)

    with UntilAsked(), chosen.running():  # SIGTERM may come before anything is loaded
        if once:
            return serve_once(options, load, seconds=seconds, judge=judged, wire=wire)
        return serve(options, load, judge=judged, wire=wire)
    return 130 if once else 0

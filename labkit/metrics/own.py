"""What the exporter says about itself: what it is, what it took, and what it failed at."""

from __future__ import annotations

import platform
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from labkit import __version__

__all__ = ["REASONS", "Own", "own_families"]

#: What the exporter can fail at; each has a series from the start, at 0.
REASONS = ("evidence", "parquet", "snapshot", "textfile", "verdict")
_PAGE = resource.getpagesize()


@dataclass
class Own:
    """What the exporter knows about itself.

    :ivar collects: snapshots taken; ``collect_seconds`` and ``collect_cpu_seconds`` are what they took together.
    :ivar scrapes: expositions given to whoever asked; ``scrape_seconds`` and ``scrape_cpu_seconds`` from the request to the
        last byte, the snapshot included.
    :ivar judge_cpu_seconds: CPU time of verdicts and of the counters that they are held against.
    :ivar errors: reason -> snapshots that could not be taken, verdicts not made, files not written.
    :ivar window_s: the interval that verdicts are about.
    """

    program: str = "noisy_neighbor"
    collects: int = 0
    collect_seconds: float = 0.0
    collect_cpu_seconds: float = 0.0
    scrapes: int = 0
    scrape_seconds: float = 0.0
    scrape_cpu_seconds: float = 0.0
    judge_cpu_seconds: float = 0.0
    errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    window_s: float = 0.0

    def scraped(self, seconds: float, cpu_seconds: float) -> None:
        """Somebody has been answered."""
        self.scrapes += 1
        self.scrape_seconds += seconds
        self.scrape_cpu_seconds += cpu_seconds

    def failed(self, reason: str) -> None:
        """Count a failure."""
        self.errors[reason] = self.errors.get(reason, 0) + 1


def own_families(own: Own) -> Iterator[Metric]:
    """What the exporter says about itself; its CPU time is that of prometheus_client's ProcessCollector."""
    yield InfoMetricFamily(
        "labkit_build",
        "What made these metrics.",
        value={
            "version": __version__,
            "program": own.program,
            "python": platform.python_version(),
            "prometheus_client": _client_version(),
        },
    )
    for name, text, number in (
        ("labkit_collects", "Snapshots taken of the kernel's maps.", own.collects),
        (
            "labkit_collect_seconds",
            "Time that taking snapshots took, with names and series.",
            own.collect_seconds,
        ),
        ("labkit_collect_cpu_seconds", "CPU time of the same.", own.collect_cpu_seconds),
        ("labkit_scrapes", "Scrapes answered, before this one.", own.scrapes),
        (
            "labkit_scrape_seconds",
            "Time that scrapes took as a whole: waiting for their turn, the snapshot, writing and compressing.",
            own.scrape_seconds,
        ),
        ("labkit_scrape_cpu_seconds", "CPU time of the same.", own.scrape_cpu_seconds),
        (
            "labkit_judge_cpu_seconds",
            "CPU time of the verdicts and of reading what they are held against; not part of a scrape.",
            own.judge_cpu_seconds,
        ),
    ):
        yield CounterMetricFamily(name, text, value=number)
    errors = CounterMetricFamily(
        "labkit_errors",
        "What the exporter failed at: snapshot (the maps could not be read), verdict, evidence (the kernel's own counters "
        "could not be read), textfile and parquet (the file could not be written).",
        labels=["reason"],
    )
    for reason, count in sorted(dict(own.errors).items()):
        errors.add_metric([reason], count)
    yield errors
    yield GaugeMetricFamily(
        "labkit_verdict_window_seconds", "The interval that verdicts are about.", value=own.window_s
    )
    resident = _resident_bytes()
    if resident is not None:
        yield GaugeMetricFamily(
            "labkit_exporter_resident_memory_bytes",
            "Memory of the exporter's process; also in textfiles, where process_resident_memory_bytes is node_exporter's.",
            value=resident,
        )


def _resident_bytes() -> int | None:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None


def _client_version() -> str:
    from importlib.metadata import version

    return version(prometheus_client.__name__)

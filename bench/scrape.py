"""What a scrape of the exporter costs on a node with very many control groups, in CPU time of the exporter.

The whole of it: reading the kernel's maps and the names of all cgroups, bringing the series forward, writing the text
and compressing it, as for a request over HTTP. Verdicts are made between scrapes and are a row of their own. The bound
of 150 ms is what a scrape may take of a CPU that belongs to others.
"""

from __future__ import annotations

import contextlib
import gzip
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from bench.measure import Goal, Row, compare, interleave
from labkit.cgroups import Scope
from labkit.metrics.exporter import Exporter, Settings
from labkit.metrics.judge import judged
from labkit.noisy.plan import plan
from labkit.noisy.watch import Watch

__all__ = ["compare_scrape", "many_cgroups"]

_OURS = "labkit serve"
_BOUND, _BOUND_MS = "150 ms", 150.0
_VISITOR = """
import sys, time
for n in range(int(sys.argv[2])):
    with open(f"{sys.argv[1]}/c{n}/cgroup.procs", "w") as file:
        file.write("0")
    time.sleep(0.0001)
"""


@contextlib.contextmanager
def many_cgroups(count: int) -> Iterator[Callable[[], None]]:
    """So many cgroups, in each of which a task has run and waited; gives what makes one do so again."""
    with Scope([f"c{n}" for n in range(count)]) as scope:

        def visit() -> None:
            argv = [sys.executable, "-c", _VISITOR, str(scope.root), str(count)]
            subprocess.run(argv, check=True, timeout=300)

        visit()
        yield visit


class _Scrape:
    """Milliseconds of CPU of one scrape, the mean of some; ``size`` is the last one's, in bytes, and compressed."""

    def __init__(self, exporter: Exporter, scrapes: int) -> None:
        self.exporter, self.scrapes, self.size = exporter, scrapes, (0, 0)

    def __call__(self) -> float:
        began = time.thread_time()
        for _ in range(self.scrapes):
            text, _ = self.exporter.text()
            sent = gzip.compress(text, 1, mtime=0)
        self.size = len(text), len(sent)
        return (time.thread_time() - began) * 1e3 / self.scrapes


class _Judging:
    """Milliseconds of CPU of the verdicts on all that have a series."""

    def __init__(self, exporter: Exporter) -> None:
        self.exporter = exporter

    def __call__(self) -> float:
        before = self.exporter.own.judge_cpu_seconds
        for _ in range(100):
            time.sleep(0.2)
            self.exporter.refresh()
            if (spent := self.exporter.own.judge_cpu_seconds - before) > 0:
                return spent * 1e3
        raise RuntimeError("the exporter never judged")


def compare_scrape(*, quick: bool, rounds: int) -> list[Row]:
    """Rows of the exporter's cost, with their goals."""
    count, scrapes = (500, 2) if quick else (5000, 10)
    # A short window, so that the exporter judges in each round.
    settings = Settings(min_interval_s=0, window_s=1.0)
    with Watch(chosen=plan(cgroups=4096)) as watch, many_cgroups(count):
        exporter = Exporter(watch.snapshot, settings=settings, judge=judged)
        exporter.text()
        scrape = _Scrape(exporter, scrapes)
        judging = _Judging(exporter)
        samples = interleave({_OURS: scrape, _BOUND: lambda: _BOUND_MS}, rounds=rounds)
        verdicts = interleave({_OURS: judging, _BOUND: lambda: _BOUND_MS}, rounds=rounds)
        seen = len(watch.snapshot().cgroups)
    named = min(seen, exporter.settings.limits.max_cgroups)
    return [
        compare(
            f"a scrape of {count:,} cgroups, maps and names included",
            samples,
            ours=_OURS,
            peer=_BOUND,
            unit="ms of CPU",
            goal=Goal("<=", 1.0),
            note=f"{seen:,} cgroups seen, {named} with series; {scrape.size[0]:,} bytes, {scrape.size[1]:,} compressed",
        ),
        compare(
            f"verdicts on the {named} that have series, between scrapes",
            verdicts,
            ours=_OURS,
            peer=_BOUND,
            unit="ms of CPU",
            note="at most once in an eighth of the window: every 15 s as it is set",
        ),
    ]

"""What a book of series and a snapshot say, as Prometheus metric families.

Names and units by https://prometheus.io/docs/practices/naming/: base unit seconds, ``_total`` for counters. Everything
that is exposed is listed in docs/metrics.md, which a test holds equal to this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric

from labkit.metrics.series import Book, Series
from labkit.metrics.table import CAUSES, CLASSES
from labkit.metrics.text import SeriesFamily, float_text
from labkit.sched.rules import VERDICTS
from labkit.sched.state import Snapshot

__all__ = ["Judgement", "families"]

_NS = 1e9


@dataclass(frozen=True)
class Judgement:
    """The verdict on one cgroup.

    :param verdict: one of :data:`labkit.sched.rules.VERDICTS`.
    :param confidence: 0.0 to 1.0.
    :param wait_ns: its wait in the interval that was judged; of several cgroups in one series the largest speaks.
    """

    verdict: str
    confidence: float
    wait_ns: int = 0


def families(book: Book, snapshot: Snapshot, judgements: Mapping[int, Judgement]) -> Iterator[Metric]:
    """All families about cgroups, about what was lost, and about what measuring costs."""
    yield _histogram(book)
    yield _by(
        book,
        "labkit_runq_wait_seconds",
        "Time that tasks of the cgroup were ready to run and did not run, by what kept them from it: foreign (another "
        "cgroup had the CPU), self (the cgroup's own tasks), throttled (its own or an ancestor's CPU quota), idle "
        "(the CPU was waking up), steal (interrupts and the hypervisor), unknown. The causes add up to the whole wait.",
        "cause",
        CAUSES,
        "cause",
    )
    yield _by(
        book,
        "labkit_runq_wait_by_class_seconds",
        "Time waited while a cgroup held the CPU, by whose it was: same (the cgroup itself), other (another workload), "
        "system (kernel threads, init, system services), unknown (a cgroup whose name was lost).",
        "class",
        CLASSES,
        "occupant_class",
    )
    yield _occupants(book)
    yield _preemptions(book)
    for name, column, text in (
        (
            "labkit_involuntary_switches",
            "involuntary_switches",
            "Times that a task of the cgroup was taken off a CPU though it could have gone on.",
        ),
        ("labkit_waits", "waits", "Waits of tasks of the cgroup for a CPU that are over."),
    ):
        yield _plain(book, name, column, text, 1)
    yield _plain(book, "labkit_cpu_seconds", "run_ns", "Time that tasks of the cgroup held a CPU.", _NS)
    yield _plain(
        book,
        "labkit_migrated_wait_seconds",
        "migrated_ns",
        "The part of the wait that came before the waiting task was moved to another CPU.",
        _NS,
    )
    yield from _verdicts(book, judgements)
    yield from _bounds(book)
    yield from _ledger(snapshot)
    yield from _room(snapshot)
    yield from _cost(snapshot)


def _family(book: Book, name: str, text: str, kind: str, extra: str = "") -> SeriesFamily:
    return SeriesFamily(name, text, kind, book.labels.names, extra)


def _histogram(book: Book) -> Metric:
    family = _family(
        book,
        "labkit_runq_latency_seconds",
        "How long each wait for a CPU took, from ready to running, preempted and migrated tasks included.",
        "histogram",
        "le",
    )
    first = book.layout.column(f"le:{int(book.layout.bounds_ns[0])}")
    bounds = [*(float_text(ns / _NS) for ns in book.layout.bounds_ns.tolist()), "+Inf"]
    wait = book.layout.column("wait_ns")
    for series in book.exposed:
        values = series.shown_values
        counts = np.cumsum(values[first:]).tolist()
        family.rows += [
            ("_bucket", series.key, bound, count) for bound, count in zip(bounds, counts, strict=True)
        ]
        family.rows.append(("_count", series.key, None, counts[-1]))
        family.rows.append(("_sum", series.key, None, int(values[wait]) / _NS))
    return family


def _by(
    book: Book, name: str, text: str, columns: str, values: tuple[str, ...], label: str, unit: float = _NS
) -> Metric:
    family = _family(book, name, text, "counter", label)
    at = [book.layout.column(f"{columns}:{value}") for value in values]
    for series in book.exposed:
        numbers = series.shown_values[at].tolist()
        family.rows += [
            ("_total", series.key, value, number / unit)
            for value, number in zip(values, numbers, strict=True)
        ]
    return family


def _preemptions(book: Book) -> Metric:
    return _by(
        book,
        "labkit_preemptions",
        "Times that somebody took the CPU from a task of the cgroup that could have gone on, by whose the next task was.",
        "preempted",
        CLASSES,
        "occupant_class",
        unit=1,
    )


def _occupants(book: Book) -> Metric:
    family = _family(
        book,
        "labkit_runq_wait_by_occupant_seconds",
        "Time waited while another cgroup held the CPU, by which one it was: those that cost most lately by name, the "
        "others together as _rest. Who costs clearly more than one that has a name takes its place.",
        "counter",
        "occupant",
    )
    for series in book.series:
        family.rows += [("_total", series.key, who, ns / _NS) for who, ns in series.shown_occupants]
    return family


def _plain(book: Book, name: str, column: str, text: str, unit: float) -> Metric:
    family = _family(book, name, text, "counter")
    at = book.layout.column(column)
    family.rows = [("_total", one.key, None, int(one.shown_values[at]) / unit) for one in book.exposed]
    return family


def _verdicts(book: Book, judgements: Mapping[int, Judgement]) -> Iterator[Metric]:
    verdict = _family(
        book,
        "labkit_verdict",
        "What the cgroup suffers from, judged over the last window: 1 for the verdict that holds, 0 for the others.",
        "gauge",
        "verdict",
    )
    confidence = _family(book, "labkit_verdict_confidence_ratio", "How sure the verdict is, 0 to 1.", "gauge")
    for series in book.series:
        found = _speaks(series, judgements)
        if found is None or not series.alive:
            continue
        verdict.rows += [("", series.key, name, float(name == found.verdict)) for name in VERDICTS]
        confidence.rows.append(("", series.key, None, found.confidence))
    yield verdict
    yield confidence


def _speaks(series: Series, judgements: Mapping[int, Judgement]) -> Judgement | None:
    found = [judgements[id_] for id_ in series.members if id_ in judgements]
    return max(found, key=lambda one: one.wait_ns, default=None)


def _bounds(book: Book) -> Iterator[Metric]:
    series = GaugeMetricFamily(
        "labkit_cgroup_series",
        "Cgroups with a series of their own: alive, or tombstone (dead, and removed before long).",
        labels=["state"],
    )
    dead = sum(not one.alive for one in book.series)
    series.add_metric(["alive"], len(book.series) - dead)
    series.add_metric(["tombstone"], dead)
    yield series
    yield GaugeMetricFamily(
        "labkit_cgroup_series_limit", "Cgroups that can have a series.", value=book.limits.max_cgroups
    )
    yield GaugeMetricFamily(
        "labkit_overflow_cgroups",
        "Cgroups without a series of their own now, because as many as may have one wait more: they add up in _overflow.",
        value=book.overflow_cgroups,
    )
    yield CounterMetricFamily(
        "labkit_overflow_entries", "Times that a cgroup was put into _overflow.", value=book.overflow_total
    )
    yield CounterMetricFamily(
        "labkit_replaced_series",
        "Times that a series was removed because another cgroup waited clearly more. If it comes back it begins at 0.",
        value=book.replaced,
    )
    yield CounterMetricFamily(
        "labkit_corrections",
        "Counters that were a little smaller than before, because a table was read while it changed, and were held until "
        "they had caught up. Some in an hour are harmless.",
        value=book.corrections,
    )


#: Counts that are not losses: the event is in the results, but not all that belongs to it. ``missed_ns`` is a time.
_INCOMPLETE = (
    "missed_waits",
    "reconstructed",
    "cgroups_full",
    "cells_full",
    "slots_full",
    "beyond_log",
    "evicted",
)


def _ledger(snapshot: Snapshot) -> Iterator[Metric]:
    ledger = snapshot.ledger
    yield CounterMetricFamily(
        "labkit_events_seen",
        "Times that a task (the idle task is none) got a CPU and the program knows of it: it was called, or it found out "
        "afterwards (those are also in labkit_events_incomplete, as reconstructed).",
        value=ledger.seen,
    )
    yield CounterMetricFamily(
        "labkit_events_delivered",
        "Of the events seen, those whose wait is in the results.",
        value=ledger.delivered,
    )
    lost = CounterMetricFamily(
        "labkit_events_lost",
        "Of the events seen, those whose wait is not in the results, by reason: unqueued (the kernel had not noted since "
        "when the task waited), clock_backwards.",
        labels=["reason"],
    )
    for reason, count in sorted(ledger.losses.items()):
        lost.add_metric([reason], count)
    yield lost
    incomplete = CounterMetricFamily(
        "labkit_events_incomplete",
        "Events that are in the results in part: missed_waits (a wait ended unseen, by whom is unknown), reconstructed "
        "(not seen, and taken from the kernel's own notes), cgroups_full (a cgroup found no place and counts as unknown), "
        "cells_full (a pair of them found none), slots_full (a cgroup found no total of its own on a CPU), beyond_log "
        "(the wait reached back beyond what is remembered of its CPU), evicted (a task's place went to another).",
        labels=["reason"],
    )
    for reason in _INCOMPLETE:
        incomplete.add_metric([reason], snapshot.noted.get(reason, 0))
    yield incomplete
    yield CounterMetricFamily(
        "labkit_missed_wait_seconds",
        "Time of the waits that ended unseen: it counts as wait, of unknown cause.",
        value=snapshot.noted.get("missed_ns", 0) / _NS,
    )
    if ledger.unseen is not None:
        # The kernel's own counter and ours are not read at one moment: what is unseen may shrink a little.
        yield GaugeMetricFamily(
            "labkit_events_unseen",
            "Context switches that the kernel counted and the program neither was called for nor reconstructed.",
            value=ledger.unseen,
        )


def _room(snapshot: Snapshot) -> Iterator[Metric]:
    room = snapshot.room
    entries = GaugeMetricFamily(
        "labkit_table_entries",
        "Entries in use of a table in the kernel: cgroups (told apart now), cells (pairs of them, beyond the first).",
        labels=["table"],
    )
    limits = GaugeMetricFamily(
        "labkit_table_entries_limit", "Entries that a table in the kernel has room for.", labels=["table"]
    )
    for table in sorted(room.entries):
        entries.add_metric([table], room.entries[table])
        limits.add_metric([table], room.limits[table])
    yield entries
    yield limits
    if room.map_bytes is not None:
        yield GaugeMetricFamily(
            "labkit_map_bytes",
            "Kernel memory of the program's tables, by the kernel's account.",
            value=room.map_bytes,
        )


def _cost(snapshot: Snapshot) -> Iterator[Metric]:
    cost = snapshot.cost
    if cost.kernel_ns is not None:  # else not permitted, and no number is better than a zero
        yield CounterMetricFamily(
            "labkit_program_cpu_seconds", "CPU time of the kernel program itself.", value=cost.kernel_ns / _NS
        )
    if cost.ns_per_switch is not None:
        yield GaugeMetricFamily(
            "labkit_program_seconds_per_switch",
            "What the kernel program adds to each context switch, on average since it was loaded.",
            value=cost.ns_per_switch / _NS,
        )
    yield CounterMetricFamily(
        "labkit_switches", "Context switches that the cost is counted over.", value=cost.switches
    )
    yield CounterMetricFamily(
        "labkit_measured_seconds", "Time since the program was loaded.", value=snapshot.seconds
    )
    yield GaugeMetricFamily("labkit_cpus", "CPUs online.", value=cost.cpus)
    yield InfoMetricFamily(
        "labkit_kernel",
        "The kernel that was measured, and whether live or replayed.",
        value={"release": snapshot.kernel, "mode": snapshot.mode},
    )
    rules = GaugeMetricFamily(
        "labkit_rule_info", "Which rule was chosen where the kernel leaves a choice.", labels=["rule"]
    )
    for rule in snapshot.rules:
        rules.add_metric([rule], 1)
    yield rules

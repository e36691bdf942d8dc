"""Series from snapshots: exact, never going back, bounded, and removed in time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from snapshot_maker import Group, crowd, snapshot

from labkit.errors import ParameterError
from labkit.metrics import Exporter, Labels, Limits, Settings, exposition
from labkit.metrics.labels import OVERFLOW, REST, label_value
from labkit.metrics.series import Book
from labkit.metrics.table import CAUSES, Layout
from labkit.sched.state import Snapshot

MS = 1_000_000


def victim(scale: int = 1, **changes: object) -> Group:
    given: dict[str, object] = {
        "id": 7,
        "name": "web",
        "cells": {
            ("cgroup", 7): 1 * MS * scale,
            ("cgroup", 8): 20 * MS * scale,
            ("cgroup", 1): 2 * MS * scale,
            ("throttled", 0): 3 * MS * scale,
            ("idle", 0): MS // 2 * scale,
            ("steal", 0): MS // 4 * scale,
            ("unknown", 0): 7 * scale,
        },
        "waits": 3 * scale,
        "involuntary": 2 * scale,
        "run_ns": 9 * MS * scale,
        "preemptions": scale,
    }
    return Group(**(given | changes))  # type: ignore[arg-type]


HOG = Group(8, "hog", {("cgroup", 7): 5 * MS}, waits=2)
ROOT = Group(1, "kernel threads", {}, waits=0, kind="root", owner="system", buckets={})


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def value(text: str, sample: str, /, **labels: str) -> float:
    found = [
        number
        for (name, pairs), number in samples(text).items()
        if name == sample and set(labels.items()) <= pairs
    ]
    assert len(found) == 1, (sample, labels, found)
    return found[0]


def test_causes_classes_and_occupants_are_those_of_the_cells_to_the_nanosecond() -> None:
    text = exposition(snapshot(victim(), HOG, ROOT))
    causes = {c: value(text, "labkit_runq_wait_seconds_total", name="web", cause=c) for c in CAUSES}
    expected = {
        "foreign": 22 * MS,
        "self": MS,
        "throttled": 3 * MS,
        "idle": MS // 2,
        "steal": MS // 4,
        "unknown": 7,
    }
    assert causes == {name: ns / 1e9 for name, ns in expected.items()}
    assert round(sum(causes.values()) * 1e9) == victim().wait_ns
    for name, ns in {"same": MS, "other": 20 * MS, "system": 2 * MS, "unknown": 0}.items():
        found = value(text, "labkit_runq_wait_by_class_seconds_total", name="web", occupant_class=name)
        assert found == ns / 1e9
    assert value(text, "labkit_runq_wait_by_occupant_seconds_total", name="web", occupant="hog") == 0.02
    assert value(text, "labkit_preemptions_total", name="web", occupant_class="other") == 1


def test_the_histogram_is_cumulative_ends_in_inf_and_has_the_real_sum() -> None:
    group = victim(buckets={(1024, 1152): 2, (2048, 2304): 5, (1 << 40, 9 << 37): 1}, waits=8)
    text = exposition(snapshot(group, HOG))
    bucket = {
        dict(pairs)["le"]: number
        for (name, pairs), number in samples(text).items()
        if name == "labkit_runq_latency_seconds_bucket" and ("name", "web") in pairs
    }
    assert bucket["1.024e-06"] == 0  # no wait of the first two was shorter than that
    assert (bucket["2.048e-06"], bucket["4.096e-06"], bucket["8.589934592"], bucket["+Inf"]) == (2, 7, 7, 8)
    assert list(bucket.values()) == sorted(bucket.values())
    assert value(text, "labkit_runq_latency_seconds_count", name="web") == 8
    assert value(text, "labkit_runq_latency_seconds_sum", name="web") == group.wait_ns / 1e9


@pytest.mark.parametrize("per_octave", [1, 2, 4, 8])
def test_bounds_are_bounds_of_the_kernels_own_buckets(per_octave: int) -> None:
    bounds = Layout(per_octave).bounds_ns
    kernels = {(8 + part) << shift for shift in range(31) for part in range(8)}
    assert set(bounds.tolist()) <= kernels
    assert len(bounds) == 23 * per_octave + 1
    with pytest.raises(ParameterError, match="1, 2, 4 or 8"):
        Layout(3)


def fresh(snap: Snapshot) -> np.ndarray:
    """What a book that begins with this snapshot holds: a row per series."""
    book = Book(Labels.parse(), Limits(max_cgroups=1000))
    book.advance(snap)
    return np.stack([s.values for s in book.series])


def totals(book: Book) -> np.ndarray:
    return sum((s.values for s in book.exposed), np.zeros(len(book.layout.columns), np.int64))


def test_a_table_that_begins_anew_goes_on_from_where_it_was() -> None:
    book = Book(Labels.parse())
    book.advance(snapshot(victim(10), at_s=1))
    before = book.series[0].values.copy()
    book.advance(snapshot(victim(2), at_s=2))
    assert (book.series[0].values == before + fresh(snapshot(victim(2)))[0]).all()
    assert book.corrections == 0


def test_one_counter_that_goes_back_alone_is_held_and_counted() -> None:
    book = Book(Labels.parse())
    book.advance(snapshot(victim(1, run_ns=100), at_s=1))
    book.advance(snapshot(victim(1, run_ns=90), at_s=2))
    book.advance(snapshot(victim(1, run_ns=110), at_s=3))
    assert book.series[0].values[book.layout.column("run_ns")] == 110
    assert book.corrections == 1


def test_a_dead_cgroup_stands_as_a_tombstone_and_is_removed_and_its_name_starts_from_zero() -> None:
    book = Book(Labels.parse(), Limits(keep_s=60))
    book.advance(snapshot(victim(), HOG, at_s=0))
    book.advance(snapshot(victim(alive=False), HOG, at_s=10))
    text_values = book.series[1].values.copy()
    book.advance(snapshot(HOG, at_s=50))  # the kernel's table has forgotten it by now
    assert [s.key[-1] for s in book.series] == ["hog", "web"]
    assert not book.series[1].alive
    assert (book.series[1].values == text_values).all()
    book.advance(snapshot(HOG, at_s=70))
    assert [s.key[-1] for s in book.series] == ["hog"]
    book.advance(snapshot(HOG, victim(id=9), at_s=80))
    assert book.series[1].values[book.layout.column("waits")] == 3


def test_what_the_reader_forgets_and_adds_to_id_0_is_not_counted_twice() -> None:
    nobody = {"id": 0, "name": "unknown", "kind": "unknown", "owner": "unknown", "alive": False}
    book = Book(Labels.parse())
    first = Group(
        8,
        "hog",
        {("cgroup", 7): 5 * MS, ("cgroup", 8): 2 * MS},
        waits=2,
        run_ns=100,
        buckets={(1024, 1152): 2},
    )
    kept = victim(cells={("cgroup", 8): 20 * MS, ("unknown", 0): 7}, run_ns=50, buckets={(1024, 1152): 3})
    before = Group(cells={("cgroup", 7): 1}, waits=1, run_ns=3, buckets={(1024, 1152): 1}, **nobody)  # type: ignore[arg-type]
    book.advance(snapshot(kept, first, before, at_s=1))
    sums = totals(book)
    folded = Group(
        cells={("cgroup", 7): 5 * MS + 1, ("unknown", 0): 2 * MS},
        waits=3,
        run_ns=103,
        buckets={(1024, 1152): 3},
        **nobody,  # type: ignore[arg-type]
    )
    later = victim(cells={("unknown", 0): 20 * MS + 7}, run_ns=50, buckets={(1024, 1152): 3})
    book.advance(snapshot(later, folded, at_s=2))
    assert (totals(book) == sums).all()
    assert book.corrections == 0


def test_a_restarted_container_goes_on_in_the_series_of_its_name() -> None:
    book = Book(Labels.parse("namespace,pod,container"), Limits(keep_s=60))
    names = {"namespace": "shop", "pod": "web-1", "container": "main"}
    book.advance(snapshot(victim(5, **names), at_s=0))
    book.advance(snapshot(victim(5, alive=False, **names), victim(2, id=70, **names), at_s=10))
    (series,) = book.series
    assert series.alive
    assert series.values[book.layout.column("waits")] == 3 * 5 + 3 * 2
    book.advance(snapshot(victim(3, id=70, **names), at_s=100))
    assert book.series[0].values[book.layout.column("waits")] == 3 * 5 + 3 * 3


def test_a_better_name_takes_over_from_that_moment_and_nothing_is_counted_twice() -> None:
    book = Book(Labels.parse(), Limits(keep_s=60))
    book.advance(snapshot(victim(4, name="pod 1234"), HOG, at_s=0))
    book.advance(snapshot(victim(6, name="shop/web"), HOG, at_s=10))
    waits = {s.key[-1]: int(s.values[0]) for s in book.series}
    assert waits == {"pod 1234": 12, "shop/web": 6, "hog": 2}
    assert int(totals(book)[0]) == 18 + 2


def test_those_that_wait_most_get_series_and_the_rest_adds_up_in_one_that_is_counted() -> None:
    book = Book(Labels.parse(), Limits(max_cgroups=10))
    first = crowd(50)
    book.advance(first)
    assert len(book.series) == 10
    assert book.overflow_cgroups == 40
    assert book.overflow_total == 40
    assert (totals(book) == fresh(first).sum(axis=0)).all()
    waits = fresh(first)[:, book.layout.column("wait_ns")]
    assert min(s.values[book.layout.column("wait_ns")] for s in book.series) >= np.sort(waits)[-10]
    book.advance(crowd(50, step=2))
    assert (totals(book) == fresh(crowd(50, step=2)).sum(axis=0)).all()
    assert book.overflow_total == 40


def test_when_room_comes_free_a_cgroup_leaves_the_overflow_and_neither_goes_back() -> None:
    book = Book(Labels.parse(), Limits(max_cgroups=1, keep_s=10))
    book.advance(snapshot(victim(9), HOG, at_s=0))
    assert (book.series[0].key[-1], book.overflow.values[0]) == ("web", 2)
    bigger = Group(8, "hog", {("cgroup", 7): 9 * MS}, waits=5)
    book.advance(snapshot(bigger, at_s=20))
    assert (book.series[0].key[-1], book.series[0].values[0]) == ("hog", 3)
    assert book.overflow.values[0] == 2
    assert book.overflow_cgroups == 0


def test_the_named_occupants_of_a_victim_are_bounded_and_all_add_up_to_foreign() -> None:
    book = Book(Labels.parse(), Limits(max_occupants=2))
    cells = {("cgroup", 20 + n): (n + 1) * MS for n in range(6)}
    others = [Group(20 + n, f"other-{n}", {}, waits=0, buckets={}) for n in range(6)]
    book.advance(snapshot(victim(1, cells=cells), *others))
    occupants = book.series[-1].occupants
    assert occupants == {"other-5": 6 * MS, "other-4": 5 * MS, REST: 10 * MS}
    assert sum(occupants.values()) == book.series[-1].values[book.layout.column("cause:foreign")]


def test_an_occupant_that_has_not_moved_for_long_makes_way_for_one_that_does() -> None:
    book = Book(Labels.parse(), Limits(max_occupants=1, keep_s=30))
    names = [Group(n, f"n{n}", {}, waits=0, buckets={}) for n in (20, 21)]
    book.advance(snapshot(victim(1, cells={("cgroup", 20): MS}), *names, at_s=0))
    cells = {("cgroup", 20): MS, ("cgroup", 21): MS}
    book.advance(snapshot(victim(2, cells=cells), *names, at_s=10))
    assert book.series[-1].occupants == {"n20": MS, REST: MS}
    cells = {("cgroup", 20): MS, ("cgroup", 21): 3 * MS}
    book.advance(snapshot(victim(3, cells=cells), *names, at_s=40))
    assert book.series[-1].occupants == {REST: MS, "n21": 2 * MS}


@pytest.mark.parametrize("word", [REST, OVERFLOW])
def test_nobody_can_pass_as_one_of_the_exporters_own_series(word: str) -> None:
    assert label_value(word) != word
    text = exposition(snapshot(victim(name=word), HOG))
    assert value(text, "labkit_waits_total", name=label_value(word)) == 3


events = st.lists(
    st.tuples(
        st.integers(2, 9), st.sampled_from(["grow", "anew", "die", "rename", "forget"]), st.integers(1, 5)
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(events)
def test_whatever_happens_no_exposed_counter_goes_back_while_it_is_there(
    steps: list[tuple[int, str, int]],
) -> None:
    groups = {n: victim(n, id=n, name=f"g{n}") for n in range(2, 5)}
    book = Book(Labels.parse(), Limits(max_cgroups=3, max_occupants=2, keep_s=30))
    seen: dict[tuple[str, ...], np.ndarray] = {}
    for now, (id_, what, scale) in enumerate(steps):
        old = groups.get(id_)
        if what == "grow" or old is None:
            more = (old.waits // 3 if old else 0) + scale
            groups[id_] = victim(more, id=id_, name=old.name if old else f"g{id_}")
        elif what == "anew":
            groups[id_] = victim(1, id=id_, name=old.name)
        elif what == "die":
            old.alive = False
        elif what == "rename":
            old.name = f"g{id_}-{scale}"
        else:
            del groups[id_]
        book.advance(snapshot(*groups.values(), at_s=now * 10.0))
        assert len(book.series) <= 3
        exposed = {s.key: s.values.copy() for s in book.exposed}
        for key, before in seen.items():
            if key in exposed:
                assert (exposed[key] >= before).all()
        seen = exposed
    assert book.corrections == 0


def test_verdicts_are_about_the_window_and_begin_anew_with_the_table() -> None:
    asked: list[Snapshot] = []

    def judge(interval: Snapshot) -> dict[int, object]:
        asked.append(interval)
        return {}

    turns = iter([victim(10), victim(12), victim(1), victim(3)])
    clock = iter([10.0, 40.0, 50.0, 60.0])
    exporter = Exporter(
        lambda: snapshot(next(turns), HOG, at_s=next(clock)),
        settings=Settings(min_interval_s=0),
        judge=judge,  # type: ignore[arg-type]
    )
    for _ in range(4):
        exporter.refresh()
    waits = [int(one.cgroups.set_index("cgroup_id").loc[7, "waits"]) for one in asked]
    assert waits == [30, 6, 3, 6]
    assert asked[1].seconds == 30

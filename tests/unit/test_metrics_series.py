"""Series from snapshots: exact, never going back, bounded, and removed in time."""

from __future__ import annotations

import numpy as np
import pytest
from exposition_reader import samples, value
from hypothesis import given, settings
from hypothesis import strategies as st
from series_maker import HOG, MS, fresh, totals, victim
from snapshot_maker import Group, snapshot

from labkit.errors import ParameterError
from labkit.metrics import Exporter, Labels, Limits, Settings, exposition
from labkit.metrics.labels import OVERFLOW, REST, label_value
from labkit.metrics.series import Book, Series
from labkit.metrics.table import CAUSES, Layout
from labkit.sched.state import Snapshot

ROOT = Group(1, "kernel threads", {}, waits=0, kind="root", owner="system", buckets={})


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


def test_a_new_series_is_shown_at_zero_once_somebody_scrapes() -> None:
    """Else rate() and increase() miss what it began with."""
    turns = iter([[HOG], [HOG, victim(2)], [HOG, victim(5)]])
    clock = iter([1.0, 2.0, 3.0])
    exporter = Exporter(lambda: snapshot(*next(turns), at_s=next(clock)), settings=Settings(min_interval_s=0))
    first = exporter.text()[0].decode()
    assert value(first, "labkit_waits_total", name="hog") == 2, "at the first scrape there is nothing to miss"
    second = exporter.text()[0].decode()
    of_web = {k: v for k, v in samples(second).items() if ("name", "web") in k[1]}
    assert {k[0] for k in of_web} >= {"labkit_waits_total", "labkit_runq_latency_seconds_bucket"}
    assert not any(v for k, v in of_web.items() if not k[0].startswith("labkit_verdict"))
    assert value(second, "labkit_runq_wait_by_occupant_seconds_total", name="web", occupant="hog") == 0
    third = exporter.text()[0].decode()
    assert value(third, "labkit_waits_total", name="web") == 15
    assert value(third, "labkit_runq_wait_by_occupant_seconds_total", name="web", occupant="hog") == 0.1


def test_a_new_occupant_of_an_old_series_begins_at_zero_too_and_waits_for_a_scrape_to_see_it() -> None:
    other = Group(9, "other", {}, waits=0, buckets={})
    turns = iter([{8: 1}, {8: 2, 9: 5}, {8: 3, 9: 6}, {8: 4, 9: 7}])
    clock = iter([1.0, 2.0, 3.0, 4.0])

    def take() -> Snapshot:
        cells = {("cgroup", n): ms * MS for n, ms in next(turns).items()}
        return snapshot(victim(1, cells=cells), HOG, other, at_s=next(clock))

    exporter = Exporter(take, settings=Settings(min_interval_s=0))
    exporter.text()
    exporter.refresh()  # nobody saw this
    metric = "labkit_runq_wait_by_occupant_seconds_total"
    third = exporter.text()[0].decode()
    assert value(third, metric, name="web", occupant="other") == 0
    assert value(third, metric, name="web", occupant="hog") == 0.003
    assert value(exporter.text()[0].decode(), metric, name="web", occupant="other") == 0.007


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


def _grown_in_all(book: Book, before: dict[int, tuple[Series, np.ndarray]]) -> np.ndarray:
    """What the exposed series grew by, those included that begin; of a series that left, nothing."""
    nothing = np.zeros(len(book.layout.columns), np.int64)
    return sum(
        (s.values - (before[id(s)][1] if id(s) in before else 0) for s in [*book.series, book.overflow]),
        nothing,
    )


@settings(max_examples=30, deadline=None)
@given(events)
def test_whatever_happens_no_exposed_counter_goes_back_while_it_is_there_and_nothing_is_lost(
    steps: list[tuple[int, str, int]],
) -> None:
    groups = {n: victim(n, id=n, name=f"g{n}") for n in range(2, 5)}
    book = Book(Labels.parse(), Limits(max_cgroups=3, max_occupants=2, keep_s=30))
    every = Book(
        Labels.parse(), Limits(max_cgroups=1000, max_occupants=1000, keep_s=1e9)
    )  # the same, unbounded
    # by identity: a series that was replaced and came back is another one, and begins anew
    seen: dict[int, tuple[Series, np.ndarray]] = {}
    all_seen: dict[int, tuple[Series, np.ndarray]] = {}
    named: dict[int, dict[str, int]] = {}
    foreign = book.layout.column("cause:foreign")
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
        if now % 3 == 2:
            book.shown()
        frozen = snapshot(*groups.values(), at_s=now * 10.0 + 1)
        book.advance(frozen)
        every.advance(frozen)
        assert len(book.series) <= 3
        assert (_grown_in_all(book, seen) == _grown_in_all(every, all_seen)).all(), "each growth is somewhere"
        for series in book.exposed:
            before = seen.get(id(series))
            if before is not None:
                assert (series.values >= before[1]).all()
            assert len(series.occupants.keys() - {REST}) <= 2
        for series in book.series:
            was = named.get(id(series), {})
            increase = sum(max(0, ns - was.get(who, 0)) for who, ns in series.occupants.items())
            since = seen[id(series)][1][foreign] if id(series) in seen else 0
            assert increase == series.values[foreign] - since, "occupants grow by what the foreign wait does"
        seen = {id(s): (s, s.values.copy()) for s in [*book.series, book.overflow]}
        all_seen = {id(s): (s, s.values.copy()) for s in [*every.series, every.overflow]}
        named = {id(s): dict(s.occupants) for s in book.series}
    assert book.corrections == 0


def test_verdicts_are_about_the_window_and_begin_anew_with_the_table() -> None:
    asked: list[Snapshot] = []

    def judge(interval: Snapshot, *_: object) -> dict[int, object]:
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

"""The writer against the client library's own, and that numbers are the same wherever they are shown."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from exposition_reader import samples
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from snapshot_maker import Group, crowd, snapshot

from labkit import histogram
from labkit.errors import ParameterError
from labkit.metrics import Exporter, Judgement, Labels, Limits, Settings, exposition
from labkit.metrics.judge import judged
from labkit.metrics.labels import label_value
from labkit.metrics.table import Layout
from labkit.metrics.text import write
from labkit.noisy import archive
from labkit.noisy.answer import Answer
from labkit.noisy.select import Selection
from labkit.noisy.watch import NOTED
from labkit.noisy.witnesses import Evidence, Reading, Task, _Member
from labkit.sched.rules import VERDICTS
from labkit.sched.state import Snapshot
from labkit.sched.verdict import verdicts

ROOT = Path(__file__).parents[2]
MS = 1_000_000


class _Given:
    def __init__(self, *families: Metric) -> None:
        self.families = families

    def collect(self) -> tuple[Metric, ...]:
        return self.families


def _both(*families: Metric) -> None:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(*families))  # type: ignore[arg-type]
    assert write(families) == generate_latest(registry)
    assert write(families, openmetrics=True) == generate_openmetrics(registry)


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=30).filter(lambda t: t.isprintable() or "\n" in t),
    st.floats(allow_nan=True),
    st.integers(0, 2**62),
)
def test_it_writes_what_the_client_library_writes(text: str, number: float, count: int) -> None:
    counter = CounterMetricFamily("a", f"help {text}", labels=["b", "a_first"])
    counter.add_metric([text, "x"], number)
    gauge = GaugeMetricFamily("g", "no labels", value=count)
    histogram = HistogramMetricFamily("h_seconds", "h", labels=["name"])
    histogram.add_metric([text], [("1e-06", 1), ("+Inf", count)], sum_value=number)
    info = InfoMetricFamily("i", "info", value={"k": text})
    _both(counter, gauge, histogram, info)


def test_a_whole_exposition_is_what_the_client_library_would_write() -> None:
    exporter = Exporter(lambda: crowd(60))
    exporter.refresh()
    _both(*exporter.collect())


def test_exporter_data_frames_and_answer_say_the_same_of_one_frozen_state() -> None:
    frozen = snapshot(
        Group(7, "web", {("cgroup", 8): 400 * MS, ("cgroup", 7): 3, ("throttled", 0): 20 * MS, ("idle", 0): 5}, waits=90,
              involuntary=41, run_ns=500 * MS),
        Group(8, "hog", {("cgroup", 7): 33 * MS}, waits=70, involuntary=70, run_ns=900 * MS),
        Group(1, "kernel threads", {("steal", 0): 1, ("unknown", 0): 2}, waits=2, kind="root", owner="system"),
        lost=3,
        at_s=1.0,
    )  # fmt: skip
    answer = json.loads(Answer.from_snapshot(frozen).as_json())
    found = samples(exposition(frozen, judged(frozen), settings=Settings(Labels.parse("name"))))
    rows = frozen.cgroups.merge(frozen.names, on="cgroup_id").set_index("name")
    assert {one["name"] for one in answer["cgroups"]} == {"web", "hog", "kernel threads"}
    for one in answer["cgroups"]:
        name = ("name", one["name"])
        for cause, ns in one["wait_by_cause"].items():
            assert found["labkit_runq_wait_seconds_total", frozenset([name, ("cause", cause)])] == ns / 1e9
        assert found["labkit_runq_latency_seconds_sum", frozenset([name])] == one["wait_ns"] / 1e9
        assert one["wait_ns"] == rows.loc[one["name"], "wait_ns"]
        assert found["labkit_involuntary_switches_total", frozenset([name])] == one["involuntary_switches"]
        assert found["labkit_waits_total", frozenset([name])] == rows.loc[one["name"], "waits"]
        assert found["labkit_cpu_seconds_total", frozenset([name])] == rows.loc[one["name"], "run_ns"] / 1e9
        holds = {
            dict(k[1])["verdict"] for k, v in found.items() if k[0] == "labkit_verdict" and name in k[1] and v
        }
        assert holds == {one["verdict"]}
        confidence = found["labkit_verdict_confidence_ratio", frozenset([name])]
        assert round(confidence, 3) == one["confidence"]
        foreign = one["wait_by_cause"]["foreign"]
        for blamed in one["blame"]:
            occupant = found[
                "labkit_runq_wait_by_occupant_seconds_total", frozenset([name, ("occupant", blamed["name"])])
            ]
            assert round(occupant * 1e9 / foreign, 6) == blamed["share"]
    assert (
        found["labkit_events_lost_total", frozenset([("reason", "map_full")])]
        == answer["ledger"]["losses"]["map_full"]
    )
    assert found["labkit_events_seen_total", frozenset()] == answer["ledger"]["seen"]
    per_switch = found["labkit_program_seconds_per_switch", frozenset()] * 1e9
    assert per_switch == pytest.approx(answer["cost"]["ns_per_switch"])
    assert any(v.verdict == "noisy_neighbor" for v in verdicts(frozen)), "the state says something"


RECORDINGS = sorted(ROOT.glob("captures/**/*.noisy"))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_of_each_recording_the_exporter_says_what_its_answer_in_json_says(path: Path) -> None:
    """Waits, causes, counts, blame, quantiles, verdict and confidence: one definition, whoever asks."""
    loaded = archive.load(path)
    # Those that had died have no path any more, and a name may be there twice: each gets its id for a path.
    names = loaded.snapshot.names
    names = names.assign(cgroup=("/" + names["cgroup_id"].astype("str")).astype("str"))
    recording = archive.Recording(replace(loaded.snapshot, names=names), loaded.evidence, Selection())
    answer = json.loads(recording.answer().as_json())
    limits = Limits(max_cgroups=10_000, max_occupants=10_000)
    found = samples(
        exposition(
            recording.snapshot,
            judged(recording.snapshot, recording.evidence),
            settings=Settings(Labels.parse("cgroup,name"), limits, Layout(8)),
        )
    )
    frame = recording.snapshot.histograms
    assert len(answer["cgroups"]) == len(recording.snapshot.cgroups) >= 2
    compared = 0
    for one in answer["cgroups"]:
        who = {("cgroup", one["cgroup"]), ("name", label_value(one["name"]))}

        def value(sample: str, who: set[tuple[str, str]] = who, **more: str) -> float:
            return found[sample, frozenset({*who, *more.items()})]

        for cause, ns in one["wait_by_cause"].items():
            assert value("labkit_runq_wait_seconds_total", cause=cause) == ns / 1e9
        assert value("labkit_runq_latency_seconds_sum") == one["wait_ns"] / 1e9
        assert value("labkit_involuntary_switches_total") == one["involuntary_switches"]
        verdicts_of = {
            dict(k[1])["verdict"]: v for k, v in found.items() if k[0] == "labkit_verdict" and who <= k[1]
        }
        assert verdicts_of == {name: float(name == one["verdict"]) for name in VERDICTS}
        assert round(value("labkit_verdict_confidence_ratio"), 3) == one["confidence"]
        for blamed in one["blame"]:
            held = sum(
                v
                for k, v in found.items()
                if k[0] == "labkit_runq_wait_by_occupant_seconds_total"
                and {*who, ("occupant", label_value(blamed["name"]))} <= k[1]
            )
            of_that_name = sum(b["share"] for b in one["blame"] if b["name"] == blamed["name"])
            assert held * 1e9 / one["wait_by_cause"]["foreign"] == pytest.approx(of_that_name, abs=2e-6)
        buckets = {
            float(dict(k[1])["le"]): v
            for k, v in found.items()
            if k[0] == "labkit_runq_latency_seconds_bucket" and who <= k[1]
        }
        mine = frame[frame["cgroup_id"] == int(one["cgroup"][1:])].sort_values("lo")
        assert buckets[float("inf")] == mine["count"].sum()
        for q, said in ((0.5, one["p50_ns"]), (0.99, one["p99_ns"])):
            if not len(mine):
                assert said == 0
            elif (
                1 << 11 < (true_ns := histogram.quantile(mine, q)) < 1 << 33
            ):  # beyond, the exporter's buckets end
                asked_ns = promql_quantile(buckets, q) * 1e9
                assert asked_ns == pytest.approx(true_ns, rel=1e-6)
                # PromQL interpolates within a bucket, the answer gives its middle: it is the same bucket
                (lo, hi), *_ = mine.loc[(mine["lo"] <= said) & (said < mine["hi"]), ["lo", "hi"]].to_numpy()
                assert lo * (1 - 1e-9) <= asked_ns <= hi * (1 + 1e-9)
                compared += 1
    assert compared > 2
    ledger = recording.snapshot.ledger
    assert found["labkit_events_seen_total", frozenset()] == answer["ledger"]["seen"] == ledger.seen
    assert found["labkit_events_delivered_total", frozenset()] == answer["ledger"]["delivered"]
    assert found["labkit_events_unseen", frozenset()] == answer["ledger"]["unseen"]


def promql_quantile(buckets: dict[float, float], q: float) -> float:
    """histogram_quantile, as promql/quantile.go computes it."""
    bounds = sorted(buckets)
    rank = q * buckets[float("inf")]
    above = next(n for n, bound in enumerate(bounds) if buckets[bound] >= rank)
    lower = bounds[above - 1] if above else 0.0
    before = buckets[bounds[above - 1]] if above else 0.0
    return lower + (bounds[above] - lower) * (rank - before) / (buckets[bounds[above]] - before)


def test_a_cgroup_that_did_not_wait_is_quiet_and_not_without_a_verdict() -> None:
    busy = Group(7, "web", {("cgroup", 8): 900 * MS}, waits=90)
    idle = Group(8, "calm", {}, waits=0, run_ns=7 * MS, buckets={})
    found = samples(exposition(frozen := snapshot(busy, idle, at_s=1.0), judged(frozen)))
    of_calm = {
        dict(k[1])["verdict"]: v
        for k, v in found.items()
        if k[0] == "labkit_verdict" and ("name", "calm") in k[1]
    }
    assert of_calm == {name: float(name == "quiet") for name in VERDICTS}


def test_one_that_does_nothing_in_the_window_is_quiet_from_the_next_turn_on() -> None:
    turns = iter([(1.0, 1), (61.0, 1), (122.0, 1)])

    def take() -> Snapshot:
        at_s, scale = next(turns)
        web = Group(7, "web", {("cgroup", 8): scale * 600 * MS}, waits=90)
        return snapshot(web, Group(8, "hog", {}, waits=0, run_ns=int(at_s * 1e9), buckets={}), at_s=at_s)

    exporter = Exporter(take, settings=Settings(min_interval_s=0), judge=judged)
    said = []
    for _ in range(3):
        exporter.refresh()
        found = samples(write(exporter.collect()).decode())
        said += [
            dict(k[1])["verdict"]
            for k, v in found.items()
            if k[0] == "labkit_verdict" and ("name", "web") in k[1] and v
        ]
    assert said == ["noisy_neighbor", "quiet", "quiet"]


def test_a_scrape_does_not_judge_and_a_verdict_that_fails_is_counted() -> None:
    asked: list[Snapshot] = []

    def judge(interval: Snapshot, *_: object) -> dict[int, Judgement]:
        asked.append(interval)
        raise KeyError("no such cgroup")

    exporter = Exporter(lambda: crowd(3), settings=Settings(min_interval_s=0), judge=judge)
    exporter.text()
    assert not asked
    exporter.refresh()
    assert len(asked) == 1
    found = samples(exporter.text()[0].decode())
    assert found["labkit_errors_total", frozenset([("reason", "verdict")])] == 1
    assert found["labkit_errors_total", frozenset([("reason", "snapshot")])] == 0, "known reasons begin at 0"
    assert len(asked) == 1


def test_the_evidence_of_the_window_reaches_the_judge() -> None:
    """The counters of both its ends: confidence is held against what they grew by, as in an answer."""
    given: list[Evidence] = []

    def judge(_interval: Snapshot, evidence: Evidence, _members: object) -> dict[int, Judgement]:
        given.append(evidence)
        return {}

    def witness(interval: Snapshot) -> Reading:
        so_far = len(given) + 1
        task = Task(10**9 * so_far, 10**6 * so_far, 5 * so_far, 2 * so_far, 0, 0)
        return Reading({100: _Member({42: task}, None, ())}, complete=True)

    turn = itertools.count(1)
    exporter = Exporter(
        lambda: crowd(3, step=next(turn)),
        settings=Settings(min_interval_s=0),
        judge=judge,
        witness=witness,
    )
    exporter.refresh()
    exporter.refresh()
    assert given[1].oracles[["cgroup_id", "run_delay_ns", "timeslices"]].values.tolist() == [[100, 10**6, 5]]


def test_all_that_is_incomplete_is_exposed_and_how_full_the_tables_are() -> None:
    found = samples(exposition(snapshot(Group(7, "web", {("idle", 0): 5}), lost=3)))
    incomplete = {
        dict(k[1])["reason"]: v for k, v in found.items() if k[0] == "labkit_events_incomplete_total"
    }
    assert incomplete == {
        "missed_waits": 3,
        "reconstructed": 0,
        "cgroups_full": 1,
        "cells_full": 2,
        "slots_full": 0,
        "beyond_log": 0,
        "evicted": 0,
    }
    assert found["labkit_missed_wait_seconds_total", frozenset()] == 0.005
    assert found["labkit_table_entries", frozenset([("table", "cells")])] == 5
    assert found["labkit_table_entries_limit", frozenset([("table", "cells")])] == 16384
    assert found["labkit_map_bytes", frozenset()] == 22_000_000


def test_every_count_of_the_programs_own_ledger_reaches_a_metric() -> None:
    """A member that is added to the program must be exposed, or named here with where it is."""
    text = (ROOT / "bpf/noisy_neighbor.c").read_text()
    body = text[text.index("struct lk_noisy_ledger {") :]
    members = set(re.findall(r"u64 (\w+);", body[: body.index("};")]))
    elsewhere = {"seen", "delivered", "unqueued", "clock_backwards", "unseen", "calls", "migrations"}
    assert members - elsewhere == set(NOTED)


def test_of_two_cgroups_in_one_series_the_one_that_waits_more_speaks() -> None:
    same = [Group(n, "web", {("idle", 0): n * MS}) for n in (5, 6)]
    text = exposition(snapshot(*same), {5: Judgement("quiet", 1.0, 5), 6: Judgement("system", 0.5, 6)})
    assert 'verdict="system"} 1.0' in text
    assert 'verdict="quiet"} 0.0' in text


# -- labels, and the document --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no labels"),
        ("1a", "no label name"),
        ("__name__=name", "no label name"),
        ("app.kubernetes.io/name", "no label name"),
        ("le=name", "themselves"),
        ("cause=name", "themselves"),
        ("name,name", "twice"),
        ("comm", "nothing called"),
        ("a=pod_label:", "nothing called"),
    ],
)
def test_labels_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Labels.parse(text)


def test_a_label_can_be_taken_from_elsewhere_and_called_otherwise() -> None:
    labels = Labels.parse("ns=namespace, app=pod_label:app.kubernetes.io/name")
    assert labels.names == ("ns", "app")
    assert labels.pod_labels == ("app.kubernetes.io/name",)


def test_the_document_lists_every_metric_and_no_other() -> None:
    exporter = Exporter(lambda: crowd(3))
    exporter.refresh()
    suffix = {"counter": "_total", "info": "_info"}
    exposed = {family.name + suffix.get(family.type, "") for family in exporter.collect()}
    listed = set(
        re.findall(r"^\| `(labkit_[a-z_0-9]+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    )
    of_kubernetes = {name for name in listed if name.startswith("labkit_kubernetes_")}
    assert listed - of_kubernetes == exposed


def test_how_many_series_a_node_has_is_what_the_document_says() -> None:
    exporter = Exporter(lambda: crowd(250), judge=judged)
    exporter.refresh()
    samples = [line for line in exporter.text()[0].splitlines() if not line.startswith(b"#")]
    said = re.search(r"at most ([\d,]+) on a node", (ROOT / "docs/metrics.md").read_text())
    assert said
    assert 0.95 * len(samples) < int(said[1].replace(",", "")) < 1.05 * len(samples)

"""The writer against the client library's own, files, and that numbers are the same wherever they are shown."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import pandas as pd
import pytest
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
from prometheus_client.parser import text_string_to_metric_families
from snapshot_maker import Group, crowd, snapshot

from labkit.errors import MissingCapture, OutcomesError, ParameterError
from labkit.metrics import Exporter, Judgement, Labels, Settings, exposition
from labkit.metrics.files import Parquet, read_snapshots, write_textfile
from labkit.metrics.judge import judged
from labkit.metrics.text import write
from labkit.noisy.answer import Answer
from labkit.sched.state import SCHEMAS
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


def _samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


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
    found = _samples(exposition(frozen, judged(frozen), settings=Settings(Labels.parse("name"))))
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


def test_of_two_cgroups_in_one_series_the_one_that_waits_more_speaks() -> None:
    same = [Group(n, "web", {("idle", 0): n * MS}) for n in (5, 6)]
    text = exposition(snapshot(*same), {5: Judgement("quiet", 1.0, 5), 6: Judgement("system", 0.5, 6)})
    assert 'verdict="system"} 1.0' in text
    assert 'verdict="quiet"} 0.0' in text


# -- files ---------------------------------------------------------------------------------------------------------------


def test_a_textfile_is_replaced_whole_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "labkit.prom"
    write_textfile(path, b"old 1\n")
    write_textfile(path, b"new 2\n")
    assert path.read_bytes() == b"new 2\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["labkit.prom"], "nothing half-written is left"


def test_a_textfile_that_cannot_be_written_says_so_and_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"\.prom"):
        write_textfile(tmp_path / "labkit.txt", b"")
    with pytest.raises(OutcomesError, match="cannot write"):
        write_textfile(tmp_path / "none" / "labkit.prom", b"")


def test_what_goes_to_node_exporter_has_none_of_its_own_names() -> None:
    exporter = Exporter(lambda: crowd(3))
    exporter.refresh()
    assert not {f.name for f in exporter.collect() if not f.name.startswith("labkit_")}
    assert b"process_cpu_seconds_total" in exporter.text()[0]


def test_snapshots_come_back_as_they_were_in_order_and_the_oldest_go(tmp_path: Path) -> None:
    parquet = Parquet(tmp_path, keep=2)
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    for step in (1, 2, 3):
        parquet.write(crowd(4, step=step), now=start + datetime.timedelta(seconds=step))
    for name, schema in SCHEMAS.items():
        frame = read_snapshots(tmp_path, name)
        assert frame["taken"].is_monotonic_increasing
        assert frame["seconds"].unique().tolist() == [30.0, 45.0]
        expected = pd.concat([getattr(crowd(4, step=s), name) for s in (2, 3)], ignore_index=True)
        pd.testing.assert_frame_equal(frame[list(schema)], expected)
    assert read_snapshots(tmp_path, "ledger")["count"].min() == 0
    with pytest.raises(MissingCapture):
        read_snapshots(tmp_path / "elsewhere", "cells")
    with pytest.raises(ParameterError):
        Parquet(tmp_path, keep=0)


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

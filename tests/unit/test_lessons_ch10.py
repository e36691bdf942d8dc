"""Exercises of chapter 10: typical answers, right and wrong, on what ships as its capture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from labkit.errors import ParameterError
from labkit.lessons import Feedback, exercises
from labkit.lessons.ch10 import Stage, foreign, mode_with_prometheus, samples, table
from labkit.metrics.prometheus import PrometheusError
from labkit.notebook_io import read_solutions
from labkit.paths import notebooks_dir
from labkit.session import chapter
from labkit.workloads import scenario

WHO = "labkit_runq_wait_by_occupant_seconds_total"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the chapter's cells know, replayed."""
    lab = chapter("10_metrics", "replay")
    stage = Stage(lab)
    victim = stage.run(scenario("hog")).cgroups.set_index("role").loc["service"]
    scraped = samples(stage.scrape())
    service = victim["cgroup"]
    mine = scraped[scraped["name"] == service]
    graph = stage.ask_over_time("graph", "")
    return {
        "stage": stage,
        "scraped": scraped,
        "service": service,
        "mine": mine,
        "graph": graph,
        "victim": victim,
    }


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("10")[number - 1].check(answer, context)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_shipped_solutions_are_right(number: int, names: dict[str, Any]) -> None:
    section = read_solutions(notebooks_dir() / "solutions" / "10_metrics.py")[f"10.{number}"]
    known = dict(names)
    exec(section.split("lk.check")[0], known)
    assert judge(number, known["answer"], **names).passed


@pytest.mark.parametrize(
    ("number", "answer", "word"),
    [
        (1, -50, "started anew"),
        (1, 90, "between its restart"),
        (1, "110", "number"),
        (3, 7, "as text"),
        (3, "rate(labkit_waits_total[1m])", "label `occupant`"),
        (3, f"topk(1, {WHO})", "rate"),
        (3, f"rate({WHO}[1m])", "largest"),
        (4, 200_000, "_sum"),
        (4, 216, "size"),
    ],
)
def test_a_typical_mistake_is_named(number: int, answer: Any, word: str, names: dict[str, Any]) -> None:
    feedback = judge(number, answer, **names)
    assert not feedback.passed
    assert word in feedback.message


def test_waits_up_to_the_bound_are_not_those_beyond_it(names: dict[str, Any]) -> None:
    mine = names["mine"]
    buckets = mine[mine["sample"] == "labkit_runq_latency_seconds_bucket"].set_index("le")["value"]
    assert "up to the bound" in judge(2, float(buckets["0.004194304"]), **names).message


class Answering:
    """Stands for a Prometheus in the check of 10.3 only: it gives the frames it is told to."""

    def __init__(self, found: pd.DataFrame | None) -> None:
        self.found = found

    def query(self, _: str) -> pd.DataFrame:
        if self.found is None:
            raise PrometheusError("Prometheus refuses the question", why="parse error")
        return self.found


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (None, "parse error"),
        (pd.DataFrame({"value": [1.0]}), "with the label"),
        (pd.DataFrame({"occupant": ["a", "b"], "value": [1.0, 2.0]}), "2 series"),
        (pd.DataFrame({"occupant": ["somebody"], "value": [1.0]}), "somebody"),
    ],
)
def test_live_the_answer_of_prometheus_is_judged(
    found: pd.DataFrame | None, word: str, names: dict[str, Any]
) -> None:
    stage = SimpleNamespace(prometheus=Answering(found))
    assert word in judge(3, f"topk(1, rate({WHO}[1m]))", stage=stage, graph=names["graph"]).message


def test_what_was_recorded_agrees_at_every_station(names: dict[str, Any]) -> None:
    maps = names["stage"].frames()
    row = maps["cgroups"].set_index("cgroup_id").loc[names["victim"]["cgroup_id"]]
    others = foreign(maps, names["victim"]["cgroup_id"])
    mine = names["mine"]
    said = mine[(mine["sample"] == "labkit_runq_wait_seconds_total") & (mine["cause"] == "foreign")][
        "value"
    ].sum()
    assert round(said * 1e9) == others["wait_ns"].sum() > 0
    assert row["wait_ns"] >= others["wait_ns"].sum()
    assert others["name"].iloc[0] == "hog"


def test_the_largest_difference_stands_in_the_table() -> None:
    assert table({"x": {"a": 1.0, "b": 1.5}, "y": {"a": 2.0}})["apart"].tolist() == [0.5, 0.0]


def test_without_a_prometheus_auto_is_replay_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(**_: Any) -> None:
        raise PrometheusError("there is none", why="no apt")

    monkeypatch.setattr("labkit.lessons.ch10.binaries", none)
    assert mode_with_prometheus("auto") == "replay"
    assert "no apt" in capsys.readouterr().out
    assert mode_with_prometheus("live") == "live"
    with pytest.raises(ParameterError):
        chapter("10_metrics", mode_with_prometheus("sometimes"))

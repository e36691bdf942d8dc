"""Exercises of chapter 10: typical answers, right and wrong, on what ships as its capture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import labkit as lk
from labkit.errors import ParameterError
from labkit.lessons import Feedback, exercises
from labkit.lessons.ch10 import Stage, foreign, mode_with_prometheus, samples, table
from labkit.lessons.counters import BURSTS, exposed, judge_scrapes
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
        "lk": lk,
        "lab": lab,
        "course": stage.ask_over_time("course", ""),
        "others": foreign(stage.frames(), victim["cgroup_id"]),
        "stage": stage,
        "scraped": scraped,
        "service": service,
        "mine": mine,
        "graph": graph,
        "victim": victim,
    }


def judge(number: int, answer: Any, **context: Any) -> Feedback:
    return exercises("10")[number - 1].check(answer, context)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7])
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
        (5, 7, "lk.write_program"),
        (6, 7, "Axes"),
        (7, "0.03", "number"),
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


SETTLED_S = 1234.5


class Answering:
    """Stands for a Prometheus in the check of 10.3 only: it gives the frames it is told to."""

    def __init__(self, found: pd.DataFrame | None) -> None:
        self.found = found

    def query(self, _: str, *, at_s: float) -> pd.DataFrame:
        assert at_s == SETTLED_S, "asked now, minutes after the workload, it would find nothing"
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
    stage = SimpleNamespace(prometheus=Answering(found), settled_s=SETTLED_S)
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

    monkeypatch.setattr("labkit.lessons.stage.binaries", none)
    assert mode_with_prometheus("auto") == "replay"
    assert "no apt" in capsys.readouterr().out
    assert mode_with_prometheus("live") == "live"
    with pytest.raises(ParameterError):
        chapter("10_metrics", mode_with_prometheus("sometimes"))


# -- 10.5: a counter of one's own --------------------------------------------------------------------------------------

AFTER = "    entry->last_ns = now;\n"


def written(statement: str, member: str = "u64 bytes;") -> Any:
    change = {"    u64 last_ns;\n": f"    u64 last_ns;\n    {member}\n", AFTER: AFTER + statement}
    return lk.write_program("syscall_counts", change=change)


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (lk.write_program("syscall_counts", change={}), "nothing was replaced"),
        (lk.write_program("syscall_counts", change={"not there": ""}), "could not be made"),
        (lk.write_program("syscall_counts", change={AFTER: AFTER + "    entry->bytes++;\n"}), "no member"),
        (written("    entry->bytes += third_argument;\n", "u32 bytes;"), "full after some gigabytes"),
        (written(""), "Nothing adds"),
        (written("    if (nr == LK_NR_write)\n        entry->bytes += third_argument;\n"), "one is lost"),
        (
            written("    if (nr == LK_NR_write)\n        entry->bytes = entry->bytes + third_argument;\n"),
            "one is lost",
        ),
        (written("    entry->bytes += third_argument;\n"), "third argument"),
    ],
    ids=[
        "as it was",
        "no such place",
        "no member",
        "u32",
        "never added to",
        "not atomic",
        "in long words",
        "all",
    ],
)
def test_c_that_cannot_be_the_counter_is_told_why(answer: Any, word: str, names: dict[str, Any]) -> None:
    feedback = judge(5, answer, **names)
    assert not feedback.passed
    assert word in feedback.message


def scrapes(told: list[dict[str, int]]) -> list[tuple[pd.DataFrame, int]]:
    """What is scraped after each burst when the table's `bytes` are so many by the number of the call."""
    found, truth = [], 0
    for burst, by_call in zip(BURSTS, told, strict=True):
        truth += sum(burst)
        rows = [
            {"tgid": 7, "nr": int(nr), "calls": 1, "comm": "writer", "bytes": n} for nr, n in by_call.items()
        ]
        found.append((samples(exposed(pd.DataFrame(rows))), truth))
    return found


SUMS = np.cumsum([sum(burst) for burst in BURSTS]).tolist()


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ([{"1": burst[-1]} for burst in BURSTS], "never goes back"),
        ([{"1": n, "0": 2 * n} for n in SUMS], "third argument"),
        ([{"1": 0, "0": 0} for _ in SUMS], "stays 0"),
        ([{"1": n} for n in np.cumsum([len(burst) for burst in BURSTS]).tolist()], "those are the calls"),
        ([{"1": n - 1} for n in SUMS], "written were"),
        ([{"1": n % 2**32} for n in SUMS], "as 32 bits do"),
        ([{"1": 8 * n} for n in SUMS], "written were"),
    ],
    ids=["the last", "reads too", "never", "calls", "one short", "full", "bits"],
)
def test_a_scraped_counter_that_is_another_one_is_told_from_the_right_one(
    told: list[dict[str, int]], word: str
) -> None:
    feedback = judge_scrapes(scrapes(told), nr="1")
    assert not feedback.passed
    assert word in feedback.message


def test_the_right_counter_is_right_whatever_else_is_scraped() -> None:
    assert judge_scrapes(scrapes([{"1": n, "0": 0} for n in SUMS]), nr="1").passed


def test_processes_of_one_name_are_one_series() -> None:
    counts = pd.DataFrame({"tgid": [1, 2], "nr": [1, 1], "calls": [3, 4], "comm": ["a", "a"]})
    assert samples(exposed(counts))["value"].tolist() == [7.0]


# -- 10.6, 10.7: the graph ----------------------------------------------------------------------------------------------


def drawn(x: Any, y: Any, *, named: bool = True) -> Any:
    ax = plt.subplots()[1]
    ax.plot(x, y)
    if named:
        ax.set(xlabel="seconds", ylabel="waits per second")
    plt.close(ax.figure)
    return ax


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda value: value, "counter itself"),
        (lambda value: value.diff(10), "in five seconds"),
        (lambda value: value.diff(), "half a second"),
        (lambda value: value.diff() * 2, "half a second"),
        (lambda value: value.diff(5) / 5, "two and a half"),
        (lambda value: value.diff(10) / 10, "not the increase"),
        (lambda value: value.rolling(10).mean(), "not the increase"),
    ],
)
def test_a_line_that_is_no_rate_is_told_what_it_is(make: Any, word: str, names: dict[str, Any]) -> None:
    course = names["course"]
    feedback = judge(6, drawn(course["seconds"], make(course["value"])), **names)
    assert not feedback.passed
    assert word in feedback.message


def test_a_rate_over_row_numbers_or_without_names_of_axes_is_not_yet_a_graph(names: dict[str, Any]) -> None:
    course = names["course"]
    rate = course["value"].diff(10) / 5
    assert "moments" in judge(6, drawn(range(len(course)), rate), **names).message
    assert "unit" in judge(6, drawn(course["seconds"], rate, named=False), **names).message
    assert "Axes" in judge(6, plt.figure(), **names).message
    plt.close("all")
    assert judge(6, drawn(course["seconds"], rate), **names).passed
    whole = drawn(course["seconds"][10:], rate[10:])
    assert judge(6, whole, **names).passed, "without the rows that have no five seconds before them"


def test_the_window_of_a_rate_is_what_it_is_divided_by(names: dict[str, Any]) -> None:
    graph, others = names["graph"], names["others"]
    waited_s = others.loc[others["name"] == "hog", "wait_ns"].sum() / 1e9
    peak = graph.loc[graph["occupant"] == "hog", "value"].max()
    for answer, word in ((peak, "whole window"), (waited_s, "in all"), (waited_s / 5, "to divide by")):
        feedback = judge(7, float(answer), **names)
        assert not feedback.passed
        assert word in feedback.message
    assert judge(7, waited_s / 60, **names).passed


# -- the moment that all stations are asked about ------------------------------------------------------------------------


class Scraping:
    """Stands for a Prometheus that scrapes, in this order: (when, waits, sum of the waits)."""

    def __init__(self, *scrapes: tuple[float, float, float]) -> None:
        self.scrapes = list(scrapes)

    def until(self, holds: Any, **_: Any) -> Any:
        while not (found := holds()):
            self.scrapes.pop(0)
        return found

    def query(self, expression: str, *, at_s: float | None = None) -> pd.DataFrame:
        when, waits, total = self.scrapes[0]
        if expression.startswith("timestamp"):
            return pd.DataFrame({"name": ["/svc"], "value": [when]})
        assert at_s == when
        return pd.DataFrame(
            {
                "__name__": ["labkit_waits_total", "labkit_runq_latency_seconds_sum"],
                "name": ["/svc", "/svc"],
                "value": [waits, total],
            }
        )


FROZEN = (
    "# HELP labkit_waits_total .\n# TYPE labkit_waits_total counter\n"
    'labkit_waits_total{name="/svc"} 7.0\nlabkit_waits_total{name="/other"} 9.0\n'
    "# HELP labkit_runq_latency_seconds .\n# TYPE labkit_runq_latency_seconds histogram\n"
    'labkit_runq_latency_seconds_bucket{name="/svc",le="+Inf"} 7.0\n'
    'labkit_runq_latency_seconds_count{name="/svc"} 7.0\nlabkit_runq_latency_seconds_sum{name="/svc"} 0.5\n'
)


def test_a_scrape_that_came_before_all_stood_still_is_not_taken_for_the_end(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(names["lab"])
    monkeypatch.setattr(stage, "_fetch", lambda: FROZEN)
    early, half_way, late = (100.0, 7.0, 0.5), (101.0, 7.0, 0.4), (102.0, 7.0, 0.5)
    stage._settle(Scraping(early, half_way, late), 100.0, ["/svc"])  # type: ignore[arg-type]
    assert stage.settled_s == 102.0

"""A real Prometheus scrapes a live exporter while known contention runs: PromQL, rules, alerts and the dashboard."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import yaml
from served import served

from labkit import histogram, workloads
from labkit.metrics import Exporter, Labels, Limits, Settings
from labkit.metrics.judge import judged
from labkit.metrics.prometheus import (
    Prometheus,
    PrometheusError,
    binaries,
    quickened,
    rules_file,
)
from labkit.metrics.prometheus import _free_port as free_port
from labkit.metrics.server import MetricsServer
from labkit.metrics.table import Layout
from labkit.noisy.watch import Watch
from labkit.sched.state import Snapshot
from labkit.workloads import scenario

pytestmark = [pytest.mark.live, pytest.mark.needs("cgroups"), pytest.mark.timeout(300)]

SECONDS = 18.0  # the longest `for` of an alert is ten (quickened) minutes, after a window of five
#: Five minutes become five seconds, so that rules and alerts can be watched while a scenario runs.
FACTOR = 60
ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "dashboards" / "noisy-neighbor.json"


#: What each role is called, as if the cgroups were those of pods: namespace, pod, container.
PODS = {"service": ("shop", "web-1", "main"), "hog": ("batch", "job-1", "main")}


@dataclass
class Period:
    """One scenario: when it ran, the paths of its cgroups by role, and what the exporter knew when it was over.

    :param scraped_s: the moment of a scrape after its end, while its processes stood parked.
    :param tombstone_s: of one after its cgroups were gone.
    """

    began_s: float
    ended_s: float
    scraped_s: float
    cgroups: dict[str, str]
    after: Snapshot
    tombstone_s: float = 0.0


@dataclass
class Observed:
    """What was watched; Prometheus still runs and can be asked about it.

    :param managed: another one, which keeps the label ``namespace`` for the exporter's own, as Google's does.
    """

    prometheus: Prometheus
    managed: Prometheus
    periods: dict[str, Period] = field(default_factory=dict)

    def ask(self, expression: str, scenario: str, *, after: bool = False) -> pd.DataFrame:
        """At the end of the scenario, or at the first scrape after it; VICTIM stands for its service."""
        period = self.periods[scenario]
        victim = f'name="{period.cgroups["service"]}"'
        at_s = period.scraped_s if after else period.ended_s
        return self.prometheus.query(expression.replace("VICTIM", victim), at_s=at_s)

    def value(self, expression: str, scenario: str, *, after: bool = False) -> float:
        found = self.ask(expression, scenario, after=after)
        assert len(found) == 1, (expression, found)
        return float(found["value"].iloc[0])

    def fired(self, scenario: str) -> set[str]:
        """Alerts about the service that fired while the scenario ran."""
        seconds = int(SECONDS) + 1
        found = self.ask(f'max_over_time(ALERTS{{alertstate="firing", VICTIM}}[{seconds}s])', scenario)
        return set(found["alertname"]) if len(found) else set()


def tools() -> tuple[Path, Path]:
    try:
        return binaries(fetch=True)
    except PrometheusError as error:
        pytest.skip(str(error))


def as_pods(names: pd.DataFrame) -> pd.DataFrame:
    """The names with those of pods, as the Kubernetes API would have given them to the workload's cgroups."""
    found = names.copy()
    for role, parts in PODS.items():
        mine = found["cgroup"].str.match(rf"/labkit-.*/{role}$")
        for column, part in zip(("namespace", "pod", "container"), parts, strict=True):
            found[column] = found[column].where(~mine, part)
    return found


def scraped_since(prometheus: Prometheus, path: str, moment_s: float) -> float:
    """The moment of a scrape after this one; waits for it."""

    def later() -> float:
        found = prometheus.query(f'timestamp(labkit_waits_total{{name="{path}"}})')
        at_s = float(found["value"].iloc[0]) if len(found) else 0.0
        return at_s if at_s > moment_s else 0.0

    return float(prometheus.until(later, what=f"a scrape of {path}", seconds=60))


def at_rest(exporter: Exporter) -> Snapshot:
    """A snapshot that begins after this moment: the exporter's latest may be a little older."""
    now_ns = time.monotonic_ns()
    while (found := exporter.refresh()).taken_ns < now_ns:
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    tools()
    # Others on this machine may have a service too: the label `name` is the path of the cgroup here.
    labels = Labels.parse("namespace,pod,container,name=cgroup")
    limits = Limits(max_occupants=100, keep_s=6)
    settings = Settings(labels, limits, Layout(8), window_s=5, min_interval_s=0.2)
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Watch())
        server = stack.enter_context(MetricsServer(0))
        exporter = Exporter(watch.snapshot, settings=settings, judge=judged, join=as_pods)
        server.exporter = exporter
        stack.enter_context(exporter.beating(0.5))
        rules = quickened(rules_file().read_text(), FACTOR)
        target = [f"127.0.0.1:{server.port}"]
        prometheus = stack.enter_context(Prometheus(target, rules=rules))
        managed = stack.enter_context(Prometheus(target, honor_labels=False, labels={"namespace": "labkit"}))
        for one in (prometheus, managed):
            one.until(lambda one=one: len(one.query("labkit_cpus")), what="the first scrape", seconds=60)
        found = Observed(prometheus, managed)
        for name in ("hog", "throttled"):
            began = time.time()
            with scenario(name, seconds=SECONDS).run() as truth:
                ended = time.time()
                cgroups = dict(zip(truth.tasks["role"], truth.tasks["cgroup"], strict=True))
                after = at_rest(exporter)
                scraped = scraped_since(prometheus, cgroups["service"], time.time())
                found.periods[name] = Period(began, ended, scraped, cgroups, after)
            found.periods[name].tombstone_s = scraped_since(prometheus, cgroups["service"], time.time())
            series = f'labkit_waits_total{{name="{cgroups["service"]}"}}'
            prometheus.until(
                lambda series=series: prometheus.query(series).empty, what="its series to be gone", seconds=60
            )
        yield found


def test_the_noisy_neighbour_is_visible_by_promql(observed: Observed) -> None:
    share = observed.value('labkit:wait_share:ratio_rate5m{cause="foreign", VICTIM}', "hog")
    assert share > 0.2, "the service wants the CPU that the hog has"
    others = 'rate(labkit_runq_wait_by_occupant_seconds_total{VICTIM, occupant="batch/job-1/main"}[5s])'
    assert observed.value(others, "hog") > 0.1, "it names the culprit"
    verdict = observed.ask("labkit_verdict{VICTIM} == 1", "hog")
    assert verdict["verdict"].tolist()[0] in (
        "noisy_neighbor",
        "mixed",
    )  # mixed: where the tests' own host is busy


def test_throttling_is_not_taken_for_a_neighbour(observed: Observed) -> None:
    throttled = observed.value('labkit:wait_share:ratio_rate5m{cause="throttled", VICTIM}', "throttled")
    assert throttled > 0.2


@pytest.mark.parametrize("scenario_", ["hog", "throttled"])
def test_the_occupants_of_a_victim_add_up_to_its_foreign_wait(observed: Observed, scenario_: str) -> None:
    """On a busy host others had the CPU in between, whoever they were: not a nanosecond of it is anybody else's."""
    occupants = observed.value(
        "sum(labkit_runq_wait_by_occupant_seconds_total{VICTIM})", scenario_, after=True
    )
    foreign = observed.value('labkit_runq_wait_seconds_total{cause="foreign", VICTIM}', scenario_, after=True)
    assert round(occupants * 1e9) == pytest.approx(round(foreign * 1e9), abs=100)  # a sum of up to 100 floats


def test_the_neighbour_alert_fires_on_the_hog_and_is_silent_on_the_quota(observed: Observed) -> None:
    assert "LabkitNoisyNeighbor" in observed.fired("hog")
    assert "LabkitThrottled" not in observed.fired("hog")
    assert "LabkitThrottled" in observed.fired("throttled")
    if "LabkitNoisyNeighbor" in observed.fired("throttled"):
        # Right only where others really kept it from the CPU: by the counters themselves, not by the rule.
        assert most_foreign(observed, "throttled") > 0.1


def most_foreign(observed: Observed, scenario_: str, window_s: int = 5) -> float:
    """The largest share of the time in which the service wanted to run that others had its CPU, of any such window."""
    period = observed.periods[scenario_]
    victim = f'name="{period.cgroups["service"]}"'

    def course(expression: str) -> pd.Series:
        found = observed.prometheus.query_range(
            expression.replace("VICTIM", victim), start_s=period.began_s, end_s=period.ended_s
        )
        return found.set_index("time")["value"]

    foreign = course('labkit_runq_wait_seconds_total{cause="foreign", VICTIM}')
    wanted = course("sum(labkit_runq_wait_seconds_total{VICTIM})") + course(
        "sum(labkit_cpu_seconds_total{VICTIM})"
    )
    shares = foreign.diff(window_s) / wanted.diff(window_s)
    return float(shares.max())


def _service(period: Period) -> int:
    """The id of the scenario's service."""
    names = period.after.names
    (found,) = names[names["cgroup"] == period.cgroups["service"]]["cgroup_id"]
    return int(found)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_quantiles_by_promql_are_those_of_the_data_frame(observed: Observed, q: float) -> None:
    period = observed.periods["hog"]
    frame = period.after.histograms
    frame = frame[frame["cgroup_id"] == _service(period)].sort_values("lo")
    asked = observed.value(
        f"histogram_quantile({q}, labkit_runq_latency_seconds_bucket{{VICTIM}})", "hog", after=True
    )
    assert asked == pytest.approx(histogram.quantile(frame, q) / 1e9, rel=1e-6)


def test_counters_by_promql_are_those_of_the_data_frame_to_the_nanosecond(observed: Observed) -> None:
    period = observed.periods["hog"]
    row = period.after.cgroups.set_index("cgroup_id").loc[_service(period)]
    assert observed.value("labkit_waits_total{VICTIM}", "hog", after=True) == row["waits"]
    assert round(observed.value("labkit_cpu_seconds_total{VICTIM}", "hog", after=True) * 1e9) == row["run_ns"]
    causes = observed.value("sum(labkit_runq_wait_seconds_total{VICTIM})", "hog", after=True)
    assert round(causes * 1e9) == pytest.approx(int(row["wait_ns"]), abs=2)  # a sum of six floats


def test_series_of_the_dead_stand_for_a_while_and_are_gone(observed: Observed) -> None:
    """After its death the last value is there to be scraped; the fixture has waited until the series was gone."""
    for period in observed.periods.values():
        series = f'labkit_waits_total{{name="{period.cgroups["service"]}"}}'
        last = observed.prometheus.query(series, at_s=period.scraped_s)["value"].item()
        assert last > 0
        assert period.tombstone_s > period.scraped_s
        assert observed.prometheus.query(series, at_s=period.tombstone_s)["value"].item() >= last
        assert observed.prometheus.query(series).empty


def test_a_series_begins_at_zero_so_that_increase_misses_nothing(observed: Observed) -> None:
    """In the server that was first to scrape it. A counter of waits is 0 at no other time."""
    period = observed.periods["throttled"]
    series = f'labkit_waits_total{{name="{period.cgroups["service"]}"}}'
    lowest = [
        one.query_range(series, start_s=period.began_s, end_s=period.scraped_s, step_s=0.5)["value"].min()
        for one in (observed.prometheus, observed.managed)
    ]
    assert 0.0 in lowest


# -- what ships, by Prometheus' own tools --------------------------------------------------------------------------------


def test_promtool_finds_nothing_to_say_about_the_metrics(observed: Observed) -> None:
    address = observed.prometheus.get("/api/v1/targets")["activeTargets"][0]["scrapeUrl"]
    with urllib.request.urlopen(address, timeout=30) as answer:
        scraped = answer.read()
    done = subprocess.run([tools()[1], "check", "metrics"], input=scraped, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("argv", [("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")])
def test_the_rules_pass_promtools_checks_and_their_own_tests(argv: tuple[str, ...]) -> None:
    done = subprocess.run(
        [tools()[1], *argv], cwd=rules_file().parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_promtool_understands_the_scrape_configuration(tmp_path: Path) -> None:
    """But for the discovery of pods, which Debian's Prometheus was built without."""
    config = yaml.safe_load((ROOT / "k8s/monitoring/scrape-config.yaml").read_text())
    for job in config["scrape_configs"]:
        del job["kubernetes_sd_configs"]
        job["static_configs"] = [{"targets": ["127.0.0.1:9798"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [tools()[1], "check", "config", "prometheus.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> list[str]:
    """All PromQL of the dashboard, of its panels and of its variables."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [*dashboard["panels"], *(p for row in dashboard["panels"] for p in row.get("panels", []))]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\S+)\)", variable["query"]["query"], re.DOTALL)
            assert match, variable
            found.append(f"count by ({match[2]}) ({match[1]})")
    return found


def filled_in(expression: str, chosen: Mapping[str, str]) -> str:
    """As Grafana sends it with these choices."""
    for name, value in {"$__rate_interval": "5s", "$__range": "11s", **chosen}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


ALL = {"${namespace_label}": "namespace", "$node": ".*", "$namespace": ".*", "$pod": ".*", "$name": ".*"}
#: At one pod, in a server that keeps the victims' labels, and in one that calls their namespace otherwise.
CHOICES = {
    "all": ALL,
    "a pod": ALL | {"$namespace": "shop", "$pod": "web-1"},
    "a pod, managed": ALL
    | {"${namespace_label}": "exported_namespace", "$namespace": "shop", "$pod": "web-1"},
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("expression", expressions(), ids=range(len(expressions())))
def test_every_expression_of_the_dashboard_returns_data(
    observed: Observed, expression: str, choice: str
) -> None:
    asked = observed.managed if "managed" in choice else observed.prometheus
    text = filled_in(expression, CHOICES[choice])
    found = asked.query(text, at_s=observed.periods["hog"].ended_s)
    assert len(found), text
    assert pd.notna(found["value"]).any(), text
    if 'exported_namespace=~"shop"' in text and "exported_namespace" in found:
        assert set(found["exported_namespace"]) == {"shop"}


@pytest.mark.slow
def test_after_kill_9_prometheus_sees_one_restart_and_no_counter_that_fell() -> None:
    tools()
    port = str(free_port())
    seen = "labkit_events_seen_total"
    with Prometheus([f"127.0.0.1:{port}"], every_s=0.5) as prometheus:

        def value() -> float:
            found = prometheus.query(seen)
            return float(found["value"].iloc[0]) if len(found) else 0.0

        with served("--port", port) as exporter:
            first = prometheus.until(value, what="a first scrape", seconds=60)
            workloads.ping_pong(5000).run().release()
            prometheus.until(lambda: value() > first + 5000, what="the counter to have grown", seconds=60)
            exporter.process.kill()
            exporter.process.wait()
        prometheus.until(lambda: not value(), what="Prometheus to see that it is gone", seconds=60)
        with served("--port", port):
            prometheus.until(value, what="a scrape of the new one", seconds=60)
            now = time.time()
            course = prometheus.query_range(seen, start_s=now - 300, end_s=now, step_s=0.5)["value"]
            assert course.iloc[-1] < course.max(), "it counts from 0"
            for expression, holds in {
                f"resets({seen}[5m])": lambda resets: resets == 1,
                "changes(process_start_time_seconds[5m])": lambda changes: changes == 1,
                # what it grew by before, and since: never less than the first part, never with the old total again
                f"increase({seen}[5m])": lambda grown: grown >= 5000,
            }.items():
                found = float(prometheus.query(expression)["value"].iloc[0])
                assert holds(found), (expression, found)


def test_a_prometheus_ends_with_its_block_and_its_folder_too() -> None:
    tools()
    with Prometheus(["127.0.0.1:1"]) as prometheus:
        pid, folder = prometheus._process.pid, prometheus._folder
        assert os.path.exists(f"/proc/{pid}")
        with pytest.raises(PrometheusError, match="refuses"):
            prometheus.query("rate(")
    assert not os.path.exists(f"/proc/{pid}")
    assert not folder.exists()

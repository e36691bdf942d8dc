"""A real Prometheus scrapes a live exporter while known contention runs: PromQL, rules, alerts and the dashboard."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest

from labkit import histogram
from labkit.metrics import Exporter, Labels, Limits, Settings
from labkit.metrics.judge import judged
from labkit.metrics.prometheus import Prometheus, PrometheusError, binaries, quickened, rules_file
from labkit.metrics.server import MetricsServer
from labkit.metrics.table import Layout
from labkit.noisy.watch import Watch
from labkit.sched.state import Snapshot
from labkit.workloads import scenario

pytestmark = [pytest.mark.live, pytest.mark.needs("cgroups"), pytest.mark.timeout(300)]

SECONDS = 18.0  # the longest `for` of an alert is ten (quickened) minutes, after a window of five
#: Five minutes become five seconds, so that rules and alerts can be watched while a scenario runs.
FACTOR = 60
DASHBOARD = Path(__file__).parents[2] / "dashboards" / "noisy-neighbor.json"


@dataclass
class Period:
    """One scenario: when it ran, the paths of its cgroups by role, and what the exporter knew when it was over."""

    began_s: float
    ended_s: float
    cgroups: dict[str, str]
    after: Snapshot


@dataclass
class Observed:
    """What was watched; Prometheus still runs and can be asked about it."""

    prometheus: Prometheus
    periods: dict[str, Period] = field(default_factory=dict)

    def ask(self, expression: str, scenario: str, *, later_s: float = 0) -> pd.DataFrame:
        """At the end of the scenario; VICTIM stands for its service."""
        period = self.periods[scenario]
        victim = f'name="{period.cgroups["service"]}"'
        return self.prometheus.query(expression.replace("VICTIM", victim), at_s=period.ended_s + later_s)

    def value(self, expression: str, scenario: str, *, later_s: float = 0) -> float:
        found = self.ask(expression, scenario, later_s=later_s)
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


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    tools()
    # Others on this machine may have a service too: the label `name` is the path of the cgroup here.
    labels = Labels.parse("namespace,pod,container,name=cgroup")
    settings = Settings(labels, limits=Limits(keep_s=4), layout=Layout(8), window_s=5, min_interval_s=0.2)
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Watch())
        server = stack.enter_context(MetricsServer(0))
        server.exporter = exporter = Exporter(watch.snapshot, settings=settings, judge=judged)
        rules = quickened(rules_file().read_text(), FACTOR)
        prometheus = stack.enter_context(Prometheus([f"127.0.0.1:{server.port}"], rules=rules))
        found = Observed(prometheus)
        for name in ("hog", "throttled"):
            time.sleep(
                7 if found.periods else 2
            )  # what came before is out of the rules' windows, its series are gone
            began = time.time()
            with scenario(name, seconds=SECONDS).run() as truth:
                ended = time.time()
                time.sleep(1.5)  # one more scrape, of the parked service
                cgroups = dict(zip(truth.tasks["role"], truth.tasks["cgroup"], strict=True))
                found.periods[name] = Period(began, ended, cgroups, exporter.refresh())
        yield found


def test_the_noisy_neighbour_is_visible_by_promql(observed: Observed) -> None:
    share = observed.value('labkit:wait_share:ratio_rate5m{cause="foreign", VICTIM}', "hog")
    assert share > 0.2, "the service wants the CPU that the hog has"
    others = 'rate(labkit_runq_wait_by_occupant_seconds_total{VICTIM, occupant="hog"}[5s])'
    assert observed.value(others, "hog") > 0.1, "it names the culprit"
    verdict = observed.ask("labkit_verdict{VICTIM} == 1", "hog")
    assert verdict["verdict"].tolist()[0] in (
        "noisy_neighbor",
        "mixed",
    )  # mixed: where the tests' own host is busy


def test_throttling_is_not_taken_for_a_neighbour(observed: Observed) -> None:
    throttled = observed.value('labkit:wait_share:ratio_rate5m{cause="throttled", VICTIM}', "throttled")
    foreign = observed.value('labkit:wait_share:ratio_rate5m{cause="foreign", VICTIM}', "throttled")
    assert throttled > 0.2
    # On a busy host others did have the CPU in between; what nobody may be blamed for is the throttled time.
    others = "sum(rate(labkit_runq_wait_by_occupant_seconds_total{VICTIM}[5s]))"
    wanted = observed.value("labkit:wanted_cpu:rate5m{VICTIM}", "throttled")
    assert observed.value(others, "throttled") / wanted == pytest.approx(foreign, abs=0.05)


def test_the_neighbour_alert_fires_on_the_hog_and_is_silent_on_the_quota(observed: Observed) -> None:
    assert "LabkitNoisyNeighbor" in observed.fired("hog")
    assert "LabkitThrottled" not in observed.fired("hog")
    assert "LabkitThrottled" in observed.fired("throttled")
    foreign = 'max_over_time(labkit:wait_share:ratio_rate5m{cause="foreign", VICTIM}[11s])'
    beside = observed.value(foreign, "throttled")
    # Where others did keep it from the CPU, the alert would be right.
    assert "LabkitNoisyNeighbor" not in observed.fired("throttled") or beside > 0.1


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
        f"histogram_quantile({q}, labkit_runq_latency_seconds_bucket{{VICTIM}})", "hog", later_s=1.5
    )
    assert asked == pytest.approx(histogram.quantile(frame, q) / 1e9, rel=1e-6)


def test_counters_by_promql_are_those_of_the_data_frame_to_the_nanosecond(observed: Observed) -> None:
    period = observed.periods["hog"]
    row = period.after.cgroups.set_index("cgroup_id").loc[_service(period)]
    assert observed.value("labkit_waits_total{VICTIM}", "hog", later_s=1.5) == row["waits"]
    assert (
        round(observed.value("labkit_cpu_seconds_total{VICTIM}", "hog", later_s=1.5) * 1e9) == row["run_ns"]
    )
    causes = observed.value("sum(labkit_runq_wait_seconds_total{VICTIM})", "hog", later_s=1.5)
    assert round(causes * 1e9) == pytest.approx(int(row["wait_ns"]), abs=2)  # a sum of six floats


def test_series_of_the_dead_are_gone(observed: Observed) -> None:
    began = observed.periods["throttled"].began_s
    gone = f'labkit_waits_total{{name="{observed.periods["hog"].cgroups["service"]}"}}'
    assert observed.prometheus.query(gone, at_s=observed.periods["hog"].ended_s)["value"].item() > 0
    assert observed.prometheus.query(gone, at_s=began).empty


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


def filled_in(expression: str) -> str:
    """As Grafana sends it when all filters are at "All"."""
    for name, value in {
        "$__rate_interval": "5s",
        "$__range": "11s",
        "${namespace_label}": "namespace",
        "$node": ".*",
        "$namespace": ".*",
        "$pod": ".*",
        "$name": ".*",
    }.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


@pytest.mark.parametrize("expression", expressions(), ids=range(len(expressions())))
def test_every_expression_of_the_dashboard_returns_data(observed: Observed, expression: str) -> None:
    found = observed.prometheus.query(filled_in(expression), at_s=observed.periods["hog"].ended_s)
    assert len(found), expression
    assert pd.notna(found["value"]).any(), expression


def test_a_prometheus_ends_with_its_block_and_its_folder_too() -> None:
    tools()
    with Prometheus(["127.0.0.1:1"]) as prometheus:
        pid, folder = prometheus._process.pid, prometheus._folder
        assert os.path.exists(f"/proc/{pid}")
        with pytest.raises(PrometheusError, match="refuses"):
            prometheus.query("rate(")
    assert not os.path.exists(f"/proc/{pid}")
    assert not folder.exists()

"""What ships for Prometheus and Grafana, and the Prometheus of one's own, as far as no program must run."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
import rules_for_clusters
import yaml
from snapshot_maker import crowd

from labkit.metrics import Exporter, prometheus
from labkit.metrics.prometheus import (
    Prometheus,
    PrometheusError,
    binaries,
    console_queries,
    quickened,
    rules_file,
)

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "dashboards/noisy-neighbor.json").read_text())
RULES = yaml.safe_load(rules_file().read_text())


def exposed() -> set[str]:
    exporter = Exporter(lambda: crowd(3))
    exporter.refresh()
    suffixes = {"counter": ["_total"], "info": ["_info"], "histogram": ["_bucket", "_sum", "_count"]}
    return {f.name + suffix for f in exporter.collect() for suffix in suffixes.get(f.type, [""])}


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\blabkit_[a-z0-9_]+", expression))


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    asked = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    asked += [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    assert len(asked) > 20
    assert set().union(*map(metrics_in, asked)) <= exposed()


def test_the_rules_for_clusters_are_the_rules() -> None:
    for path, text in rules_for_clusters.files().items():
        assert path.read_text() == text, "python tests/unit/rules_for_clusters.py --write"
    managed = json.dumps(rules_for_clusters.groups(managed=True))
    assert " exported_namespace, pod, container, name" in managed
    assert not re.search(r"[( ]namespace\b", managed), "there it is the exporter's own"


def test_every_scraper_finds_the_exporters_pods_and_keeps_the_victims_labels() -> None:
    """These are others' resources, without a schema here: what they refer to is held against the DaemonSet."""
    (daemonset,) = [
        one
        for one in yaml.safe_load_all((ROOT / "k8s/base/daemonset.yaml").read_text())
        if one["kind"] == "DaemonSet"
    ]
    pod = daemonset["spec"]["template"]
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    monitor, rules = yaml.safe_load_all(rules_for_clusters.OPERATOR.read_text())
    assert (monitor["kind"], rules["kind"]) == ("PodMonitor", "PrometheusRule")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in ports
    assert endpoint["honorLabels"] is True
    assert endpoint["relabelings"][0]["targetLabel"] == "node"
    (job,) = yaml.safe_load((ROOT / "k8s/monitoring/scrape-config.yaml").read_text())["scrape_configs"]
    assert job["honor_labels"] is True
    keep, node = job["relabel_configs"]
    assert keep["action"] == "keep"
    assert re.fullmatch(keep["regex"], f"{pod['metadata']['labels']['app.kubernetes.io/name']};{'metrics'}")
    assert "metrics" in ports
    assert node["target_label"] == "node"
    for name in ("labkit", monitor["metadata"]["name"], job["job_name"]):
        assert re.fullmatch(".*labkit.*", name), "LabkitDown looks for jobs of such names"


def test_each_rule_refers_to_recorded_series_by_their_names() -> None:
    recorded = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
    named = set(re.findall(r"labkit:[a-z0-9_]+:[a-z0-9_]+", rules_file().read_text()))
    assert named == recorded


def test_each_alert_lasts_has_a_severity_and_says_what_is_the_matter() -> None:
    alerts = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) == 5
    for alert in alerts:
        assert alert["for"]
        assert alert["labels"]["severity"] in ("info", "warning")
        assert set(alert["annotations"]) == {"summary", "description"}
        assert f"`{alert['alert']}`" in (ROOT / "docs/metrics.md").read_text()


def test_the_dashboard_can_be_imported_anywhere() -> None:
    assert DASHBOARD["uid"] == "labkit-noisy-neighbor", "links to it would break"
    assert "id" not in DASHBOARD, "a number of one Grafana"
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace_label", "node", "namespace", "pod", "name"]
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["description"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert {"heatmap", "table", "timeseries"} <= {panel["type"] for panel in DASHBOARD["panels"]}


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        mine = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & mine, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= mine


@pytest.mark.parametrize(
    ("text", "factor", "expected"),
    [
        ("rate(x_total[5m])", 60, "rate(x_total[5s])"),
        ("for: 10m", 60, "for: 10s"),
        ("x[1m]", 600, "x[1s]"),
        ("labkit:ratio_rate5m", 60, "labkit:ratio_rate5m"),
        ("1h and 2d and 500ms", 60, "60s and 2880s and 1s"),
    ],
)
def test_durations_can_be_made_shorter_and_names_stay(text: str, factor: float, expected: str) -> None:
    assert quickened(text, factor) == expected


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    real = prometheus.shutil.which
    monkeypatch.setattr(
        prometheus.shutil,
        "which",
        lambda name, path=None: (
            real(name, path=path) if path or name not in ("prometheus", "promtool") else None
        ),
    )


@pytest.mark.usefixtures("nothing_here")
def test_without_a_prometheus_it_says_what_to_do() -> None:
    with pytest.raises(PrometheusError, match="metrics-demo"):
        binaries()
    with pytest.raises(PrometheusError, match="no Prometheus"):
        Prometheus([])


@pytest.mark.usefixtures("nothing_here")
def test_where_apt_cannot_fetch_it_its_last_word_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(argv: Any, **_: Any) -> None:
        raise subprocess.CalledProcessError(
            100, argv, stderr="E: one\nE: Unable to locate package prometheus\n"
        )

    monkeypatch.setattr(prometheus.subprocess, "run", refuse)
    with pytest.raises(PrometheusError, match="Unable to locate"):
        binaries(fetch=True)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_the_address_of_a_graph_holds_its_expressions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "binaries", lambda **_: (Path("/bin/true"), Path("/bin/true")))
    own = Prometheus([], port=9)
    works = [True, False]
    monkeypatch.setattr(own, "_answers", lambda path: path == "/graph" and works.pop(0))
    query = urllib.parse.parse_qs(urllib.parse.urlparse(own.graph_url('up{a="b"}', "1 + 1", minutes=2)).query)
    assert (query["g0.expr"], query["g1.expr"], query["g0.range_input"]) == (['up{a="b"}'], ["1 + 1"], ["2m"])
    assert own.graph_url("up") == "", "no address of a page that is an error"
    page = urllib.parse.urlparse(own.console_url('a "b"&c', minutes=2, window="5s"))
    assert urllib.parse.parse_qs(page.query) == {"name": ['a "b"&c'], "minutes": ["2"], "window": ["5s"]}
    assert (prometheus.consoles_dir() / Path(page.path).name).is_file()
    own.close()


def test_our_page_asks_for_metrics_that_there_are_and_for_nothing_from_elsewhere() -> None:
    page = (prometheus.consoles_dir() / "labkit.html").read_text()
    asked = console_queries(name='a "b"', window="7s", page=page)
    assert asked["occupant"].endswith(r'{name="a \"b\""}[7s]))')
    assert {"cause", "occupant", "verdict", "p99", "lost"} <= set(asked)
    assert all(metrics_in(expression) for expression in asked.values())
    assert set().union(*map(metrics_in, asked.values())) <= exposed()
    outside = set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^"'\s]*""", page)) - {
        "http://www.w3.org/2000/svg"
    }
    assert outside == set()
    assert "{{" not in page, "Prometheus would take it for its own template language"


def test_a_prometheus_that_ends_at_once_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "binaries", lambda **_: (Path("/bin/false"), Path("/bin/false")))
    own = Prometheus([])
    with pytest.raises(PrometheusError, match="has ended"), own:
        pass
    assert not own._folder.exists()

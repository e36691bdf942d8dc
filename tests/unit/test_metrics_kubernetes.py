"""From the Kubernetes API to labels: a pod's cgroup is exposed under namespace, pod, container and a label of its pod."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from kubernetes_fake import Api, certificates, pod
from prometheus_client.parser import text_string_to_metric_families
from snapshot_maker import Group, snapshot

from labkit.errors import ParameterError
from labkit.metrics import Exporter, Labels, Settings
from labkit.metrics.command import Kubernetes
from labkit.names import Directory, kubernetes_api
from labkit.names.kubernetes import Pods
from labkit.names.kubernetes_api import ApiAccess, ApiError, PodWatch, Timing

UID, CONTAINER = "00000000-1111-2222-3333-444444444444", "a" * 64
PATH = f"/kubepods/burstable/pod{UID}/{CONTAINER}"
LABELS = Labels.parse("namespace,pod,container,name,app=pod_label:app.kubernetes.io/name")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with Api(certificates(tmp_path_factory.mktemp("tls"))) as running:
        labels = {"app.kubernetes.io/name": "shop"}
        running.cluster.apply("ADDED", pod("web-1", UID, containers={"main": CONTAINER}, labels=labels))
        yield running


def connected(api: Api, tmp_path: Path) -> Kubernetes:
    token = tmp_path / "token"
    token.write_text("first-token")
    access = ApiAccess(api.url, "node-1", token, api.folder / "ca.crt")
    return Kubernetes(PodWatch(access, Pods(LABELS.pod_labels), timing=Timing(0.02, 0.1, 20, 3, 2)))


def test_a_pods_cgroup_bears_its_names_and_its_label(api: Api, tmp_path: Path) -> None:
    kubernetes = connected(api, tmp_path)
    with kubernetes.running(), Directory(enrichers=kubernetes.enrichers) as directory:
        assert kubernetes.watch is not None
        directory.learn(1 << 60, PATH)
        names = directory.frame([1 << 60])
        frozen = snapshot(Group(1 << 60, "replaced", {("idle", 0): 1000}))
        exporter = Exporter(
            lambda: type(frozen)(**{**frozen.__dict__, "names": names}),
            settings=Settings(LABELS),
            join=kubernetes.join,
            extra=kubernetes.families,
        )
        text = exporter.text()[0].decode()
    samples = {f.name: f.samples for f in text_string_to_metric_families(text)}
    assert samples["labkit_waits"][0].labels == {
        "namespace": "shop",
        "pod": "web-1",
        "container": "main",
        "name": "shop/web-1/main",
        "app": "shop",
    }
    assert samples["labkit_kubernetes_synced"][0].value == 1
    assert samples["labkit_kubernetes_pods"][0].value == 1
    assert samples["labkit_kubernetes_last_heard_seconds"][0].value >= 0


def test_the_document_lists_what_is_said_about_the_connection(api: Api, tmp_path: Path) -> None:
    kubernetes = connected(api, tmp_path)
    with kubernetes.running():
        said = {f.name + ("_total" if f.type == "counter" else "") for f in kubernetes.families()}
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    assert all(f"| `{name}` |" in text for name in said)
    assert text.count("| `labkit_kubernetes_") == len(said)


def test_an_api_that_is_away_does_not_keep_the_exporter_from_starting(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    access = ApiAccess("https://localhost:1", "node-1", tmp_path / "token", tmp_path / "ca.crt")
    kubernetes = Kubernetes(PodWatch(access, Pods(), timing=Timing(0.02, 0.1, 20, 1, 1)))
    with kubernetes.running():
        said = {f.name: f.samples for f in kubernetes.families()}
    assert said["labkit_kubernetes_synced"][0].value == 0
    assert sum(sample.value for sample in said["labkit_kubernetes_errors"]) > 0


def test_outside_a_cluster_there_is_nothing_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    nothing = Kubernetes.choose("auto", LABELS)
    names = pd.DataFrame({"namespace": [""], "pod": [""]})
    assert (nothing.enrichers, list(nothing.families()), nothing.join(names) is names) == ([], [], True)
    with pytest.raises(ParameterError, match="no Kubernetes API"):
        Kubernetes.choose("on", LABELS)


def test_in_a_pod_the_environment_tells_where_the_api_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("t")
    monkeypatch.setattr(kubernetes_api, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    monkeypatch.setenv("NODE_NAME", "node-7")
    chosen = Kubernetes.choose("auto", LABELS)
    assert chosen.watch is not None
    assert (chosen.watch.access.url, chosen.watch.access.node) == ("https://[fd00::1]:6443", "node-7")
    assert chosen.watch.pods.wanted_labels == ("app.kubernetes.io/name",)
    assert Kubernetes.choose("off", LABELS).watch is None
    monkeypatch.delenv("NODE_NAME")
    with pytest.raises(ApiError, match="which node"):
        Kubernetes.choose("auto", LABELS)

"""The manifests: valid for three releases of Kubernetes, no misspelt field, and a policy that holds for every container.

Overlays are rendered by kubectl's own kustomize; where kubectl is missing these tests skip, and the files they are made
from are still held one by one. In CI that is a failure where apt could install it.
"""

import copy
import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils

from labkit import __version__
from labkit.containers.images import TARGETS, Registry
from labkit.containers.manifests import OVERLAYS, Rendering, documents
from labkit.containers.shell import Shell
from labkit.system.packages import parse_candidates

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
RELEASES = ("1.31", "1.34", "1.37")
FILES = sorted(
    path
    for path in (*K8S.glob("*.yaml"), *K8S.glob("base/*.yaml"))
    if path.name not in ("kustomization.yaml",)
)
OTHERS = {
    "PodMonitoring",
    "ClusterPodMonitoring",
    "Rules",
    "ClusterRules",
}  # not Kubernetes' own: no schema comes with it

# Containers that cannot have a read-only root, or no probe, each with its reason.
WRITABLE_ROOT = {"labkit-bpftool": "installs bpftool when it runs from Debian's own image"}
NO_PROBE = {"labkit-lab": "a Job that ends by itself, within its deadline"}
PRIVILEGED = {"labkit-bpftool", "labkit-lab", "labkit-notebook"}  # the exporter only as a variant

Document = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def _schemas_are_read_once() -> Iterator[None]:
    """The validator reads 2 MB of schemas anew for each document."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield


def _need_kubectl() -> None:
    if shutil.which("kubectl") is not None:
        return
    why = "needs kubectl, whose kustomize renders overlays: https://kubernetes.io/docs/tasks/tools/"
    if os.environ.get("CI") and shutil.which("apt-cache"):
        policy = subprocess.run(
            ["apt-cache", "policy", "kubectl"], capture_output=True, text=True, check=False
        )
        if "kubectl" in parse_candidates(policy.stdout):
            pytest.fail(f"{why}; apt has it here: apt-get install kubectl", pytrace=False)
    pytest.skip(why)


def _documents(path: Path) -> list[Document]:
    return [d for d in documents(path.read_text()) if d["kind"] not in OTHERS]


def _rendered(overlay: str, *components: str) -> list[Document]:
    _need_kubectl()
    rendering = Rendering.with_images(Registry.of({}), f"overlays/{overlay}", components=components)
    return documents(rendering.text(Shell()))


def _pod(document: Document) -> Document | None:
    """A workload's pod: metadata and spec."""
    if document["kind"] == "Pod":
        return document
    template: Document | None = document.get("spec", {}).get("template")
    return template


def _containers() -> Iterator[tuple[str, Document, Document]]:
    for path in FILES:
        for document in _documents(path):
            pod = _pod(document)
            for container in pod["spec"]["containers"] if pod else []:
                yield document["metadata"]["name"], pod["spec"] if pod else {}, container


CONTAINERS = list(_containers())
NAMES = [f"{name}/{container['name']}" for name, _, container in CONTAINERS]
every_container = pytest.mark.parametrize(("name", "pod", "container"), CONTAINERS, ids=NAMES)


def _security(pod: Document, container: Document) -> Document:
    return {**pod.get("securityContext", {}), **container.get("securityContext", {})}


def test_what_is_asked_for_is_there() -> None:
    names = {path.name for path in FILES}
    assert names >= {
        *("daemonset.yaml", "lab-job.yaml", "notebook-pod.yaml", "bpftool-daemonset.yaml"),
        *("cpu-stressor.yaml", "ballast.yaml", "rbac.yaml"),
    }
    kinds = [document["kind"] for path in FILES for document in _documents(path)]
    assert kinds.count("DaemonSet") == 3


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_manifest_is_valid_and_has_no_unknown_field(path: Path, release: str) -> None:
    for document in _documents(path):
        kubernetes_validate.validate(document, release, strict=True)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("components", [(), ("components/privileged",)], ids=["least", "privileged"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_renders_to_valid_manifests(
    overlay: str, components: tuple[str, ...], release: str
) -> None:
    rendered = _rendered(overlay, *components)
    assert {d["kind"] for d in rendered} >= {"Namespace", "DaemonSet", "ClusterRole", "ServiceAccount"}
    for document in rendered:
        kubernetes_validate.validate(document, release, strict=True)


def test_strict_validation_sees_a_misspelt_field() -> None:
    """The tool is asked in the way that finds it: without `strict` it does not."""
    daemonset = copy.deepcopy(_documents(K8S / "base/daemonset.yaml")[0])
    daemonset["spec"]["template"]["spec"]["hostPid"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(daemonset, RELEASES[0], strict=True)


@every_container
def test_every_container_has_requests_and_limits(name: str, pod: Document, container: Document) -> None:
    for part in ("requests", "limits"):
        assert set(container["resources"][part]) == {"cpu", "memory"}


@every_container
def test_every_image_has_a_tag_that_says_something(name: str, pod: Document, container: Document) -> None:
    image, _, tag = container["image"].rpartition("/")[2].partition(":")
    assert tag not in ("", "latest")
    if image.startswith("labkit-"):
        assert image.removeprefix("labkit-") in TARGETS
        assert tag == __version__
    else:
        assert (image, tag) == ("debian", "13-slim"), "what the Dockerfile is made from, and nothing else"


@every_container
def test_every_container_that_stays_is_probed(name: str, pod: Document, container: Document) -> None:
    assert ("livenessProbe" in container) != (name in NO_PROBE)


@every_container
def test_roots_are_read_only_where_they_can_be(name: str, pod: Document, container: Document) -> None:
    read_only = container["securityContext"].get("readOnlyRootFilesystem", False)
    assert read_only != (name in WRITABLE_ROOT)


@every_container
def test_only_what_must_be_is_privileged(name: str, pod: Document, container: Document) -> None:
    security = _security(pod, container)
    assert security.get("privileged", False) == (name in PRIVILEGED)
    if name in PRIVILEGED:
        return
    assert security["capabilities"]["drop"] == ["ALL"]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    added = security["capabilities"].get("add", [])
    assert added == (["BPF", "PERFMON"] if name == "labkit-exporter" else [])
    # The exporter's launcher has file capabilities, which no_new_privs would void; nothing else may gain any right.
    assert security["allowPrivilegeEscalation"] is (name == "labkit-exporter")


@every_container
def test_no_token_of_the_api_server_where_none_is_needed(
    name: str, pod: Document, container: Document
) -> None:
    assert pod["automountServiceAccountToken"] is (name == "labkit-exporter")
    assert ("serviceAccountName" in pod) == (name == "labkit-exporter")


@every_container
def test_nothing_of_the_host_is_shared_but_what_is_measured(
    name: str, pod: Document, container: Document
) -> None:
    assert not pod.get("hostNetwork")
    assert not pod.get("hostIPC")
    paths = {v["hostPath"]["path"] for v in pod.get("volumes", []) if "hostPath" in v}
    assert paths <= {
        *("/sys/fs/cgroup", "/sys/kernel/tracing", "/sys/kernel/debug", "/sys/fs/bpf"),
        *("/var/log/pods", "/var/log/containers"),
    }
    if name == "labkit-exporter":
        host = {v["name"] for v in pod["volumes"] if "hostPath" in v}
        mounts = [m for m in container["volumeMounts"] if m["name"] in host]
        assert mounts
        assert all(m.get("readOnly") for m in mounts)
    for volume in pod.get("volumes", []):
        if "emptyDir" in volume:
            assert volume["emptyDir"]["sizeLimit"]


POLICY = (
    test_every_container_has_requests_and_limits,
    test_every_image_has_a_tag_that_says_something,
    test_every_container_that_stays_is_probed,
    test_roots_are_read_only_where_they_can_be,
    test_no_token_of_the_api_server_where_none_is_needed,
    test_nothing_of_the_host_is_shared_but_what_is_measured,
)


@pytest.mark.parametrize("components", [(), ("components/privileged",)], ids=["least", "privileged"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_policy_holds_of_what_is_applied_too(overlay: str, components: tuple[str, ...]) -> None:
    rendered = _rendered(overlay, *components)
    pods = [(d["metadata"]["name"], pod["spec"]) for d in rendered if (pod := _pod(d))]
    assert [name for name, _ in pods] == ["labkit-exporter"]
    for name, spec in pods:
        for container in spec["containers"]:
            for rule in POLICY:
                rule(name, spec, container)
            security = _security(spec, container)
            if components:
                # All that it needs beyond: nothing else of the host, and still a root that nobody writes to.
                assert security == {
                    "runAsUser": 0,
                    "runAsGroup": 0,
                    "privileged": True,
                    "readOnlyRootFilesystem": True,
                }
            else:
                test_only_what_must_be_is_privileged(name, spec, container)
    for document in rendered:
        for rule in document.get("rules", []):
            assert "*" not in (*rule["resources"], *rule["verbs"], *rule["apiGroups"])
    (role,) = [d for d in rendered if d["kind"] == "ClusterRole"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]


def _capability_table() -> set[tuple[str, ...]]:
    """The rows of docs/kubernetes.md, in the words of the experiment."""
    text = (ROOT / "docs/kubernetes.md").read_text().split("## Which rights it needs", 1)[1]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", text.replace("**", ""), flags=re.MULTILINE)
    found, profile = set(), ""
    for users, capabilities, runtime, result in rows[1:]:
        if set(users) == {"-"}:
            continue
        if capabilities == "privileged":
            profile = "before 1.7"  # no filter at all: it does not matter whose
        elif runtime != "the same":
            profile = "before 1.7" if runtime.startswith("older") else "containerd"
        result = re.split(r"[:;]", result.replace("works, and counts its own cost", "works, with its cost"))[
            0
        ]
        rights = "" if capabilities == "none" else capabilities.replace(", ", ",")
        found |= {(user, rights, profile, result.strip()) for user in users.split(" or ")}
    return found


def test_the_table_of_rights_is_what_was_tried() -> None:
    spec = importlib.util.spec_from_file_location("capability_sets", ROOT / "tests/live/capability_sets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert _capability_table() == set(module.CAPABILITY_SETS.values())


def test_the_exporter_may_only_read_pods() -> None:
    roles = {
        d["metadata"]["name"]: d for d in _documents(K8S / "base/rbac.yaml") if d["kind"] == "ClusterRole"
    }
    assert roles["labkit-exporter"]["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}
    ]
    assert len(roles) == 1


def test_no_role_names_everything() -> None:
    for document in _documents(K8S / "base/rbac.yaml"):
        for rule in document.get("rules", []):
            assert "*" not in (*rule["resources"], *rule["verbs"], *rule["apiGroups"])


def test_a_node_can_be_switched_off_by_a_label() -> None:
    spec = _documents(K8S / "base/daemonset.yaml")[0]["spec"]["template"]["spec"]
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert len(terms) == 1, "terms are alternatives: a second one would defeat the switch"
    assert {"key": "labkit-off", "operator": "DoesNotExist"} in terms[0]["matchExpressions"]


def test_the_scraper_finds_the_exporter() -> None:
    """PodMonitoring is Google's own resource: no schema comes with Kubernetes, so what it refers to is held here."""
    (monitoring,) = documents((K8S / "pod-monitoring.yaml").read_text())
    template = _documents(K8S / "base/daemonset.yaml")[0]["spec"]["template"]
    assert monitoring["apiVersion"] == "monitoring.googleapis.com/v1"
    assert monitoring["metadata"]["namespace"] == "labkit"
    assert monitoring["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in monitoring["spec"]["endpoints"]} <= ports


def test_the_exporter_is_asked_for_what_it_understands() -> None:
    from labkit.cli import main

    container = _documents(K8S / "base/daemonset.yaml")[0]["spec"]["template"]["spec"]["containers"][0]
    command, *arguments = container["args"]
    main.commands[command].make_context(command, list(arguments))


def test_ballast_is_guaranteed_and_asks_for_whole_cpus() -> None:
    """Else the static CPU manager gives it no CPU of its own."""
    (pod,) = [p for p in map(_pod, _documents(K8S / "ballast.yaml")) if p]
    for container in pod["spec"]["containers"]:
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert str(resources["limits"]["cpu"]).isdigit()


def test_the_demonstration_stands_on_one_node_and_needs_no_right() -> None:
    found = {d["metadata"]["name"]: d for d in _documents(K8S / "cpu-stressor.yaml")}
    assert found["labkit-demo"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name in ("cpu-stressor", "throttled"):
        terms = found[name]["spec"]["template"]["spec"]["affinity"]["podAffinity"]
        (term,) = terms["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        assert term["labelSelector"]["matchLabels"].items() <= (
            found["victim"]["spec"]["template"]["metadata"]["labels"].items()
        )


def test_namespaces_are_the_same_wherever_they_are_declared() -> None:
    seen: dict[str, Document] = {}
    for path in FILES:
        for document in _documents(path):
            if document["kind"] == "Namespace":
                name = document["metadata"]["name"]
                assert seen.setdefault(name, document)["metadata"] == document["metadata"]
    assert set(seen) == {"labkit", "labkit-demo"}


def test_what_undeploy_removes_is_all_that_lies_outside_of_the_namespaces() -> None:
    outside = {
        (d["kind"], d["metadata"]["name"])
        for path in FILES
        for d in _documents(path)
        if "namespace" not in d["metadata"] and d["kind"] != "Namespace"
    }
    assert outside == {("ClusterRole", "labkit-exporter"), ("ClusterRoleBinding", "labkit-exporter")}


def test_selectors_match_what_they_select() -> None:
    for path in FILES:
        for document in _documents(path):
            selector = document.get("spec", {}).get("selector", {})
            if "matchLabels" in selector:
                labels = document["spec"]["template"]["metadata"]["labels"]
                assert selector["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_takes_the_registry_that_it_is_given(overlay: str) -> None:
    _need_kubectl()
    registry = Registry.of({"PROJECT": "p", "REGION": "us-east1", "TAG": "7"})
    text = Rendering.with_images(registry, f"overlays/{overlay}").text(Shell())
    images = [c["image"] for d in documents(text) if (pod := _pod(d)) for c in pod["spec"]["containers"]]
    assert images == ["us-east1-docker.pkg.dev/p/labkit/labkit-exporter:7"]


def test_the_privileged_variant_changes_the_rights_and_nothing_else() -> None:
    def daemonset(*components: str) -> Document:
        (found,) = [d for d in _rendered("gke", *components) if d["kind"] == "DaemonSet"]
        return found

    plain, privileged = daemonset(), daemonset("components/privileged")
    assert privileged["spec"]["template"]["spec"]["containers"][0]["securityContext"]["privileged"] is True
    for document in (plain, privileged):
        del document["spec"]["template"]["spec"]["securityContext"]
        del document["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    assert plain == privileged


def test_gke_leaves_nodes_of_its_sandbox_alone() -> None:
    (daemonset,) = [d for d in _rendered("gke") if d["kind"] == "DaemonSet"]
    assert "gvisor" in yaml.safe_dump(daemonset["spec"]["template"]["spec"]["affinity"])

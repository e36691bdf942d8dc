"""Pods as the Kubernetes API describes them: parsed, remembered for a while, and refused where they are malformed."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import pytest
from kubernetes_fake import pod

from labkit.names import Directory, Known, from_path
from labkit.names.kubernetes import Malformed, Pods, parse

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


UIDS = [f"0000000{n}-1111-2222-3333-444444444444" for n in range(9)]


def name(pods: Pods, container_id: str = "", uid: str = "") -> Known | None:
    return pods(pod_uid=uid, container_id=container_id)


def test_containers_of_every_kind_and_those_that_ended_lately_are_known() -> None:
    thing = pod("web-1", UIDS[0], containers={"main": A})
    thing["status"]["initContainerStatuses"] = [
        {"name": "init", "state": {"terminated": {"containerID": f"cri-o://{B}"}}}
    ]
    thing["status"]["ephemeralContainerStatuses"] = [
        {"name": "debug", "lastState": {"terminated": {"containerID": f"docker://{C}"}}}
    ]
    assert parse(thing).containers == {A: "main", B: "init", C: "debug"}


def test_a_static_pods_cgroup_is_found_by_the_hash_of_its_file() -> None:
    pods = Pods()
    pods.put(pod("etcd", UIDS[0], annotations={"kubernetes.io/config.hash": "f" * 32}))
    assert name(pods, uid="f" * 32) == name(pods, uid=UIDS[0]) == Known("", "shop", "etcd")


def test_the_sandbox_of_a_pod_bears_the_pods_name() -> None:
    pods = Pods()
    pods.put(pod("web-1", UIDS[0], containers={"main": A}))
    assert name(pods, B, UIDS[0]) == Known("", "shop", "web-1")
    assert name(pods, B) is None


def _without(path: str) -> dict[str, Any]:
    thing = pod("web-1", UIDS[0], containers={"main": A})
    *way, last = path.split(".")
    part: Any = thing
    for step in way:
        part = part[step]
    del part[last]
    return thing


def _with(path: str, value: Any) -> dict[str, Any]:
    thing = pod("web-1", UIDS[0], containers={"main": A})
    *way, last = path.split(".")
    part: Any = thing
    for step in way:
        part = part[step]
    part[last] = value
    return thing


@pytest.mark.parametrize(
    "thing",
    [
        None,
        [],
        "pod",
        {},
        {"metadata": None},
        _without("metadata.uid"),
        _without("metadata.name"),
        _with("metadata.name", ""),
        _with("metadata.name", "x" * 254),
        _with("metadata.uid", 7),
        _with("metadata.labels", ["app"]),
        _with("status", "Running"),
        _with("status.containerStatuses", {"name": "main"}),
        _with("status.containerStatuses", [None]),
        _with("status.containerStatuses", [{"containerID": f"containerd://{A}"}]),
    ],
    ids=repr,
)
def test_a_malformed_object_is_refused_and_counted_and_does_no_harm(thing: Any) -> None:
    with pytest.raises(Malformed):
        parse(thing)
    pods = Pods()
    pods.put(pod("web-2", UIDS[1], containers={"main": B}))
    pods.put(thing)
    pods.delete(thing)
    pods.replace([thing, pod("web-2", UIDS[1], containers={"main": B})])
    assert pods.malformed == 3
    assert name(pods, B) == Known("main", "shop", "web-2")


@pytest.mark.parametrize("null", ["labels", "annotations"])
def test_what_is_null_is_absent(null: str) -> None:
    assert parse(_with(f"metadata.{null}", None)).name == "web-1"


@pytest.mark.parametrize("bad", ["containerd://" + "A" * 64, "a" * 64, "containerd://../../etc", "", 7, None])
def test_a_container_id_that_is_none_names_nothing(bad: Any) -> None:
    thing = pod("web-1", UIDS[0])
    thing["status"]["containerStatuses"] = [{"name": "main", "containerID": bad}]
    assert parse(thing).containers == {}


def test_a_deleted_pod_keeps_its_name_for_a_while_and_then_not() -> None:
    pods = Pods(keep_s=0.05)
    pods.put(pod("web-1", UIDS[0], containers={"main": A}))
    pods.delete(pod("web-1", UIDS[0]))
    assert (len(pods), name(pods, A)) == (0, Known("main", "shop", "web-1"))
    time.sleep(0.06)
    pods.put(pod("web-2", UIDS[1]))
    assert name(pods, A) is None


def test_a_restarted_containers_former_id_stays_known() -> None:
    pods = Pods()
    for container in (
        A,
        B,
        C,
    ):  # the API keeps one former state; the cgroup of an older one may still be measured
        pods.put(pod("web-1", UIDS[0], containers={"main": container}))
    assert {name(pods, one) for one in (A, B, C)} == {Known("main", "shop", "web-1")}


def test_more_pods_than_a_node_can_have_are_refused_and_counted() -> None:
    pods = Pods(most=3)
    pods.replace([pod(f"p{n}", UIDS[n]) for n in range(5)])
    pods.put(pod("p8", UIDS[8]))
    assert (len(pods), pods.refused) == (3, 3)


def test_pod_labels_that_were_asked_for_become_columns() -> None:
    pods = Pods(["app.kubernetes.io/name"])
    pods.put(pod("web-1", UIDS[0], labels={"app.kubernetes.io/name": "web", "secret": "no"}))
    names = pd.DataFrame({"namespace": ["shop", ""], "pod": ["web-1", ""]}, dtype="str")
    frame = pods.label_columns(names)
    assert frame.columns.tolist() == ["namespace", "pod", "pod_label:app.kubernetes.io/name"]
    assert frame.iloc[:, 2].tolist() == ["web", ""]


def test_a_cgroups_path_leads_to_the_pod_through_the_directory() -> None:
    pods = Pods()
    pods.put(pod("web-1", UIDS[0], containers={"main": A}))
    uid = UIDS[0].replace("-", "_")
    path = (
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/cri-containerd-{A}.scope"
    )
    with Directory(enrichers=[pods]) as directory:
        directory.learn(1 << 60, path)
        found = directory.names([1 << 60])[1 << 60]
    assert (found.namespace, found.pod, found.container) == ("shop", "web-1", "main")
    assert from_path(path).pod_uid == UIDS[0]

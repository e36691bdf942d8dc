"""Names of control groups, from paths and from the runtimes' state on disk. What others wrote is hostile input."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.kernel.cgroup import Hierarchy
from labkit.names import UNKNOWN, Directory, Known, States, from_path

ID = "0123456789ab" + "cd" * 26
OTHER = "fe" * 32
UID = "3f1c0a2b-1111-2222-3333-444455556666"
UID_ = UID.replace("-", "_")
SLICE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice"

CONTAINERS = {
    # podman: systemd's and its own cgroup manager, rootless, in a pod, below a unit (quadlet), crun's inner directory
    f"/machine.slice/libpod-{ID}.scope": ("podman", ""),
    f"/machine.slice/libpod-{ID}.scope/container": ("podman", ""),
    f"/machine.slice/libpod-{ID}.scope/container/app": ("podman", "app"),
    f"/libpod_parent/libpod-{ID}": ("podman", ""),
    f"/libpod_parent/{OTHER}/libpod-{ID}": ("podman", ""),
    f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope": ("podman", ""),
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container": ("podman", ""),
    f"/system.slice/web.service/libpod-payload-{ID}": ("podman", ""),
    # docker: systemd's and its own
    f"/system.slice/docker-{ID}.scope": ("docker", ""),
    f"/docker/{ID}": ("docker", ""),
    f"/docker/{ID}/init.scope": ("docker", "init.scope"),
    # others
    f"/system.slice/nerdctl-{ID}.scope": ("containerd", ""),
    f"/default/{ID}": ("container", ""),
    "/lxc.payload.web/system.slice/nginx.service": ("lxc", "system.slice/nginx.service"),
    "/machine.slice/systemd-nspawn@web.service/payload": ("nspawn", ""),
    # a container in a container: the inner one
    f"/docker/{OTHER}/docker/{ID}": ("docker", ""),
}


@pytest.mark.parametrize(("path", "truth"), CONTAINERS.items(), ids=str)
def test_a_container_is_told_by_its_path_and_is_a_workload_wherever_it_lies(
    path: str, truth: tuple[str, str]
) -> None:
    name = from_path(path)
    assert (name.kind, name.runtime, name.inside, name.owner) == ("container", *truth, "workload")
    assert name.container_id in (ID, "web")
    assert name.cgroup == path


PODS = {
    f"{SLICE}/cri-containerd-{ID}.scope": ("containerd", "burstable"),
    f"/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope": ("containerd", "guaranteed"),
    f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{ID}.scope": (
        "crio",
        "besteffort",
    ),
    f"{SLICE}/docker-{ID}.scope": ("docker", "burstable"),
    f"/kubepods/burstable/pod{UID}/{ID}": ("container", "burstable"),
    f"/kubepods/pod{UID}/{ID}": ("container", "guaranteed"),
    f"/kubepods/besteffort/pod{UID}/crio-{ID}": ("crio", "besteffort"),
    f"/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}": (
        "containerd",
        "burstable",
    ),
    # Kubernetes in a container (kind), with a root of its own
    f"/docker/{OTHER}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
    f"kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope": ("containerd", "burstable"),
}


@pytest.mark.parametrize(("path", "truth"), PODS.items(), ids=str)
def test_a_pods_container_is_told_with_its_uid_and_level(path: str, truth: tuple[str, str]) -> None:
    name = from_path(path)
    assert (name.kind, name.runtime, name.qos) == ("container", *truth)
    assert (name.pod_uid, name.container_id, name.owner) == (UID, ID, "workload")


def test_a_pods_own_directory_is_a_pod_and_a_static_pods_uid_is_a_hash() -> None:
    assert (from_path(SLICE).kind, from_path(SLICE).pod_uid) == ("pod", UID)
    static = from_path(f"/kubepods/burstable/pod{'0a' * 16}/{ID}")
    assert (static.pod_uid, static.container_id) == ("0a" * 16, ID)
    assert from_path(f"/machine.slice/machine-libpod_pod_{ID}.slice").kind == "pod"
    assert from_path(f"/libpod_parent/{ID}").kind == "pod"


@pytest.mark.parametrize(
    ("path", "name", "kind", "owner"),
    [
        ("/", "root cgroup", "root", "system"),
        ("/init.scope", "init.scope", "unit", "system"),
        ("/system.slice", "system.slice", "slice", "system"),
        ("/system.slice/nginx.service", "nginx.service", "unit", "system"),
        ("/system.slice/nginx.service/workers/3", "nginx.service/workers/3", "cgroup", "system"),
        (
            r"/system.slice/system-getty.slice/getty@tty\x2dusb.service",
            "getty@tty-usb.service",
            "unit",
            "system",
        ),
        (r"/system.slice/bad\xff.service", r"bad\xff.service", "unit", "system"),
        ("/system.slice/_cgroup.service", "cgroup.service", "unit", "system"),
        ("/_", "_", "cgroup", "workload"),
        ("/system.slicer", "system.slicer", "cgroup", "workload"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", "unit", "workload"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "init.scope", "unit", "workload"),
        ("/machine.slice", "machine.slice", "slice", "workload"),
        ("/kubepods.slice/kubepods-burstable.slice", "kubepods-burstable.slice", "slice", "workload"),
        ("/batch/nightly", "nightly", "cgroup", "workload"),
        (f"/machine.slice/libpod-conmon-{ID}.scope", f"monitor of {ID[:12]}", "unit", "workload"),
        (f"{SLICE}/crio-conmon-{ID}.scope", f"monitor of {ID[:12]}", "unit", "workload"),
    ],
)
def test_units_slices_and_plain_groups(path: str, name: str, kind: str, owner: str) -> None:
    found = from_path(path)
    assert (found.name, found.kind, found.owner) == (name, kind, owner)


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("_./\\-x20ab") | st.characters(), max_size=60))
def test_any_path_has_a_name_and_only_the_systems_own_places_are_the_systems(text: str) -> None:
    found = from_path("/" + text)
    parts = [part for part in text.split("/") if part]
    assert found.name
    assert (found.owner == "system") <= (not parts or parts[0] in ("init.scope", "system.slice"))


# -- state on disk ----------------------------------------------------------------------------------------------


def write(root: Path, path: str, content: object) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def test_podman_and_docker_names_come_from_their_state(tmp_path: Path) -> None:
    write(
        tmp_path,
        "/var/lib/containers/storage/overlay-containers/containers.json",
        [{"id": ID, "names": ["web"]}, {"id": OTHER}, "nonsense", {"id": 3, "names": "x"}],
    )
    write(tmp_path, f"/var/lib/docker/containers/{OTHER}/config.v2.json", {"Name": "/db", "ID": OTHER})
    states = States(tmp_path)
    assert states.container("podman", ID) == Known("web")
    assert states.container("docker", OTHER) == Known("db")
    assert states.container("docker", "aa" * 32) is None
    assert states.container("docker", "../../etc/passwd") is None


def test_a_users_own_podman_store_and_one_moved_by_configuration_are_found(tmp_path: Path) -> None:
    write(
        tmp_path,
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:,,,:/home/ann:/bin/sh\nbroken\n",
    )
    write(tmp_path, "/etc/containers/storage.conf", '[storage]\ndriver = "vfs"\ngraphroot = "/data/pod/"\n')
    write(
        tmp_path,
        "/home/ann/.local/share/containers/storage/overlay-containers/containers.json",
        [{"id": ID, "names": ["anns"]}],
    )
    write(tmp_path, "/data/pod/vfs-containers/containers.json", [{"id": OTHER, "names": ["moved"]}])
    states = States(tmp_path)
    assert states.container("podman", ID) == Known("anns")
    assert states.container("podman", OTHER) == Known("moved")


@pytest.mark.parametrize(
    ("configuration", "store"),
    [
        ({}, "/var/lib/docker"),
        ({"/etc/docker/daemon.json": {"data-root": "/srv/docker/"}}, "/srv/docker"),
        ({"/etc/docker/daemon.json": {"graph": "/srv/docker"}}, "/srv/docker"),
        ({"/etc/docker/daemon.json": {"userns-remap": "default"}}, "/var/lib/docker/231072.231072"),
        ({}, "/var/snap/docker/common/var-lib-docker"),
        ({"/var/snap/docker/current/config/daemon.json": {"data-root": "/media/d"}}, "/media/d"),
        ({}, "/home/ann/.local/share/docker"),
        ({"/home/ann/.config/docker/daemon.json": {"data-root": "/data/ann"}}, "/data/ann"),
        ({"/etc/docker/daemon.json": "{ half written", "/home/ann/x": ""}, "/var/lib/docker"),
        ({"/etc/docker/daemon.json": {"data-root": ["/srv"]}}, "/var/lib/docker"),
    ],
    ids=repr,
)
def test_docker_is_found_wherever_its_data_lies(
    tmp_path: Path, configuration: dict[str, object], store: str
) -> None:
    write(tmp_path, "/etc/passwd", "ann:x:1000:1000:,,,:/home/ann:/bin/sh\nbroken:x:1:1::nowhere:/bin/sh\n")
    for path, content in configuration.items():
        write(tmp_path, path, content)
    write(tmp_path, f"{store}/containers/{ID}/config.v2.json", {"Name": "/db"})
    for runtime in ("docker", "container"):
        assert States(tmp_path).container(runtime, ID) == Known("db")


def test_a_runtime_that_comes_later_is_found_without_looking_for_it_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("labkit.names.containers.time.monotonic", lambda: clock[0])
    write(tmp_path, "/etc/passwd", "ann:x:1000:1000:,,,:/home/ann:/bin/sh\n")
    states = States(tmp_path)
    assert states.container("podman", ID) is None
    write(
        tmp_path,
        "/home/ann/.local/share/containers/storage/overlay-containers/containers.json",
        [{"id": ID, "names": ["new"]}],
    )
    clock[0] += 59
    assert states.container("podman", ID) is None
    clock[0] += 2
    assert states.container("podman", ID) == Known("new")


def test_a_pods_names_come_from_the_kubelets_log_folders(tmp_path: Path) -> None:
    write(tmp_path, f"/var/log/containers/web-0_shop_front-{ID}.log", "")
    write(tmp_path, f"/var/log/pods/shop_web-0_{UID}/front/0.log", "")
    states = States(tmp_path)
    assert states.container("containerd", ID) == Known("front", "shop", "web-0")
    assert states.pod(UID) == Known("", "shop", "web-0")


@pytest.mark.parametrize(
    "content", ["", "[", "{}", "null", '[["x"]]', "[" * 100_000, '{"Name": 7}', '{"Name": "/"}']
)
def test_state_that_cannot_be_understood_counts_as_absent(tmp_path: Path, content: str) -> None:
    write(tmp_path, "/var/lib/containers/storage/overlay-containers/containers.json", content)
    write(tmp_path, f"/var/lib/docker/containers/{ID}/config.v2.json", content)
    assert States(tmp_path).container("container", ID) is None


def test_state_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = "/var/lib/containers/storage/overlay-containers/containers.json"
    write(tmp_path, file, [])
    states = States(tmp_path)
    assert states.container("podman", ID) is None
    write(tmp_path, file, [{"id": ID, "names": ["late"]}])
    os.utime(tmp_path / file.lstrip("/"), ns=(1, 1))
    assert states.container("podman", ID) == Known("late")


# -- the directory, over folders that stand for cgroups ------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Hierarchy:
    (tmp_path / "tree/system.slice/a.service").mkdir(parents=True)
    (tmp_path / "tree/batch").mkdir()
    return Hierarchy("v2", tmp_path / "tree")


def directory(tree: Hierarchy, **more: object) -> Directory:
    found = Directory(tree, **more)  # type: ignore[arg-type]
    assert found._finder is not None
    found._finder.permitted = False  # a plain folder is no kernfs: it has to walk
    return found


def inode(tree: Hierarchy, path: str) -> int:
    assert tree.unified is not None
    return (tree.unified / path.strip("/")).stat().st_ino


def test_the_dead_keep_their_last_name_and_nobody_is_unknown_not_system(tree: Hierarchy) -> None:
    batch = inode(tree, "/batch")
    with directory(tree) as found:
        assert tree.unified is not None
        assert found.alive(batch)
        (tree.unified / "batch").rmdir()
        frame = found.frame([batch, 2**63, 0]).set_index("cgroup_id")
    assert frame.loc[batch, ["name", "owner", "alive"]].tolist() == ["batch", "workload", False]
    for nobody in (2**63, 0):
        assert frame.loc[nobody, ["cgroup", "name", "kind", "owner", "alive"]].tolist() == [
            "",
            "unknown",
            "unknown",
            "unknown",
            False,
        ]
    assert UNKNOWN.owner == "unknown"


def test_a_cgroup_made_later_is_found_and_walks_cost_a_bounded_share(
    tree: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("labkit.names.directory.time.monotonic", lambda: clock[0])
    with directory(tree) as found:
        found._walk_took_s = 0.5
        assert tree.unified is not None
        (tree.unified / "new").mkdir()
        new = inode(tree, "/new")
        assert found.names([new])[new] is UNKNOWN  # 0 s after a walk of 0.5 s: not yet
        clock[0] += 51.0
        assert found.names([new])[new].name == "new"


def test_the_dead_are_bounded(tree: Hierarchy) -> None:
    assert tree.unified is not None
    for n in range(30):
        (tree.unified / f"short-{n}").mkdir()
    with directory(tree, keep_dead=10) as found:
        assert len(found) == 34
        for n in range(30):
            (tree.unified / f"short-{n}").rmdir()
        assert found.sweep() == 14


def test_a_path_that_is_no_text_is_still_alive_and_can_be_kept_in_a_file(tree: Hierarchy) -> None:
    assert tree.unified is not None
    os.mkdir(os.fsencode(tree.unified) + b"/caf\xe9")
    raw = os.stat(os.fsencode(tree.unified) + b"/caf\xe9").st_ino
    with directory(tree) as found:
        row = found.frame([raw]).iloc[0]
    assert (row["name"], row["alive"]) == (r"caf\xe9", True)
    row["cgroup"].encode()


def test_an_enricher_goes_first_and_is_asked_again_until_it_knows(
    tree: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("labkit.names.directory.time.monotonic", lambda: clock[0])
    answers: list[Known | None] = [None, Known("front", "shop", "web-0")]
    asked: list[tuple[str, str]] = []

    def api(*, pod_uid: str, container_id: str) -> Known | None:
        asked.append((pod_uid, container_id))
        return answers.pop(0)

    with directory(tree, enrichers=[api], states=States("/nowhere")) as found:
        found.learn(77, f"{SLICE}/cri-containerd-{ID}.scope")
        assert found.names([77])[77].name == f"containerd {ID[:12]}"
        assert found.names([77])[77].pod == ""
        clock[0] += 5.0
        named = found.names([77])[77]
        found.names([77])
    assert (named.namespace, named.pod, named.container) == ("shop", "web-0", "front")
    assert named.name == "shop/web-0/front"
    assert asked == [(UID, ID)] * 2


def test_a_pause_container_is_named_by_its_pod(tree: Hierarchy, tmp_path: Path) -> None:
    write(tmp_path, f"/var/log/pods/shop_web-0_{UID}/front/0.log", "")
    with directory(tree, states=States(tmp_path)) as found:
        found.learn(77, f"{SLICE}/cri-containerd-{ID}.scope")
        found.learn(78, SLICE)
        names = found.names([77, 78])
    assert names[77].name == f"shop/web-0/containerd {ID[:12]}"
    assert names[77].container == ""
    assert names[78].name == "shop/web-0"


def test_what_the_api_leaves_open_the_kubelets_link_fills_in(tree: Hierarchy, tmp_path: Path) -> None:
    """The API has a pod before the status of its container; the kubelet's link is there by then, and names both."""
    write(tmp_path, f"/var/log/containers/web-0_shop_front-{ID}.log", "")
    with directory(
        tree, enrichers=[lambda **_: Known("", "shop", "web-0")], states=States(tmp_path)
    ) as found:
        found.learn(77, f"{SLICE}/cri-containerd-{ID}.scope")
        assert found.names([77])[77].name == "shop/web-0/front"


def test_what_is_known_is_not_forgotten_when_a_source_falls_silent(
    tree: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("labkit.names.directory.time.monotonic", lambda: clock[0])
    answers = [Known("", "shop", "web-0"), None, Known("front", "other", "pod"), Known("front", "", "")]
    with directory(tree, enrichers=[lambda **_: answers.pop(0)], states=States("/nowhere")) as found:
        found.learn(77, f"{SLICE}/cri-containerd-{ID}.scope")
        names = []
        while answers:
            names.append(found.names([77])[77].name)
            clock[0] += 5.0
    unnamed = f"shop/web-0/containerd {ID[:12]}"
    assert names == [unnamed, unnamed, unnamed, "shop/web-0/front"], "and another pod's names are not its own"

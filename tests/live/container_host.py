"""A node for tests: images built from the Dockerfile, pods of the manifests run by podman and runc on the live kernel.

Nothing can be pulled, so the base image is debootstrapped and imported under the Dockerfile's own FROM name, in a store
of its own (in labkit's cache, 6 GB; a second run builds only what changed). podman is no kubelet: what a kubelet would do
besides starting containers is done here, each piece with its reason.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from guest.host import apt_transport_options, debian_mirror, run_tool
from labkit.containers.images import Registry
from labkit.containers.manifests import documents, k8s_dir
from labkit.paths import cache_dir, lab_root

PACKAGES = {
    "podman": "podman",
    "buildah": "buildah",
    "runc": "runc",
    "mmdebstrap": "mmdebstrap",
    "catatonit": "catatonit",  # podman's own first process of a pod
}
SUITE = "trixie"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What containerd hands to runc and podman does not: no ambient and no inheritable capabilities (CVE-2022-24769), so that a
# user other than root starts without any; and bpf(2) let through by the default seccomp profile for CAP_BPF,
# perf_event_open(2) for CAP_PERFMON (containerd 1.7, pull request 7301). And hostPID, which podman 4.3 reads over.
_HOST_PID = "labkit-test/host-pid"
_RUNTIME = """#!{python} -I
import json, os, sys

def edit(path, change):
    with open(path) as file:
        content = json.load(file)
    change(content)
    with open(path, "w") as file:
        json.dump(content, file)

def rights(process):
    held = process.get("capabilities", {{}})
    held["ambient"] = held["inheritable"] = []
    return held.get("bounding", [])

def whole(config):
    if config.get("annotations", {{}}).get("{host_pid}"):
        config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "pid"]
    bounding = rights(config["process"])
    seccomp = config.get("linux", {{}}).get("seccomp")
    for capability, call in (("CAP_BPF", "bpf"), ("CAP_PERFMON", "perf_event_open")):
        if seccomp and capability in bounding:
            for rule in seccomp["syscalls"]:
                rule["names"] = [name for name in rule["names"] if name != call]
            seccomp["syscalls"] = [rule for rule in seccomp["syscalls"] if rule["names"]]
            seccomp["syscalls"].append({{"names": [call], "action": "SCMP_ACT_ALLOW"}})

argv = sys.argv[1:]
if "create" in argv:
    folder = argv[argv.index("--bundle") + 1] if "--bundle" in argv else "."
    edit(os.path.join(folder, "config.json"), whole)
elif "exec" in argv and "--process" in argv:
    edit(argv[argv.index("--process") + 1], rights)
elif "kill" in argv:  # without a process namespace of its own, the end of the first process is not that of the others
    argv.insert(argv.index("kill") + 1, "--all")
os.execvp("runc", ["runc", *argv])
"""

Document = dict[str, Any]


class Unavailable(Exception):
    """This machine cannot run containers; the text says why, and what to do."""


@dataclass(frozen=True)
class Host:
    """Where images are kept and containers run."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """For podman and buildah: a configuration and a store of their own."""
        return os.environ | {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
        }

    def podman(self, *arguments: str, given: str | None = None, check: bool = True) -> str:
        """Run podman; returns its standard output."""
        done = subprocess.run(
            ["podman", *arguments], env=self.env, input=given, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"podman {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
        return done.stdout.strip()

    def pid(self, container: str) -> int:
        """The container's first process, as the host counts."""
        return int(self.podman("inspect", "--format", "{{.State.Pid}}", container))

    def id(self, container: str) -> str:
        """The container's id: 64 hexadecimal digits."""
        return self.podman("inspect", "--format", "{{.Id}}", container)


def host() -> Host:
    """The node, made ready: programs installed, configured.

    :raises Unavailable: if it cannot be one.
    """
    if os.geteuid() != 0:
        raise Unavailable("needs root: sudo ./task test-full")
    _install()
    made = Host(cache_dir() / "containers")
    made.folder.mkdir(exist_ok=True, mode=0o700)
    runtime = made.folder / "runc-as-containerd"
    runtime.write_text(_RUNTIME.format(python=os.path.realpath(sys.executable), host_pid=_HOST_PID))
    runtime.chmod(0o755)
    soft, hard = _limits("Max open files"), _limits("Max processes")
    (made.folder / "containers.conf").write_text(
        # Limits above one's own cannot be set everywhere (a sandbox may not have CAP_SYS_RESOURCE).
        f'[containers]\ndefault_ulimits = ["nofile={soft}:{soft}", "nproc={hard}:{hard}"]\n'
        f'[engine]\nruntime = "containerd-like"\n[engine.runtimes]\ncontainerd-like = ["{runtime}"]\n'
    )
    (made.folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{made.folder}/storage"\nrunroot = "/run/labkit-test-containers"\n'
    )
    return made


def _limits(name: str) -> int:
    line = next(row for row in Path("/proc/self/limits").read_text().splitlines() if row.startswith(name))
    values = re.findall(r"\d+|unlimited", line)
    return min(int(value) for value in [*values, "20000"] if value != "unlimited")


def _install() -> None:
    missing = sorted(package for program, package in PACKAGES.items() if not _found(program))
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Unavailable(f"not installed: {', '.join(missing)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = [
        "apt-get",
        "-q",
        "-y",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
        "install",
        *missing,
    ]
    for command in (install, ["apt-get", "-q", "update"], install):
        failed = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
        if all(_found(program) for program in PACKAGES):
            return
    raise Unavailable(f"{', '.join(missing)} cannot be installed: {failed.stderr.strip()[-300:]}")


def _found(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_PATH}") is not None


def base(node: Host) -> str:
    """Debian, imported under the name that the Dockerfile begins with; made once. Returns the name."""
    name = re.findall(r"^FROM (\S+:\S+)", (lab_root() / "Dockerfile").read_text(), flags=re.MULTILINE)[0]
    full = f"docker.io/library/{name}"
    if node.podman("images", "--quiet", full):
        return full
    archive = node.folder / "base.tar"
    mirror = debian_mirror()
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale", "info")]
    options = [f"--aptopt={line}" for line in apt_transport_options()]
    try:
        command = [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--dpkgopt=force-unsafe-io",
            *excluded,
            *options,
        ]
        run_tool([*command, SUITE, str(archive), *([mirror] if mirror else [])])
        node.podman("import", "--change", f"ENV PATH={_PATH}", "--change", "CMD bash", str(archive), full)
    finally:
        archive.unlink(missing_ok=True)
    return full


def image(node: Host, target: str) -> str:
    """Build an image as `./task local-build-push` does, from the cache where nothing changed; returns its name."""
    base(node)
    arguments = ["--pull=never", "--runtime", "runc", "--network", "host", *_reaching_mirrors(node)]
    settings = {"BUILDER": "buildah", "BUILD_ARGS": " ".join(arguments)}
    code = (
        "from labkit.containers.images import Registry, build; from labkit.containers.shell import Shell; "
        f"build(Shell(), Registry.of({{}}), ({target!r},))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=node.env | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    node.podman(
        "image", "prune", "--force", "--filter", "until=24h", check=False
    )  # stages of yesterday's versions
    return Registry.of({}).image(target)


def _reaching_mirrors(node: Host) -> list[str]:
    """How this machine reaches its package mirrors holds for the build too: certificates, proxies, indexes."""
    volumes = {}
    trust = ssl.get_default_verify_paths().cafile
    bundle = trust or next((p for p in ("/etc/ssl/certs/ca-certificates.crt",) if os.path.exists(p)), None)
    lines = ["[global]", *(["cert = /run/host-ca.crt"] if bundle else [])]
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    lines += re.findall(r"index-url *= *'?https?://[^'\n]*", listed.stdout.replace("global.", ""))
    (node.folder / "pip.conf").write_text("\n".join(line.replace("'", "") for line in lines) + "\n")
    volumes[str(node.folder / "pip.conf")] = "/etc/pip.conf"
    if bundle:
        volumes[os.path.realpath(bundle)] = "/run/host-ca.crt"
    if transport := apt_transport_options():
        (node.folder / "apt.conf").write_text("".join(f"{line};\n" for line in transport))
        volumes[str(node.folder / "apt.conf")] = "/etc/apt/apt.conf.d/99host"
    return [part for here, there in volumes.items() for part in ("--volume", f"{here}:{there}:ro")]


def template(file: str, name: str) -> Document:
    """The pod of a manifest's workload, as Kubernetes' controllers make it from the template."""
    text = (k8s_dir() / file).read_text()
    (found,) = [d for d in documents(text) if d["metadata"]["name"] == name and d["kind"] != "Namespace"]
    inner = found if found["kind"] == "Pod" else found["spec"]["template"]
    metadata = dict(inner.get("metadata", {})) | {
        "name": name,
        "namespace": found["metadata"]["namespace"],
        "uid": str(uuid.uuid4()),
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy.deepcopy(inner["spec"])}


def for_podman(pod: Document, *, node_root: Path | None = None) -> Document:
    """What podman's ``play kube`` takes of a pod, unchanged but for what only a cluster has.

    Images have the names that they were built under; ports need no mapping on the node's own network; probes are left to
    the test (podman runs them by systemd); the node's name is filled in, as the API server does; affinity, tolerations
    and accounts are the scheduler's business.

    :param node_root: where the node's ``/var/log`` is: a machine without kubelet has none.
    """
    made = copy.deepcopy(pod)
    spec = made["spec"]
    if spec.get("hostPID"):
        made["metadata"].setdefault("annotations", {})[_HOST_PID] = "yes"
    for cluster_only in (
        "affinity",
        "tolerations",
        "serviceAccountName",
        "automountServiceAccountToken",
        "nodeSelector",
    ):
        spec.pop(cluster_only, None)
    for container in spec["containers"]:
        container["image"] = f"localhost/{container['image']}"
        # podman maps ports only through a bridge; here pods are on the node's own network.
        container.pop("ports", None)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            container.pop(probe, None)
        for variable in container.get("env", []):
            if variable.get("valueFrom") == {"fieldRef": {"fieldPath": "spec.nodeName"}}:
                del variable["valueFrom"]
                variable["value"] = os.uname().nodename
    name = made["metadata"]["name"]
    for mount in (mount for container in spec["containers"] for mount in container.get("volumeMounts", [])):
        mount["name"] = f"{name}-{mount['name']}"
    for volume in spec.get("volumes", []):
        # podman makes of an emptyDir a volume of that name, which all pods would share.
        volume["name"] = f"{name}-{volume['name']}"
        path = volume.get("hostPath", {}).get("path", "")
        if node_root is not None and path.startswith("/var/log/"):
            volume["hostPath"]["path"] = f"{node_root}{path}"
    return made


def tell_as_kubelet(node_root: Path, pod: Document, container: str, container_id: str) -> None:
    """The folder and the link that a kubelet leaves for each container (``pkg/kubelet/kuberuntime/legacy.go``)."""
    metadata = pod["metadata"]
    folder = f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
    (node_root / "var/log/pods" / folder / container).mkdir(parents=True, exist_ok=True)
    links = node_root / "var/log/containers"
    links.mkdir(parents=True, exist_ok=True)
    link = links / f"{metadata['name']}_{metadata['namespace']}_{container}-{container_id}.log"
    link.symlink_to(f"/var/log/pods/{folder}/{container}/0.log")


@contextlib.contextmanager
def running(node: Host, pod: Document) -> Iterator[list[str]]:
    """Play a pod; yields the names of its containers (``POD-CONTAINER``), and removes all of it afterwards."""
    name = pod["metadata"]["name"]
    node.podman("pod", "rm", "--force", "--ignore", "--time", "0", name)
    text = yaml.safe_dump(pod)
    try:
        node.podman("play", "kube", "--network", "host", "-", given=text)
        yield [f"{name}-{container['name']}" for container in pod["spec"]["containers"]]
    finally:
        node.podman("pod", "rm", "--force", "--ignore", "--time", "2", name, check=False)
        for volume in pod["spec"].get("volumes", []):
            if "emptyDir" in volume:
                node.podman("volume", "rm", "--force", volume["name"], check=False)


def answer(text: str) -> Document:
    """The JSON in what a command printed."""
    found: Document = json.loads(text)
    return found

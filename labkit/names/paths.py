"""From the path of a control group to what people call it: units, slices, containers, pods.

Pure: what a path alone tells. Sources: systemd's ``CGROUP_DELEGATION.md`` and ``systemd.unit(5)`` (names, escapes);
podman's ``libpod/container_internal_linux.go`` (``libpod-ID.scope``, ``libpod-payload-ID``) and ``runtime_pod_linux.go``;
moby's ``daemon/oci_linux.go`` (``docker-ID.scope``, ``/docker/ID``); Kubernetes' ``pkg/kubelet/cm`` (``kubepods``, QoS
levels, ``pod<uid>``; guaranteed pods have no level); CRI-O and containerd (``crio-ID.scope``, ``cri-containerd-ID.scope``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

__all__ = ["UNKNOWN", "Name", "from_path", "unescape"]


@dataclass(frozen=True)
class Name:
    """What a control group is called.

    Names come from other people's programs: show them through :mod:`labkit.text` only.

    :param cgroup: path in the tree of cgroups; empty if it is not known.
    :param name: short, for people.
    :param kind: ``container``, ``pod``, ``unit``, ``slice``, ``cgroup`` (any other), ``root``, or ``unknown``.
    :param namespace: of a Kubernetes pod, empty if not known; so with ``pod`` and ``container``.
    :param owner: ``system`` (the root with the kernel's threads, ``init.scope``, ``system.slice``), ``workload`` (any
        other; a container is a workload wherever it lies), or ``unknown``.
    :param runtime: ``podman``, ``docker``, ``containerd``, ``crio``, ``lxc``, ``nspawn`` or ``container`` (some other).
    :param container_id: as in the path; empty if it is no container.
    :param pod_uid: of a Kubernetes pod, as the API writes it.
    :param qos: of a Kubernetes pod: ``guaranteed``, ``burstable`` or ``besteffort``.
    :param inside: path below the container's or unit's own cgroup, empty for itself.
    """

    cgroup: str
    name: str
    kind: str
    namespace: str = ""
    pod: str = ""
    container: str = ""
    owner: str = "workload"
    runtime: str = ""
    container_id: str = ""
    pod_uid: str = ""
    qos: str = ""
    inside: str = ""

    @property
    def complete(self) -> bool:
        """False if it is a container or a pod of which a name is still to be found."""
        return bool(self.container or self.kind != "container") and bool(self.pod or not self.pod_uid)

    def called(self, container: str, *, namespace: str = "", pod: str = "") -> Name:
        """The same cgroup, now that names of its container or pod are known (empty: still not)."""
        own = container or (f"{self.runtime} {self.container_id[:SHORT]}" if self.container_id else "")
        label = "/".join(part for part in (namespace, pod, own) if part) or self.name
        return replace(
            self,
            name=f"{label}:{self.inside}" if self.inside else label,
            namespace=namespace,
            pod=pod,
            container=container,
        )


UNKNOWN = Name(cgroup="", name="unknown", kind="unknown", owner="unknown")

#: So many characters of a container's id are shown where nothing better is known.
SHORT = 12

_ID = r"(?P<id>[0-9a-f]{64})"
_HEX = re.compile(_ID)
#: A container's own directory, by who makes it. The runtime of the first that fits.
_CONTAINER = [
    ("podman", re.compile(rf"libpod-(?:payload-)?{_ID}(?:\.scope)?")),
    ("docker", re.compile(rf"docker-{_ID}\.scope")),
    ("containerd", re.compile(rf"(?:cri-containerd|nerdctl)-{_ID}\.scope")),
    ("containerd", re.compile(rf"kubepods[^:]*:cri-containerd:{_ID}")),  # cgroupfs driver, systemd's form
    ("crio", re.compile(rf"crio-{_ID}(?:\.scope)?")),
    ("lxc", re.compile(r"lxc\.payload\.(?P<id>.+)")),
    ("nspawn", re.compile(r"systemd-nspawn@(?P<id>.+)\.service")),
    ("container", re.compile(rf"(?:[a-z][a-z0-9_.]*-)*{_ID}(?:\.scope)?")),
]
_NAMED_BY_PATH = ("lxc", "nspawn")
#: What watches over a container, beside it: no container itself.
_MONITOR = re.compile(rf"(?:libpod|crio)-conmon-{_ID}(?:\.scope)?")
#: Directories that a runtime puts between a container's own one and its tasks: the same thing to people.
_WRAPPER = ("container", "payload")
_UID = r"(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
_POD = re.compile(rf"(?:.*kubepods(?:-(?P<qos>burstable|besteffort))?-)?pod{_UID}(?:\.slice)?(?::.*)?")
_QOS = re.compile(r"(?:.*kubepods-)?(?P<qos>burstable|besteffort)(?:\.slice)?")
_PODMAN_POD = re.compile(r"(?:[a-z]+-)*libpod_pod_(?P<id>[0-9a-f]{64})(?:\.slice)?")
_UNIT = re.compile(r".+\.(?:service|scope|socket|mount|swap)")


def unescape(unit: str) -> str:
    r"""A unit's name as it was meant: ``\xNN`` undone (``systemd-escape``), and the guard before reserved names taken off.

    >>> unescape("getty@tty\\x2dusb0.service"), unescape("_cgroup.service")
    ('getty@tty-usb0.service', 'cgroup.service')
    """
    # cg_escape(): names that could be the kernel's own files get an underscore
    if unit.startswith("_") and len(unit) > 1:
        unit = unit[1:]
    raw = re.sub(
        rb"\\x([0-9a-fA-F]{2})", lambda m: bytes([int(m[1], 16)]), unit.encode("utf-8", "surrogatepass")
    )
    return raw.decode("utf-8", "backslashreplace")


@dataclass
class _Walk:
    """What the directories told so far, from the root down."""

    unit: str = ""
    slice: str = ""
    kubernetes: bool = False
    qos: str = ""
    pod_uid: str = ""
    podman_pod: str = ""
    runtime: str = ""
    container_id: str = ""
    monitor_of: str = ""
    above: str = ""
    rest: tuple[str, ...] = ()

    def step(self, part: str) -> None:
        self.kubernetes = self.kubernetes or "kubepods" in part
        above, self.above = self.above, part
        if match := _MONITOR.fullmatch(part):
            self.monitor_of, self.container_id, self.rest = match["id"], "", ()
        elif (
            match := _PODMAN_POD.fullmatch(part)
            or (above == "libpod_parent" and _HEX.fullmatch(part))
            or None
        ):
            self.podman_pod, self.rest = match["id"], ()
        elif found := _container(part):
            # the innermost wins: a container may run containers
            self._pod(part)
            self.runtime, self.container_id = found
            if above == "docker" and self.runtime == "container":
                self.runtime = "docker"
            self.unit, self.rest, self.monitor_of = "", (), ""
        elif self._pod(part) or self._qos(part):
            self.rest = ()
        elif self.container_id:
            self.rest += (part,) if self.rest or part not in _WRAPPER else ()
        elif _UNIT.fullmatch(part):
            self.unit, self.rest = part, ()
        elif part.endswith(".slice"):
            self.slice, self.rest = part, ()
        else:
            self.rest += (part,)

    def _pod(self, part: str) -> bool:
        match = _POD.fullmatch(part) if self.kubernetes else None
        if match is None:
            return False
        self.pod_uid = match["uid"].replace("_", "-")
        self.qos = match["qos"] or self.qos or "guaranteed"
        self.container_id = ""  # the pods of a Kubernetes that itself runs in a container
        self.unit = self.slice = ""
        return True

    def _qos(self, part: str) -> bool:
        match = _QOS.fullmatch(part) if self.kubernetes and not self.pod_uid else None
        if match is None:
            return False
        self.qos, self.slice = match["qos"], part
        return True


def _container(part: str) -> tuple[str, str] | None:
    for runtime, form in _CONTAINER:
        if match := form.fullmatch(part):
            return runtime, match["id"]
    return None


def from_path(path: str) -> Name:
    """What the path of a cgroup alone tells of its name.

    A container's or pod's own name is not in its path: see :class:`labkit.names.containers.States`.

    >>> from_path("/system.slice/nginx.service").name
    'nginx.service'
    >>> from_path("/docker/" + "0a" * 32).name
    'docker 0a0a0a0a0a0a'
    """
    parts = [part for part in path.split("/") if part]
    if not parts:
        return Name(cgroup="/", name="root cgroup", kind="root", owner="system")
    walk = _Walk()
    for part in parts:
        walk.step(part)
    if walk.container_id:
        return _of_container(path, walk)
    if walk.pod_uid and not walk.monitor_of:
        return _of_pod(path, walk)
    return _of_unit(path, parts, walk)


def _of_container(path: str, walk: _Walk) -> Name:
    known = walk.container_id if walk.runtime in _NAMED_BY_PATH else ""
    inside = "/".join(unescape(part) for part in walk.rest)
    label = unescape(known) or f"{walk.runtime} {walk.container_id[:SHORT]}"
    return Name(
        cgroup=path,
        name=f"{label}:{inside}" if inside else label,
        kind="container",
        container=unescape(known),
        runtime=walk.runtime,
        container_id=walk.container_id,
        pod_uid=walk.pod_uid,
        qos=walk.qos,
        inside=inside,
    )


def _of_pod(path: str, walk: _Walk) -> Name:
    inside = "/".join(unescape(part) for part in walk.rest)
    label = f"pod {walk.pod_uid[:8]}"
    return Name(
        cgroup=path,
        name=f"{label}:{inside}" if inside else label,
        kind="pod",
        pod_uid=walk.pod_uid,
        qos=walk.qos,
        inside=inside,
    )


def _of_unit(path: str, parts: list[str], walk: _Walk) -> Name:
    owner = "system" if parts[0] in ("init.scope", "system.slice") else "workload"
    if walk.monitor_of:
        return Name(cgroup=path, name=f"monitor of {walk.monitor_of[:SHORT]}", kind="unit", owner=owner)
    rest = "/".join(unescape(part) for part in walk.rest)
    if walk.podman_pod and not walk.rest:
        return Name(cgroup=path, name=f"podman pod {walk.podman_pod[:SHORT]}", kind="pod", owner=owner)
    if walk.unit:
        unit = unescape(walk.unit)
        name, kind = (f"{unit}/{rest}", "cgroup") if rest else (unit, "unit")
        return Name(cgroup=path, name=name, kind=kind, owner=owner, inside=rest)
    if not rest:
        return Name(cgroup=path, name=unescape(parts[-1]), kind="slice", owner=owner)
    return Name(cgroup=path, name=unescape(parts[-1]), kind="cgroup", owner=owner)

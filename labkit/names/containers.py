"""From a container's id to its name, by the state that its runtime keeps on disk. No daemon is asked.

================  ==================================================================================================
podman            ``overlay-containers/containers.json`` of containers/storage: a list with ``id`` and ``names``; of every
                  user who runs rootless containers too
docker            ``containers/ID/config.v2.json``: ``Name``, with a slash before it; below ``/var/lib/docker``,
                  the ``data-root`` of ``daemon.json``, snap's folder, each user's own (rootless); with
                  ``userns-remap`` in a folder per id map
Kubernetes        the kubelet's links ``/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`` and folders
                  ``/var/log/pods/NAMESPACE_POD_UID`` (``pkg/kubelet/kuberuntime/legacy.go``, ``helpers.go``): names without
                  asking the API server. An enricher (:mod:`labkit.names.directory`) that does ask it goes first.
================  ==================================================================================================

Everything read here was written by others: sizes are bounded, and what cannot be understood counts as absent.
"""

from __future__ import annotations

import json
import os
import re
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Known", "States"]

_MAX_BYTES = 64 << 20
_MAX_ENTRIES = 100_000
#: A container that no store knows makes us look for stores anew, so often at most: a user may have begun to use a runtime.
_STORES_S = 60.0


@dataclass(frozen=True)
class Known:
    """Names of a container, or of a pod (then ``container`` is empty)."""

    container: str = ""
    namespace: str = ""
    pod: str = ""

    def filled_from(self, other: Known) -> Known:
        """With what the other one knows beyond this. If they speak of different pods, this one stays as it is."""
        if self.pod and other.pod and (self.namespace, self.pod) != (other.namespace, other.pod):
            return self
        return Known(
            self.container or other.container, self.namespace or other.namespace, self.pod or other.pod
        )


_LOG_LINK = re.compile(
    r"(?P<pod>[^_/]+)_(?P<namespace>[^_/]+)_(?P<container>.+)-(?P<id>[0-9a-f]{64})\.log", re.DOTALL
)
_LOG_FOLDER = re.compile(r"(?P<namespace>[^_/]+)_(?P<pod>[^_/]+)_(?P<uid>[0-9a-f-]{32,36})", re.DOTALL)


@dataclass
class _Cached:
    """What one file or folder says, read again when its time of change is another one."""

    read: Callable[[str], dict[str, Known]]
    changed_ns: int = -1
    known: dict[str, Known] = field(default_factory=dict)

    def get(self, path: str, key: str) -> Known | None:
        try:
            changed_ns = os.stat(path).st_mtime_ns
        except OSError:
            self.changed_ns, self.known = -1, {}
            return None
        if changed_ns != self.changed_ns:
            self.known = self.read(path)
            self.changed_ns = changed_ns
        return self.known.get(key)


class States:
    """The state folders of container runtimes.

    :param root: where the host's file system is; another one than ``/`` where labkit itself runs in a container.
    """

    def __init__(self, root: str | Path = "/") -> None:
        self._root = str(root).rstrip("/")
        self._cache: dict[str, _Cached] = {}
        self._stores: _Stores | None = None

    def container(self, runtime: str, container_id: str) -> Known | None:
        """Names of a container; None if no state on this machine tells.

        :param runtime: as in :class:`labkit.names.Name`; ``container`` where the path did not say.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", container_id):
            return None
        link = self._cached(f"{self._root}/var/log/containers", _log_links, container_id)
        if link is not None:
            return link
        if found := self._in_stores(runtime, container_id):
            return found
        if self._stores is not None and time.monotonic() - self._stores.found_s < _STORES_S:
            return None
        self._stores = None
        return self._in_stores(runtime, container_id)

    def _in_stores(self, runtime: str, container_id: str) -> Known | None:
        stores = self._stores = self._stores or _Stores.find(self._root)
        for path in stores.podman if runtime in ("podman", "container") else ():
            if found := self._cached(path, _podman_names, container_id):
                return found
        for folder in stores.docker:
            if found := _docker_name(f"{folder}/{container_id}/config.v2.json"):
                return found
        return None

    def pod(self, uid: str) -> Known | None:
        """Names of a Kubernetes pod; None if the kubelet keeps no folder of it."""
        return self._cached(f"{self._root}/var/log/pods", _log_folders, uid)

    def _cached(self, path: str, read: Callable[[str], dict[str, Known]], key: str) -> Known | None:
        return self._cache.setdefault(path, _Cached(read)).get(path, key)


@dataclass(frozen=True)
class _Stores:
    """Where container runtimes keep their state on this machine.

    :param podman: files that list containers.
    :param docker: folders with one folder per container.
    """

    podman: list[str]
    docker: list[str]
    found_s: float

    @classmethod
    def find(cls, root: str) -> _Stores:
        homes = _homes(f"{root}/etc/passwd")
        return cls(_podman_files(root, homes), _docker_folders(root, homes), time.monotonic())


def _podman_files(root: str, homes: list[str]) -> list[str]:
    stores = [_graph_root(f"{root}/etc/containers/storage.conf"), "/var/lib/containers/storage"]
    stores += ["/run/containers/storage", *(f"{home}/.local/share/containers/storage" for home in homes)]
    return [
        f"{root}{store}/{driver}-containers/{file}"
        for store in dict.fromkeys(s for s in stores if s)
        for driver in ("overlay", "vfs", "btrfs", "zfs")
        for file in ("containers.json", "volatile-containers.json")
        if os.path.isdir(f"{root}{store}/{driver}-containers")
    ]


#: Of dockerd's snap: its configuration, and where its data lies unless that says otherwise.
_SNAP = "/var/snap/docker/current/config/daemon.json", "/var/snap/docker/common/var-lib-docker"
#: With ``userns-remap``, dockerd keeps all its data in a folder called after the first user and group id of the map.
_ID_MAP = re.compile(r"\d+\.\d+")


def _docker_folders(root: str, homes: list[str]) -> list[str]:
    stores = [_data_root(f"{root}/etc/docker/daemon.json"), "/var/lib/docker"]
    stores += [_data_root(f"{root}{_SNAP[0]}"), _SNAP[1]]
    for home in homes:
        stores += [_data_root(f"{root}{home}/.config/docker/daemon.json"), f"{home}/.local/share/docker"]
    folders = []
    for store in dict.fromkeys(s for s in stores if s):
        maps = [entry for entry in _entries(f"{root}{store}") if _ID_MAP.fullmatch(entry)]
        folders += [f"{root}{store}/{part}containers" for part in ("", *(f"{one}/" for one in maps))]
    return [folder for folder in folders if os.path.isdir(folder)]


def _homes(passwd: str) -> list[str]:
    try:
        with open(passwd, encoding="utf-8", errors="replace") as file:
            homes = [line.split(":")[5] for line in file.readlines(1 << 20) if line.count(":") >= 6]
    except OSError:
        return []
    return [home.rstrip("/") for home in dict.fromkeys(homes) if home.startswith("/")]


def _text(path: str) -> str:
    with open(path, "rb") as file:
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise ValueError("too large")
    return raw.decode("utf-8", "backslashreplace")


def _json(path: str) -> Any:
    try:
        return json.loads(_text(path))
    except (OSError, ValueError, RecursionError):  # absent, not ours to read, or half written
        return None


def _graph_root(path: str) -> str:
    try:
        found = tomllib.loads(_text(path))["storage"]["graphroot"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return _folder(found)


def _data_root(path: str) -> str:
    """Of dockerd's configuration; ``graph`` is what it was called up to 17.05."""
    found = _json(path)
    if not isinstance(found, dict):
        return ""
    return _folder(found.get("data-root", found.get("graph")))


def _folder(found: object) -> str:
    return found.rstrip("/") if isinstance(found, str) and found.startswith("/") else ""


def _podman_names(path: str) -> dict[str, Known]:
    found = {}
    entries = _json(path)
    for entry in entries[:_MAX_ENTRIES] if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        names = entry.get("names")
        if (
            isinstance(names, list)
            and names
            and isinstance(names[0], str)
            and isinstance(entry.get("id"), str)
        ):
            found[entry["id"]] = Known(container=names[0])
    return found


def _docker_name(path: str) -> Known | None:
    entry = _json(path)
    name = entry.get("Name") if isinstance(entry, dict) else None
    return Known(container=name.lstrip("/")) if isinstance(name, str) and name.strip("/") else None


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)[:_MAX_ENTRIES]
    except OSError:
        return []


def _log_links(folder: str) -> dict[str, Known]:
    matches = filter(None, map(_LOG_LINK.fullmatch, _entries(folder)))
    return {m["id"]: Known(m["container"], m["namespace"], m["pod"]) for m in matches}


def _log_folders(folder: str) -> dict[str, Known]:
    matches = filter(None, map(_LOG_FOLDER.fullmatch, _entries(folder)))
    return {m["uid"]: Known("", m["namespace"], m["pod"]) for m in matches}

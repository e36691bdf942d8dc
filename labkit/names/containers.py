"""From a container's id to its name, by the state that its runtime keeps on disk. No daemon is asked.

================  ==================================================================================================
podman            ``overlay-containers/containers.json`` of containers/storage: a list with ``id`` and ``names``; of every
                  user who runs rootless containers too
docker            ``containers/ID/config.v2.json``: ``Name``, with a slash before it
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
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Known", "States"]

_MAX_BYTES = 64 << 20
_MAX_ENTRIES = 100_000


@dataclass(frozen=True)
class Known:
    """Names of a container, or of a pod (then ``container`` is empty)."""

    container: str = ""
    namespace: str = ""
    pod: str = ""


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
        self._podman: list[str] | None = None

    def container(self, runtime: str, container_id: str) -> Known | None:
        """Names of a container; None if no state on this machine tells.

        :param runtime: as in :class:`labkit.names.Name`; ``container`` where the path did not say.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", container_id):
            return None
        link = self._cached(f"{self._root}/var/log/containers", _log_links, container_id)
        if link is not None:
            return link
        if runtime in ("podman", "container"):
            for path in self._podman_files():
                if found := self._cached(path, _podman_names, container_id):
                    return found
        return _docker_name(f"{self._root}/var/lib/docker/containers/{container_id}/config.v2.json")

    def pod(self, uid: str) -> Known | None:
        """Names of a Kubernetes pod; None if the kubelet keeps no folder of it."""
        return self._cached(f"{self._root}/var/log/pods", _log_folders, uid)

    def _cached(self, path: str, read: Callable[[str], dict[str, Known]], key: str) -> Known | None:
        return self._cache.setdefault(path, _Cached(read)).get(path, key)

    def _podman_files(self) -> list[str]:
        if self._podman is None:
            stores = [_graph_root(f"{self._root}/etc/containers/storage.conf"), "/var/lib/containers/storage"]
            stores += ["/run/containers/storage", *self._users_stores()]
            self._podman = [
                f"{self._root}{store}/{driver}-containers/{file}"
                for store in dict.fromkeys(s for s in stores if s)
                for driver in ("overlay", "vfs", "btrfs", "zfs")
                for file in ("containers.json", "volatile-containers.json")
                if os.path.isdir(f"{self._root}{store}/{driver}-containers")
            ]
        return self._podman

    def _users_stores(self) -> list[str]:
        homes = []
        try:
            with open(f"{self._root}/etc/passwd", encoding="utf-8", errors="replace") as file:
                homes = [line.split(":")[5] for line in file.readlines(1 << 20) if line.count(":") >= 6]
        except OSError:
            pass
        stores = [f"{home}/.local/share/containers/storage" for home in dict.fromkeys(homes)]
        return [store for store in stores if os.path.isdir(self._root + store)]

    def forget_stores(self) -> None:
        """Look for podman's stores anew at the next question: a user may have begun to use it."""
        self._podman = None


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

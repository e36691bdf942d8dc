"""Names of pods from the Kubernetes API: what its objects say, kept in memory, answered at once.

Pure but for its lock; :mod:`labkit.names.kubernetes_api` fetches the objects. Sources: the API reference of ``v1.Pod``
(``status.containerStatuses[].containerID`` is ``RUNTIME://ID``); a static pod's cgroup carries the hash of its file, which
is in the annotation ``kubernetes.io/config.hash`` of the mirror pod (``pkg/kubelet/types/pod_update.go``).

Objects are other people's: sizes are bounded, and what is malformed is counted and left out. A name may be anything.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from labkit.names.containers import Known

__all__ = ["Malformed", "Pod", "Pods", "parse"]

_MAX_TEXT = 253  # of names in the API: a DNS subdomain
_MAX_LABEL = 63
_MAX_CONTAINERS = 500
_CONTAINER_ID = re.compile(r"[a-z0-9.-]{1,40}://([0-9a-f]{64})")
_STATUSES = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
_CONFIG_HASH = "kubernetes.io/config.hash"


class Malformed(ValueError):
    """An object of the API is not what the API says it is."""


@dataclass(frozen=True)
class Pod:
    """One pod, as far as names go.

    :param uids: its uid, and of a static pod the hash that its cgroup is called by.
    :param containers: container id (64 hex digits) -> name; those that ended lately too.
    :param labels: those that were asked for.
    """

    uid: str
    namespace: str
    name: str
    uids: tuple[str, ...] = ()
    containers: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


def parse(thing: Any, wanted_labels: Iterable[str] = ()) -> Pod:
    """A pod from an object of the API.

    :raises Malformed: if it has no uid, no name, or something of a kind that no pod has.
    """
    metadata = _of(thing, "metadata", dict)
    uid, name = _text(metadata, "uid"), _text(metadata, "name")
    labels = _of(metadata, "labels", dict, {})
    config_hash = _of(metadata, "annotations", dict, {}).get(_CONFIG_HASH)
    uids = (uid, config_hash) if isinstance(config_hash, str) and config_hash else (uid,)
    return Pod(
        uid=uid,
        namespace=_text(metadata, "namespace"),
        name=name,
        uids=uids,
        containers=dict(_containers(_of(thing, "status", dict, {}))),
        labels={
            key: labels[key][:_MAX_LABEL]
            for key in wanted_labels
            if isinstance(labels.get(key), str) and labels[key]
        },
    )


def _containers(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind in _STATUSES:
        for one in _of(status, kind, list, [])[:_MAX_CONTAINERS]:
            name = _text(one, "name")
            states = [one]
            for when in ("state", "lastState"):
                states.append(_of(_of(one, when, dict, {}), "terminated", dict, {}))
            for state in states:
                found = state.get("containerID")
                match = _CONTAINER_ID.fullmatch(found) if isinstance(found, str) else None
                if match:
                    yield match[1], name


def _of(thing: Any, key: str, kind: type, default: Any = None) -> Any:
    """A member of that kind; the default if it is absent or null."""
    if not isinstance(thing, dict):
        raise Malformed(f"an object was expected around {key}, not {type(thing).__name__}")
    found = thing.get(key)
    if found is None and default is not None:
        return default
    if not isinstance(found, kind):
        raise Malformed(f"{key} is no {kind.__name__}")
    return found


def _text(thing: Any, key: str) -> str:
    found = _of(thing, key, str)
    if not 0 < len(found) <= _MAX_TEXT:
        raise Malformed(f"{key} has {len(found)} characters")
    return str(found)


class Pods:
    """The pods of this node. An enricher for :class:`labkit.names.Directory`: asked by uid or container id.

    :param labels: keys of the pod labels to keep.
    :param keep_s: for how long a pod that was deleted keeps its name: its cgroups may still be in the measurements.
    :param most: pods to keep at most; further ones are counted in :attr:`refused`.
    """

    def __init__(self, labels: Iterable[str] = (), *, keep_s: float = 600.0, most: int = 2000) -> None:
        self.wanted_labels = tuple(labels)
        self.keep_s = keep_s
        self.most = most
        self.malformed = 0
        self.refused = 0
        self._lock = threading.Lock()
        self._pods: dict[str, Pod] = {}
        self._deleted: dict[str, float] = {}
        self._by_uid: dict[str, Pod] = {}
        self._by_container: dict[str, tuple[Pod, str]] = {}

    def __len__(self) -> int:
        """Pods that exist, as far as is known."""
        with self._lock:
            return len(self._pods) - len(self._deleted)

    def __call__(self, *, pod_uid: str, container_id: str) -> Known | None:
        """Names by the container's id, else by the pod's uid; see :class:`labkit.names.directory.Enricher`."""
        with self._lock:
            if container_id in self._by_container:
                pod, container = self._by_container[container_id]
                return Known(container, pod.namespace, pod.name)
            found = self._by_uid.get(pod_uid)
            # A container of this pod that is in no status is its sandbox, or is just starting: the pod's name is known.
            return None if found is None else Known("", found.namespace, found.name)

    def label_columns(self, names: pd.DataFrame) -> pd.DataFrame:
        """The frame with a column ``pod_label:KEY`` (str) for each label that is kept."""
        with self._lock:
            labels = {(pod.namespace, pod.name): pod.labels for pod in self._pods.values()}
        rows = list(zip(names["namespace"].tolist(), names["pod"].tolist(), strict=True))
        columns = {
            f"pod_label:{key}": pd.Series(
                [labels.get(row, {}).get(key, "") for row in rows], index=names.index, dtype="str"
            )
            for key in self.wanted_labels
        }
        return names.assign(**columns)

    def replace(self, objects: Iterable[Any]) -> None:
        """All pods there are now; those not among them are gone."""
        fresh: dict[str, Pod] = {}
        for thing in objects:
            pod = self._parsed(thing)
            if pod is None:
                continue
            if len(fresh) >= self.most:
                self.refused += 1
                continue
            fresh[pod.uid] = pod
        now = time.monotonic()
        with self._lock:
            for uid in self._pods.keys() - fresh.keys():
                self._deleted.setdefault(uid, now)
            self._pods |= {uid: self._merged(pod) for uid, pod in fresh.items()}
            for uid in fresh:
                self._deleted.pop(uid, None)
            self._index(now)

    def put(self, thing: Any) -> None:
        """A pod was added or changed."""
        pod = self._parsed(thing)
        if pod is None:
            return
        now = time.monotonic()
        with self._lock:
            if pod.uid not in self._pods and len(self._pods) - len(self._deleted) >= self.most:
                self.refused += 1
                return
            self._pods[pod.uid] = self._merged(pod)
            self._deleted.pop(pod.uid, None)
            self._index(now)

    def delete(self, thing: Any) -> None:
        """A pod was deleted; its name stays for a while."""
        pod = self._parsed(thing)
        if pod is None:
            return
        now = time.monotonic()
        with self._lock:
            if pod.uid in self._pods:
                self._deleted.setdefault(pod.uid, now)
            self._index(now)

    def _parsed(self, thing: Any) -> Pod | None:
        try:
            return parse(thing, self.wanted_labels)
        except Malformed:
            self.malformed += 1
            return None

    def _merged(self, pod: Pod) -> Pod:
        """With the containers that it had before: the API forgets those before the last restart, cgroups may not."""
        before = self._pods.get(pod.uid)
        if before is None or len(before.containers) > _MAX_CONTAINERS:
            return pod
        containers = {**before.containers, **pod.containers}
        return Pod(pod.uid, pod.namespace, pod.name, pod.uids, containers, pod.labels)

    def _index(self, now: float) -> None:
        for uid, since in list(self._deleted.items()):
            if now - since >= self.keep_s or len(self._pods) > 2 * self.most:
                del self._pods[uid], self._deleted[uid]
        order = sorted(
            self._pods.values(), key=lambda pod: pod.uid not in self._deleted
        )  # the living last: they win
        self._by_uid = {uid: pod for pod in order for uid in pod.uids}
        self._by_container = {id_: (pod, name) for pod in order for id_, name in pod.containers.items()}

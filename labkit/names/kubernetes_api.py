"""List and watch the pods of this node, as the Kubernetes API means it to be done.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes: list once, then watch from
the list's ``resourceVersion``; a watch that ends is resumed from the last version seen; ``410 Gone`` means that the server
has forgotten that version, and one lists anew. Failures are followed by growing, random pauses, so that a cluster's nodes
do not all come back in the same second. While the API is away, what was known stays.

httpx is used, which JupyterLab brings: it verifies certificate and host name, streams, and limits each read in time. The
client library ``kubernetes`` would cost some 50 MB of memory on each node for two requests, and its watch hands a malformed
object on as an exception that ends the stream.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from labkit.closing import Closing
from labkit.errors import LabkitError
from labkit.names.kubernetes import Pods
from labkit.text import plain

__all__ = ["ApiAccess", "ApiError", "PodWatch", "Timing"]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PAGE = 500
_MAX_LIST, _MAX_EVENT = 64 << 20, 8 << 20
_GONE = 410
#: A connect or a name look-up cannot be cut off from another thread; whoever closes waits so long for it, and no longer.
_JOIN_S = 2.0


_REFUSALS = {
    401: "is the service account's token mounted?",
    403: "its role must allow get, list and watch of pods",
}


class ApiError(LabkitError):
    """The API server cannot be asked, or refuses. ``after_s``: when it wants to be asked again."""

    def __init__(self, what: str, *, why: str = "", remedy: str = "", after_s: float = 0.0) -> None:
        self.after_s = after_s
        super().__init__(what, why=why, remedy=remedy)


class _Gone(Exception):
    """The version to resume from is forgotten."""


@dataclass(frozen=True)
class ApiAccess:
    """Where the API server is, and who asks.

    :param url: ``https://HOST:PORT``; nothing else, for the token goes with every request.
    :param node: only pods of this node are asked for.
    :param token_file: read anew for each request, since the kubelet renews it.
    :param ca_file: the cluster's certificate authority.
    """

    url: str
    node: str
    token_file: Path = SERVICE_ACCOUNT / "token"
    ca_file: Path = SERVICE_ACCOUNT / "ca.crt"

    def __post_init__(self) -> None:
        if not self.url.startswith("https://"):
            raise ApiError(
                f"{plain(self.url)} is no address for a token to go to",
                why="without TLS anybody on the way could read it",
                remedy="https://HOST:PORT",
            )
        if not self.node:
            raise ApiError(
                "which node is this?",
                why="only the pods of one node are asked for, and NODE_NAME is not set",
                remedy="set it from spec.nodeName (the downward API), as the manifests in k8s/ do",
            )

    @classmethod
    def in_cluster(cls) -> ApiAccess | None:
        """From the environment of a pod; None outside a cluster.

        :raises ApiError: if it is a pod, and its node is not told.
        """
        host = os.environ.get("KUBERNETES_SERVICE_HOST")
        if not host or not (SERVICE_ACCOUNT / "token").exists():
            return None
        host = f"[{host}]" if ":" in host else host
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        return cls(f"https://{host}:{port}", os.environ.get("NODE_NAME", ""))


@dataclass(frozen=True)
class Timing:
    """Seconds. The defaults are those of Kubernetes' own client (``tools/cache/reflector.go``).

    :param silent: after so long without a sign of life from the server's machine a connection counts as broken.
    """

    first_pause: float = 0.8
    longest_pause: float = 30.0
    watch: float = 300.0
    answer: float = 15.0
    grace: float = 15.0
    silent: float = 45.0

    @property
    def socket_options(self) -> list[tuple[int, int, int]]:
        """What makes the kernel notice a peer that vanished without a word (tcp(7), ``tcp_keepalive_timer``).

        A watch only reads, so nothing of ours ever goes unacknowledged: without probes it would wait for its own end.
        """
        tcp, third = socket.IPPROTO_TCP, max(1, int(self.silent / 3))
        return [
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (tcp, socket.TCP_KEEPIDLE, third),
            (tcp, socket.TCP_KEEPINTVL, third),
            (tcp, socket.TCP_USER_TIMEOUT, int(self.silent * 1000)),
        ]


class PodWatch(Closing):
    """Keeps :class:`~labkit.names.kubernetes.Pods` up to date, from a thread of its own.

    :ivar errors: kind of failure -> how often.
    :ivar last_error: the latest, in words; empty while all is well.
    :ivar lists: how many whole lists came in, and ``events`` how many changes.
    :ivar synced: set once the first list is in.
    """

    def __init__(self, access: ApiAccess, pods: Pods, *, timing: Timing | None = None) -> None:
        self.access = access
        self.pods = pods
        self.timing = timing or Timing()
        self.errors: dict[str, int] = {}
        self.last_error = ""
        self.lists = 0
        self.events = 0
        self.synced = threading.Event()
        self._heard_s: float | None = None
        self._pause_s = self.timing.first_pause
        self._stop = threading.Event()
        self._socket: socket.socket | None = None  # of the connection, once it is up
        self._twin: socket.socket | None = None  # the same, ours, while TLS is being agreed upon
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="labkit-kubernetes", daemon=True)

    def start(self) -> Self:
        """Begin; returns at once."""
        self._thread.start()
        return self

    def close(self) -> None:
        """End the thread; whatever it reads or agrees upon is cut off.

        Only a connect under way may outlast this, by the time that an answer may take: the thread then ends by itself.
        """
        self._stop.set()
        self._cut()
        if self._thread.is_alive():
            self._thread.join(timeout=_JOIN_S)

    def _cut(self) -> None:
        """End a read that is under way in the thread; the socket itself stays the client's to close."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._twin is not None:
                self._twin.shutdown(socket.SHUT_RDWR)
            elif self._socket is not None:
                with _twin_of(self._socket) as twin:
                    twin.shutdown(socket.SHUT_RDWR)

    def _trace(self, event: str, told: Mapping[str, Any]) -> None:
        """Called by httpx at each step: keeps hold of the socket from the moment it is connected.

        Wrapping a socket in TLS takes its descriptor away, before the first byte of the handshake: hence the twin.
        """
        with self._lock:
            if event == "connection.connect_tcp.complete":
                self._twin = _twin_of(told["return_value"].get_extra_info("socket"))
            elif event.startswith("connection.start_tls.") and not event.endswith(".started"):
                if event.endswith(".complete"):
                    self._socket = told["return_value"].get_extra_info("socket")
                if self._twin is not None:
                    self._twin.close()
                self._twin = None
        if self._stop.is_set():
            self._cut()  # close() came before there was anything to cut

    def __enter__(self) -> Self:
        return self.start()

    @property
    def age_s(self) -> float | None:
        """Seconds since the server was last heard; None if never."""
        return None if self._heard_s is None else time.monotonic() - self._heard_s

    # -- the loop ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        version = ""
        from_cache = True
        while not self._stop.is_set():
            try:
                with self._connected() as client:
                    while not self._stop.is_set():
                        if not version:
                            version = self._list(client, from_cache=from_cache)
                            from_cache = True
                        version = self._watch(client, version)
            except _Gone:
                # The server's cache may be as old as what it has just disowned: ask for the newest this time.
                version, from_cache = "", False
                self._failed("gone", "410 Gone: listing anew", pause=False)
            except ApiError as error:
                self._failed("api", " ".join(filter(None, (error.what, error.why))), after=error.after_s)
            except (httpx.HTTPError, httpx.StreamError, OSError, ValueError, RecursionError) as error:
                self._failed(type(error).__name__, str(error))

    def _failed(self, kind: str, words: str, *, pause: bool = True, after: float = 0.0) -> None:
        if self._stop.is_set():
            return
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self.last_error = plain(words)[:300]
        wait = random.uniform(self._pause_s / 2, self._pause_s) if pause else self.timing.first_pause / 10
        self._pause_s = min(self._pause_s * 2, self.timing.longest_pause) if pause else self._pause_s
        self._stop.wait(max(wait, min(after, self.timing.longest_pause * 2)))

    def _heard(self) -> None:
        self._heard_s = time.monotonic()
        self._pause_s = self.timing.first_pause
        self.last_error = ""

    def _connected(self) -> httpx.Client:
        """A client that trusts the cluster's authority alone: no system store, no proxies, no redirects."""
        trust = ssl.create_default_context(cafile=str(self.access.ca_file))
        return httpx.Client(
            base_url=self.access.url,
            transport=httpx.HTTPTransport(
                verify=trust, trust_env=False, socket_options=self.timing.socket_options
            ),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(self.timing.answer),
            headers={"Accept": "application/json", "User-Agent": "labkit"},
        )

    @contextlib.contextmanager
    def _get(self, client: httpx.Client, timeout_s: float, **query: str) -> Iterator[httpx.Response]:
        token = self.access.token_file.read_text().strip()
        request = client.stream(
            "GET",
            "/api/v1/pods",
            params={"fieldSelector": f"spec.nodeName={self.access.node}", **query},
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(self.timing.answer, read=timeout_s),
            extensions={"trace": self._trace},
        )
        with request as response:
            if self._stop.is_set():
                raise httpx.StreamError("stopped")
            _check(response)
            yield response

    def _list(self, client: httpx.Client, *, from_cache: bool) -> str:
        """All pods; returns the version to watch from."""
        found: list[Any] = []
        query = {"limit": str(_PAGE), **({"resourceVersion": "0"} if from_cache else {})}
        while True:
            with self._get(client, self.timing.answer, **query) as response:
                page = json.loads(_bounded(response))
            items, metadata = page.get("items") if isinstance(page, dict) else None, _metadata(page)
            if not isinstance(items, list):
                raise ApiError("the API server's list is none", why="it has no items")
            found += items[: 4 * self.pods.most]
            more = metadata.get("continue")
            if not more or len(found) >= 4 * self.pods.most:
                break
            query = {"limit": str(_PAGE), "continue": str(more)}
        version = metadata.get("resourceVersion")
        if not isinstance(version, str) or not version:
            raise ApiError("the API server's list has no version")
        self.pods.replace(found)
        self.lists += 1
        self._heard()
        self.synced.set()
        return version

    def _watch(self, client: httpx.Client, version: str) -> str:
        """Follow changes until the server ends the watch; returns the version to go on from.

        A connection that breaks off is resumed from the last version it told.
        """
        began, events = time.monotonic(), self.events
        lasts = random.uniform(self.timing.watch, 1.5 * self.timing.watch)
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, int(lasts))),
        }
        try:
            with self._get(client, lasts + self.timing.grace, **query) as response:
                self._heard_s, self.last_error = time.monotonic(), ""
                for line in _lines(response):
                    version = self._event(line) or version
        except (httpx.HTTPError, httpx.StreamError) as error:
            self._failed(type(error).__name__, str(error) or "the watch broke off")
            return version
        if self.events == events and time.monotonic() - began < self.timing.first_pause:
            self._failed(
                "short", "the watch ended at once"
            )  # else we would ask again and again without a pause
        else:
            self._heard()
        return version

    def _event(self, line: bytes) -> str | None:
        """Take in one event; returns its version, None if it has none."""
        try:
            event = json.loads(line)
            kind, thing = event["type"], event["object"]
        except (ValueError, KeyError, TypeError, RecursionError):
            self.pods.malformed += 1
            return None
        self.events += 1
        self._heard()
        if kind == "ERROR":
            code = thing.get("code") if isinstance(thing, dict) else None
            if code == _GONE:
                raise _Gone
            raise ApiError(f"the API server ended the watch: {code}")
        take: dict[str, Callable[[Any], None]] = {
            "ADDED": self.pods.put,
            "MODIFIED": self.pods.put,
            "DELETED": self.pods.delete,
        }
        if kind in take:
            take[kind](thing)
        version = _metadata(thing).get("resourceVersion")
        return version if isinstance(version, str) and version else None


def _twin_of(connected: socket.socket) -> socket.socket:
    """Another descriptor of the same connection."""
    return socket.socket(fileno=os.dup(connected.fileno()))


def _metadata(thing: Any) -> dict[str, Any]:
    found = thing.get("metadata") if isinstance(thing, dict) else None
    return found if isinstance(found, dict) else {}


def _check(response: httpx.Response) -> None:
    """Raise what a status means."""
    status = response.status_code
    if status == httpx.codes.OK:
        return
    if status == _GONE:
        raise _Gone
    after = response.headers.get("Retry-After", "")
    raise ApiError(
        f"the API server answers {status}",
        why=_REFUSALS.get(status, ""),
        after_s=float(after) if after.isdecimal() and len(after) < 6 else 0.0,
    )


def _bounded(response: httpx.Response) -> bytes:
    parts, size = [], 0
    for part in response.iter_bytes():
        size += len(part)
        if size > _MAX_LIST:
            raise ApiError(f"the API server's list is larger than {_MAX_LIST >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Lines of a stream, none longer than an event may be."""
    rest = bytearray()
    for part in response.iter_bytes():
        rest += part
        *whole, last = rest.split(b"\n")
        rest = bytearray(last)
        yield from (bytes(line) for line in whole if line.strip())
        if len(rest) > _MAX_EVENT:
            raise ApiError(f"an event of the API server is larger than {_MAX_EVENT >> 20} MiB")

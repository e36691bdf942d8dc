"""A Kubernetes API server, as far as listing and watching pods goes: TLS, tokens, versions, pages, bookmarks, 410 Gone.

It keeps a log of events by version as etcd does, so that a watch from version v tells all that came after v, whenever it is
asked; what was compacted is gone. Faults are asked for by name, each for the next time it applies.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import shutil
import socket
import ssl
import struct
import subprocess
import termios
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlparse

import pytest

TOKEN = "first-token"


def certificates(folder: Path) -> Path:
    """An authority, and a certificate of ``localhost`` signed by it; by openssl, which every Debian has."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    config = folder / "san.cnf"
    config.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch"]

    def run(*argv: str) -> None:
        subprocess.run(argv, cwd=folder, check=True, capture_output=True)

    run(*new, "-x509", "-days", "2", "-subj", "/CN=fake cluster", "-keyout", "ca.key", "-out", "ca.crt",
        "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    run(*new, "-subj", "/CN=kube-apiserver", "-keyout", "server.key", "-out", "server.csr")
    run("openssl", "x509", "-req", "-days", "2", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
        "-CAcreateserial", "-extfile", "san.cnf", "-out", "server.crt")  # fmt: skip
    return folder


def pod(name: str, uid: str, *, namespace: str = "shop", node: str = "node-1", **more: Any) -> dict[str, Any]:
    """An object as the API gives it; ``containers`` is name -> container id."""
    containers = more.pop("containers", {})
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "labels": more.pop("labels", {}),
            **more,
        },
        "spec": {"nodeName": node},
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"name": key, "containerID": f"containerd://{id_}", "state": {"running": {}}}
                for key, id_ in containers.items()
            ],
        },
    }


@dataclass
class Cluster:
    """What the server knows, and what is to go wrong."""

    version: int = 100
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    log: list[tuple[int, str, Any]] = field(default_factory=list)
    compacted: int = 0
    token: str = TOKEN
    faults: deque[str] = field(default_factory=deque)
    raw: deque[bytes] = field(default_factory=deque)
    requests: list[dict[str, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    page: int = 2
    watching: int = 0
    over: bool = False

    def apply(self, kind: str, thing: dict[str, Any]) -> None:
        with self.changed:
            self.version += 1
            thing["metadata"]["resourceVersion"] = str(self.version)
            uid = thing["metadata"]["uid"]
            if kind == "DELETED":
                self.pods.pop(uid, None)
            else:
                self.pods[uid] = thing
            self.log.append((self.version, kind, json.loads(json.dumps(thing))))
            self.changed.notify_all()

    def say(self, raw: bytes) -> None:
        """These bytes, to whoever watches."""
        with self.changed:
            self.raw.append(raw)
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget all events up to now; who comes with an older version gets 410."""
        with self.changed:
            self.compacted = self.version
            self.log.clear()

    def fault(self, *names: str) -> None:
        with self.changed:
            self.faults.extend(names)
            self.changed.notify_all()

    def take(self, *names: str) -> str:
        with self.changed:
            if self.faults and self.faults[0] in names:
                return self.faults.popleft()
        return ""


class Api:
    """The server, running; a context manager."""

    def __init__(self, folder: Path, cluster: Cluster | None = None, *, port: int = 0) -> None:
        self.cluster = cluster or Cluster()
        self.folder = folder
        handler = type("Handler", (_Handler,), {"cluster": self.cluster})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "server.crt", folder / "server.key")
        self.server.socket = tls.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self.server.server_address[1]
        self.url = f"https://localhost:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.over = True
        self.cluster.fault("stop")
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError, ValueError):
            self._answer()

    def _answer(self) -> None:
        parsed = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(parsed.query).items()}
        self.cluster.requests.append(
            query | {"path": parsed.path, "authorization": self.headers.get("Authorization", "")}
        )
        if self.headers.get("Authorization") != f"Bearer {self.cluster.token}":
            return self._status(401, "Unauthorized")
        if parsed.path != "/api/v1/pods":
            return self._status(404, "NotFound")
        node = query.get("fieldSelector", "").removeprefix("spec.nodeName=")
        fault = self.cluster.take("500", "403", "429", "410", "garbage", "hang up", "silent")
        if fault == "silent":
            return self._hold()
        if fault == "hang up":
            return self._hang_up()
        if fault == "garbage":
            return self._body(200, b'{"kind": "PodList", "items": [')
        if fault:
            headers = {"Retry-After": "1"} if fault == "429" else {}
            return self._status(int(fault), "Fault", headers)
        if query.get("watch"):
            return self._watch(node, query)
        return self._list(node, query)

    def _list(self, node: str, query: dict[str, str]) -> None:
        mine = [p for p in self.cluster.pods.values() if p["spec"]["nodeName"] == node]
        start = int(query.get("continue", "0"))
        limit = min(int(query.get("limit", "500")), self.cluster.page)
        metadata = {"resourceVersion": str(self.cluster.version)}
        if start + limit < len(mine):
            metadata["continue"] = str(start + limit)
        listed = {"kind": "PodList", "metadata": metadata, "items": mine[start : start + limit]}
        self._body(200, json.dumps(listed).encode())

    def _watch(self, node: str, query: dict[str, str]) -> None:
        since = int(query["resourceVersion"])
        if since < self.cluster.compacted:
            if self.cluster.take("410 as event") or since % 2:
                self._begin()
                status = {"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410}
                self._chunk(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
                return self._end()
            return self._status(410, "Expired")
        self._begin()
        ends = time.monotonic() + float(query.get("timeoutSeconds", "300"))
        self.cluster.watching += 1
        try:
            self._follow(node, since, ends)
        finally:
            self.cluster.watching -= 1

    def _follow(self, node: str, since: int, ends: float) -> None:
        cluster = self.cluster
        while time.monotonic() < ends:
            with cluster.changed:
                news = [(v, k, o) for v, k, o in cluster.log if v > since and o["spec"]["nodeName"] == node]
                raw = list(cluster.raw)
                cluster.raw.clear()
                if not news and not raw and not (cluster.faults and cluster.faults[0] in _IN_WATCH):
                    cluster.changed.wait(0.02)
                    continue
            for version, kind, thing in news:
                line = json.dumps({"type": kind, "object": thing}).encode() + b"\n"
                if cluster.take("break in the middle"):
                    self._chunk(line[: len(line) // 2])
                    return self._hang_up()
                # In two pieces: an event need not come in one.
                self._chunk(line[:7])
                self._chunk(line[7:])
                since = version
            for line in raw:
                self._chunk(line)
            fault = cluster.take(*_IN_WATCH)
            if fault == "end":
                return self._end()
            if fault == "bookmark":
                mark = {"kind": "Pod", "metadata": {"resourceVersion": str(cluster.version)}}
                self._chunk(json.dumps({"type": "BOOKMARK", "object": mark}).encode() + b"\n")
            elif fault == "deaf":
                deafen(self.connection)
                return self._hold()
            elif fault:
                return self._hang_up()
        return self._end()

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _hold(self) -> None:
        """Neither answer nor hang up."""
        while not self.cluster.over:
            with self.cluster.changed:
                self.cluster.changed.wait(0.05)
        self._hang_up()

    def _status(self, code: int, reason: str, headers: dict[str, str] | None = None) -> None:
        status = {"kind": "Status", "status": "Failure", "reason": reason, "code": code}
        self._body(code, json.dumps(status).encode(), headers)

    def _body(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


_IN_WATCH = ("end", "bookmark", "break", "deaf", "stop")


def deafen(connection: socket.socket) -> None:
    """From now on nothing reaches this end, not even the kernel: to the peer, its machine has vanished without a word.

    By a socket filter (SO_ATTACH_FILTER, Documentation/networking/filter.rst) whose one instruction is `ret #0`: drop.
    """

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    while struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]:
        time.sleep(0.01)  # what was said before is received first: else this end would say it again and again
    drop = ctypes.create_string_buffer(b"\x06\x00\x00\x00\x00\x00\x00\x00", 8)
    connection.setsockopt(socket.SOL_SOCKET, 26, bytes(Program(1, ctypes.addressof(drop))))

"""The exporter's HTTP server: small, bounded, and out of reach of clients that hang, trickle or shout.

Tornado, which JupyterLab brings, serves all connections from one thread, so that a slow client costs a buffer and not a
thread. Snapshots are taken in a second thread, one at a time. What is bounded: connections (the oldest makes way for a new
one), the time that one may last, headers, bodies. Nothing that a client sends is sent back.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ipaddress
import socket
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler

from labkit.closing import Closing
from labkit.errors import LabkitError
from labkit.metrics.exporter import Exporter
from labkit.text import plain

__all__ = ["MAX_CONNECTIONS", "CannotListen", "MetricsServer"]

MAX_CONNECTIONS = 64
#: A request must have come, and been answered, within so many seconds; Prometheus gives up after 10 by default.
HEADERS_S, CONNECTION_S = 5.0, 30.0
#: A scrape that takes longer, or a beat that is late by more, means that the process hangs: /healthz says so, and whoever
#: watches may start it anew.
STUCK_S = 120.0
_MAX_HEADERS, _MAX_BODY = 16 << 10, 1 << 10
_START_S = 10.0

_PAGE = """<!doctype html><html lang="en"><title>labkit</title><h1>labkit: who slows whom down</h1>
<p><a href="metrics">metrics</a>, <a href="healthz">healthz</a>, <a href="readyz">readyz</a></p></html>
"""


class CannotListen(LabkitError):
    """The address cannot be bound."""


class MetricsServer(Closing):
    """Serves ``/metrics``, ``/healthz`` and ``/readyz`` from a thread of its own.

    :param port: 0 for any that is free; :attr:`port` tells.
    :param address: an IP address or host name. On loopback, requests that name another host are refused, so that a web page
        cannot read metrics through a visitor's browser (DNS rebinding).
    :raises CannotListen: if the address cannot be bound.
    :ivar exporter: what is served; None until it is there, and ``/readyz`` says 503 with :attr:`waiting_for`.
    """

    def __init__(self, port: int = 9798, address: str = "127.0.0.1") -> None:
        self.exporter: Exporter | None = None
        self.waiting_for = "the program is being loaded"
        self.failing = ""
        self._busy_since = float("inf")
        self._beat_due = float("inf")
        self._sockets = _bind(port, address)
        self.port: int = self._sockets[0].getsockname()[1]
        self.address = address
        self.loopback = _is_loopback(self._sockets)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="labkit-snapshot")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="labkit-metrics", daemon=True)
        self._thread.start()
        self._ready.wait(_START_S)

    @property
    def url(self) -> str:
        """Where it is, for people on this machine."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop answering and free the port. May be called twice."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=_START_S)
        self._worker.shutdown(wait=True, cancel_futures=True)

    def expect_beat(self, seconds: float) -> None:
        """Who calls this will do so again in so many seconds, and what it does until then; else :meth:`health` tells."""
        self._beat_due = time.monotonic() + seconds

    def health(self) -> tuple[bool, str]:
        """Whether the process works at all."""
        now = time.monotonic()
        if now - self._busy_since > STUCK_S:
            return False, f"a scrape has been under way for more than {STUCK_S:.0f} s"
        if now - self._beat_due > STUCK_S:
            return False, f"the exporter's own turn is late by more than {STUCK_S:.0f} s"
        return True, "ok"

    def readiness(self) -> tuple[bool, str]:
        """Whether a scrape would be answered with measurements."""
        if self.exporter is None:
            return False, self.waiting_for
        return (False, self.failing) if self.failing else (True, "ready")

    async def scrape(self, accept: str, *, compressed: bool) -> tuple[bytes, str]:
        """The exposition, made in the worker's thread.

        :raises LabkitError: if there is none.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._worker, self._scrape, accept, compressed, time.monotonic()
        )

    def _scrape(self, accept: str, compressed: bool, asked_s: float) -> tuple[bytes, str]:
        exporter = self.exporter
        if exporter is None:
            raise LabkitError(self.waiting_for)
        self._busy_since, cpu = time.monotonic(), time.thread_time()
        try:
            text, kind = exporter.text(accept)
            # Level 1: a tenth of the size for a third of the time of the default level.
            sent = gzip.compress(text, 1, mtime=0) if compressed else text
            exporter.own.scraped(time.monotonic() - asked_s, time.thread_time() - cpu)
        except Exception as error:  # whatever it is, the server goes on, and says so
            self.failing = f"no snapshot: {getattr(error, 'what', type(error).__name__)}"
            raise
        finally:
            self._busy_since = float("inf")
        self.failing = ""
        return sent, kind

    def _run(self) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        self._loop = loop
        application = Application(
            [
                (r"/metrics", _Metrics, {"server": self}),
                (r"/healthz", _Probe, {"server": self, "ask": self.health}),
                (r"/readyz", _Probe, {"server": self, "ask": self.readiness}),
                (r"/", _Front, {"server": self}),
            ],
            default_handler_class=_Nothing,
            default_handler_args={"server": self},
            log_function=lambda _handler: None,  # a scrape is no event, and a hostile path no log line
        )
        http = _Bounded(
            application,
            no_keep_alive=True,  # a connection that stays open cannot be told from one that hangs
            idle_connection_timeout=HEADERS_S,
            body_timeout=HEADERS_S,
            max_header_size=_MAX_HEADERS,
            max_body_size=_MAX_BODY,
            max_buffer_size=_MAX_HEADERS + _MAX_BODY,
        )
        http.add_sockets(self._sockets)
        loop.call_later(1, http.close_old)
        loop.call_soon(self._ready.set)
        try:
            loop.run_forever()
        finally:
            http.stop()
            loop.run_until_complete(http.close_all_connections())
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            IOLoop.current().close(all_fds=True)


class _Bounded(HTTPServer):
    """Never more than so many connections, none for longer than its time."""

    def initialize(self, *args: Any, **options: Any) -> None:
        super().initialize(*args, **options)
        self._since: weakref.WeakKeyDictionary[IOStream, float] = weakref.WeakKeyDictionary()

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        open_ones = [one for one in self._since if not one.closed()]
        if len(open_ones) >= MAX_CONNECTIONS:
            min(open_ones, key=lambda one: self._since[one]).close()
        self._since[stream] = time.monotonic()
        super().handle_stream(stream, address)

    def close_old(self) -> None:
        """Close what has lasted too long; again in a second."""
        limit = time.monotonic() - CONNECTION_S
        for stream, since in list(self._since.items()):
            if stream.closed():
                del self._since[stream]
            elif since < limit:
                stream.close()
        asyncio.get_event_loop().call_later(1, self.close_old)


class _Base(RequestHandler):
    def initialize(self, server: MetricsServer) -> None:
        self.server = server

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Type", "text/plain; charset=utf-8")

    def prepare(self) -> None:
        if self.server.loopback and not _names_loopback(self.request.host):
            raise HTTPError(403)

    def write_error(self, status_code: int, **_: Any) -> None:
        self.finish(f"{status_code}\n")

    def log_exception(self, *_: Any) -> None:
        """Errors of clients are theirs; ours are counted and shown by /readyz."""

    def compute_etag(self) -> None:
        return None


class _Metrics(_Base):
    async def get(self) -> None:
        compressed = "gzip" in self.request.headers.get("Accept-Encoding", "")
        try:
            text, kind = await self.server.scrape(
                self.request.headers.get("Accept", ""), compressed=compressed
            )
        except Exception as error:
            self.set_status(503)
            self.finish(f"{getattr(error, 'what', type(error).__name__)}\n")
            return
        self.set_header("Content-Type", kind)
        self.set_header("Vary", "Accept, Accept-Encoding")
        if compressed:
            self.set_header("Content-Encoding", "gzip")
        with contextlib.suppress(StreamClosedError):  # the client has left
            await self.finish(text)


class _Probe(_Base):
    def initialize(  # type: ignore[override]
        self, server: MetricsServer, ask: Callable[[], tuple[bool, str]]
    ) -> None:
        super().initialize(server)
        self._ask = ask

    def get(self) -> None:
        good, words = self._ask()
        self.set_status(200 if good else 503)
        self.finish(f"{words}\n")


class _Front(_Base):
    def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(_PAGE)


class _Nothing(_Base):
    def prepare(self) -> None:
        super().prepare()
        raise HTTPError(404)


def _bind(port: int, address: str) -> list[socket.socket]:
    found: list[socket.socket] = []
    try:
        passive = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, where in dict.fromkeys((one[0], one[4][:2]) for one in passive):
            found.append(socket.create_server((str(where[0]), int(where[1])), family=family, backlog=128))
            found[-1].setblocking(False)
            if not port:  # each family would get a port of its own
                break
    except (OSError, OverflowError, UnicodeError) as error:
        for one in found:
            one.close()
        raise CannotListen(
            f"cannot listen on {plain(address)} port {port}",
            why=getattr(error, "strerror", None) or str(error),
            remedy="another --port or --address; what listens there now: ss -ltnp",
        ) from error
    return found


def _is_loopback(sockets: list[socket.socket]) -> bool:
    return all(ipaddress.ip_address(s.getsockname()[0].partition("%")[0]).is_loopback for s in sockets)


def _names_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name.strip("[]").lower()
    if name in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

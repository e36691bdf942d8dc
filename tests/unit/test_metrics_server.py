"""The exporter's server: what it answers, to whom, and that no client can keep it from answering the others."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from snapshot_maker import Group, crowd, snapshot

from labkit.errors import MapError
from labkit.metrics import Exporter, Limits, Settings
from labkit.metrics import serve as serve_module
from labkit.metrics import server as server_module
from labkit.metrics.serve import Options, serve
from labkit.metrics.server import MAX_CONNECTIONS, CannotListen, MetricsServer


class Turns:
    """A source whose counters grow with each snapshot."""

    def __init__(self, cgroups: int = 3) -> None:
        self.cgroups = cgroups
        self.taken = 0
        self.fails = False
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self) -> Any:
        assert self.hold.wait(20)
        if self.fails:
            raise MapError("the map cannot be read", why="it is closed")
        self.taken += 1
        return crowd(self.cgroups, step=self.taken)


@pytest.fixture
def source() -> Turns:
    return Turns()


@pytest.fixture
def server(source: Turns) -> Iterator[MetricsServer]:
    with MetricsServer(0) as running:
        running.exporter = Exporter(
            source, settings=Settings(limits=Limits(max_cgroups=50), min_interval_s=0)
        )
        yield running


def get(
    server: MetricsServer, path: str = "/metrics", *, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def raw(server: MetricsServer, data: bytes = b"") -> socket.socket:
    found = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    found.sendall(data)
    return found


def test_it_answers_in_the_format_that_was_asked_for(server: MetricsServer) -> None:
    status, headers, body = get(server)
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert {f.name for f in text_string_to_metric_families(body.decode())} >= {
        "labkit_waits",
        "process_cpu_seconds",
    }
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    status, headers, body = get(server, Accept=accept, Accept_Encoding="gzip")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert headers["Content-Encoding"] == "gzip"
    assert {f.name for f in parse_openmetrics(gzip.decompress(body).decode())} >= {"labkit_waits"}


@pytest.mark.parametrize(
    "accept", ["", "*/*", "x" * 5000, "application/openmetrics-text;version=9.9", ";;;,,,"]
)
def test_a_strange_accept_header_gets_plain_text(server: MetricsServer, accept: str) -> None:
    status, headers, _ = get(server, Accept=accept)
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")


def test_health_and_readiness_tell_what_is_the_matter(server: MetricsServer, source: Turns) -> None:
    assert get(server, "/healthz")[::2] == (200, b"ok\n")
    exporter, server.exporter = server.exporter, None
    assert get(server, "/readyz")[::2] == (503, b"the program is being loaded\n")
    assert get(server)[0] == 503
    server.exporter = exporter
    assert get(server, "/readyz")[0] == 200
    source.fails = True
    assert get(server)[::2] == (503, b"the map cannot be read\n")
    assert get(server, "/readyz")[::2] == (503, b"no snapshot: the map cannot be read\n")
    assert get(server, "/healthz")[0] == 200
    source.fails = False
    assert get(server)[0] == 200
    assert get(server, "/readyz")[0] == 200
    assert b'labkit_errors_total{reason="snapshot"} 1.0' in get(server)[2]


def test_a_snapshot_that_hangs_shows_in_the_health(
    server: MetricsServer, source: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "STUCK_S", 0.05)
    source.hold.clear()
    hanging = threading.Thread(target=get, args=(server,))
    hanging.start()
    deadline = time.monotonic() + 30
    while get(server, "/healthz")[0] == 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    source.hold.set()
    hanging.join()
    assert get(server, "/healthz")[0] == 200


def test_an_exporter_whose_own_turn_hangs_is_not_healthy_though_nobody_scrapes(
    source: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn reads the maps, judges and writes files: a disk that hangs must show as well."""
    monkeypatch.setattr(server_module, "STUCK_S", 0.05)
    with MetricsServer(0) as server:
        assert server.health()[0], "nobody has promised a turn"
        server.expect_beat(3600)
        assert server.health()[0]
        server.expect_beat(0)
        deadline = time.monotonic() + 30
        while server.health()[0]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "late" in server.health()[1]
        assert get(server, "/healthz")[0] == 503
        server.expect_beat(3600)
        assert get(server, "/healthz")[0] == 200


def test_scrapes_are_accounted_for_as_a_whole(server: MetricsServer) -> None:
    for _ in range(3):
        get(server, Accept_Encoding="gzip")
    own = server.exporter.own  # type: ignore[union-attr]
    assert own.scrapes == 3
    assert own.scrape_seconds >= own.collect_seconds > 0, "a scrape holds its snapshot"
    assert own.scrape_cpu_seconds >= own.collect_cpu_seconds > 0
    text = get(server)[2].decode()
    assert "labkit_scrapes_total 3.0" in text
    assert "labkit_exporter_resident_memory_bytes " in text


class Closing:
    """A source that must not be read after it was closed."""

    def __init__(self) -> None:
        self.closed = False
        self.read_after = 0
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.step = 0

    def snapshot(self) -> Any:
        self.step += 1
        if self.step > 1:
            self.asked.set()
            assert self.go_on.wait(20)
            self.read_after += self.closed
        return crowd(3, step=self.step)

    def close(self) -> None:
        self.closed = True


def test_at_the_end_scrapes_under_way_are_over_before_the_program_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Closing()
    servers: list[MetricsServer] = []
    scraping: list[threading.Thread] = []

    def end_meanwhile(_options: Options, _exporter: Exporter, server: MetricsServer) -> None:
        servers.append(server)

        def scrape() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                get(server)

        scraping.append(threading.Thread(target=scrape))
        scraping[0].start()
        assert source.asked.wait(20)
        threading.Timer(0.2, source.go_on.set).start()

    monkeypatch.setattr(serve_module, "_beat", end_meanwhile)
    settings = Settings(min_interval_s=0)
    assert serve(Options(settings, port=0), lambda: source, say=lambda _: None) == 0
    scraping[0].join()
    assert source.step > 1
    assert source.closed
    assert source.read_after == 0


@pytest.mark.parametrize(
    "path", ["/nothing", "/metrics/../../etc/passwd", "/%00", "/metrics%0d%0aX:y", "//evil", "/<script>"]
)
def test_what_is_not_there_is_404_and_nothing_is_sent_back(server: MetricsServer, path: str) -> None:
    status, headers, body = get(server, path)
    assert (status, body) == (404, b"404\n")
    assert "X" not in headers
    assert "Server" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NONSENSE"])
def test_other_methods_are_refused(server: MetricsServer, method: str) -> None:
    assert get(server, method=method)[0] in (405, 501)
    assert get(server)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9798", "127.0.0.1.evil.example", "192.0.2.1:9798"]
)
def test_on_loopback_a_page_of_another_name_cannot_read_metrics(server: MetricsServer, host: str) -> None:
    assert get(server, Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:9798", "127.0.0.1:1", "[::1]:9798", "[::1]"])
def test_every_name_of_loopback_is_welcome(server: MetricsServer, host: str) -> None:
    assert get(server, Host=host)[0] == 200


def test_ten_clients_at_once_are_served_and_share_a_snapshot(source: Turns) -> None:
    with MetricsServer(0) as server:
        server.exporter = Exporter(source, settings=Settings(min_interval_s=60))
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(get(server)[0])) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [200] * 10
    assert source.taken == 1


def test_clients_that_hang_trickle_or_leave_do_not_keep_others_waiting(
    server: MetricsServer, source: Turns
) -> None:
    source.cgroups = 50
    with contextlib.ExitStack() as stack:
        hanging = [stack.enter_context(raw(server)) for _ in range(3 * MAX_CONNECTIONS)]
        trickling = [stack.enter_context(raw(server, b"GET /metrics HTTP/1.1\r\nHo")) for _ in range(5)]
        slow = stack.enter_context(raw(server, b"GET /metrics HTTP/1.0\r\n\r\n"))  # and reads nothing
        with raw(server, b"GET /metrics HTTP/1.0\r\n\r\n"):
            pass  # left before the answer
        with contextlib.suppress(OSError):  # it may be among those that made way already
            trickling[0].sendall(b"st: l")
        for _ in range(5):
            assert get(server)[0] == 200
        assert hanging[0].recv(1) == b"", "the oldest make way"
        assert slow.recv(15).startswith(b"HTTP/1.1 200")


def test_a_connection_that_says_nothing_is_closed_after_a_while(
    source: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the end of the time that any connection has, and though nobody else wants the place."""
    monkeypatch.setattr(server_module, "HEADERS_S", 0.3)
    monkeypatch.setattr(server_module, "CONNECTION_S", 3600.0)
    with MetricsServer(0) as server, raw(server) as silent:
        silent.settimeout(60)
        assert silent.recv(1) == b""


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"\x00" * 50_000,
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\xff\xfe /metrics HTTP/1.1\r\n\r\n",
    ],
    ids=range(11),
)
def test_oversized_and_malformed_requests_are_refused_and_the_next_is_answered(
    server: MetricsServer, request_: bytes
) -> None:
    said = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as client,
    ):
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        while part := client.recv(65536):
            said += part
    assert not said.startswith(b"HTTP/1.1 200")
    assert len(said) < 1000
    assert get(server)[0] == 200


def test_a_port_that_is_taken_is_an_error_with_a_remedy(server: MetricsServer) -> None:
    with pytest.raises(CannotListen, match="ss -ltnp"):
        MetricsServer(server.port)
    with pytest.raises(CannotListen):
        MetricsServer(0, "192.0.2.1")


def test_closing_frees_the_port_even_while_a_client_hangs(source: Turns) -> None:
    with MetricsServer(0) as server, raw(server):
        port = server.port
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
    server.close()


def test_hostile_names_stay_inside_their_labels(source: Turns) -> None:
    names = [
        'a"} 1\nlabkit_up 1 #',
        "back\\slash",
        "\x1b[31mred\u202egnp",
        "ü" * 300,
        "",
        '{__name__="x"}',
    ]
    groups = [Group(10 + n, name, {("idle", 0): 1000}) for n, name in enumerate(names)]
    with MetricsServer(0) as server:
        server.exporter = Exporter(lambda: snapshot(*groups))
        for accept, parse in (
            ("", text_string_to_metric_families),
            ("application/openmetrics-text", parse_openmetrics),
        ):
            text = get(server, Accept=accept)[2].decode()
            found = {f.name: f for f in parse(text)}
            assert "labkit_up" not in found
            values = [
                s.labels["name"] for s in found["labkit_waits"].samples if s.name == "labkit_waits_total"
            ]
            assert len(values) == len(names)
            assert all(len(value) <= 128 and value.isprintable() for value in values)


def test_where_there_is_no_room_the_oldest_connection_makes_way(
    source: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEADERS_S", 600.0)  # nobody is closed for keeping silent
    with MetricsServer(0) as server, contextlib.ExitStack() as stack:
        server.exporter = Exporter(source)
        silent = [stack.enter_context(raw(server)) for _ in range(MAX_CONNECTIONS)]
        assert get(server)[0] == 200
        assert silent[0].recv(1) == b""
        silent[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent[-1].recv(1)

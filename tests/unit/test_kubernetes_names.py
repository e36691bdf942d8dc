"""Names of pods from the Kubernetes API: listed, watched over TLS, through every fault that the protocol knows."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes_fake import Api, Cluster, certificates, pod

from labkit.errors import LabkitError
from labkit.names import Known
from labkit.names.kubernetes import Pods
from labkit.names.kubernetes_api import ApiAccess, ApiError, PodWatch, Timing

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
UIDS = [f"0000000{n}-1111-2222-3333-444444444444" for n in range(9)]
QUICK = Timing(first_pause=0.02, longest_pause=0.1, watch=20, answer=3, grace=2)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("first-token\n")
    return file


@pytest.fixture
def api(tls: Path) -> Iterator[Api]:
    with Api(tls) as running:
        yield running


def access(api: Api, token: Path, **changes: Any) -> ApiAccess:
    given = {"url": api.url, "node": "node-1", "token_file": token, "ca_file": api.folder / "ca.crt"}
    return ApiAccess(**(given | changes))


def until(holds: Callable[[], Any], *, seconds: float = 20) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def name(pods: Pods, container_id: str = "", uid: str = "") -> Known | None:
    return pods(pod_uid=uid, container_id=container_id)


def test_all_pages_of_the_list_are_read_and_only_this_nodes_pods_asked_for(api: Api, token: Path) -> None:
    for n in range(5):
        api.cluster.apply("ADDED", pod(f"p{n}", UIDS[n]))
    api.cluster.apply("ADDED", pod("elsewhere", UIDS[7], node="node-2"))
    with PodWatch(access(api, token), Pods(), timing=QUICK) as watch:
        assert watch.synced.wait(10)
        until(lambda: api.cluster.watching)
    assert len(watch.pods) == 5
    listed = [r for r in api.cluster.requests if "watch" not in r]
    assert [r.get("continue") for r in listed] == [None, "2", "4"]
    assert {r["fieldSelector"] for r in api.cluster.requests} == {"spec.nodeName=node-1"}
    assert {r["authorization"] for r in api.cluster.requests} == {"Bearer first-token"}
    assert listed[0]["resourceVersion"] == "0"


def test_changes_are_followed(api: Api, token: Path) -> None:
    pods = Pods()
    with PodWatch(access(api, token), pods, timing=QUICK):
        until(lambda: api.cluster.watching)
        api.cluster.apply("ADDED", pod("web-1", UIDS[0]))
        until(lambda: name(pods, uid=UIDS[0]))
        api.cluster.apply("MODIFIED", pod("web-1", UIDS[0], containers={"main": A}))
        until(lambda: name(pods, A))
        api.cluster.apply("DELETED", pod("web-1", UIDS[0]))
        until(lambda: len(pods) == 0)


@pytest.mark.parametrize("fault", ["end", "break", "break in the middle"])
def test_a_watch_that_ends_is_resumed_where_it_was_and_nothing_is_missed(
    api: Api, token: Path, fault: str
) -> None:
    pods = Pods()
    with PodWatch(access(api, token), pods, timing=QUICK) as watch:
        until(lambda: api.cluster.watching)
        api.cluster.apply("ADDED", pod("web-1", UIDS[0], containers={"main": A}))
        until(lambda: name(pods, A))
        with api.cluster.changed:  # the fault and what happens meanwhile, at one moment
            api.cluster.faults.append(fault)
            api.cluster.apply("ADDED", pod("web-2", UIDS[1], containers={"main": B}))
        until(lambda: name(pods, B) and len([r for r in api.cluster.requests if r.get("watch")]) > 1)
        assert watch.lists == 1
    versions = [r["resourceVersion"] for r in api.cluster.requests if r.get("watch")]
    assert versions[:2] == ["100", "101" if fault == "break in the middle" else "102"]


def test_a_bookmark_moves_the_version_on(api: Api, token: Path) -> None:
    with PodWatch(access(api, token), Pods(), timing=QUICK) as watch:
        until(lambda: api.cluster.watching)
        api.cluster.apply("ADDED", pod("elsewhere", UIDS[7], node="node-2"))
        api.cluster.fault("bookmark")
        until(lambda: watch.events)
        api.cluster.fault("end")
        until(lambda: len([r for r in api.cluster.requests if r.get("watch")]) > 1)
    assert [r["resourceVersion"] for r in api.cluster.requests if r.get("watch")][1] == "101"


@pytest.mark.parametrize("as_event", [True, False])
def test_410_gone_means_a_new_list_of_the_newest(api: Api, token: Path, as_event: bool) -> None:
    pods = Pods()
    api.cluster.apply("ADDED", pod("old", UIDS[2], containers={"main": C}))
    with PodWatch(access(api, token), pods, timing=QUICK) as watch:
        until(lambda: api.cluster.watching)
        with api.cluster.changed:
            api.cluster.version += 1
            api.cluster.apply("DELETED", pod("old", UIDS[2]))
            api.cluster.apply("ADDED", pod("web-1", UIDS[0], containers={"main": A}))
            api.cluster.version += 1
            api.cluster.compact()
            api.cluster.faults.extend(["break", *(["410 as event"] if as_event else [])])
        until(lambda: watch.lists == 2)
        assert watch.errors["gone"] == 1
        assert (len(pods), name(pods, A)) == (1, Known("main", "shop", "web-1"))
    again = [r for r in api.cluster.requests if "watch" not in r][-1]
    assert "resourceVersion" not in again, "the server's cache may be as old as what it disowned"


@pytest.mark.parametrize("fault", ["500", "403", "429", "garbage", "hang up", "410"])
def test_a_failing_server_is_asked_again_with_growing_pauses_until_it_answers(
    api: Api, token: Path, fault: str
) -> None:
    api.cluster.apply("ADDED", pod("web-1", UIDS[0], containers={"main": A}))
    api.cluster.fault(fault, fault)
    patient = replace(QUICK, answer=60)  # on a busy machine no answer must count as a third failure
    with PodWatch(access(api, token), Pods(), timing=patient) as watch:
        assert watch.synced.wait(60)
        assert sum(watch.errors.values()) == 2
        lists = [request for request in api.cluster.requests if "watch" not in request]
        assert len(lists) == 3, "two that failed, one that was answered"
        until(lambda: not watch.last_error)
        assert name(watch.pods, A)


def test_pauses_grow_to_a_limit_and_a_success_ends_them() -> None:
    watch = PodWatch(ApiAccess("https://localhost:1", "node-1"), Pods(), timing=Timing(0.001, 0.004))
    pauses = []
    for _ in range(4):
        pauses.append(watch._pause_s)
        watch._failed("api", "away")
    assert pauses == [0.001, 0.002, 0.004, 0.004]
    watch._heard()
    assert watch._pause_s == 0.001


def test_an_api_that_is_away_leaves_what_was_known_and_is_found_again(tls: Path, token: Path) -> None:
    pods, cluster = Pods(), Cluster()
    cluster.apply("ADDED", pod("web-1", UIDS[0], containers={"main": A}))
    with Api(tls, cluster) as first:
        port = first.port
        watch = PodWatch(access(first, token), pods, timing=QUICK).start()
        until(lambda: name(pods, A))
    try:
        until(lambda: watch.errors)
        assert name(pods, A) == Known("main", "shop", "web-1")
        assert watch.last_error
        cluster.faults.clear()
        with Api(tls, cluster, port=port):
            cluster.apply("ADDED", pod("web-2", UIDS[1], containers={"main": B}))
            until(lambda: name(pods, B))
    finally:
        watch.close()


def test_malformed_events_are_counted_and_the_watch_goes_on(api: Api, token: Path) -> None:
    pods = Pods()
    with PodWatch(access(api, token), pods, timing=QUICK) as watch:
        until(lambda: api.cluster.watching)
        for line in (
            b"not json\n",
            b"[]\n",
            b'{"type": "ADDED"}\n',
            b'{"type": "ADDED", "object": {"metadata": 7}}\n',
            b'{"type": "NEWS", "object": {}}\n',
            b'{"type": "ADDED", "object": ' + b"[" * 200_000 + b"\n",
            b"\xff\xfe\n",
        ):
            api.cluster.say(line)
        api.cluster.apply("ADDED", pod("web-1", UIDS[0], containers={"main": A}))
        until(lambda: name(pods, A))
        assert pods.malformed == 6
        assert watch.errors == {}


def test_an_event_without_end_is_cut_off(api: Api, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.names.kubernetes_api._MAX_EVENT", 10_000)
    with PodWatch(access(api, token), Pods(), timing=QUICK) as watch:
        until(lambda: api.cluster.watching)
        api.cluster.say(b'{"type": "' + b"x" * 50_000)
        until(lambda: watch.errors.get("api"))
        assert "larger" in watch.last_error or watch.last_error == ""


def test_a_renewed_token_is_used(api: Api, token: Path) -> None:
    with PodWatch(access(api, token), Pods(), timing=QUICK) as watch:
        assert watch.synced.wait(10)
        api.cluster.token = "second-token"
        api.cluster.fault("break")
        until(lambda: watch.errors.get("api"))
        token.write_text("second-token")
        until(lambda: api.cluster.watching and not watch.last_error)


def test_a_server_that_the_clusters_authority_did_not_sign_gets_no_token(
    tls: Path, token: Path, tmp_path: Path
) -> None:
    other = certificates(tmp_path)
    with Api(other) as impostor:
        watch = PodWatch(access(impostor, token, ca_file=tls / "ca.crt"), Pods(), timing=QUICK)
        with watch:
            until(lambda: watch.errors)
        assert impostor.cluster.requests == []
        assert "CERTIFICATE_VERIFY_FAILED" in watch.last_error


def test_a_server_of_another_name_gets_no_token(api: Api, token: Path) -> None:
    watch = PodWatch(access(api, token, url=f"https://127.0.0.2:{api.port}"), Pods(), timing=QUICK)
    with watch:
        until(lambda: watch.errors)
    assert api.cluster.requests == []


def test_the_token_goes_over_tls_only_and_the_node_must_be_known() -> None:
    with pytest.raises(ApiError, match="no address for a token"):
        ApiAccess("http://localhost:8080", "node-1")
    with pytest.raises(LabkitError, match="NODE_NAME"):
        ApiAccess("https://localhost", "")


def test_closing_ends_a_watch_that_is_waiting(api: Api, token: Path) -> None:
    watch = PodWatch(access(api, token), Pods(), timing=QUICK).start()
    until(lambda: api.cluster.watching)
    watch.close()
    assert not watch._thread.is_alive()


#: So patient that a test which passes was not saved by some time-out's end.
PATIENT = replace(QUICK, answer=3600, grace=3600)


def test_closing_ends_a_handshake_that_nobody_answers(tls: Path, token: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://localhost:{silent.getsockname()[1]}"
        watch = PodWatch(ApiAccess(url, "node-1", token, tls / "ca.crt"), Pods(), timing=PATIENT).start()
        accepted, _ = silent.accept()
        with accepted:
            assert accepted.recv(1) == b"\x16", "a handshake of TLS's has begun"
            watch.close()
            until(lambda: not watch._thread.is_alive())
    assert watch.errors == {}, "being closed is no failure"


def test_closing_ends_a_wait_for_an_answer_that_does_not_come(api: Api, token: Path) -> None:
    api.cluster.fault("silent")
    watch = PodWatch(access(api, token), Pods(), timing=PATIENT).start()
    until(lambda: api.cluster.requests)
    watch.close()
    until(lambda: not watch._thread.is_alive())


def test_closing_does_not_wait_for_a_connect_that_nobody_takes(tls: Path, token: Path) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        # The queue holds one; from now on the kernel drops who knocks.
        stack.enter_context(socket.create_connection(full.getsockname()))
        url = f"https://127.0.0.1:{full.getsockname()[1]}"
        watch = PodWatch(ApiAccess(url, "node-1", token, tls / "ca.crt"), Pods(), timing=PATIENT).start()
        until(lambda: _connecting(full.getsockname()[1]))
        watch.close()
        assert watch._thread.is_alive(), "it waited for the connect to end"
    until(lambda: not watch._thread.is_alive(), seconds=90)  # refused, now that nobody listens
    assert watch.errors == {}


def _connecting(port: int) -> int:
    """How many connects to this port are under way: in SYN_SENT, by /proc/net/tcp."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "02" for row in rows)


def test_a_connection_whose_other_end_has_vanished_is_given_up_and_made_anew(api: Api, token: Path) -> None:
    pods, quick = Pods(), replace(PATIENT, silent=2, watch=3600)
    with PodWatch(access(api, token), pods, timing=quick) as watch:
        until(lambda: api.cluster.watching)
        api.cluster.fault("deaf")
        until(lambda: watch.errors, seconds=60)
        assert api.cluster.watching == 1, "the server itself hung up"
        api.cluster.apply("ADDED", pod("web-1", UIDS[0], containers={"main": A}))
        until(lambda: name(pods, A), seconds=60)
        assert watch.lists == 1, "the watch is resumed"


def test_hostile_names_come_through_as_they_are_and_harm_nobody(api: Api, token: Path) -> None:
    hostile = 'a"}\n# HELP x {__name__="y"} \x1b[31m\u202e'
    api.cluster.apply("ADDED", pod(hostile, UIDS[0], containers={hostile: A}, namespace=hostile))
    with PodWatch(access(api, token), Pods(), timing=QUICK) as watch:
        assert watch.synced.wait(10)
    assert name(watch.pods, A) == Known(hostile, hostile, hostile)

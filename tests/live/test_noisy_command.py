"""`labkit noisy` as people and scripts run it: in a pipe, as JSON, in a terminal; and names from the real kernel."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from labkit.cgroups import Scope
from labkit.cli import main
from labkit.kernel.cgroup import Finder, hierarchy
from labkit.names import Directory, States
from labkit.workloads import scenario

pytestmark = [pytest.mark.live, pytest.mark.needs("schedstat", "cgroups", "root")]

COMMAND = [sys.executable, "-m", "labkit.cli"]


def labkit(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **more,  # type: ignore[call-overload]
    )


# -- names, on the real kernel -------------------------------------------------------------------------------------


def test_an_id_leads_to_its_path_until_the_cgroup_is_gone() -> None:
    tree = hierarchy()
    assert tree.unified is not None
    with Scope(["a"]) as scope, Finder(tree.unified) as finder:
        cgroup_id, path = scope.id("a"), scope.path("a")
        assert finder.path(cgroup_id) == path
        assert finder.path(1) == "/"
        scope.close()
        assert finder.path(cgroup_id) is None
        assert finder.permitted
        assert finder.path(2**63) is None


def test_a_container_by_its_directory_and_state_keeps_its_name_when_it_dies(tmp_path: Path) -> None:
    container = "0123456789abcdef" * 4
    state = tmp_path / "var/lib/containers/storage/overlay-containers"
    state.mkdir(parents=True)
    (state / "containers.json").write_text(json.dumps([{"id": container, "names": ["web"]}]))
    with Directory(states=States(tmp_path)) as directory, Scope([f"libpod-{container}.scope"]) as scope:
        cgroup_id = scope.id(f"libpod-{container}.scope")
        before = directory.frame([cgroup_id]).iloc[0]
        scope.close()
        after = directory.frame([cgroup_id]).iloc[0]
    assert (before["name"], before["kind"], before["owner"], before["alive"]) == (
        "web",
        "container",
        "workload",
        True,
    )
    assert (after["name"], after["alive"]) == ("web", False)


def test_thousands_of_cgroups_are_found_one_by_one_without_walking(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = hierarchy()
    assert tree.unified is not None
    with Directory(tree) as directory, Scope(["many"]) as scope:
        folder = scope.folder("many")
        made = [folder / f"c{n}" for n in range(2000)]
        for path in made:
            path.mkdir()
        monkeypatch.setattr("labkit.names.directory.walk", lambda tree: pytest.fail("walked"))
        ids = [path.stat().st_ino for path in made]
        names = directory.frame(ids)
        assert names["name"].tolist() == [f"c{n}" for n in range(2000)]
        assert names["alive"].all()
        for path in made:
            path.rmdir()
        gone = directory.frame(ids)
        assert gone["name"].tolist() == names["name"].tolist()
        assert not gone["alive"].any()


# -- the command ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``labkit noisy`` of ten minutes, at the moment when it measures. Its stderr is a terminal: it says so there."""
    screen, side = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "noisy", "--seconds", "600", *arguments],
        stdout=subprocess.PIPE,
        stderr=side,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # else ignored in background jobs
    )
    os.close(side)
    said = b""
    with contextlib.suppress(OSError):  # it ended
        while b"measuring for 600 s" not in said:
            said += os.read(screen, 1000)
    try:
        assert b"measuring for 600 s" in said, said.decode()
        yield process
    finally:
        process.kill()
        process.wait()
        os.close(screen)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, Path]:
    """A hog beside a service, watched by the command from outside, as JSON and with a recording.

    The two begin when it measures and rest when it ends, so that its oracles are read while nothing moves.
    """
    file = tmp_path_factory.mktemp("noisy") / "hog.noisy"
    glob = f"/labkit-{os.getpid()}-*"
    with (
        scenario("hog", seconds=2).start() as running,
        started("--json", "--cgroup", glob, "--record", str(file)) as process,
    ):
        running.go()
        running.finish()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    return json.loads(out), out, file


def test_one_answer_as_json_names_the_hog_and_agrees_with_the_kernels_books(answered: tuple) -> None:
    answer, text, _ = answered
    assert text.count("\n") == 1
    assert answer["mode"] == "live"
    assert {one["name"] for one in answer["cgroups"]} == {"service", "hog"}
    service = next(one for one in answer["cgroups"] if one["name"] == "service")
    assert service["wait_ns"] == sum(service["wait_by_cause"].values())
    mine = [one for one in service["blame"] if one["cgroup"] == service["cgroup"].replace("service", "hog")]
    assert mine  # whatever else ran beside it
    assert mine[0]["share"] > 0.1
    assert service["verdict"] in ("noisy_neighbor", "mixed")
    delay = service["residual"]["run_delay"]
    assert delay["verifiable_share"] > 0.95
    assert abs(delay["residual_ns"]) <= max(1_000_000, 0.001 * delay["oracle_ns"])
    assert abs(service["residual"]["involuntary_switches"]["residual"]) <= 3
    assert abs(service["residual"]["voluntary_switches"]["residual"]) <= 3
    assert answer["ledger"]["seen"] == answer["ledger"]["delivered"] + sum(
        answer["ledger"]["losses"].values()
    )
    assert answer["cost"]["ns_per_switch"] > 0


def test_the_recording_replays_to_the_identical_answer(answered: tuple) -> None:
    answer, _, file = answered
    replayed = json.loads(labkit("replay", "--json", str(file)).stdout)
    assert replayed["mode"] == replayed["ledger"]["mode"] == "replay"
    replayed["mode"] = replayed["ledger"]["mode"] = "live"
    assert replayed == answer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds", "0"], "nothing to measure"),
        (["--seconds", "-1"], "nothing to measure"),
        (["--seconds", "soon"], "not a valid float"),
        (["--cgroup", "/no/such"], "no cgroup '/no/such'"),
        (["--cgroup", "/no/such/*"], "none of"),
        (["--container", "nobody-is-called-that"], "no container"),
        (["--pod", "shop"], "NAMESPACE/NAME"),
        (["--pod", "no/such"], "no pod 'no/such'"),
        (["--min-wait", "-3"], "makes no sense"),
        (["--record", "/no/such/folder/file"], "no folder"),
    ],
    ids=str,
)
def test_bad_input_is_an_error_with_its_reason_and_exit_code_2(arguments: list[str], words: str) -> None:
    found = CliRunner().invoke(main, ["noisy", *arguments])
    assert found.exit_code == 2
    assert found.stdout == ""
    assert words in found.stderr


def test_in_a_pipe_it_prints_one_plain_answer() -> None:
    found = labkit("noisy", "--seconds", "1")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("LIVE on Linux")
    assert found.stdout.count("LIVE on") == 1
    assert "\x1b" not in found.stdout
    said = " ".join(found.stdout.split())
    assert "stamps of another clock" in said
    assert "rules: cgroups are told apart" in said
    assert max(map(len, found.stdout.splitlines())) <= 80


def test_ctrl_c_in_a_terminal_leaves_the_screen_as_it_was_and_the_answer_on_it() -> None:
    screen, side = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "noisy"], stdin=side, stdout=side, stderr=side, env=os.environ | {"TERM": "xterm-256color"}
    )
    os.close(side)
    shown, sent, end = b"", False, time.monotonic() + 90
    while process.poll() is None or select.select([screen], [], [], 0)[0]:
        assert time.monotonic() < end, shown[-2000:]
        if select.select([screen], [], [], 0.2)[0]:
            try:
                shown += os.read(screen, 65536)
            except OSError:  # the other end is closed
                break
        if not sent and b"Ctrl-C ends it" in shown and b"wait/s" in shown:
            process.send_signal(signal.SIGINT)
            sent = True
    os.close(screen)
    assert process.wait(timeout=30) == 0, shown[-3000:].decode()
    assert b"Traceback" not in shown
    left = shown.rpartition(b"\x1b[?1049l")[2]  # after the alternate screen was left
    assert left != shown
    assert b"\x1b[?25h" in shown  # the cursor is back
    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", left).decode()
    assert "LIVE on Linux" in plain


def test_ctrl_c_while_measuring_once_answers_early() -> None:
    with started() as process:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "no stamps of another clock" in " ".join(out.split())
    assert out.startswith("LIVE on Linux")

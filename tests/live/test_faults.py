"""What goes wrong in real life: each a clear error, nothing lost, nothing left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit import cgroups, workloads
from labkit.errors import CgroupError, OutcomesError, ParameterError, WorkloadFailed
from labkit.kernel import cgroup
from labkit.program import stale_programs

pytestmark = [pytest.mark.live, pytest.mark.needs("root")]

LABKIT = [sys.executable, "-m", "labkit.cli"]

HOLD = """
import signal, sys, time
import labkit as lk
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would we
with lk.load("runq_latency") as prog:
    truth = lk.workloads.service_beside_hog(seconds=0.3).run()
    print(*truth.tasks["pid"], truth.tasks["cgroup"][0], flush=True)
    time.sleep(60)
"""


def _our_cgroups(owner: int) -> list[Path]:
    unified = cgroup.hierarchy().unified
    assert unified is not None
    return list(unified.glob(f"labkit-{owner}-*"))


def _eventually(condition: object, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_killed_leaves_no_program_no_cgroup_and_no_process(number: signal.Signals) -> None:
    before = {p.id for p in stale_programs()}
    run = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert run.stdout is not None
    *pids, _path = run.stdout.readline().split()
    assert _our_cgroups(run.pid)
    assert {p.name for p in stale_programs() if p.id not in before} >= {"lk_switch", "lk_wakeup"}
    run.send_signal(number)
    run.wait(timeout=20)
    run.stdout.close()
    assert _eventually(lambda: not _our_cgroups(run.pid)), _our_cgroups(run.pid)
    assert _eventually(lambda: not any(_alive(int(pid)) for pid in pids))
    mine = {p.id for p in stale_programs()} - before
    assert _eventually(lambda: not mine & {p.id for p in stale_programs()})


def test_cgroups_of_an_owner_that_is_gone_are_swept() -> None:
    unified = cgroup.hierarchy().unified
    assert unified is not None
    orphan = unified / "labkit-999999999-1-0"
    (orphan / "inner").mkdir(parents=True)
    assert orphan.name in cgroups.sweep()
    assert not orphan.exists()


def test_cgroups_of_a_living_owner_are_left_alone() -> None:
    with cgroups.Scope(["a"]) as scope:
        assert scope.root.name not in cgroups.sweep()
        assert scope.root.exists()
    assert not scope.root.exists()


def test_a_workload_that_fails_says_so_and_cleans_up() -> None:
    broken = workloads.Workload(
        "broken", "a worker that fails", (workloads.Worker("x", "hog", options={"wrong": 1}),)
    )
    with pytest.raises(WorkloadFailed, match="seconds"):
        broken.run()
    assert not _our_cgroups(os.getpid())


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ParameterError):
        workloads.two_pinned_hogs(seconds=seconds)


def test_a_process_that_is_gone_cannot_join() -> None:
    with cgroups.Scope(["a"]) as scope, pytest.raises(CgroupError, match="cannot join"):
        scope.add("a", 2**22 - 1)


def _labkit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LABKIT, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _as_nobody(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """The command as root without capabilities: what an unprivileged user meets, without needing the user's files."""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    return subprocess.run(
        [*drop, *LABKIT, *arguments],
        env=os.environ | {"LABKIT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_without_privileges_the_doctor_says_so_and_replay_still_works(tmp_path: Path) -> None:
    doctor = _as_nobody("doctor", "--json", cache=tmp_path)
    found = json.loads(doctor.stdout)
    assert doctor.returncode == 3
    assert not found["live"]
    capabilities = next(f for f in found["features"] if f["name"] == "capabilities")
    assert capabilities["state"] == "no"
    assert "CAP_BPF" in capabilities["remedy"]  # it is root, only stripped: set-up would not help
    first = _as_nobody("first", cache=tmp_path)
    assert first.stdout.startswith("REPLAY")
    assert "capabilities" in first.stdout
    forced = _as_nobody("first", "--mode", "live", cache=tmp_path)
    assert forced.returncode == 2
    assert "live measurement is not possible" in forced.stderr
    assert "Traceback" not in forced.stderr


def test_without_privileges_a_program_is_refused_with_the_next_step(tmp_path: Path) -> None:
    done = _as_nobody("record", "hello", "--seconds", "0.1", "-o", str(tmp_path / "c"), cache=tmp_path)
    assert done.returncode == 2
    assert "not permitted to load hello" in done.stderr
    assert "./task setup" in done.stderr


def test_without_headers_the_next_step_is_named(tmp_path: Path) -> None:
    done = _labkit(
        "record", "hello", "--seconds", "1", "-o", str(tmp_path / "c"), LABKIT_HEADERS=str(tmp_path / "none")
    )
    assert done.returncode == 2
    assert "apt-get install linux-headers" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_bcc_the_next_step_is_named(tmp_path: Path) -> None:
    done = _labkit(
        "record", "hello", "--seconds", "1", "-o", str(tmp_path / "c"), LABKIT_BCC=str(tmp_path / "none")
    )
    assert done.returncode == 2
    assert "python3-bpfcc" in done.stderr


def test_without_btf_the_lab_goes_on_in_replay(tmp_path: Path) -> None:
    done = _labkit("doctor", "--json", LABKIT_BTF=str(tmp_path / "none"))
    assert done.returncode == 3
    assert _labkit("first", LABKIT_BTF=str(tmp_path / "none")).stdout.startswith("REPLAY")


def test_an_unknown_program_is_a_clear_error(tmp_path: Path) -> None:
    done = _labkit("record", "helo", "-o", str(tmp_path / "c"))
    assert done.returncode == 2
    assert "nearest: hello" in done.stderr


def test_a_recording_can_be_replayed_and_one_cut_short_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    assert (
        _labkit(
            "record", "syscall_counts", "--seconds", "0.5", "-p", "tgid", str(os.getpid()), "-o", str(out)
        ).returncode
        == 0
    )
    shown = _labkit("replay", str(out))
    assert shown.returncode == 0
    assert "ledger: system calls: seen" in shown.stdout
    part = next(out.glob("*counts.parquet"))
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    damaged = _labkit("replay", str(out))
    assert damaged.returncode == 2
    assert "damaged" in damaged.stderr
    (out / "capture.json").write_text("{")
    assert "damaged" in _labkit("replay", str(out)).stderr


def test_a_recording_is_never_overwritten_and_a_wrong_request_touches_nothing(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    wrong = _labkit("record", "hello", "-p", "nonsense", "1", "-o", str(out))
    assert wrong.returncode == 2
    assert not out.exists()
    assert _labkit("record", "hello", "--seconds", "0.2", "-o", str(out)).returncode == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    again = _labkit("record", "hello", "--seconds", "0.2", "-o", str(out))
    assert again.returncode == 2
    assert "holds a recording already" in again.stderr
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_recording_that_is_interrupted_keeps_what_there_is(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    run = subprocess.Popen(
        [*LABKIT, "record", "hello", "--seconds", "60", "-o", str(out)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.stdout is not None
    while "recording for" not in run.stdout.readline():
        pass
    run.send_signal(signal.SIGINT)
    rest = run.communicate(timeout=30)[0]
    assert "kept in" in rest
    assert "ledger: execve calls: seen" in _labkit("replay", str(out)).stdout


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = _labkit("record", "hello", "--seconds", "0.2", "-o", str(blocked / "capture"))
    assert done.returncode == 2
    assert "cannot write" in done.stderr


def test_a_full_disk_is_a_clear_error_and_what_was_whole_stays(tmp_path: Path) -> None:
    from labkit.capture import Capture, Recorder

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        recorder = Recorder(tmp_path / "c", "c")
        recorder.reading("small", 1)
        with pytest.raises(OutcomesError, match="No space left"):
            recorder.reading("large", "x" * 200_000)
        assert Capture(tmp_path / "c").reading("small") == 1
        assert not list((tmp_path / "c").glob(".*"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)

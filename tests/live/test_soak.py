"""The event path at the highest rate that this machine makes: every event accounted for, memory flat."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.events import record_events
from labkit.ledger import Ledger
from labkit.program import load
from labkit.recordings import Recording
from labkit.sched.from_events import task_waits

pytestmark = [pytest.mark.live, pytest.mark.needs("ring buffer")]

# Where perf is not installed, Python passes the bytes; that makes two thirds of its rate.
PIPES = """
import os
(here, there), (back, forth) = os.pipe(), os.pipe()
if os.fork():
    while True:
        os.write(there, b"x")
        os.read(back, 1)
else:
    while True:
        os.read(here, 1)
        os.write(forth, b"x")
"""


@contextlib.contextmanager
def _storm() -> Iterator[None]:
    """On each CPU two processes that wake each other without end."""
    perf = ["perf", "bench", "sched", "pipe", "-l", "1000000000"]
    command = perf if shutil.which("perf") else [sys.executable, "-I", "-S", "-c", PIPES]
    with contextlib.ExitStack() as stack:
        for cpu in sorted(os.sched_getaffinity(0)):
            process = subprocess.Popen(
                ["taskset", "-c", str(cpu), *command],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
        yield


@contextlib.contextmanager
def _resident() -> Iterator[list[float]]:
    """This process's memory in MiB, five times a second."""
    sizes: list[float] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.2):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()


def _soak(folder: Path, seconds: float, ring_pages: int) -> tuple[Recording, Ledger, list[float]]:
    with load("sched_events", ring_pages=ring_pages) as prog, _storm(), _resident() as sizes:
        recording = record_events(prog, "events", folder, seconds=seconds, row_group_events=1 << 17)
        ledger = prog.ledger
        time.sleep(0.2)
        assert prog.ring("events").backlog_bytes == 0
        assert prog.ledger == ledger, "something was counted after the program had been detached"
    return recording, ledger, sizes


def _check(recording: Recording, ledger: Ledger, sizes: list[float]) -> None:
    assert ledger.balanced, ledger.describe()
    assert ledger.delivered == recording.count == sum(len(group) for group in recording)
    assert recording.ledger.delivered == ledger.delivered
    warm = len(sizes) // 3
    assert max(sizes[warm:]) - max(sizes[:warm]) < 40, f"memory grows: {[round(s) for s in sizes]}"


def test_every_event_of_a_storm_is_accounted_for(tmp_path: Path) -> None:
    recording, ledger, sizes = _soak(tmp_path, 5, ring_pages=4096)
    _check(recording, ledger, sizes)
    assert ledger.seen > 500_000
    assert task_waits(tmp_path)["waits"].sum() > 100_000


def test_every_event_is_accounted_for_when_the_ring_is_far_too_small(tmp_path: Path) -> None:
    recording, ledger, sizes = _soak(tmp_path, 2, ring_pages=2)
    _check(recording, ledger, sizes)
    assert ledger.losses["ring_full"] > ledger.delivered
    waits = task_waits(tmp_path)
    assert waits["uncertain_waits"].sum() > 0


@pytest.mark.slow
def test_a_minute_at_the_highest_rate(tmp_path: Path) -> None:
    recording, ledger, sizes = _soak(tmp_path, 60, ring_pages=4096)
    _check(recording, ledger, sizes)
    assert ledger.seen > 6_000_000
    with _resident() as loading:
        waits = task_waits(tmp_path)
    assert waits["waits"].sum() > 1_000_000
    assert max(loading) - max(sizes) < 200, "loading holds more than a group in memory"
    print(f"\n{ledger.describe()}; {max(sizes):.0f} MiB recording, {max(loading):.0f} MiB loading")

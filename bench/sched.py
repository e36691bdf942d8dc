"""Recorded scheduler events to waits per task, beside ``perf sched record`` and ``perf sched latency``.

Both record the same workload at the same time, each in its own format. What is timed is the way from the recording on
disk (in the page cache) to the waits of every task. Each side's speed is given in its own recorded context switches, so
that an event one of them lost makes it neither faster nor slower.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Goal, Row, compare, interleave
from bench.peers import PEERS, PeerFailed
from labkit.events import record_events
from labkit.program import load
from labkit.sched.from_events import task_waits

__all__ = ["compare_replay"]

_GOAL = Goal(">=", 20)
_EVENTS, _QUICK_EVENTS = 10_000_000, 100_000
_NAME = "recorded events to waits per task"


@dataclass
class _Recorded:
    """One workload, recorded by both sides."""

    folder: Path
    perf_data: Path
    events: int
    switches: int
    lost: int
    perf_events: int
    perf_switches: int


def _perf() -> str:
    return str(PEERS["perf"].path)


def _record(room: Path, seconds: float) -> _Recorded:
    """Let two processes play ping-pong for a while, recorded by perf and by labkit at once."""
    perf_data, folder = room / "perf.data", room / "events"
    argv = [
        _perf(),
        "sched",
        "record",
        "-o",
        str(perf_data),
        "-m",
        "32M",
        "--",
        "timeout",
        str(seconds),
        _perf(),
    ]
    argv += ["bench", "sched", "pipe", "-l", str(10**9)]
    with load("sched_events", ring_pages=16384) as program:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as perf:
            recording = record_events(program, "events", folder, seconds=seconds)
            said = perf.communicate()[0]
        lost = program.ledger.lost
    if "Captured and wrote" not in said:
        raise PeerFailed("perf sched record failed", why=said.strip()[-300:])
    groups = recording.select({"switched": ["cpu"]})
    switches = sum(group.tables["switched"].num_rows for group in groups)
    perf_events, perf_switches = _perf_counts(perf_data)
    return _Recorded(folder, perf_data, recording.count, switches, lost, perf_events, perf_switches)


def _perf_counts(data: Path) -> tuple[int, int]:
    """Samples in perf's recording: all, and those of sched_switch."""
    argv = [_perf(), "report", "-i", str(data), "--stats"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    samples = [int(n) for n in re.findall(r"SAMPLE events:\s*(\d+)", said)]
    switch = re.search(r"sched_switch stats:\s*SAMPLE events:\s*(\d+)", said)
    if not samples or not switch:
        raise PeerFailed("perf report does not tell what perf recorded", why=said.strip()[-300:])
    return samples[0], int(switch.group(1))


def _perf_latency(recorded: _Recorded) -> float:
    """Switches per second of CPU of ``perf sched latency``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [_perf(), "sched", "latency", "-i", str(recorded.perf_data)],
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0 or "TOTAL:" not in done.stdout:
        raise PeerFailed("perf sched latency failed", why=done.stderr.strip()[-300:])
    return recorded.perf_switches / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


class _Ours:
    """Switches per second of CPU of ``task_waits``, each time in a fresh process; keeps what it said."""

    def __init__(self, recorded: _Recorded) -> None:
        self.recorded = recorded
        self.said: list[dict[str, float]] = []

    def __call__(self) -> float:
        argv = [sys.executable, "-m", "bench._replay", str(self.recorded.folder)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        self.said.append(json.loads(done.stdout))
        return self.recorded.switches / self.said[-1]["cpu_s"]


def _where_time_goes(recorded: _Recorded) -> str:
    """Shares of reading, sorting and the rest, by the profiler."""
    profile = cProfile.Profile()
    profile.runcall(task_waits, recorded.folder)
    stats = pstats.Stats(profile)
    total = stats.total_tt  # type: ignore[attr-defined]
    top = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:4]  # type: ignore[attr-defined]
    parts = [f"{name.strip('<>')} {100 * row[2] / total:.0f} %" for (_, _, name), row in top]
    return f"of {total:.2f} s, " + ", ".join(parts)


def _recorded(room: Path, events: int) -> _Recorded:
    """A recording of at least so many events: a short one first tells how fast they come."""
    trial_s = 1.0
    trial = _record(room / "trial", trial_s)
    return _record(room / "full", max(1.0, 1.1 * trial_s * events / max(trial.events, 1)))


def compare_replay(*, quick: bool, rounds: int) -> list[Row]:
    """Rows of speed and of memory."""
    if PEERS["perf"].path is None:
        return [
            Row.absent(
                _NAME,
                peer_name="perf sched latency",
                unit="switches/s",
                reason="perf is not installed",
                goal=_GOAL,
            )
        ]
    with tempfile.TemporaryDirectory(prefix="bench-sched-") as room:
        for name in ("trial", "full"):
            (Path(room) / name).mkdir()
        recorded = _recorded(Path(room), _QUICK_EVENTS if quick else _EVENTS)
        ours = _Ours(recorded)
        samples = interleave(
            {"labkit": ours, "perf sched latency": lambda: _perf_latency(recorded)}, rounds=rounds
        )
        speed = compare(
            f"{_NAME}, {recorded.events / 1e6:.1f} M events",
            samples,
            ours="labkit",
            peer="perf sched latency",
            unit="switches/s",
            goal=_GOAL,
            explain=lambda: _where_time_goes(recorded),
            note=_note(recorded, ours),
        )
    memory = [said["peak_bytes"] / 1e6 for said in ours.said[1:]]
    limit = {"labkit": memory, "2 GB": [2000.0] * len(memory)}
    return [
        speed,
        compare(
            f"peak memory of it, {recorded.events / 1e6:.1f} M events",
            limit,
            ours="labkit",
            peer="2 GB",
            unit="MB",
            goal=Goal("<=", 1),
        ),
    ]


def _note(recorded: _Recorded, ours: _Ours) -> str:
    last = ours.said[-1]
    return (
        f"labkit recorded {recorded.events:,} events, {recorded.switches:,} of them switches, and lost {recorded.lost:,}; "
        f"perf recorded {recorded.perf_events:,} and {recorded.perf_switches:,}; labkit took {last['wall_s']:.2f} s by the "
        f"wall and {last['cpu_s']:.2f} s of CPU, and before that {last['start_cpu_s']:.2f} s for Python's imports"
    )

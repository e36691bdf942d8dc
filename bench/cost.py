"""What a run queue tracer costs in the kernel, per context switch, beside runqlat of bcc and of bpftrace.

Each tool runs alone while two processes play ping-pong through a pipe (``perf bench sched pipe``). The kernel counts the
run time of BPF programs (``BPF_ENABLE_STATS``); what a tool costs is the time of all its programs, wakeups included, over
the runs of its program at ``sched_switch``.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.measure import Row, compare, interleave
from bench.peers import PEERS, PeerFailed, running_tool
from labkit import bpfsys
from labkit.program import load
from labkit.spec import parse

__all__ = ["compare_costs"]

_EMPTY = Path(__file__).with_name("empty.c")
_NOTE = (
    "runq_latency is the teaching program: besides the histogram it keeps a table of waits per task and a ledger, and "
    "counts preempted waits, so it does more per switch"
)
_TOOLS = {"runqlat-bpfcc": "Tracing run queue latency", "bpftrace runqlat.bt": "Tracing CPU scheduler"}


@contextlib.contextmanager
def _ours(name: str) -> Iterator[Callable[[], set[int]]]:
    spec = parse(_EMPTY.read_text(), name="bench_empty", path=_EMPTY) if name == "empty program" else name
    with load(spec):
        yield lambda: _programs_of(os.getpid())


@contextlib.contextmanager
def _other(name: str) -> Iterator[Callable[[], set[int]]]:
    if name == "runqlat-bpfcc":
        argv = [str(PEERS["runqlat-bpfcc"].path), "3600", "1"]
    else:
        argv = [str(PEERS["bpftrace"].path), str(PEERS["runqlat.bt"].path)]
    with running_tool(argv, says=_TOOLS[name]) as process:
        yield lambda: _programs_of(process.pid)


def _programs_of(pid: int) -> set[int]:
    """Ids of the BPF programs that a process holds open, from ``/proc/PID/fdinfo``."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            if match := re.search(r"^prog_id:\s*(\d+)", entry.read_text(), re.M):
                found.add(int(match.group(1)))
    return found


def _counts(ids: set[int]) -> dict[int, bpfsys.ProgInfo]:
    return {info.id: info for info in bpfsys.loaded_programs() if info.id in ids}


def _play(loops: int) -> None:
    """The workload: so many round trips of ``perf bench sched pipe``."""
    argv = [str(PEERS["perf"].path), "bench", "sched", "pipe", "-l", str(loops)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerFailed("perf bench sched pipe did not run", why=done.stderr.strip()[-300:])


class _Measured:
    """Cost of one tracer: nanoseconds per switch."""

    def __init__(self, name: str, loops: int) -> None:
        self.name, self.loops = name, loops

    def __call__(self) -> float:
        running = _other if self.name in _TOOLS else _ours
        with running(self.name) as programs:
            before = _counts(programs())
            _play(self.loops)
            after = _counts(set(before))
        spent = sum(info.run_time_ns - before[i].run_time_ns for i, info in after.items())
        switches = sum(
            info.run_count - before[i].run_count
            for i, info in after.items()
            if "sched_s" in info.name or info.name == "lk_switch"
        )
        if not switches:
            names = ", ".join(info.name for info in after.values())
            raise PeerFailed(f"{self.name} saw no switches", why=f"its programs: {names or 'none'}")
        return float(spent / switches)


def compare_costs(*, quick: bool, rounds: int) -> list[Row]:
    """Rows of cost per switch; no goals."""
    if PEERS["perf"].path is None:
        return [_absent("runqlat-bpfcc", "perf is not installed, and with it the workload")]
    others = {
        "runqlat-bpfcc": PEERS["runqlat-bpfcc"].path,
        "bpftrace runqlat.bt": PEERS["bpftrace"].path and PEERS["runqlat.bt"].path,
    }
    names = ["runq_latency", "empty program", *(name for name, path in others.items() if path)]
    loops = 5_000 if quick else 100_000
    stats = bpfsys.enable_stats()
    try:
        samples = interleave({name: _Measured(name, loops) for name in names}, rounds=rounds, warm_up=False)
    finally:
        os.close(stats)
    rows = [_absent(name, f"{name} is not installed") for name, path in others.items() if not path]
    for peer in names[1:]:
        note = _NOTE if peer in _TOOLS else "the floor: what calling any program at this point costs"
        rows.append(
            compare(
                "in-kernel cost of runq_latency, all hooks",
                samples,
                ours="runq_latency",
                peer=peer,
                unit="ns/switch",
                note=note,
            )
        )
    return rows


def _absent(peer: str, reason: str) -> Row:
    return Row.absent(
        "in-kernel cost of runq_latency, all hooks", peer_name=peer, unit="ns/switch", reason=reason
    )

"""What the noisy-neighbour program costs, beside runqlat of bcc and beside the article's program, in one run.

Three workloads: a pipe between two processes of one cgroup (``perf bench sched pipe``, pinned to one CPU, so that each
operation is two switches), a pipe between two cgroups, and both CPUs' pipes while the tables are read once a second. The
kernel counts the run time of BPF programs (``BPF_ENABLE_STATS``) in all turns alike; the slowdown holds that counting.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

from bench.cost import _counts, _other, _ours, _programs_of
from bench.measure import Goal, Row, compare, interleave
from bench.peers import PEERS, PeerFailed
from labkit import bpfsys, workloads
from labkit.noisy.watch import Watch

__all__ = ["compare_noisy"]

_OURS = "noisy_neighbor"
_ARTICLE = "netflix_noisy_neighbor"
_RUNQLAT = "runqlat-bpfcc"
_EMPTY = "empty program"
_ONE = "noisy_neighbor, all hooks, pipe within a cgroup"
_TWO = "noisy_neighbor, all hooks, pipe between two cgroups"
_SLOW = "slowdown of perf bench sched pipe"
_READER = "reading the tables once a second, at full rate of switches"


@contextlib.contextmanager
def _watching() -> Iterator[Callable[[], set[int]]]:
    with Watch():
        yield lambda: _programs_of(os.getpid())


def _running(name: str) -> contextlib.AbstractContextManager[Callable[[], set[int]]]:
    if name == _OURS:
        return _watching()
    return _other(name) if name == _RUNQLAT else _ours(name)


def _cpu() -> int:
    return max(os.sched_getaffinity(0))


def _pipe(loops: int) -> float:
    """Microseconds of one operation, there and back, on one CPU."""
    argv = ["taskset", "-c", str(_cpu()), str(PEERS["perf"].path), "bench", "sched", "pipe", "-l", str(loops)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = re.search(r"([\d.]+) usecs/op", done.stdout)
    if done.returncode != 0 or not found:
        raise PeerFailed("perf bench sched pipe did not run", why=done.stderr.strip()[-300:])
    return float(found[1])


def _across(rounds: int) -> None:
    workloads.ping_pong(rounds).run().release()


class _PerSwitch:
    """Nanoseconds of all programs of a tool per context switch."""

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        self.name, self.work = name, work

    def __call__(self) -> float:
        with _running(self.name) as programs:
            before = _counts(programs())
            self.work()
            after = _counts(set(before))
        spent = sum(info.run_time_ns - before[i].run_time_ns for i, info in after.items())
        switches = sum(
            info.run_count - before[i].run_count
            for i, info in after.items()
            if "sched_s" in info.name or info.name == "lk_switch"
        )
        if not switches:
            raise PeerFailed(f"{self.name} saw no switches")
        return float(spent / switches)


class _Slowdown:
    """By how many percent the pipe gets slower while a tool runs; the pipe alone is measured just before."""

    def __init__(self, name: str, loops: int) -> None:
        self.name, self.loops = name, loops

    def __call__(self) -> float:
        alone = _pipe(self.loops)
        with _running(self.name):
            return max(0.01, (_pipe(self.loops) / alone - 1) * 100)


@contextlib.contextmanager
def _storm() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for cpu in sorted(os.sched_getaffinity(0)):
            argv = [
                "taskset",
                "-c",
                str(cpu),
                str(PEERS["perf"].path),
                "bench",
                "sched",
                "pipe",
                "-l",
                "1000000000",
            ]
            process = subprocess.Popen(
                argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            stack.callback(process.wait)
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
        yield


class _Reader:
    """CPU time of a process that takes a snapshot a second, in percent of one CPU; ``rate`` is the switches per second."""

    def __init__(self, seconds: int) -> None:
        self.seconds, self.rate = seconds, 0.0

    def __call__(self) -> float:
        with Watch() as watch, _storm():
            before = watch.snapshot()
            for _ in range(self.seconds):
                time.sleep(1)
                after = watch.snapshot()
        cost = after.cost.since(before.cost)
        elapsed_s = (after.taken_ns - before.taken_ns) / 1e9
        self.rate = cost.switches / elapsed_s
        return cost.user_ns / elapsed_s / 1e7


def compare_noisy(*, quick: bool, rounds: int) -> list[Row]:
    """Rows of the noisy-neighbour program's cost, with their goals."""
    peers = [name for name in (_RUNQLAT, _ARTICLE, _EMPTY) if name != _RUNQLAT or PEERS[_RUNQLAT].path]
    goals = {_RUNQLAT: Goal("<=", 0.6), _ARTICLE: Goal("<=", 1.0)}
    if PEERS["perf"].path is None:
        reason = "perf is not installed, and with it the workload"
        return [Row.absent(_ONE, peer_name=_RUNQLAT, unit="ns/switch", reason=reason, goal=goals[_RUNQLAT])]
    loops, turns = (5_000, 2_000) if quick else (150_000, 40_000)
    rows: list[Row] = []
    stats = bpfsys.enable_stats()
    try:
        for title, work in ((_ONE, lambda: _pipe(loops)), (_TWO, lambda: _across(turns))):
            sides = {name: _PerSwitch(name, work) for name in (_OURS, *peers)}
            samples = interleave(sides, rounds=rounds, warm_up=False)
            rows += [
                compare(
                    title,
                    samples,
                    ours=_OURS,
                    peer=peer,
                    unit="ns/switch",
                    goal=goals.get(peer),
                    note=_note(peer),
                )
                for peer in peers
            ]
        rows += _slowdowns(loops, rounds, peers, goals)
        rows.append(_reader(3 if quick else 10, rounds))
    finally:
        os.close(stats)
    return rows


def _note(peer: str) -> str:
    if peer == _EMPTY:
        return "the floor: what calling any program at this point costs"
    if peer == _RUNQLAT:
        return "runqlat measures waits, all in one histogram; ours also who held the CPU, per cgroup"
    return "the article's program reads cgroups too, and sends events; nobody reads them here"


def _slowdowns(loops: int, rounds: int, peers: list[str], goals: dict[str, Goal]) -> list[Row]:
    names = [_OURS, *(peer for peer in peers if peer != _EMPTY)]
    samples = interleave({name: _Slowdown(name, loops) for name in names}, rounds=rounds, warm_up=False)
    return [
        compare(_SLOW, samples, ours=_OURS, peer=peer, unit="%", goal=goals.get(peer)) for peer in names[1:]
    ]


def _reader(seconds: int, rounds: int) -> Row:
    reader = _Reader(seconds)
    samples = interleave(
        {_OURS: reader, "1 % of one CPU": lambda: 1.0}, rounds=max(1, rounds // 2), warm_up=False
    )
    return compare(
        _READER,
        samples,
        ours=_OURS,
        peer="1 % of one CPU",
        unit="% of a CPU",
        goal=Goal("<=", 1.0),
        note=f"at {reader.rate:,.0f} switches a second",
    )

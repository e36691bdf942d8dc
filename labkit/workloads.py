"""Known workloads: real processes that do what they declare, in cgroups of their own.

A workload is a list of workers. :meth:`Workload.run` starts them, lets them work and returns a :class:`Truth` while they
still stand, parked and blocked, so that the kernel's counters of exactly these tasks can be read at rest, and so can a
program's maps. Leaving the ``with`` block (or :meth:`Truth.release`) ends them and removes their cgroups.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from labkit import oracles
from labkit.cgroups import Scope, janitor, sweep
from labkit.errors import CgroupError, ParameterError, WorkloadFailed
from labkit.kernel.cgroup import hierarchy

__all__ = [
    "Truth",
    "Worker",
    "Workload",
    "exact_calls",
    "exact_spawns",
    "ping_pong",
    "service_alone",
    "service_beside_hog",
    "two_pinned_hogs",
]

_START_S, _GRACE_S = 20.0, 30.0


@dataclass(frozen=True)
class Worker:
    """One process: what it does (see :mod:`labkit._worker`), where, and as whom.

    :param role: name in the results, and of its cgroup.
    :param kind: ``hog``, ``service``, ``pinger``, ``calls`` or ``spawner``.
    :param cpu: pinned there; None leaves it free.
    """

    role: str
    kind: str
    cpu: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Truth:
    """What a workload did, as itself and the kernel's counters tell it. Its processes are parked until released.

    :ivar tasks: one row per process: ``role``, ``pid``, ``cpu`` (-1: free), ``cgroup``, ``cgroup_id``, ``run_ns``,
        ``run_delay_ns``, ``timeslices``, ``voluntary``, ``involuntary``; the counters are since the process began.
    :ivar results: role -> what the worker says it did (``service``: ``requests``, ``p50_ns``, ``p99_ns``, ``max_ns``).
    :ivar declared: facts that hold by construction, such as ``{"getppid_calls": 23}``.
    :ivar notes: what could not be done as declared (no cgroups, say).
    """

    def __init__(
        self,
        name: str,
        tasks: pd.DataFrame,
        results: Mapping[str, Mapping[str, Any]],
        declared: Mapping[str, Any],
        notes: tuple[str, ...],
        stack: contextlib.ExitStack | None = None,
    ) -> None:
        self.name = name
        self.tasks = tasks
        self.results = dict(results)
        self.declared = dict(declared)
        self.notes = notes
        self._stack = stack or contextlib.ExitStack()

    def release(self) -> None:
        """End the processes and remove their cgroups. May be called twice."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        roles = ", ".join(f"{row.role} (pid {row.pid})" for row in self.tasks.itertuples())
        return f"<Truth of {self.name}: {roles}>"


@dataclass(frozen=True)
class Workload:
    """A named set of workers and what is true of them by construction.

    :param seconds: how long it works; None if it ends when its work is done.
    """

    name: str
    what: str
    workers: tuple[Worker, ...]
    declared: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    paired: bool = False

    def run(self) -> Truth:
        """Run it; returns when every worker is done and parked.

        :raises WorkloadFailed: if a worker does not start, fails, or does not end in time.
        """
        sweep()
        notes: list[str] = []
        stack = contextlib.ExitStack()
        try:
            scope = _scope(stack, self.workers, notes)
            running = self._start(stack, scope)
            limit = (self.seconds or 0) + _GRACE_S
            for _, process in running:
                _tell(process, "go\n")
            results = {worker.role: _result(worker, process, limit) for worker, process in running}
            _wait_parked([process for _, process in running])
            tasks = _tasks(running)
            return Truth(self.name, tasks, results, self.declared, tuple(notes), stack)
        except BaseException:
            stack.close()
            raise

    def _start(
        self, stack: contextlib.ExitStack, scope: Scope | None
    ) -> list[tuple[Worker, subprocess.Popen[str]]]:
        ends = _pipes(stack) if self.paired else [{} for _ in self.workers]
        running = []
        for worker, extra in zip(self.workers, ends, strict=True):
            process = _spawn(stack, worker, extra)
            running.append((worker, process))
        for worker, process in running:
            if _read_line(process, _START_S) != "ready":
                raise WorkloadFailed(f"worker {worker.role} did not start", why=_complaint(process))
            if scope is not None:
                scope.add(worker.role, process.pid)
        return running


def _scope(stack: contextlib.ExitStack, workers: tuple[Worker, ...], notes: list[str]) -> Scope | None:
    try:
        return stack.enter_context(Scope([worker.role for worker in workers]))
    except CgroupError as error:
        notes.append(f"without cgroups of their own: {error.what} ({error.why})")
        return None


def _pipes(stack: contextlib.ExitStack) -> list[dict[str, int]]:
    """Two pipes, crossed, for a pair of workers."""
    (a_read, a_write), (b_read, b_write) = os.pipe(), os.pipe()
    for fd in (a_read, a_write, b_read, b_write):
        stack.callback(os.close, fd)
    return [
        {"read_fd": b_read, "write_fd": a_write, "first": 1},
        {"read_fd": a_read, "write_fd": b_write, "first": 0},
    ]


def _spawn(stack: contextlib.ExitStack, worker: Worker, extra: dict[str, int]) -> subprocess.Popen[str]:
    options = {"comm": f"lk-{worker.role}"[:15], "cpu": worker.cpu, **worker.options, **extra}
    process = subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("_worker.py")),
            worker.kind,
            json.dumps(options),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[fd for name, fd in extra.items() if name.endswith("_fd")],
        cwd="/",
    )
    janitor.watch_pid(process.pid)
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    """Let a worker end by itself, or end it."""
    with contextlib.suppress(OSError):
        if process.stdin:
            process.stdin.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()
    with contextlib.suppress(OSError):
        janitor.release_pid(process.pid)


def _tell(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(text)
        process.stdin.flush()


def _read_line(process: subprocess.Popen[str], seconds: float) -> str:
    """The next line, or an empty string if none comes in time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline().rstrip("\n") if ready else ""


def _complaint(process: subprocess.Popen[str]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1)  # its output ends a moment before it does
    if process.returncode is None:
        return "it does not answer in time"
    assert process.stderr is not None
    text = process.stderr.read().strip().splitlines()
    return text[-1] if text else f"it ended with status {process.returncode}"


def _result(worker: Worker, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    line = _read_line(process, seconds)
    if not line:
        raise WorkloadFailed(f"worker {worker.role} ({worker.kind}) failed", why=_complaint(process))
    found: dict[str, Any] = json.loads(line)
    return found


def _wait_parked(processes: list[subprocess.Popen[str]]) -> None:
    """Until every worker sleeps in its last read: only then do its counters stand still."""
    deadline = time.monotonic() + _START_S
    for process in processes:
        while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "S":
            if time.monotonic() > deadline:
                raise WorkloadFailed(f"process {process.pid} does not come to rest")
            time.sleep(0.001)


def _tasks(running: list[tuple[Worker, subprocess.Popen[str]]]) -> pd.DataFrame:
    tree = hierarchy()
    pids = [process.pid for _, process in running]
    paths = [tree.path_of(pid) for pid in pids]
    frame = pd.DataFrame(
        {
            "role": pd.Series([worker.role for worker, _ in running], dtype="str"),
            "pid": pd.Series(pids, dtype="int64"),
            "cpu": pd.Series([-1 if w.cpu is None else w.cpu for w, _ in running], dtype="int64"),
            "cgroup": pd.Series(paths, dtype="str"),
            "cgroup_id": pd.Series([tree.id_of(p) if tree.unified else 1 for p in paths], dtype="uint64"),
        }
    )
    return frame.merge(oracles.schedstat(pids), on="pid").merge(oracles.switches(pids), on="pid")


def _last_cpu() -> int:
    return max(os.sched_getaffinity(0))


def _positive(seconds: float) -> float:
    if not 0 < seconds <= 3600:
        raise ParameterError(f"seconds must be more than 0 and at most 3600, not {seconds}")
    return float(seconds)


def exact_calls(count: int = 23) -> Workload:
    """One process that calls ``getppid()`` exactly ``count`` times."""
    return Workload(
        "exact_calls",
        f"one process calls getppid() exactly {count} times",
        (Worker("caller", "calls", options={"count": count}),),
        {"getppid_calls": count},
    )


def exact_spawns(count: int = 23) -> Workload:
    """One process that starts ``/bin/true`` exactly ``count`` times."""
    return Workload(
        "exact_spawns",
        f"one process starts /bin/true exactly {count} times",
        (Worker("spawner", "spawner", options={"count": count}),),
        {"execve_calls": count, "comm": "lk-spawner"},
    )


def two_pinned_hogs(seconds: float = 2.0, cpu: int | None = None) -> Workload:
    """Two processes that never sleep, pinned to one CPU: each waits about half of the time."""
    seconds, cpu = _positive(seconds), _last_cpu() if cpu is None else cpu
    workers = tuple(Worker(role, "hog", cpu, {"seconds": seconds}) for role in ("hog_a", "hog_b"))
    return Workload(
        "two_pinned_hogs",
        f"two spinning processes on CPU {cpu}",
        workers,
        {"wait_share": 0.5, "cpu": cpu},
        seconds,
    )


def service_alone(seconds: float = 2.0, cpu: int | None = None) -> Workload:
    """A service that works 4 ms of every 20, with its CPU to itself."""
    seconds, cpu = _positive(seconds), _last_cpu() if cpu is None else cpu
    return Workload(
        "service_alone",
        f"a service (4 ms of work every 20 ms) on CPU {cpu}",
        (Worker("service", "service", cpu, {"seconds": seconds}),),
        {"cpu": cpu},
        seconds,
    )


def service_beside_hog(seconds: float = 2.0, cpu: int | None = None) -> Workload:
    """The same service, and a process that never sleeps on the same CPU."""
    seconds, cpu = _positive(seconds), _last_cpu() if cpu is None else cpu
    return Workload(
        "service_beside_hog",
        f"a service (4 ms of work every 20 ms) and a spinning process on CPU {cpu}",
        (
            Worker("service", "service", cpu, {"seconds": seconds}),
            Worker("hog", "hog", cpu, {"seconds": seconds}),
        ),
        {"cpu": cpu, "noisy": "hog", "victim": "service"},
        seconds,
    )


def ping_pong(rounds: int = 2000, cpu: int | None = None) -> Workload:
    """Two processes pass one byte to and fro on one CPU: many waits, each too short to verify one by one."""
    cpu = _last_cpu() if cpu is None else cpu
    workers = tuple(Worker(role, "pinger", cpu, {"rounds": rounds}) for role in ("ping", "pong"))
    return Workload(
        "ping_pong",
        f"two processes pass a byte {rounds} times on CPU {cpu}",
        workers,
        {"rounds": rounds, "cpu": cpu},
        None,
        True,
    )

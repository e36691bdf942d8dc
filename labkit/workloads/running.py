"""Workers, the workloads that they make up, and a workload while it runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from labkit import oracles
from labkit.cgroups import Group, Scope, sweep
from labkit.errors import CgroupError, UnsupportedKernel
from labkit.workloads._process import GRACE_S, Process, crossed_pipes, wait_parked
from labkit.workloads.truth import Books, Place, Released, Truth, tasks_frame

__all__ = ["OUTSIDE", "Running", "Worker", "Workload"]

#: As a worker's group: the root cgroup, outside every container.
OUTSIDE = "/"


@dataclass(frozen=True)
class Worker:
    """One process: what it does (see :mod:`labkit._worker`), where, and as whom.

    :param role: name in the results, and of its cgroup unless ``group`` says otherwise.
    :param kind: a function of :mod:`labkit._worker`, such as ``hog``, ``service`` or ``calls``.
    :param cpu: pinned there; None leaves it free.
    :param group: path of its cgroup below the workload's own; ``/`` is the machine's root cgroup.
    :param fifo: real-time priority under ``SCHED_FIFO``; 0: an ordinary task.
    """

    role: str
    kind: str
    cpu: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    fifo: int = 0

    @property
    def place(self) -> str:
        """Its cgroup's path below the workload's own, empty for the root cgroup."""
        return "" if self.group == OUTSIDE else self.group or self.role


@dataclass(frozen=True)
class Workload:
    """A named set of workers and what is true of them by construction.

    :param seconds: how long it works; None if it ends when its work is done.
    :param paired: workers of the kinds ``pinger`` and ``bouncer`` get pipes to each other, two by two.
    :param groups: cgroups with a weight or a quota, or above others; those of the workers are made anyway.
    :param cpu_control: make the cgroups in the cpu controller too.
    :param weight: of all of them together against the rest of the machine (``cpu.weight``, usually 100).
    :param needs_cgroups: without cgroups of its own it is not what it says: refuse instead of a note.
    """

    name: str
    what: str
    workers: tuple[Worker, ...]
    declared: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    paired: bool = False
    groups: tuple[Group, ...] = ()
    cpu_control: bool = False
    needs_cgroups: bool = False
    weight: int = 100

    def start(self) -> Running:
        """Put the workers in their places, where they stand ready: :meth:`Running.go` lets them work.

        :raises WorkloadFailed: if a worker does not start.
        :raises CgroupError: if a cgroup that it needs cannot be made or joined.
        :raises UnsupportedKernel: if the kernel keeps no account of waits, or refuses real-time tasks.
        """
        return Running(self)

    def run(self, during: Callable[[Running], object] | None = None) -> Truth:
        """Run it; returns when every worker is done and parked.

        :param during: called once the workers work, to sample meanwhile.
        :raises WorkloadFailed: if a worker does not start, fails, or does not end in time. See also :meth:`start`.
        """
        running = self.start()
        try:
            running.go()
            if during is not None:
                during(running)
            return running.finish()
        except BaseException:
            running.release()
            raise


class Running(Released):
    """A workload whose workers stand in their cgroups, work, or are parked again. Leaving the ``with`` block ends it.

    :ivar pids: role -> process id.
    :ivar layout: the first columns of :attr:`Truth.cgroups`, ``role`` to ``weight``: who is where, before work begins.
    :ivar notes: what could not be done as declared.

    >>> with scenario("hog").start() as running:          # doctest: +SKIP
    ...     before = watch.snapshot()
    ...     running.go()
    ...     while running.working:
    ...         screen(watch.snapshot())
    ...     truth = running.finish()
    ...     after = watch.snapshot()
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.notes: list[str] = []
        self._stack = contextlib.ExitStack()
        self._going = False
        self._truth: Truth | None = None
        oracles.require_schedstat()
        sweep()
        try:
            scope = self._make_scope()
            self._processes = self._spawn()
            self.pids = {worker.role: process.pid for worker, process in self._processes}
            for worker, process in self._processes:
                process.await_ready()
                wait_parked([process.pid])  # so that no wait of its start falls into its cgroup
                _settle(worker, process.pid, scope)
            self._books = None if scope is None else Books(scope, self._places(scope), self.pids)
        except BaseException:
            self._stack.close()
            raise

    @property
    def layout(self) -> pd.DataFrame:
        """See the class."""
        return pd.DataFrame() if self._books is None else self._books.layout

    @property
    def working(self) -> bool:
        """Whether some worker is still at work."""
        return (
            self._going
            and self._truth is None
            and not all(process.has_spoken for _, process in self._processes)
        )

    def go(self) -> None:
        """Let the workers work. May be called twice."""
        if self._going:
            return
        self._going = True
        for _, process in self._processes:
            process.go()

    def finish(self) -> Truth:
        """Wait until every worker is done and parked, and say what they did. May be called twice.

        :raises WorkloadFailed: if a worker fails or does not end in time.
        """
        if self._truth is not None:
            return self._truth
        self.go()
        limit = (self.workload.seconds or 0) + GRACE_S
        results = {worker.role: process.result(limit) for worker, process in self._processes}
        wait_parked(self.pids.values())
        tasks = tasks_frame([worker for worker, _ in self._processes], list(self.pids.values()))
        cgroups = None if self._books is None else self._books.close(results)
        work = self.workload
        self._truth = Truth(
            work.name, tasks, results, work.declared, tuple(self.notes), self._stack, cgroups=cgroups
        )
        return self._truth

    def __repr__(self) -> str:
        state = "done" if self._truth else "working" if self._going else "ready"
        return f"<{self.workload.name}, {state}: {', '.join(f'{r} (pid {p})' for r, p in self.pids.items())}>"

    def _make_scope(self) -> Scope | None:
        work = self.workload
        limits = {group.path: group for group in work.groups}
        places = dict.fromkeys(worker.place for worker in work.workers if worker.place)
        groups = [limits.pop(path, Group(path)) for path in places] + list(limits.values())
        try:
            return self._stack.enter_context(Scope(groups, cpu=work.cpu_control, weight=work.weight))
        except CgroupError as error:
            if work.needs_cgroups:
                raise
            self.notes.append(f"without cgroups of their own: {error.what} ({error.why})")
            return None

    def _spawn(self) -> list[tuple[Worker, Process]]:
        ends: list[dict[str, int]] = []
        found = []
        for worker in self.workload.workers:
            extra: dict[str, int] = {}
            if self.workload.paired and worker.kind in ("pinger", "bouncer"):
                ends = ends or crossed_pipes(self._stack)
                extra = ends.pop(0)
            options = {"comm": f"lk-{worker.role}"[:15], "cpu": worker.cpu, **worker.options, **extra}
            fds = [fd for name, fd in extra.items() if name.endswith("_fd")]
            found.append((worker, Process(self._stack, worker.role, worker.kind, options, fds)))
        return found

    def _places(self, scope: Scope) -> list[Place]:
        roles: dict[str, list[str]] = {name: [] for name in scope.names}
        for worker in self.workload.workers:
            roles.setdefault(worker.place, []).append(worker.role)
        return [Place(name, tuple(members)) for name, members in roles.items()]


def _settle(worker: Worker, pid: int, scope: Scope | None) -> None:
    """Into its cgroup, and under its scheduling class."""
    if scope is not None:
        if worker.place:
            scope.add(worker.place, pid)
        else:
            scope.add_to_root(pid)
    if not worker.fifo:
        return
    if scope is not None:
        scope.add_to_root(pid, cpu_only=True)
    try:
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(worker.fifo))
    except OSError as error:
        raise UnsupportedKernel(
            f"the kernel refuses SCHED_FIFO to worker {worker.role}",
            why=f"{error.strerror}: needs CAP_SYS_NICE, and on a kernel with RT_GROUP_SCHED a cpu cgroup with real-time "
            "runtime, which only the root has unless told otherwise",
            remedy="run as root, outside a container",
        ) from error

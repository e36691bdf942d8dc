"""What learners' programs are run on where there is no kernel: recorded events, and made-up ones with their truth.

Each maker returns a script for :func:`labkit.lessons.programs.rehearse`. A made-up stream holds what the exercise turns
on: the value on the edge, the task that sleeps of its own accord, the call that is nobody's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from labkit.lessons.c_model import DryProgram, Kernel, Script, Task
from labkit.lessons.c_model.kernel import SYSCALLS

__all__ = [
    "OneCpu",
    "calls",
    "hogs",
    "named_calls",
    "recorded",
    "starts",
    "throttled",
    "wakeups",
    "workers",
    "writes",
]

_MS = 1_000_000
_SLEEPS, _DEAD = 1, 0x80
SERVICE_ID, HOG_ID = 4711, 4712


def starts(count: int, *, parent: int) -> Script:
    """A spawner forks so many times, and each of its copies starts a program, from a thread of its own; others do too."""

    def script(program: DryProgram) -> None:
        kernel = program.kernel()
        group = kernel.cgroup(50)
        spawner = kernel.task(parent, "lk-spawner", group)
        shell = kernel.task(70, "sh", group)
        for number in range(count):
            kernel.tick(_MS)
            kernel.run_by(spawner, number % 2)
            program.happens("sched_process_fork", spawner.address, spawner.address)
            child = kernel.task(5000 + number, "lk-spawner", group, tgid=3000 + number)
            kernel.run_by(child, number % 2)
            program.syscall(kernel, SYSCALLS["getppid"])
            program.syscall(kernel, SYSCALLS["execve"])
            if number % 5 == 0:
                kernel.run_by(shell)
                program.syscall(kernel, SYSCALLS["execve"])

    return script


def calls(made: Iterable[tuple[int, int]], *, tgid: int = 4000, comm: str = "lk-caller") -> Script:
    """System calls of one process: (number, third argument) each."""
    made = list(made)

    def script(program: DryProgram) -> None:
        kernel = program.kernel()
        caller = kernel.task(tgid, comm, kernel.root)
        for at, (number, third) in enumerate(made):
            kernel.tick(1_000)
            kernel.run_by(caller, at % 2)
            program.syscall(kernel, number, 3, 0x7F00_0000_0000 + at, third)

    return script


def named_calls(sizes: Sequence[int], *, name: str, tgid: int) -> Script:
    """Blocks of these sizes by one system call, ``read`` or ``write``, among other calls with larger arguments."""
    other = "write" if name == "read" else "read"
    made = [pair for size in sizes for pair in ((SYSCALLS[name], size), (SYSCALLS["getppid"], 1 << 20))]
    return calls([*made, *((SYSCALLS[other], 1 << 16) for _ in sizes)], tgid=tgid)


def writes(sizes: Sequence[int], rounds: int, comm: str) -> Script:
    """A writer that goes in rounds on one CPU, with a pause of a millisecond after each."""

    def script(program: DryProgram) -> None:
        kernel = program.kernel()
        writer = kernel.task(600, comm, kernel.root)
        kernel.run_by(writer)
        for _ in range(rounds):
            for size in sizes:
                kernel.tick(2_000)
                program.syscall(kernel, SYSCALLS["write"], 1, 0x7F00_0000_0000, size)
            kernel.tick(_MS)

    return script


def recorded(woken: pd.DataFrame, switched: pd.DataFrame) -> Script:
    """Wakeups and switches as they were recorded by ``sched_events``, in the order of time, on their CPUs.

    A recording knows no process ids: each task is a process here. It knows whether the task that left would have gone on,
    and not which of the two reasons that had: it counts as put off.
    """
    rows = [(int(row.time_ns), 0, int(row.cpu), int(row.pid), 0, 0) for row in woken.itertuples()]
    rows += [
        (int(row.time_ns), 1, int(row.cpu), int(row.prev_pid), int(row.next_pid), int(row.runnable))
        for row in switched.itertuples()
    ]
    rows.sort()

    def script(program: DryProgram) -> None:
        kernel = program.kernel()
        tasks = {0: kernel.idle[0]}
        running: dict[int, Task] = {}

        def task(pid: int) -> Task:
            if pid not in tasks:
                tasks[pid] = kernel.task(pid, f"task-{pid}", kernel.root)
            return tasks[pid]

        for time_ns, is_switch, cpu, pid, next_pid, runnable in rows:
            kernel.tick(time_ns - program.machine.now_ns)
            if is_switch:
                kernel.run_by(task(pid), cpu % 2)
                state = 0 if runnable else _SLEEPS
                program.switch(task(pid), task(next_pid), preempt=bool(runnable), state=state)
                running[cpu] = task(next_pid)
            else:
                kernel.run_by(running.get(cpu, kernel.idle[0]), cpu % 2)
                program.happens("sched_wakeup", task(pid).address)

    return script


class OneCpu:
    """A CPU and its run queue, with the kernel's own books: a task waits from when it is runnable until it gets the CPU."""

    def __init__(self, program: DryProgram, kernel: Kernel) -> None:
        self.program, self.kernel = program, kernel
        self.running = kernel.idle[0]
        self.switches = 100
        self.waits: dict[int, list[int]] = {}
        self.voluntary: dict[int, int] = {}
        self.involuntary: dict[int, int] = {}
        self._since: dict[int, int] = {}

    @property
    def now_ns(self) -> int:
        """The clock."""
        return self.program.machine.now_ns

    def wake(self, task: Task) -> None:
        """A task becomes runnable, while whoever runs is current."""
        self.kernel.run_by(self.running, 0)
        self._since[task.pid] = self.now_ns
        self.kernel.info(task, last_queued=self.now_ns)
        self.program.happens("sched_wakeup", task.address)

    def switch(self, following: Task, *, preempt: bool = False, state: int = 0) -> None:
        """The CPU goes to another task. Who is put off goes on waiting; who sleeps does not."""
        kernel, prev, now = self.kernel, self.running, self.now_ns
        waited = now - self._since.get(following.pid, now)
        self.switches += 1
        kernel.set(kernel.rqs[0], "rq", nr_switches=self.switches)
        kernel.set(prev.address, "task_struct", __state=state, on_cpu=1)
        kernel.run_by(prev, 0)
        self.program.switch(prev, following, preempt=preempt, state=state)
        if prev.pid:
            self._left(prev, runnable=preempt or state == 0)
        if following.pid:
            self.waits.setdefault(following.pid, []).append(waited)
            self._since.pop(following.pid, None)
            kernel.set(following.address, "task_struct", __state=0)
            kernel.info(following, run_delay=sum(self.waits[following.pid]), last_arrival=now, last_queued=0)
        self.running = following

    def _left(self, prev: Task, *, runnable: bool) -> None:
        self.kernel.set(prev.address, "task_struct", on_cpu=0)
        books = self.involuntary if runnable else self.voluntary
        books[prev.pid] = books.get(prev.pid, 0) + 1
        if runnable:
            self._since[prev.pid] = self.now_ns
            self.kernel.info(prev, last_queued=self.now_ns)


def hogs(books: dict[int, int], waits: dict[int, list[int]], *, turns: Sequence[int]) -> Script:
    """Two hogs put each other off one CPU, for the other's turns of so many ns; and a sleeper comes by, that sleeps long.

    Some are put off by preemption, more of them on their way out of the kernel with the flag not set, as on a real machine,
    and some few while they were about to sleep.

    :param books: filled: cgroup id of each hog -> what it waited, in ns.
    :param waits: filled: pid of each hog -> its waits, in ns.
    """

    def script(program: DryProgram) -> None:
        kernel = program.kernel()
        groups = {101: kernel.cgroup(SERVICE_ID), 102: kernel.cgroup(HOG_ID)}
        first, second = (kernel.task(pid, "lk-hog", group) for pid, group in groups.items())
        sleeper = kernel.task(103, "sleeper", kernel.cgroup(50))
        cpu = OneCpu(program, kernel)
        cpu.wake(first)
        cpu.switch(first)
        cpu.wake(second)
        for number, turn in enumerate(turns):
            kernel.tick(turn)
            following = second if cpu.running.pid == first.pid else first
            if number % 8 == 7:
                cpu.wake(sleeper)
                kernel.tick(1_000)
                cpu.switch(sleeper, preempt=True)
                kernel.tick(20_000)
                cpu.switch(following, state=_SLEEPS)
                continue
            preempt = number % 3 == 0
            cpu.switch(following, preempt=preempt, state=_SLEEPS if preempt and number % 30 == 0 else 0)
        waits.clear()
        waits.update({pid: found for pid, found in cpu.waits.items() if pid in groups})
        books.clear()
        books.update({groups[pid].id: sum(found) for pid, found in waits.items()})
        # At last both are gone, and the CPU idles: nobody is put off there.
        for task in (first, second):
            if cpu.running.pid != task.pid:
                cpu.switch(task, state=_DEAD)
        cpu.switch(kernel.idle[0], state=_DEAD)
        kernel.tick(5 * _MS)
        cpu.wake(sleeper)
        cpu.switch(sleeper)
        kernel.tick(_MS)
        cpu.switch(kernel.idle[0], state=_SLEEPS)

    return script


def workers(books: list[tuple[int, int, int]], *, rounds: int = 60) -> Script:
    """A service that sleeps between requests, and is put off in some, beside a hog; then the CPU idles for a while.

    :param books: filled: (pid, voluntary, involuntary) of each.
    """

    def script(program: DryProgram) -> None:
        kernel = program.kernel()
        service = kernel.task(201, "lk-service", kernel.cgroup(SERVICE_ID))
        hog = kernel.task(202, "lk-hog", kernel.cgroup(HOG_ID))
        cpu = OneCpu(program, kernel)
        cpu.wake(hog)
        cpu.switch(hog)
        for number in range(rounds):
            kernel.tick(3 * _MS)
            cpu.wake(service)
            kernel.tick(_MS)
            cpu.switch(service, preempt=number % 2 == 0)
            for _ in range(number % 3):
                kernel.tick(_MS)
                cpu.switch(hog, preempt=number % 4 == 0)
                kernel.tick(_MS)
                cpu.switch(service)
            kernel.tick(_MS)
            cpu.switch(hog, state=_SLEEPS)
        for _ in range(10):
            cpu.switch(kernel.idle[0], state=_SLEEPS)
            kernel.tick(_MS)
            cpu.wake(hog)
            cpu.switch(hog)
        books[:] = [
            (task.pid, cpu.voluntary.get(task.pid, 0), cpu.involuntary.get(task.pid, 0))
            for task in (service, hog)
        ]

    return script


def wakeups(*, service: int, others: int) -> Script:
    """A service is woken so many times while a hog of another cgroup is current, and other tasks while idle is."""

    def script(program: DryProgram) -> None:
        kernel = program.kernel()
        asleep = kernel.task(301, "lk-service", kernel.cgroup(SERVICE_ID))
        hog = kernel.task(302, "lk-hog", kernel.cgroup(HOG_ID))
        strangers = [kernel.task(400 + by, "other", kernel.cgroup(SERVICE_ID + by)) for by in (-10, 10)]
        for number in range(max(service, others)):
            kernel.tick(_MS)
            if number < service:
                kernel.run_by(hog)
                program.happens("sched_wakeup", asleep.address)
            if number < others:
                kernel.run_by(kernel.idle[1] if number % 2 else asleep)
                program.happens("sched_wakeup", strangers[number % 2].address)

    return script


def throttled(found: dict[str, int], *, periods: int = 24) -> Script:
    """A service with a quota: put off by it once in each period, and besides waiting for a hog several times.

    :param found: filled: ``throttled`` and ``waits``, how many waits of the service and the hog had a part of the quota
        in them, and how many there were.
    """

    def script(program: DryProgram) -> None:
        kernel = program.kernel()
        service = kernel.task(501, "lk-service", kernel.cgroup(SERVICE_ID))
        hog = kernel.task(502, "lk-hog", kernel.cgroup(HOG_ID))
        cpu = OneCpu(program, kernel)
        total = 0
        cpu.wake(hog)
        cpu.switch(hog)
        for _ in range(periods):
            cpu.wake(service)
            for _ in range(3):
                kernel.tick(_MS)
                cpu.switch(service)
                kernel.tick(_MS)
                cpu.switch(hog, preempt=True)
            kernel.tick(_MS)
            cpu.switch(service)
            kernel.tick(5 * _MS)
            kernel.set(service.address, "task_struct", throttled=1)
            cpu.switch(hog, preempt=True)
            began = cpu.now_ns
            kernel.queue(service, throttled_clock_self=began, throttle_count=1)
            kernel.tick(40 * _MS)
            total += cpu.now_ns - began
            kernel.queue(service, throttled_clock_self=0, throttled_clock_self_time=total, throttle_count=0)
            kernel.set(service.address, "task_struct", throttled=0)
            kernel.tick(2 * _MS)
            cpu.switch(service)
            kernel.tick(_MS)
            cpu.switch(hog, state=_SLEEPS)
            kernel.tick(20 * _MS)
        found.clear()
        found.update(throttled=periods, waits=sum(len(waits) for waits in cpu.waits.values()))

    return script

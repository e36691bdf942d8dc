"""A toy machine that schedules at random, tick by tick: what ``bpf/sched_trace.c`` would say of it, and the truth.

The truth is counted the slowest way there is: at each tick, each task that stands in a queue adds one to what holds its
CPU.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from labkit.sched.trace import COLUMNS, NEW, ON_CPU, PREEMPT, THROTTLED, THROTTLED_KNOWN

ASLEEP, WAITS, RUNS, GONE = range(4)


@dataclass
class Task:
    pid: int
    cgroup: int
    state: int = ASLEEP
    cpu: int = 0
    queued: int = 0
    arrived: int = 0
    run_delay: int = 0
    behind_quota: bool = False  # waits because its group is throttled
    was_behind_quota: bool = False
    pending: Counter = field(default_factory=Counter)  # of the wait that is not over
    died: int = 0


class Machine:
    """CPUs with clocks a little apart, tasks in cgroups, quotas, stolen time, and switches nobody is called for."""

    def __init__(
        self,
        seed: int,
        *,
        cpus: int = 2,
        tasks: int = 5,
        cgroups: int = 3,
        unseen: float = 0.0,
        apart: int = 3,
    ):
        self.dice = random.Random(seed)
        self.now = 1000
        self.cpus = list(range(cpus))
        self.ahead = [self.dice.randrange(apart) for _ in self.cpus]
        self.current: list[Task | None] = [None for _ in self.cpus]
        self.switches = [10 for _ in self.cpus]
        self.switched_at = [0 for _ in self.cpus]
        self.stolen = [0 for _ in self.cpus]
        self.steals = [False for _ in self.cpus]
        self.tasks = [Task(100 + n, 7000 + n % cgroups) for n in range(tasks)]
        self.throttled: set[int] = set()
        self.clock: Counter = Counter()  # (cgroup, cpu) -> ticks throttled
        self.unseen = unseen
        self.rows: dict[str, list[dict[str, int]]] = {kind: [] for kind in COLUMNS}
        self.truth: Counter = Counter()  # (victim, kind, occupant) -> ticks, of waits that are over
        self.preempted: Counter = Counter()
        self.waited: Counter = Counter()  # pid -> ticks, as far as the kernel has added them up
        for cpu in self.cpus:  # each CPU is seen to be idle once
            self.tasks.append(Task(50 + cpu, 7000))
            self.wake(self.tasks[-1], cpu)
            self.tick()
            self._change(cpu, 1)

    # -- time ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        self.now += 1
        for task in self.tasks:
            if task.state == WAITS:
                task.pending[self._holder(task)] += 1
        for cpu in self.cpus:
            self.stolen[cpu] += self.steals[cpu]
            for cgroup in self.throttled:
                self.clock[cgroup, cpu] += 1

    def _holder(self, task: Task) -> tuple[str, int]:
        if task.behind_quota:
            return "throttled", 0
        if self.steals[task.cpu]:
            return "steal", 0
        holder = self.current[task.cpu]
        return ("cgroup", holder.cgroup) if holder else ("idle", 0)

    def time(self, cpu: int) -> int:
        return self.now + self.ahead[cpu]

    def _emit(self, kind: str, cpu: int, **columns: int) -> None:
        row = {"time_ns": self.time(cpu), "cpu": cpu, "stolen_ns": self.stolen[cpu], **columns}
        self.rows[kind].append({name: row.get(name, 0) for name in COLUMNS[kind]})
        if self.dice.random() < 0.1:
            self.steals[cpu] = not self.steals[cpu]

    def _over(self, task: Task) -> None:
        ticks = task.pending.total()
        task.run_delay += ticks
        self.waited[task.pid] += ticks
        for (kind, occupant), count in task.pending.items():
            self.truth[task.cgroup, kind, occupant] += count
        task.pending.clear()

    # -- what can happen ----------------------------------------------------------------------------------------

    def wake(self, task: Task, cpu: int, flags: int = 0) -> None:
        if task.state == ASLEEP:
            task.state, task.cpu, task.queued = WAITS, cpu, self.time(cpu)
            task.was_behind_quota = False
        elif task.state == RUNS:
            flags |= ON_CPU
        else:
            return
        self._emit("woken", task.cpu, pid=task.pid, flags=flags)

    def migrate(self, task: Task, cpu: int) -> None:
        if task.state != WAITS or task.behind_quota or cpu == task.cpu:
            return
        self._over(task)
        clock = self.clock[task.cgroup, task.cpu]
        columns = {"cgroup_id": task.cgroup, "run_delay_ns": task.run_delay, "throttle_clock_ns": clock}
        self._emit("migrated", task.cpu, pid=task.pid, **columns)
        task.cpu, task.queued, task.was_behind_quota = cpu, self.time(cpu), False

    def switch(self, cpu: int, state: int) -> None:
        """The task on the CPU leaves it (``state`` 0: it would have gone on), and one that waits gets it."""
        if self.switched_at[cpu] != self.now:
            self._change(cpu, state)

    def _change(self, cpu: int, state: int) -> None:
        prev = self.current[cpu]
        waiting = [t for t in self.tasks if t.state == WAITS and t.cpu == cpu and not t.behind_quota]
        if not waiting and prev is None:
            return
        following = self.dice.choice(waiting) if waiting else None
        by_quota = prev is not None and prev.cgroup in self.throttled and state == 0
        row = {"flags": THROTTLED_KNOWN, "prev_state": state}
        if by_quota and prev:
            row["flags"] |= THROTTLED
            row["prev_throttle_clock_ns"] = self.clock[prev.cgroup, cpu]
        elif prev and state == 0 and self.dice.random() < 0.5:
            row["flags"] |= PREEMPT
            row["prev_state"] = self.dice.choice([0, 1])
        elif prev and state == 0 and following is None:
            return
        if prev:
            row |= {"prev_pid": prev.pid, "prev_cgroup_id": prev.cgroup, "prev_arrived_ns": prev.arrived}
        if following:
            row |= {
                "next_pid": following.pid,
                "next_cgroup_id": following.cgroup,
                "queued_ns": following.queued,
                "run_delay_ns": following.run_delay,
                "next_throttle_clock_ns": self.clock[following.cgroup, cpu],
            }
        if prev and state == 0:
            kind = "throttled" if by_quota else "cgroup" if following else "idle"
            self.preempted[prev.cgroup, kind, following.cgroup if following and not by_quota else 0] += 1
        self.switches[cpu] += 1
        self.switched_at[cpu] = self.now
        if self.dice.random() >= self.unseen:
            self._emit("switched", cpu, switches=self.switches[cpu] % (1 << 32), **row)
        self._swap(cpu, prev, following, state, by_quota)

    def _swap(self, cpu: int, prev: Task | None, following: Task | None, state: int, by_quota: bool) -> None:
        if prev:
            prev.state = WAITS if state == 0 else ASLEEP if state == 1 else GONE
            prev.queued, prev.died = self.time(cpu), self.now
            prev.behind_quota = prev.was_behind_quota = by_quota
        if following:
            self._over(following)
            following.state, following.arrived = RUNS, self.time(cpu)
        self.current[cpu] = following

    def throttle(self, cgroup: int) -> None:
        """The group runs out of quota, or gets a new one. Not anew while a task still waits since the last time."""
        if cgroup in self.throttled:
            self.throttled.remove(cgroup)
            for task in self.tasks:
                if task.cgroup == cgroup:
                    task.behind_quota = False
        elif not any(t.was_behind_quota and t.state == WAITS and t.cgroup == cgroup for t in self.tasks):
            self.throttled.add(cgroup)

    def reborn(self, cpu: int) -> None:
        """A new task takes the pid of one that is long gone."""
        for place, task in enumerate(self.tasks):
            if task.state == GONE and self.now - task.died > 5:
                self.tasks[place] = Task(task.pid, self.dice.choice(self.tasks).cgroup)
                self.wake(self.tasks[place], cpu, NEW)
                return

    def step(self) -> None:
        for _ in range(self.dice.choice([0, 1, 1, 2, 5])):
            self.tick()
        cpu, task = self.dice.choice(self.cpus), self.dice.choice(self.tasks)
        roll = self.dice.random()
        if roll < 0.35:
            self.wake(task, cpu)
        elif roll < 0.80:
            self.switch(cpu, self.dice.choices([0, 1, 2], [4, 3, 1])[0])
        elif roll < 0.90:
            self.migrate(task, cpu)
        elif roll < 0.95:
            self.throttle(task.cgroup)
        else:
            self.reborn(cpu)

    def run(self, steps: int) -> "Machine":
        for _ in range(steps):
            self.step()
        return self

    # -- what is left -------------------------------------------------------------------------------------------

    def frames(self) -> dict[str, pd.DataFrame]:
        """The recorded events, in the ring's order."""
        return {
            kind: pd.DataFrame(rows, columns=list(COLUMNS[kind])).astype("uint64")
            for kind, rows in self.rows.items()
        }

    def cells(self) -> pd.DataFrame:
        """The truth, in the form of the matrix."""
        keys = sorted(set(self.truth) | set(self.preempted))
        rows = [(*key, self.truth[key], self.preempted[key]) for key in keys]
        frame = pd.DataFrame(rows, columns=["victim_id", "kind", "occupant_id", "wait_ns", "preemptions"])
        return frame[(frame["wait_ns"] > 0) | (frame["preemptions"] > 0)].reset_index(drop=True)

"""A kernel of a few objects: what the hooks of the lab's programs hand over, made up or from a recording.

Only the fields that a program names under ``types:`` are there, as on a real machine; their places are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from labkit.lessons.c_model.errors import NotRun
from labkit.lessons.c_model.machine import CPUS, Machine
from labkit.lessons.c_model.types import Array, Struct

__all__ = ["SYSCALLS", "TRACEPOINTS", "Cgroup", "Kernel", "Task", "definitions"]

#: C types of the kernel's fields that are known here (Linux 6.18; include/linux/sched.h, kernel/sched/sched.h).
FIELDS = {
    "task_struct": {
        "pid": "int pid",
        "tgid": "int tgid",
        "comm": "char comm[16]",
        "start_time": "u64 start_time",
        "__state": "unsigned int __state",
        "on_cpu": "int on_cpu",
        "prio": "int prio",
        "static_prio": "int static_prio",
        "flags": "unsigned int flags",
        "exit_code": "int exit_code",
        "nvcsw": "unsigned long nvcsw",
        "nivcsw": "unsigned long nivcsw",
        "throttled": "bool throttled",
        "cgroups": "struct css_set *cgroups",
        "real_parent": "struct task_struct *real_parent",
        "sched_info": "struct sched_info sched_info",
        "se": "struct sched_entity se",
    },
    "sched_info": {name: f"u64 {name}" for name in ("run_delay", "last_arrival", "last_queued")}
    | {"pcount": "unsigned long pcount"},
    "sched_entity": {"cfs_rq": "struct cfs_rq *cfs_rq", "sum_exec_runtime": "u64 sum_exec_runtime"},
    "cfs_rq": {
        "rq": "struct rq *rq",
        "throttled_clock_self": "u64 throttled_clock_self",
        "throttled_clock_self_time": "u64 throttled_clock_self_time",
        "throttle_count": "int throttle_count",
    },
    "rq": {name: f"u64 {name}" for name in ("clock", "clock_task", "clock_pelt", "nr_switches")}
    | {"idle": "struct task_struct *idle", "cpu": "int cpu", "nr_running": "unsigned int nr_running"},
    "css_set": {
        "dfl_cgrp": "struct cgroup *dfl_cgrp",
        "subsys": "struct cgroup_subsys_state *subsys[14]",
    },
    "cgroup_subsys_state": {"cgroup": "struct cgroup *cgroup"},
    "cgroup": {
        "kn": "struct kernfs_node *kn",
        "level": "int level",
        "root": "struct cgroup_root *root",
    },
    "cgroup_root": {"hierarchy_id": "int hierarchy_id"},
    "kernfs_node": {"id": "u64 id"},
    "pt_regs": {"dx": "unsigned long dx", "orig_ax": "unsigned long orig_ax", "di": "unsigned long di"},
}
#: A struct that is part of another comes first.
_ORDER = ("sched_info", "sched_entity")
#: How many arguments each raw tracepoint has (``sched_switch``: since 5.18).
TRACEPOINTS = {
    "sys_enter": 2,
    "sys_exit": 2,
    "sched_switch": 4,
    "sched_wakeup": 1,
    "sched_wakeup_new": 1,
    "sched_process_exit": 1,
    "sched_process_fork": 2,
    "sched_process_exec": 3,
    "sched_migrate_task": 2,
    "cgroup_notify_populated": 3,
    "cgroup_attach_task": 5,
    "cgroup_mkdir": 2,
}
#: Numbers of system calls on x86-64: the model's machine is one, wherever it runs.
SYSCALLS = {"read": 0, "write": 1, "clone": 56, "execve": 59, "getppid": 110, "clock_nanosleep": 230}


def definitions(types: Iterable[str]) -> str:
    """C for the kernel fields that a program names, with the macros that say which of them are there.

    :raises NotRun: if a field is named that is not known here, and the program cannot do without.
    """
    wanted: dict[str, list[str]] = {}
    defines = []
    for item in types:
        offset_only, item = item.startswith("@"), item.removeprefix("@")
        struct, _, rest = item.partition(".")
        names = rest.rstrip("?").split("|")
        known = [name for name in names if name in FIELDS.get(struct, {})]
        if not known:
            if rest.endswith("?"):
                continue
            raise NotRun(f"the kernel's {struct}.{names[0]} is not known here")
        members = wanted.setdefault(struct, [])
        if known[0] not in members:
            members.append(known[0])
        if offset_only:
            defines.append(
                f"#define LK_OFFSET_{struct}_{known[0]} __builtin_offsetof(struct {struct}, {known[0]})"
            )
            continue
        defines.append(f"#define LK_HAS_{struct}_{names[0]} 1")
        if len(names) > 1:
            defines.append(f"#define LK_{struct}_{names[0]} {known[0]}")
    bodies = [
        f"struct {struct} {{ {' '.join(f'{FIELDS[struct][name]};' for name in wanted[struct])} }};"
        for struct in sorted(wanted, key=lambda struct: struct not in _ORDER)
    ]
    return "\n".join([*defines, *bodies])


@dataclass(frozen=True)
class Cgroup:
    """A control group: its id, and the address of the css_set of the tasks in it."""

    id: int
    css_set: int


@dataclass(frozen=True)
class Task:
    """A task: its numbers, and where its ``task_struct`` is."""

    pid: int
    tgid: int
    comm: str
    cgroup: Cgroup
    address: int
    cpu: int = 0


class Kernel:
    """Objects in a machine's memory, with the fields that the program knows."""

    def __init__(self, machine: Machine, structs: dict[str, Struct]) -> None:
        self._machine, self._structs = machine, structs
        self.rqs = [self.new("rq", cpu=cpu) for cpu in range(CPUS)]
        self.root = self.cgroup(1)
        self.idle = [self.task(0, "swapper", self.root, cpu=cpu) for cpu in range(CPUS)]
        for rq, idle in zip(self.rqs, self.idle, strict=True):
            self.set(rq, "rq", idle=idle.address)
        self.tick(0)

    def _struct(self, tag: str) -> Struct | None:
        found = self._structs.get(tag)
        return found if found is not None and found.body.complete else None

    def new(self, tag: str, **values: int | str) -> int:
        """An object of the kernel's; a struct that the program knows nothing of is an address and nothing else."""
        struct = self._struct(tag)
        address = self._machine.memory.new(
            struct.size if struct else 8, f"a {tag} of the kernel's", kernel=True
        )
        self.set(address, tag, **values)
        return address

    def set(self, address: int, tag: str, **values: int | str) -> None:
        """Put values into members, as far as the program knows them."""
        struct = self._struct(tag)
        for name, value in values.items():
            if struct is None or name not in struct.members:
                continue
            member = struct.members[name]
            size = member.ctype.size
            if isinstance(value, str):
                data = value.encode()[: size - 1].ljust(size, b"\0")
            else:
                width = member.ctype.of.size if isinstance(member.ctype, Array) else size
                one = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
                data = one * (size // width)  # each controller's tree is the same here
            self._machine.memory.set(address + member.offset, data)

    def within(self, address: int, tag: str, member: str) -> int:
        """The address of a struct that is part of another; 0 if the program knows nothing of it."""
        struct = self._struct(tag)
        if struct is None or member not in struct.members:
            return 0
        return address + struct.members[member].offset

    def get(self, address: int, tag: str, member: str) -> int:
        """A member's value; 0 if the program knows nothing of it."""
        struct = self._struct(tag)
        if struct is None or member not in struct.members:
            return 0
        found = struct.members[member]
        return self._machine.memory.read(address + found.offset, found.ctype.size)

    def cgroup(self, number: int) -> Cgroup:
        """A control group with a css_set of its own."""
        kn = self.new("kernfs_node", id=number)
        group = self.new("cgroup", kn=kn)
        state = self.new("cgroup_subsys_state", cgroup=group)
        return Cgroup(number, self.new("css_set", dfl_cgrp=group, subsys=state))

    def task(self, pid: int, comm: str, cgroup: Cgroup, *, tgid: int | None = None, cpu: int = 0) -> Task:
        """A task, alone in its process if no ``tgid`` is given, in a run queue of its own on ``cpu``."""
        tgid = pid if tgid is None else tgid
        address = self.new(
            "task_struct",
            pid=pid,
            tgid=tgid,
            comm=comm,
            start_time=1_000_000 * pid,
            cgroups=cgroup.css_set,
        )
        queue = self.new("cfs_rq", rq=self.rqs[cpu])
        entity = self.within(address, "task_struct", "se")
        if entity:
            self.set(entity, "sched_entity", cfs_rq=queue)
        return Task(pid, tgid, comm, cgroup, address, cpu)

    def info(self, task: Task, **values: int) -> None:
        """The scheduler's notes on a task: ``run_delay``, ``last_arrival``, ``last_queued``."""
        place = self.within(task.address, "task_struct", "sched_info")
        if place:
            self.set(place, "sched_info", **values)

    def queue(self, task: Task, **values: int) -> None:
        """Fields of the run queue that a task is in."""
        entity = self.within(task.address, "task_struct", "se")
        if entity:
            self.set(self.get(entity, "sched_entity", "cfs_rq"), "cfs_rq", **values)

    def tick(self, by_ns: int) -> int:
        """Time goes on; every CPU's clock shows it."""
        self._machine.now_ns += by_ns
        now = self._machine.now_ns
        for rq in self.rqs:
            self.set(rq, "rq", clock=now, clock_task=now, clock_pelt=now)
        return now

    def run_by(self, task: Task, cpu: int | None = None) -> None:
        """From now on this task is current, on its CPU."""
        machine = self._machine
        machine.cpu = task.cpu if cpu is None else cpu
        machine.tgid, machine.pid, machine.comm = task.tgid, task.pid, task.comm.encode()
        machine.cgroup_id, machine.current = task.cgroup.id, task.address

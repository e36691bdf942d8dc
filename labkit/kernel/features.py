"""The single features of this kernel and this process, each found by trying."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from labkit import bpfsys
from labkit.bpfsys import AttachType, MapType, ProgType
from labkit.errors import CgroupError, LabkitError, MissingBTF
from labkit.kernel import bcc, btf, cgroup, headers
from labkit.kernel import hooks as kernel_hooks
from labkit.kernel.place import place
from labkit.kernel.privilege import privilege

__all__ = ["CHECKS", "Feature", "has_fentry", "linux", "own_cgroups"]

State = Literal["yes", "no", "partly", "unknown"]


@dataclass(frozen=True)
class Feature:
    """One line of the table.

    :param required: live measurement is impossible without it.
    """

    name: str
    state: State
    detail: str
    consequence: str = ""
    remedy: str = ""
    required: bool = False


def _can(attempt: Callable[[], int]) -> tuple[bool, str]:
    try:
        os.close(attempt())
    except OSError as error:
        return False, error.strerror or str(error)
    return True, ""


@functools.lru_cache(maxsize=1)
def has_fentry() -> bool:
    """True if the kernel loads tracing programs (fentry: needs BTF, and a trampoline on this architecture)."""
    with contextlib.suppress(MissingBTF):
        target = btf.kernel().function_id("bpf_fentry_test1") or btf.kernel().function_id("vfs_read")
        if target:
            return _can(
                lambda: bpfsys.prog_load(
                    ProgType.TRACING,
                    bpfsys.RETURN_0,
                    name="lk_probe",
                    attach_type=AttachType.TRACE_FENTRY,
                    attach_btf_id=target,
                )
            )[0]
    return False


def linux() -> Feature:
    """Without Linux, and a machine that we know, nothing else is tried."""
    machine = platform.machine()
    if platform.system() != "Linux":
        return Feature(
            "Linux",
            "no",
            f"this is {platform.system()}",
            "eBPF is part of the Linux kernel: notebooks run in replay here",
            "a Linux machine does it, here one of Lima's: brew install lima, then ./task lima-lab (lima/README.md)",
            required=True,
        )
    if machine not in ("x86_64", "aarch64"):
        return Feature(
            "Linux",
            "no",
            f"{platform.release()} on {machine}",
            "only x86_64 and aarch64 are known",
            required=True,
        )
    return Feature("Linux", "yes", f"{platform.release()} on {machine}", required=True)


def _btf() -> Feature:
    try:
        known = btf.kernel()
        return Feature(
            "BTF", "yes", f"{btf.vmlinux_path()}, {len(known.functions()):,} functions", required=True
        )
    except MissingBTF as error:
        return Feature(
            "BTF",
            "no",
            f"{error.what} ({error.why})",
            "kernel types are unknown, so programs cannot be built for this kernel",
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y",
            required=True,
        )


def _privilege() -> Feature:
    held = privilege()
    names = ", ".join(f"CAP_{n.upper()}" for n in sorted(held.effective)) or "none of those that matter"
    if not held.can_trace:
        return Feature(
            "capabilities",
            "no",
            f"user id {held.uid}: {names}",
            "programs cannot be loaded",
            "./task setup once (asks for sudo), then ./task as before; or run as root"
            if held.uid
            else "this root has been stripped of them: in a container, add CAP_BPF and CAP_PERFMON, or run it privileged",
            required=True,
        )
    if not held.can_count_cost:
        return Feature(
            "capabilities",
            "yes",
            names,
            "live works; the cost of programs cannot be counted (CAP_SYS_ADMIN)",
            required=True,
        )
    return Feature("capabilities", "yes", names, required=True)


# include/linux/proc_ns.h: PROC_PID_INIT_INO, the number of the first pid namespace of a machine.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC


def _pid_namespace() -> Feature:
    """BPF programs see the machine's process ids; in a pid namespace of its own a process sees others."""
    try:
        own = os.stat("/proc/self/ns/pid").st_ino
    except OSError as error:
        return Feature("pid namespace", "unknown", error.strerror or str(error))
    if own != _FIRST_PID_NAMESPACE:
        return Feature(
            "pid namespace",
            "no",
            "this process sees other process ids than the kernel does",
            "waits cannot be told to belong to known tasks",
            "start the container with the host's process ids (--pid=host, hostPID: true)",
            required=True,
        )
    return Feature("pid namespace", "yes", "the machine's own", required=True)


def _raw_tracepoints() -> Feature:
    ok, why = _can(lambda: bpfsys.prog_load(ProgType.RAW_TRACEPOINT, bpfsys.RETURN_0, name="lk_probe"))
    if not ok:
        locked = _lockdown()
        return Feature(
            "raw tracepoints",
            "no",
            f"loading a program failed: {why}" + (f"; lockdown is {locked}" if locked else ""),
            "nothing can be measured live",
            "see `capabilities` above; a locked down kernel (Secure Boot) forbids it to root as well",
            required=True,
        )
    return Feature(
        "raw tracepoints",
        "yes",
        "a program of this kind loads",
        "the scheduler can be watched",
        required=True,
    )


def _lockdown() -> str:
    try:
        text = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return ""
    state = text[text.find("[") + 1 : text.find("]")]
    return "" if state == "none" else state


def _bcc() -> Feature:
    try:
        found = bcc.locate()
    except LabkitError as error:
        return Feature("bcc", "no", error.what, "programs cannot be compiled", error.remedy, required=True)
    return Feature("bcc", "yes", f"{found.version} at {found.package}", required=True)


def _headers() -> Feature:
    try:
        found = headers.find()
    except LabkitError as error:
        return Feature(
            "kernel headers", "no", error.what, "programs cannot be compiled", error.remedy, required=True
        )
    consequence = "" if found.matches else "any tree serves: kernel types come from BTF, never from headers"
    return Feature("kernel headers", "yes", found.describe(), consequence, required=True)


def _kprobes() -> Feature:
    if kernel_hooks.kprobe_pmu() is None:
        return Feature(
            "kprobes", "no", "CONFIG_KPROBES is not set", "programs use their next hook and say so"
        )
    return Feature("kprobes", "yes", "any kernel function can be a hook")


def _fentry() -> Feature:
    if has_fentry():
        return Feature("fentry", "yes", "tracing programs load")
    return Feature("fentry", "no", "tracing programs are refused", "programs use their next hook and say so")


def _tracepoints() -> Feature:
    root = kernel_hooks.tracefs()
    if root is None:
        return Feature(
            "tracefs",
            "no",
            "not mounted, or not readable by this user",
            "classic tracepoints cannot be used; raw tracepoints serve",
            "./task setup (or: sudo mount -t tracefs tracefs /sys/kernel/tracing)",
        )
    return Feature("tracefs", "yes", f"{root}: classic tracepoints can be used")


def _ring_buffer() -> Feature:
    ok, why = _can(lambda: bpfsys.map_create(MapType.RINGBUF, 0, 0, mmap.PAGESIZE, name="lk_probe"))
    return Feature("ring buffer", "yes" if ok else "no", "BPF_MAP_TYPE_RINGBUF" + (f": {why}" if why else ""))


def _batch() -> Feature:
    try:
        fd = bpfsys.map_create(MapType.HASH, 4, 8, 4, name="lk_probe")
    except OSError as error:
        return Feature("batch operations", "unknown", f"no map can be made: {error.strerror}")
    try:
        bpfsys.map_update(fd, np.ones(4, np.uint8), np.ones(8, np.uint8))
        keys, values = np.zeros((4, 4), np.uint8), np.zeros((4, 8), np.uint8)
        count, _ = bpfsys.map_lookup_batch(fd, None, np.zeros(8, np.uint8), keys, values, 4)
    except OSError as error:
        return Feature("batch operations", "no", error.strerror or "", "maps are read entry by entry, slowly")
    finally:
        os.close(fd)
    return Feature("batch operations", "yes" if count == 1 else "no", "whole maps in one system call")


def _cgroups() -> Feature:
    tree = cgroup.hierarchy()
    detail = {
        "v2": f"v2 at {tree.unified}",
        "hybrid": f"hybrid: cgroup2 tree at {tree.unified}, v1 controllers {', '.join(sorted(tree.controllers))}",
        "v1": f"v1 only: {', '.join(sorted(tree.controllers))}",
        "none": "no cgroups mounted",
    }[tree.mode]
    if tree.mode == "v1":
        return Feature(
            "cgroups", "partly", detail, "every task has the same cgroup id: waits cannot be told apart"
        )
    return Feature("cgroups", "yes" if tree.mode != "none" else "no", detail)


def own_cgroups() -> Feature:
    """Chapters with scenarios need cgroups with weights and quotas, and cannot be live without."""
    try:
        found = place()
    except CgroupError as error:
        return Feature(
            "own cgroups",
            "no",
            error.why,
            "chapters on contention between cgroups are replayed",
            error.remedy,
        )
    if not found.has_cpu:
        return Feature(
            "own cgroups",
            "partly",
            found.describe(),
            "chapters on contention between cgroups are replayed",
            "let systemd delegate the cpu controller: systemctl edit user@.service, Delegate=cpu pids memory"
            if os.geteuid()
            else "mount or enable the cpu controller",
        )
    return Feature("own cgroups", "yes", found.describe())


def _limits() -> Feature:
    held = privilege()
    memlock = "unlimited" if held.memlock_bytes < 0 else f"{held.memlock_bytes >> 10} KiB"
    return Feature(
        "limits",
        "yes",
        f"memlock {memlock} (since 5.11 BPF memory counts to the memory cgroup), nofile {held.nofile}",
    )


def _jit() -> Feature:
    try:
        on = Path("/proc/sys/net/core/bpf_jit_enable").read_text().strip() != "0"
    except PermissionError:
        return Feature("JIT", "unknown", "readable by root only")
    except OSError:
        return Feature("JIT", "unknown", "no such setting")
    return Feature(
        "JIT",
        "yes" if on else "no",
        "programs run as machine code" if on else "programs are interpreted, slowly",
    )


def _schedstat() -> Feature:
    try:
        fields = Path("/proc/self/schedstat").read_text().split()
    except OSError:
        fields = []
    if len(fields) != 3:
        return Feature(
            "schedstat", "no", "no /proc/PID/schedstat (CONFIG_SCHED_INFO)", "waits have no oracle here"
        )
    return Feature("schedstat", "yes", "/proc/PID/schedstat run_delay: the oracle for waits")


def _psi() -> Feature:
    tree = cgroup.hierarchy()
    places = ["/proc/pressure/cpu"] + ([str(tree.unified / "cpu.pressure")] if tree.unified else [])
    for path in places:
        try:
            with open(path) as file:
                if file.read():
                    return Feature("PSI", "yes", path)
        except OSError:
            continue
    return Feature("PSI", "no", "pressure is off (boot with psi=1)", "one bound less for waits")


#: What is tried on any Linux, in the order of the table.
CHECKS: tuple[Callable[[], Feature], ...] = (
    _privilege,
    _pid_namespace,
    _btf,
    _raw_tracepoints,
    _bcc,
    _headers,
    _kprobes,
    _fentry,
    _tracepoints,
    _ring_buffer,
    _batch,
    _cgroups,
    own_cgroups,
    _schedstat,
    _psi,
    _jit,
    _limits,
)

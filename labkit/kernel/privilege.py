"""What this process may do: capabilities and resource limits."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

__all__ = ["CAPABILITIES", "Privilege", "privilege"]

# include/uapi/linux/capability.h; only those that live measurement needs.
CAPABILITIES = {"dac_override": 1, "sys_admin": 21, "sys_resource": 24, "perfmon": 38, "bpf": 39}


@dataclass(frozen=True)
class Privilege:
    """Effective rights of this process.

    :param effective: names among :data:`CAPABILITIES` that are in the effective set.
    :param memlock_bytes, nofile: soft limits; -1 is unlimited.
    """

    uid: int
    effective: frozenset[str]
    memlock_bytes: int
    nofile: int

    @property
    def can_trace(self) -> bool:
        """True if raw tracepoint programs may be loaded: CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN."""
        return "sys_admin" in self.effective or {"bpf", "perfmon"} <= self.effective

    @property
    def can_count_cost(self) -> bool:
        """True if ``BPF_ENABLE_STATS`` is permitted (CAP_SYS_ADMIN)."""
        return "sys_admin" in self.effective


def privilege() -> Privilege:
    """Read ``/proc/self/status`` and the resource limits."""
    bits = 0
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                bits = int(line.split()[1], 16)
    return Privilege(
        uid=os.geteuid(),
        effective=frozenset(name for name, bit in CAPABILITIES.items() if bits >> bit & 1),
        memlock_bytes=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )

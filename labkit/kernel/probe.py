"""What this kernel and this process can do, found by trying, and what follows for the lab.

Nothing here goes by version numbers. Each feature says how it stands, what that means for the reader, and how to mend
it. The whole probe takes well under a second: the programs it loads are two instructions long.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import functools
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError
from labkit.kernel import bcc, cgroup, headers
from labkit.kernel.features import CHECKS, Feature, linux

__all__ = ["Feature", "Report", "environment", "probe"]


@dataclass(frozen=True)
class Report:
    """All features of this kernel, and whether live measurement works."""

    kernel: str
    features: tuple[Feature, ...]

    @property
    def live(self) -> bool:
        """True if every required feature is there."""
        return not self.obstacles

    @property
    def obstacles(self) -> tuple[Feature, ...]:
        """Required features that are missing."""
        return tuple(f for f in self.features if f.required and f.state != "yes")

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)

    def why_not_live(self, needs: Sequence[str] = ()) -> str:
        """One line: the first obstacle and its remedy; empty if live works.

        :param needs: names of features that must be there too.
        :raises KeyError: if there is no such feature on a kernel that was probed whole.
        """
        obstacles = self.obstacles or tuple(self[name] for name in needs if self[name].state != "yes")
        if not obstacles:
            return ""
        first = obstacles[0]
        return f"{first.name}: {first.detail}" + (f"; {first.remedy}" if first.remedy else "")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"live": self.live, "kernel": self.kernel, "features": [asdict(f) for f in self.features]}


@functools.lru_cache(maxsize=1)
def probe() -> Report:
    """Probe everything, once per process. Takes a fraction of a second and leaves nothing behind."""
    system = linux()
    if system.state != "yes":
        return Report(platform.platform(), (system,))
    return Report(platform.release(), (system, *(check() for check in CHECKS)))


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return platform.system()


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def environment() -> dict[str, Any]:
    """A snapshot of the machine that a result can be read beside; kept with every capture.

    :returns: ``kernel``, ``machine`` (one line), ``arch``, ``cpus``, ``cpu_model``, ``memory_bytes``, ``distribution``,
        ``cgroup_mode``, ``headers``, ``bcc``, ``python``, ``clock_ticks`` and ``libc``. No host name: captures are shared.
    """
    found: dict[str, Any] = {
        "kernel": platform.release(),
        "arch": platform.machine(),
        "cpus": os.cpu_count(),
        "cpu_model": _cpu_model(),
        "distribution": _distribution(),
        "python": platform.python_version(),
        "libc": ctypes.util.find_library("c") or "",
    }
    with contextlib.suppress(OSError, ValueError):
        found["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):
        found["cgroup_mode"] = cgroup.hierarchy().mode
    with contextlib.suppress(LabkitError):
        found["bcc"] = bcc.locate().version
    with contextlib.suppress(LabkitError):
        found["headers"] = headers.find().release
    found["machine"] = (
        f"{found['distribution']}, {found['cpus']} CPUs ({found['cpu_model']}), {found['arch']}"
    )
    return found

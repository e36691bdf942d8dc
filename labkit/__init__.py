"""labkit: learn Linux through eBPF, and find noisy neighbours for real.

>>> import labkit as lk
>>> with lk.load("runq_latency") as prog:                     # doctest: +SKIP
...     with lk.workloads.service_beside_hog(seconds=5).run() as truth:
...         waits, ledger = prog.frame("waits"), prog.ledger

What is public is imported on first use, so that ``import labkit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from labkit import histogram, kernel, oracles, plots, sched, workloads
    from labkit.errors import LabkitError
    from labkit.findings import Finding, Oracle, finding
    from labkit.ledger import Ledger
    from labkit.lessons import check, reset, write_program
    from labkit.program import Program, load
    from labkit.session import Chapter, chapter

_HOME = {
    "Chapter": "labkit.session",
    "Finding": "labkit.findings",
    "LabkitError": "labkit.errors",
    "Ledger": "labkit.ledger",
    "Oracle": "labkit.findings",
    "Program": "labkit.program",
    "chapter": "labkit.session",
    "check": "labkit.lessons",
    "finding": "labkit.findings",
    "load": "labkit.program",
    "reset": "labkit.lessons",
    "write_program": "labkit.lessons",
}
_MODULES = {"histogram", "kernel", "oracles", "plots", "sched", "workloads"}

__all__ = [
    "Chapter",
    "Finding",
    "LabkitError",
    "Ledger",
    "Oracle",
    "Program",
    "chapter",
    "check",
    "finding",
    "histogram",
    "kernel",
    "load",
    "oracles",
    "plots",
    "reset",
    "sched",
    "workloads",
    "write_program",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"labkit.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'labkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

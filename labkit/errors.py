"""Typed errors: what failed, why, and the next step.

Every error the lab raises on purpose is a :class:`LabkitError`. Its text has three parts, so that whoever
reads it (in a notebook, a terminal or a log) knows what to do next without searching.
"""

from __future__ import annotations

__all__ = [
    "CaptureMismatch",
    "CgroupError",
    "CompileError",
    "HookNotFound",
    "LabkitError",
    "MapError",
    "MissingBTF",
    "MissingBcc",
    "MissingCapture",
    "MissingHeaders",
    "MissingLedger",
    "MissingPrivilege",
    "NoSuchCgroup",
    "NotebookFailed",
    "OutcomesError",
    "ParameterError",
    "RingCorrupt",
    "SpecError",
    "UnknownProgram",
    "UnsupportedKernel",
    "VerifierRejected",
    "WorkloadFailed",
]


class LabkitError(Exception):
    """Base of all errors raised on purpose.

    :param what: what failed, one line.
    :param why: the cause as far as it is known.
    :param remedy: the next step for the reader.
    """

    def __init__(self, what: str, *, why: str = "", remedy: str = "") -> None:
        self.what = what
        self.why = why
        self.remedy = remedy
        lines = [what]
        if why:
            lines.append(f"  why:  {why}")
        if remedy:
            lines.append(f"  next: {remedy}")
        super().__init__("\n".join(lines))


class _WithLog(LabkitError):
    """An error that carries a tool's log and, where it can be told, the source line."""

    def __init__(
        self, what: str, *, why: str = "", remedy: str = "", log: str = "", line: int | None = None
    ) -> None:
        self.log = log
        self.line = line
        super().__init__(what, why=why, remedy=remedy)

    def __str__(self) -> str:
        text = super().__str__()
        if self.log:
            tail = self.log.strip().splitlines()[-40:]
            text += "\n  log:\n    " + "\n    ".join(tail)
        return text


class CompileError(_WithLog):
    """The C program does not compile. ``log`` is clang's output, ``line`` the first line it names."""


class VerifierRejected(_WithLog):
    """The kernel's verifier refuses the program. ``log`` is its log, ``line`` the C line if known."""


class UnknownProgram(LabkitError):
    """There is no ``bpf/NAME.c`` of that name."""


class SpecError(LabkitError):
    """The header comment of a program cannot be understood."""


class ParameterError(LabkitError):
    """A parameter is unknown, has the wrong type or lies out of range."""


class HookNotFound(LabkitError):
    """None of a program's hooks exists on this kernel. ``nearest`` lists similar names that do."""

    def __init__(
        self, what: str, *, why: str = "", remedy: str = "", nearest: list[str] | None = None
    ) -> None:
        self.nearest = nearest or []
        super().__init__(what, why=why, remedy=remedy)


class MissingPrivilege(LabkitError):
    """The process lacks a capability that the operation needs."""


class MissingHeaders(LabkitError):
    """No kernel headers tree was found for the compiler."""


class MissingBcc(LabkitError):
    """The distribution's python3-bpfcc is not installed."""


class MissingBTF(LabkitError):
    """The running kernel's BTF is absent or damaged, or lacks a type or member."""


class UnsupportedKernel(LabkitError):
    """The running kernel lacks something that the program cannot do without."""


class MapError(LabkitError):
    """A BPF map cannot be read, or does not have the shape asked for."""


class RingCorrupt(LabkitError):
    """A ring buffer's memory is not a chain of records."""


class MissingLedger(LabkitError):
    """A finding was made without the loss ledger of its capture."""


class MissingCapture(LabkitError):
    """Replay was asked for, but there is no capture under that name."""


class CaptureMismatch(LabkitError):
    """A capture was recorded by another version of the program, or is damaged."""


class WorkloadFailed(LabkitError):
    """A workload's process failed, so that its declared truth does not hold."""


class CgroupError(LabkitError):
    """A control group cannot be made, joined or removed."""


class NoSuchCgroup(LabkitError):
    """No control group has that path, that container name or that pod. ``nearest`` lists similar ones that exist."""

    def __init__(
        self, what: str, *, why: str = "", remedy: str = "", nearest: list[str] | None = None
    ) -> None:
        self.nearest = nearest or []
        super().__init__(what, why=why, remedy=remedy)


class NotebookFailed(LabkitError):
    """One or more notebooks did not pass the strict gate."""


class OutcomesError(LabkitError):
    """The outcomes folder cannot be written."""

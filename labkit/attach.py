"""Choosing a hook, attaching to it, and saying in words why the kernel would not have it."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Mapping

from labkit import bpfsys, perfsys
from labkit.errors import HookNotFound, LabkitError, MissingPrivilege, UnsupportedKernel
from labkit.kernel import hooks as kernel_hooks
from labkit.kernel.privilege import privilege
from labkit.spec import Hook, ProgramSpec

__all__ = ["HookRefused", "attach", "check_labels", "choose_hook", "map_error", "no_privilege", "verdict"]


class HookRefused(Exception):
    """A hook that looked available cannot be used: try the next one."""

    def __init__(self, label: str, hook: Hook, reason: str) -> None:
        self.label, self.hook, self.reason = label, hook, reason
        super().__init__(reason)


def choose_hook(
    spec: ProgramSpec,
    label: str,
    candidates: tuple[Hook, ...],
    preferred: str | None,
    refused: set[Hook],
    passed_over: list[str],
) -> Hook:
    """The first candidate that this kernel has.

    :param preferred: a kind or a full hook to insist on.
    :param refused: hooks that looked available and were not.
    :param passed_over: gets the reasons of those that are not there.
    :raises HookNotFound: if there is none, with the nearest names.
    """
    if preferred is not None:
        wanted = [hook for hook in candidates if preferred in (hook.kind, str(hook))]
        if not wanted:
            raise HookNotFound(
                f"program {spec.name} has no {preferred} hook for {label}",
                why=f"it has: {', '.join(map(str, candidates))}",
            )
        candidates = tuple(wanted)
    nearest: list[str] = []
    for hook in candidates:
        if hook in refused:
            continue
        state = kernel_hooks.availability(hook.kind, hook.target)
        if state.ok:
            return hook
        nearest += state.nearest
        reason = f"{hook}: {state.reason}"
        if reason not in passed_over:
            passed_over.append(reason)
    raise HookNotFound(
        f"no hook of {spec.name} for {label} exists on this kernel",
        why="; ".join(passed_over),
        remedy=f"nearest names: {', '.join(nearest)}"
        if nearest
        else "`labkit doctor` shows which hooks there are",
        nearest=nearest,
    )


def attach(label: str, hook: Hook, prog_fd: int) -> int:
    """Attach a loaded program; closing the result detaches it.

    :raises HookRefused: if the kernel does not have it.
    """
    try:
        if hook.kind == "raw_tracepoint":
            return bpfsys.raw_tracepoint_open(prog_fd, hook.target)
        if hook.kind == "fentry":
            return bpfsys.raw_tracepoint_open(prog_fd, None)
        if hook.kind in ("kprobe", "kretprobe"):
            returns = hook.kind == "kretprobe"
            return perfsys.open_perf_kprobe(
                kernel_hooks.kprobe_pmu() or 0, hook.target, prog_fd, returns=returns
            )
        category, _, name = hook.target.partition(":")
        return perfsys.open_perf_tracepoint(kernel_hooks.tracepoint_id(category, name) or 0, prog_fd)
    except OSError as error:
        raise HookRefused(label, hook, f"attaching failed: {error.strerror}") from error


def verdict(log: str) -> tuple[int | None, str]:
    """The instruction the verifier stopped at, and what it said after that."""
    instruction: int | None = None
    said: list[str] = []
    for row in log.strip().splitlines():
        if match := re.match(r"^(\d+): \(", row):
            instruction, said = int(match.group(1)), []
        elif (
            row
            and not row.startswith(("processed ", "verification time", "stack depth", ";"))
            and ": R" not in row
        ):
            said.append(row.strip())
    return instruction, "; ".join(said[-3:])


def no_privilege(action: str) -> MissingPrivilege:
    """The error for what this process may not do."""
    held = privilege()
    return MissingPrivilege(
        f"not permitted to {action}",
        why=f"user id {held.uid} has {', '.join(sorted(held.effective)) or 'no capabilities'}; "
        "CAP_BPF and CAP_PERFMON (or root) are needed",
        remedy="./task setup once with sudo, then run through ./task; or go on in replay (--mode replay)",
    )


def map_error(name: str, error: OSError) -> LabkitError:
    """The error for a map that the kernel would not make."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return no_privilege(f"create the map {name}")
    return UnsupportedKernel(f"the kernel refuses the map {name}", why=error.strerror or str(error))


def check_labels(spec: ProgramSpec, preferred: Mapping[str, str]) -> None:
    for label in preferred:
        if label not in spec.hooks:
            nearest = difflib.get_close_matches(label, list(spec.hooks), 1)
            raise HookNotFound(
                f"program {spec.name} hooks in at nothing called {label}",
                why=f"it has: {', '.join(spec.hooks)}",
                nearest=nearest,
            )

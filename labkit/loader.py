"""One compiled function into the kernel: map references filled in, old verifiers' whims met, a refusal explained."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Mapping
from typing import Any

from labkit import backedge, bpfsys
from labkit.attach import HookRefused, no_privilege, verdict
from labkit.bpfsys import AttachType, ProgType
from labkit.compiler import Function, source_lines
from labkit.errors import UnsupportedKernel, VerifierRejected
from labkit.kernel import btf
from labkit.kernel.privilege import privilege
from labkit.spec import Hook, ProgramSpec

__all__ = ["load_function"]

_TYPES = {
    "kprobe": ProgType.KPROBE,
    "kretprobe": ProgType.KPROBE,
    "fentry": ProgType.TRACING,
    "tracepoint": ProgType.TRACEPOINT,
    "raw_tracepoint": ProgType.RAW_TRACEPOINT,
}
_LOG_BYTES = 1 << 20
_LONGEST_LOG_BYTES = (
    256 << 20
)  # a million instructions, the most that a verifier walks, at some 100 bytes each
_MENDS = 64  # loops in one program
_REFUSED = "the kernel's verifier refuses the program"


def load_function(
    function: Function,
    hook: Hook,
    spec: ProgramSpec,
    maps: Mapping[str, int],
    chosen: Mapping[str, Hook],
    params: Mapping[str, int],
) -> int:
    """Load one function of a program; returns its descriptor.

    :param hook: what it is to be attached to.
    :param maps: name -> descriptor.
    :param chosen, params: what the program was compiled with, to find the line that the verifier minds.
    :raises VerifierRejected: with the kernel's log and the line of the source.
    :raises HookRefused: if the kernel does not load it for this hook, and there are others.
    :raises UnsupportedKernel, MissingPrivilege: if there is none, or we may not.
    """
    code = bytearray(function.code)
    for index, name in function.maps:
        struct.pack_into("=i", code, index * 8 + 4, maps[name])
    options: dict[str, Any] = {"name": function.name}
    if hook.kind == "fentry":
        options |= {
            "attach_type": AttachType.TRACE_FENTRY,
            "attach_btf_id": btf.kernel().function_id(hook.target) or 0,
        }
    for mends in range(_MENDS + 1):
        try:
            return bpfsys.prog_load(_TYPES[hook.kind], bytes(code), **options)
        except OSError as error:
            log = _log_of(hook, bytes(code), options)
            # The program as an old verifier takes it, if the shape of a loop is all that it minds.
            better = backedge.mended(bytes(code), log) if error.errno == errno.EINVAL else None
            if better is None or mends == _MENDS:
                raise _explained(error, log, function, hook, spec, chosen, params) from error
            code = bytearray(better)
    raise AssertionError("not reached")


def _log_of(hook: Hook, code: bytes, options: Mapping[str, Any]) -> str:
    """Load once more for the verifier's log: its last megabyte.

    Since 6.4 (commit 121664093803) a log that is too long loses its beginning. Before, it loses its end, where the reason
    stands: then room is made for all of it, which is only taken as far as it is written.
    """
    for size in (_LOG_BYTES, _LONGEST_LOG_BYTES):
        with mmap.mmap(-1, size) as memory:
            log = (ctypes.c_char * size).from_buffer(memory)
            with contextlib.suppress(OSError):
                os.close(bpfsys.prog_load(_TYPES[hook.kind], code, log=log, log_level=1, **options))
            del log
            end = memory.find(b"\0")
            text = memory[max(0, end - _LOG_BYTES) : end].decode("utf-8", "replace")
        if end < size - 1 or "processed " in text[-200:]:
            break
    return text


def _explained(
    error: OSError,
    log: str,
    function: Function,
    hook: Hook,
    spec: ProgramSpec,
    chosen: Mapping[str, Hook],
    params: Mapping[str, int],
) -> Exception:
    if not log.strip() or "processed 0 insns" in log:
        if error.errno in (errno.EPERM, errno.EACCES) and not privilege().can_trace:
            return no_privilege("load a BPF program")
        label = function.name.removeprefix("lk_")
        if any(candidate != hook for candidate in spec.hooks[label]):
            return HookRefused(label, hook, f"the kernel refuses to load it: {error.strerror}")
        return UnsupportedKernel(
            f"the kernel refuses to load {function.name} at {hook}",
            why=error.strerror or str(error),
            remedy="`labkit doctor` shows what this kernel can do",
        )
    lines = source_lines(spec, chosen, params).get(function.name, {})
    instruction, reason = verdict(log)
    line = lines.get(instruction) if instruction is not None else None
    where = spec.path.name if spec.path else spec.name
    source = spec.source.splitlines()[line - 1].strip() if line else ""
    return VerifierRejected(
        f"{_REFUSED} {where} ({function.name})",
        why=f"{reason}" + (f"; {where}, line {line}: {source}" if line else ""),
        remedy="the end of the log names the register and what it may hold at that line",
        log=log,
        line=line,
    )

"""Loops that old verifiers refuse for their shape, mended in the compiled program.

Up to Linux 6.1 at least, `check_cfg()` (``kernel/bpf/verifier.c``) takes a loop only if a *jump* leads back to its head.
Clang may lay a loop out so that its end simply runs on into the head, which was jumped to before: "back-edge from insn 2131
to 2132". A jump to the next instruction, put in between, is all that it wants; the verifier itself removes it later.
"""

from __future__ import annotations

import re
import struct

__all__ = ["mended", "with_jump_before"]

_INSTRUCTION = struct.Struct("<BBhi")
_JUMP_NEXT = _INSTRUCTION.pack(0x05, 0, 0, 0)  # BPF_JMP | BPF_JA, +0
_JMP, _JMP32 = 0x05, 0x06
_CALL, _EXIT = 0x80, 0x90
_REFUSAL = re.compile(r"^back-edge from insn (\d+) to (\d+)$", re.M)


def mended(code: bytes, log: str) -> bytes | None:
    """The program with a jump where the verifier found an end that runs on into its head; None if that is not what it says.

    :param log: the verifier's log.
    """
    found = _REFUSAL.search(log)
    if found is None or int(found[2]) != int(found[1]) + 1:
        return None
    return with_jump_before(code, int(found[2]))


def with_jump_before(code: bytes, head: int) -> bytes | None:
    """Put a jump to ``head`` before it, for whoever comes from above; who jumped to it still does, past the new one.

    :returns: None where a jump would become too long, or the program calls functions of its own (their distances
        are counted elsewhere).
    """
    count = len(code) // _INSTRUCTION.size
    out = bytearray()
    second_half = False
    for index in range(count):
        if index == head:
            out += _JUMP_NEXT
        op, registers, offset, immediate = _INSTRUCTION.unpack_from(code, index * _INSTRUCTION.size)
        if not second_half and op & 0x07 in (_JMP, _JMP32) and op & 0xF0 not in (_CALL, _EXIT):
            target = index + 1 + offset
            offset += (target >= head) - (index >= head)
            if not -(1 << 15) <= offset < 1 << 15:
                return None
        if not second_half and op == _JMP | _CALL and registers >> 4 == 1:  # BPF_PSEUDO_CALL
            return None
        if not second_half and op == _JMP32:  # a jump by 32 bits, which no compiler of such kernels writes
            return None
        second_half = not second_half and op == 0x18  # a 64-bit constant takes two places
        out += _INSTRUCTION.pack(op, registers, offset, immediate)
    return bytes(out)

"""A loop whose end runs on into its head gets a jump there, and everything else leads where it led."""

from __future__ import annotations

import os
import struct

import pytest

from labkit import backedge, bpfsys
from labkit.bpfsys import ProgType

MOV, ADD, JA, JGT, EXIT, LD64 = 0xB7, 0x07, 0x05, 0x25, 0x95, 0x18
# 0: r0 = 0; 1: goto 3; 2: r0 += 1; 3: if r0 > 5 goto 5; 4: goto 2; 5: exit. The end of the loop, 2, runs on into 3.
LOOP = [(MOV, 0, 0), (JA, 1, 0), (ADD, 0, 1), (JGT, 1, 5), (JA, -3, 0), (EXIT, 0, 0)]
LOG = "func#0 @0\nback-edge from insn 2 to 3\nprocessed 0 insns (limit 1000000)\n"


def assembled(program: list[tuple[int, int, int]]) -> bytes:
    return b"".join(struct.pack("<BBhi", op, 0, offset, immediate) for op, offset, immediate in program)


def edges(code: bytes) -> set[tuple[int, int]]:
    """Where control goes, as the number of each instruction without jumps to the next."""
    rows = [struct.unpack_from("<BBhi", code, at) for at in range(0, len(code), 8)]
    number, real = [], 0
    for op, _, offset, _ in rows:
        number.append(real)
        real += not (op == JA and offset == 0)
    found = set()
    for index, (op, _, offset, _) in enumerate(rows):
        if op == EXIT or (op == JA and offset == 0):
            continue
        if op != JA:
            found.add((number[index], number[index + 1]))
        if op in (JA, JGT):
            found.add((number[index], number[index + 1 + offset]))
    return found


def test_the_end_jumps_and_every_path_is_as_it_was() -> None:
    before = assembled(LOOP)
    after = backedge.mended(before, LOG)
    assert after is not None
    assert after[3 * 8 : 4 * 8] == assembled([(JA, 0, 0)])
    assert len(after) == len(before) + 8
    assert edges(after) == edges(before)


@pytest.mark.parametrize("log", ["", "back-edge from insn 4 to 2\n", "unreachable insn 3\n", "R0 !read_ok\n"])
def test_other_refusals_stand(log: str) -> None:
    assert backedge.mended(assembled(LOOP), log) is None


def test_a_constant_of_two_places_is_not_read_as_jumps() -> None:
    program = assembled([(LD64, 0, 7), (0x25, 9, 0), *LOOP])
    after = backedge.with_jump_before(program, 5)
    assert after is not None
    assert after[:16] == program[:16]


def test_what_cannot_be_moved_is_left_alone() -> None:
    far = [(JGT, 32767, 0)] + [(MOV, 0, 0)] * 32768 + [(EXIT, 0, 0)]
    assert backedge.with_jump_before(assembled(far), 5) is None
    own_call = struct.pack("<BBhi", 0x85, 0x10, 0, 1)
    assert backedge.with_jump_before(own_call + assembled(LOOP), 4) is None


@pytest.mark.live
def test_the_kernel_takes_the_mended_program() -> None:
    mended = backedge.mended(assembled(LOOP), LOG)
    assert mended is not None
    os.close(bpfsys.prog_load(ProgType.RAW_TRACEPOINT, mended, name="lk_test"))

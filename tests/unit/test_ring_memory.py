"""A ring over memory laid out as the kernel does it: what is handed out is ours."""

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from labkit.layout import layout_of
from labkit.ring import EventType, Ring

SIZE = mmap.PAGESIZE
KIND = EventType("one", layout_of('"unsigned long long"', size=8, name="one"))


@pytest.fixture
def fd() -> Iterator[int]:
    with os.fdopen(os.memfd_create("ring"), "r+b") as file:
        file.truncate(2 * mmap.PAGESIZE + 2 * SIZE)
        yield file.fileno()


def produce(fd: int, numbers: list[int]) -> None:
    """Write a record for each number, from the start of the ring, and publish them."""
    records = b"".join(struct.pack("<IIQ", 8, 3, number) for number in numbers)
    os.pwrite(fd, records, 2 * mmap.PAGESIZE)
    os.pwrite(fd, struct.pack("<Q", len(records)), mmap.PAGESIZE)


@pytest.mark.parametrize("numbers", [[7], [7, 8], [7, 8, 9]], ids=len)
def test_events_stay_what_they_were_when_the_ring_is_written_over(fd: int, numbers: list[int]) -> None:
    produce(fd, numbers)
    ring = Ring(fd, SIZE, [KIND])
    (batch,) = ring.read()
    (values,) = batch.columns.values()
    os.pwrite(fd, bytes(SIZE), 2 * mmap.PAGESIZE)
    assert values.tolist() == numbers
    ring.close()  # which the memory refuses while somebody looks into it


def test_a_ring_closes_while_an_error_still_looks_into_its_memory(fd: int) -> None:
    produce(fd, [7])
    ring = Ring(fd, SIZE, [KIND])
    seen = memoryview(ring._words)  # as the frames of a traceback do
    ring.close()
    seen.release()

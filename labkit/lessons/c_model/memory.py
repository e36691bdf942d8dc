"""Memory that knows what each address belongs to, so that an access beyond an object is told, and not made."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.lessons.c_model.errors import NotRun, Refused

__all__ = ["Memory", "Region"]

_SHIFT = 20  # an object has a window of 1 MiB to itself: nothing of the next one is within reach of a small mistake
_OFFSETS = (1 << _SHIFT) - 1
_KERNEL = 0xFFFF_8880_0000_0000 >> _SHIFT


@dataclass
class Region:
    """One object.

    :param what: for people: "the value of `calls`".
    """

    data: bytearray
    what: str
    writable: bool = True


class Memory:
    """All objects of one run, by address. Address 0 and whatever nothing was put at belong to nobody."""

    def __init__(self) -> None:
        self.regions: dict[int, Region] = {}
        self._next = 1
        self._next_kernel = _KERNEL

    def new(self, size: int, what: str, *, kernel: bool = False) -> int:
        """Make room for an object, all zeros.

        :param kernel: the program may read it, and not write to it.
        :returns: its address.
        """
        if size > _OFFSETS:
            raise NotRun(f"{what} has {size} bytes: more than is modelled here")
        if kernel:
            number, self._next_kernel = self._next_kernel, self._next_kernel + 1
        else:
            number, self._next = self._next, self._next + 1
        self.regions[number] = Region(bytearray(size), what, not kernel)
        return number << _SHIFT

    def free(self, address: int) -> None:
        """Whoever uses it from now on uses what is gone."""
        self.regions.pop(address >> _SHIFT, None)

    def at(self, address: int, size: int, *, write: bool = False) -> tuple[Region, int]:
        """The object at an address, and the offset in it.

        :raises Refused: if the access does not stay within one object, or is a write to what may only be read.
        """
        region = self.regions.get(address >> _SHIFT)
        offset = address & _OFFSETS
        if region is None:
            if address >> _SHIFT == 0:
                raise Refused("NULL is followed: what a look-up returns has to be asked for being NULL first")
            raise Refused("a pointer leads to nothing, or to what was given back already")
        if offset + size > len(region.data):
            raise Refused(
                f"bytes {offset} to {offset + size - 1} of {region.what} are used, and it has {len(region.data)}"
            )
        if write and not region.writable:
            raise Refused(f"{region.what} is written to, and belongs to the kernel")
        return region, offset

    def read(self, address: int, size: int, *, signed: bool = False) -> int:
        """An integer."""
        region, offset = self.at(address, size)
        return int.from_bytes(region.data[offset : offset + size], "little", signed=signed)

    def write(self, address: int, size: int, value: int) -> None:
        """Put an integer there, cut to its size."""
        region, offset = self.at(address, size, write=True)
        region.data[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def copied(self, address: int, size: int) -> bytes:
        """A copy of what is there."""
        region, offset = self.at(address, size)
        return bytes(region.data[offset : offset + size])

    def put(self, address: int, data: bytes) -> None:
        """Bytes by the program."""
        region, offset = self.at(address, len(data), write=True)
        region.data[offset : offset + len(data)] = data

    def set(self, address: int, data: bytes) -> None:
        """Bytes by the kernel, which may write everywhere."""
        region, offset = self.at(address, len(data))
        region.data[offset : offset + len(data)] = data

"""What a program runs on: memory, maps, a clock, the CPU it is on and the task that is current there."""

from __future__ import annotations

import random
from collections.abc import Mapping

from labkit.lessons.c_model.declarations import MapDeclaration
from labkit.lessons.c_model.errors import NotRun, Refused
from labkit.lessons.c_model.memory import Memory

__all__ = ["CPUS", "Machine", "ModelMap", "RingRecords"]

CPUS = 2
_ENOENT, _E2BIG, _EEXIST = -2, -7, -17
_MOST_ENTRIES = 1 << 24


class ModelMap:
    """A hash, an array or a queue; per-CPU maps have a value for each CPU."""

    def __init__(self, declared: MapDeclaration, memory: Memory) -> None:
        self.declared = declared
        self.per_cpu = declared.kind.startswith("percpu_")
        self.array = declared.kind.endswith("array")
        self.entries: dict[bytes, list[int]] = {}
        self.queue: list[bytes] = []
        self._memory = memory

    def _new(self, key: bytes) -> list[int]:
        size, what = self.declared.value.size, f"the value of `{self.declared.name}`"
        self.entries[key] = [self._memory.new(size, what) for _ in range(CPUS if self.per_cpu else 1)]
        return self.entries[key]

    def lookup(self, key: bytes, cpu: int) -> int:
        """The value's address, or 0."""
        found = self.entries.get(key)
        if found is None and self.array and int.from_bytes(key, "little") < self.declared.entries:
            found = self._new(key)
        if found is None:
            return 0
        return found[cpu if self.per_cpu else 0]

    def update(self, key: bytes, value: bytes, cpu: int, *, only_new: bool = False) -> int:
        """Put a value in; 0, or an error as the kernel gives it (a negative number)."""
        there = self.lookup(key, cpu)
        if not there:
            if self.array or len(self.entries) >= self.declared.entries:
                return _E2BIG
            self._new(key)
            there = self.lookup(key, cpu)
        elif only_new:
            return _EEXIST
        self._memory.set(there, value)
        return 0

    def delete(self, key: bytes) -> int:
        """Take an entry out; 0, or an error."""
        if self.array or key not in self.entries:
            return _ENOENT
        for address in self.entries.pop(key):
            self._memory.free(address)
        return 0

    def push(self, value: bytes) -> int:
        """Put a value at the end of a queue."""
        if len(self.queue) >= self.declared.entries:
            return _E2BIG
        self.queue.append(value)
        return 0

    def pop(self) -> bytes | None:
        """Take the first of a queue."""
        return self.queue.pop(0) if self.queue else None


class RingRecords:
    """A ring buffer that is read after each event, so that it is never full; a limit stands for a reader that sleeps."""

    def __init__(self, declared: MapDeclaration, memory: Memory) -> None:
        self.declared = declared
        self.submitted: list[bytes] = []
        self._open: dict[int, int] = {}
        self._memory = memory

    def reserve(self, size: int) -> int:
        """A record's address, or 0 if there is no room for it."""
        if size > self.declared.entries:
            return 0
        address = self._memory.new(size, f"a record of `{self.declared.name}`")
        self._open[address] = size
        return address

    def finish(self, address: int, *, keep: bool) -> None:
        """Submit a record, or discard it."""
        if address not in self._open:
            raise Refused("what is submitted or discarded is no record in hand")
        size = self._open.pop(address)
        if keep:
            self.submitted.append(self._memory.copied(address, size))
        self._memory.free(address)

    def output(self, data: bytes) -> int:
        """Reserve, fill and submit at once."""
        if len(data) > self.declared.entries:
            return -11
        self.submitted.append(data)
        return 0

    def all_given_back(self) -> bool:
        """True if no record is in hand."""
        return not self._open


class Machine:
    """The state that helpers read and change.

    :ivar failing: the number of a call that is to fail (a look-up that finds nothing, a ring that is full), or None.
    """

    def __init__(self, seed: int) -> None:
        self.memory = Memory()
        self.maps: dict[str, ModelMap] = {}
        self.rings: dict[str, RingRecords] = {}
        self.now_ns = 1_000_000_000
        self.cpu = 0
        self.tgid = self.pid = 0
        self.comm = b""
        self.cgroup_id = 1
        self.current = 0
        self.line = 0
        self.failing: int | None = None
        self.may_fail: list[tuple[int, str, int]] = []
        self.random = random.Random(seed)

    def declare(self, maps: Mapping[str, MapDeclaration]) -> None:
        """Make the maps."""
        for name, declared in maps.items():
            if declared.entries > _MOST_ENTRIES and declared.kind != "ringbuf":
                raise NotRun(f"the map {name} is larger than what is modelled here")
            if declared.kind == "ringbuf":
                self.rings[name] = RingRecords(declared, self.memory)
            else:
                self.maps[name] = ModelMap(declared, self.memory)

    def site(self, what: str, line: int) -> int:
        """Note a call in the program that can fail; its number."""
        self.may_fail.append((len(self.may_fail), what, line))
        return len(self.may_fail) - 1

    def finished(self) -> None:
        """A program has returned.

        :raises Refused: if it keeps a record.
        """
        for name, ring in self.rings.items():
            if not ring.all_given_back():
                raise Refused(
                    f"a record of `{name}` is still in hand when the program ends: neither submitted nor discarded"
                )

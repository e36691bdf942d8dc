"""What the bench puts into the kernel to be read: full maps, full rings."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import numpy as np

from labkit import bpfsys
from labkit.bpfsys import MapType, ProgType
from labkit.closing import Closing
from labkit.compiler import MapDef, compile_program
from labkit.layout import layout_of
from labkit.maps import Map
from labkit.ring import EventType, Ring
from labkit.spec import MapSpec, parse

__all__ = ["VALUE_DESC", "FilledRing", "filled_map"]

_PROG_TEST_RUN, _MAP_UPDATE_BATCH = 10, 26  # enum bpf_cmd, include/uapi/linux/bpf.h
VALUE_DESC = '["value", [["count", "unsigned long long"], ["total_ns", "unsigned long long"]], "struct"]'
_SOURCE = Path(__file__).with_name("fill.c")


def filled_map(kind: MapType, entries: int) -> Map:
    """A full map of that kind: 8-byte keys in random order, values of two 8-byte counters."""
    definition = MapDef(
        name="bench",
        kind=kind,
        key_size=8,
        value_size=16,
        max_entries=entries,
        flags=0,
        key_desc='"unsigned long long"',
        value_desc=VALUE_DESC,
    )
    table = Map(definition, MapSpec(holds="entries to read"))
    table.create()
    random = np.random.default_rng(6)
    keys = random.permutation(np.arange(1, entries + 1, dtype=np.uint64))
    cpus = bpfsys.possible_cpus() if table.per_cpu else 1
    values = random.integers(0, 1 << 40, (entries, cpus, 2), dtype=np.uint64)
    attr = struct.pack("=QQQQIIQQ", 0, 0, keys.ctypes.data, values.ctypes.data, entries, table.fd, 0, 0)
    bpfsys.bpf(_MAP_UPDATE_BATCH, attr)
    return table


class FilledRing(Closing):
    """A ring buffer and a program that fills it on demand. A context manager.

    :param pages: size of the ring in pages of memory, a power of two.
    :param mixed: two sizes of record in a changing order; otherwise one size (24 bytes and the header's 8).
    """

    def __init__(self, *, pages: int, mixed: bool) -> None:
        spec = parse(_SOURCE.read_text(), name="bench_fill", path=_SOURCE)
        constants = spec.constants({"ring_pages": pages, "mixed": mixed})
        self.burst = constants["burst"]
        artifact = compile_program(spec, {label: hooks[0] for label, hooks in spec.hooks.items()}, constants)
        definitions = {d.name: d for d in artifact.maps}
        ring = definitions["events"]
        self.fd = bpfsys.map_create(MapType.RINGBUF, 0, 0, ring.max_entries, name="lk_bench")
        function = artifact.function("lk_fill")
        code = bytearray(function.code)
        for index, _ in function.maps:
            struct.pack_into("=i", code, index * 8 + 4, self.fd)
        self._program = bpfsys.prog_load(ProgType.RAW_TRACEPOINT, bytes(code), name="lk_fill")
        self.size = ring.max_entries
        tags = spec.maps["events"].ring["types"]
        kinds = []
        for name, tag in tags.items():
            described = definitions[name]
            layout = layout_of(described.value_desc, size=described.value_size, name=name)
            kinds.append(EventType(name, layout, tag))
        self.kinds = kinds if mixed else kinds[-1:]
        tag = next(c for c in kinds[0].layout.columns if c.name == "kind")
        # For copying: the data as the consumer sees it, behind the pages of the two positions.
        page = mmap.PAGESIZE
        self._mapped = mmap.mmap(self.fd, page + 2 * self.size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self.memory = np.frombuffer(self._mapped, np.uint64, self.size // 8, page)
        self.ring = Ring(self.fd, self.size, self.kinds, (tag.offset, tag.dtype) if mixed else None)

    def fill(self) -> int:
        """Run the program until the ring is (almost) full; returns how many records were put in."""
        attr = struct.pack("=IIIIQQIIIIQQII", self._program, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        done: int = 0
        while True:
            _, block = bpfsys.bpf(_PROG_TEST_RUN, attr)
            put = int(struct.unpack_from("=I", block, 4)[0])
            done += put
            if put < self.burst:
                return done

    def close(self) -> None:
        """Free the ring and the program."""
        self.ring.close()
        del self.memory
        os.close(self._program)
        os.close(self.fd)

"""BPF maps to DataFrames, in bulk: whole columns, no Python per entry.

A map is read with ``BPF_MAP_LOOKUP_BATCH`` into preallocated memory; only where the kernel lacks that, entry by entry.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from labkit import bpfsys, histogram
from labkit.bpfsys import MapType
from labkit.compiler import MapDef
from labkit.errors import MapError
from labkit.layout import Column, Layout, layout_of
from labkit.spec import MapSpec

__all__ = ["Map"]

_PER_CPU = {MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH}
_ARRAYS = {MapType.ARRAY, MapType.PERCPU_ARRAY}
_READABLE = _PER_CPU | _ARRAYS | {MapType.HASH, MapType.LRU_HASH}
_CHUNK_BYTES = 64 << 20
#: What per-CPU numbers are summed in, so that the sum of 32-bit counters does not wrap.
_WIDE = {"u": np.uint64, "i": np.int64, "f": np.float64}
_UNSUPPORTED = {errno.EINVAL, 524}  # 524 is ENOTSUPP, which user space has no name for
_MOST_ROUNDS = 20


@dataclass
class Map:
    """One map in the kernel, and how to read it.

    :param definition: sizes and C types.
    :param spec: what its columns are called and how per-CPU values join.
    """

    definition: MapDef
    spec: MapSpec
    fd: int = -1
    _batch: bool = field(default=True, repr=False)
    _memory: np.ndarray | None = field(default=None, repr=False)

    @property
    def per_cpu(self) -> bool:
        """True if each CPU has its own value."""
        return self.definition.kind in _PER_CPU

    def create(self) -> None:
        """Create the map in the kernel.

        :raises OSError: as the kernel gives it.
        """
        d = self.definition
        self.fd = bpfsys.map_create(
            d.kind, d.key_size, d.value_size, d.max_entries, flags=d.flags, name=f"lk_{d.name}"
        )

    def fill(self) -> None:
        """Put into a queue what the program will take out of it (``numbers_from`` in its header comment)."""
        if self.spec.numbers_from is not None:
            for number in range(self.spec.numbers_from, self.definition.max_entries):
                self.push(number)

    def push(self, number: int) -> None:
        """Put a number at the end of a queue of u32.

        :raises OSError: E2BIG if it is full.
        """
        bpfsys.map_update(self.fd, None, np.array([number], np.uint32))

    def drain(self) -> list[bytes]:
        """Take out what a program has put into a queue: the oldest first, as many as it can hold at the most."""
        value = np.zeros(self.definition.value_size, np.uint8)
        found: list[bytes] = []
        while len(found) < self.definition.max_entries and bpfsys.map_pop(self.fd, value):
            found.append(value.tobytes())
        return found

    def mapped(self) -> np.ndarray:
        """The values of an array that the program declares mappable (``BPF_F_MMAPABLE``), in place, without a copy.

        :returns: shape (max_entries, value_size), uint8, writable: what is written there, the program sees.
        :raises MapError: if the map is closed or not mappable.
        """
        d = self.definition
        if self.fd < 0 or not d.flags & bpfsys.F_MMAPABLE:
            raise MapError(
                f"map {d.name} cannot be mapped",
                why="it is closed" if self.fd < 0 else "the program does not declare it so",
                remedy="read it as a frame",
            )
        if self._memory is None:
            stride = _round8(d.value_size)
            # The view lives as long as somebody holds it, also after the map is closed.
            memory = mmap.mmap(self.fd, stride * d.max_entries)
            self._memory = np.frombuffer(memory, np.uint8).reshape(d.max_entries, stride)
        return self._memory[:, : d.value_size]

    @property
    def memory_bytes(self) -> int | None:
        """Kernel memory that it takes, by the kernel's own account; None if it is closed, or the kernel does not tell."""
        try:
            with open(f"/proc/self/fdinfo/{self.fd}") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("memlock:"))
        except (OSError, StopIteration):
            return None

    def close(self) -> None:
        """Let go of the map; the kernel frees it with its last user."""
        self._memory = None
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1

    def raw(self) -> tuple[np.ndarray, np.ndarray]:
        """All entries as bytes.

        :returns: keys of shape (n, key_size) and values of shape (n, cpus, stride), uint8; ``cpus`` is 1 for a map that
            is not per-CPU, and the stride of per-CPU values is rounded up to 8 bytes.
        :raises MapError: if the map is closed or of a kind that has no entries to read.
        """
        d = self.definition
        if self.fd < 0:
            raise MapError(
                f"map {d.name} is closed", remedy="read frames inside the `with lk.load(...)` block"
            )
        if d.kind not in _READABLE:
            raise MapError(
                f"map {d.name} is of kind {_kind_name(d.kind)}", why="it has no entries to look up"
            )
        cpus = bpfsys.possible_cpus() if self.per_cpu else 1
        stride = _round8(d.value_size) if self.per_cpu else d.value_size
        if self._batch:
            try:
                return self._read_batches(cpus, stride)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise MapError(f"map {d.name} cannot be read", why=str(error)) from error
                self._batch = False  # before 5.6 (hashes) or 5.13 (per-CPU arrays)
        return self._read_one_by_one(cpus, stride)

    def _read_batches(self, cpus: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        d = self.definition
        rows = max(1, min(d.max_entries, _CHUNK_BYTES // (d.key_size + cpus * stride)))
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        position: np.ndarray | None = None
        done = False
        while not done:
            keys = np.empty((rows, d.key_size), np.uint8)
            values = np.empty((rows, cpus, stride), np.uint8)
            following = np.zeros(max(8, d.key_size), np.uint8)
            try:
                count, done = bpfsys.map_lookup_batch(self.fd, position, following, keys, values, rows)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                rows *= 2  # one hash bucket holds more than a chunk: ask again from the same place
                continue
            parts.append((keys[:count], values[:count]))
            position = following
            if d.kind in _ARRAYS and sum(len(k) for k, _ in parts) >= d.max_entries:
                done = True
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([k for k, _ in parts]), np.concatenate([v for _, v in parts])

    def _read_one_by_one(self, cpus: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        keys, values = [], []
        for key in self._keys():
            value = np.zeros((cpus, stride), np.uint8)
            if bpfsys.map_lookup(self.fd, key, value):
                keys.append(key)
                values.append(value)
        d = self.definition
        if not keys:
            return np.empty((0, d.key_size), np.uint8), np.empty((0, cpus, stride), np.uint8)
        return np.stack(keys), np.stack(values)

    def _keys(self) -> Iterator[np.ndarray]:
        """Each key once, in the kernel's order. If the one we stand on is deleted the kernel starts over.

        :raises MapError: if that happens so often that the end does not come.
        """
        d, seen = self.definition, set[bytes]()
        key: np.ndarray | None = None
        following = np.zeros(d.key_size, np.uint8)
        for _ in range(_MOST_ROUNDS * (d.max_entries + 1)):
            if not bpfsys.map_next_key(self.fd, key, following):
                return
            key = following.copy()
            if key.tobytes() not in seen:
                seen.add(key.tobytes())
                yield key
        raise MapError(
            f"map {d.name} changes faster than it can be read entry by entry",
            remedy="stop the program first (prog.stop()), or use a kernel with batch look-up (5.6 and later)",
        )

    def clear(self) -> None:
        """Empty the map: delete what is in it, or set an array to zero. Exact only while nobody writes to it.

        :raises MapError: if the map is closed or of a kind that cannot be emptied.
        """
        keys, values = self.raw()
        array = self.definition.kind in _ARRAYS
        values[:] = 0
        try:
            if not self._batch:
                self._clear_one_by_one(keys, values)
            elif array:
                bpfsys.map_update_batch(self.fd, keys, values, len(keys))
            elif len(keys):
                bpfsys.map_delete_batch(self.fd, keys, len(keys))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise MapError(f"map {self.definition.name} cannot be emptied", why=str(error)) from error
            self._clear_one_by_one(keys, values)

    def _clear_one_by_one(self, keys: np.ndarray, values: np.ndarray) -> None:
        for key, value in zip(keys, values, strict=True):
            if self.definition.kind in _ARRAYS:
                bpfsys.map_update(self.fd, key, value)
            else:
                bpfsys.map_delete(self.fd, key)

    @functools.cached_property
    def layouts(self) -> tuple[Layout, Layout]:
        """Columns of key and value, from the C types."""
        d = self.definition
        return (
            layout_of(d.key_desc, size=d.key_size, name=self.spec.key),
            layout_of(d.value_desc, size=d.value_size, name=self.spec.value),
        )

    def frame(self, *, per_cpu: bool = False, explode: str | None = None) -> pd.DataFrame:
        """The map as a DataFrame.

        :param per_cpu: one row per entry and possible CPU, with a column ``cpu`` (int64); otherwise per-CPU values are
            joined (numbers summed, in 64 bits, unless the program's ``combine:`` says otherwise).
        :param explode: name of a histogram member of the value: one row per entry and bucket.
        :returns: the key's columns, then the value's, with dtypes from the C types. A map that the program declares a
            histogram gives ``lo``, ``hi``, ``unit``, ``count`` instead. No entries: no rows, the same dtypes.
        :raises MapError: if the map cannot be read, or is not of the kind asked for.
        """
        if per_cpu and not self.per_cpu:
            raise MapError(f"map {self.definition.name} is not per-CPU", remedy="leave out per_cpu=True")
        keys, values = self.raw()
        if self.spec.histogram:
            return self._histogram(keys, values, per_cpu=per_cpu)
        key_layout, value_layout = self.layouts
        columns = key_layout.arrays(np.ascontiguousarray(keys))
        data = value_layout.arrays(np.ascontiguousarray(values))
        if per_cpu:
            return self._per_cpu_frame(key_layout, columns, value_layout, data)
        joined = {c.name: self._join(c, data[c.name]) for c in value_layout.columns}
        if explode:
            return self._explode(key_layout, columns, value_layout, joined, explode)
        return _assemble(key_layout, columns, value_layout, joined)

    def _join(self, column: Column, values: np.ndarray) -> np.ndarray:
        """(n, cpus, ...) -> (n, ...)."""
        if not self.per_cpu:
            return values[:, 0]
        how = self.spec.combine.get(column.name, "last" if column.text else "sum")
        if how == "sum":
            joined: np.ndarray = values.sum(axis=1, dtype=_WIDE.get(values.dtype.kind))
        elif how == "max":
            joined = values.max(axis=1)
        elif how == "min":  # zero is "this CPU never set it"
            joined = np.where(values == 0, np.iinfo(values.dtype).max, values).min(axis=1)
            joined[(values == 0).all(axis=1)] = 0
        else:  # last: the first CPU that has something
            filled = values != np.zeros((), values.dtype)
            joined = np.take_along_axis(values, filled.argmax(axis=1)[:, None], axis=1)[:, 0]
        return joined

    def _histogram(self, keys: np.ndarray, values: np.ndarray, *, per_cpu: bool) -> pd.DataFrame:
        counts = values.view(np.uint64)[..., 0]  # (slots, cpus)
        order = np.argsort(keys.view(np.uint32)[:, 0])
        unit = self.spec.histogram["unit"]
        if not per_cpu:
            return histogram.from_log2(counts[order].sum(axis=1), unit=unit)
        parts = [
            histogram.from_log2(counts[order, place], unit=unit).assign(cpu=cpu)
            for place, cpu in enumerate(bpfsys.possible_cpu_list())
        ]
        return pd.concat(parts, ignore_index=True)[["cpu", "lo", "hi", "unit", "count"]]

    def _per_cpu_frame(
        self,
        key_layout: Layout,
        columns: dict[str, np.ndarray],
        value_layout: Layout,
        data: dict[str, np.ndarray],
    ) -> pd.DataFrame:
        first = next(iter(data.values()))
        rows, cpus = first.shape[:2]
        repeated = {name: np.repeat(values, cpus, axis=0) for name, values in columns.items()}
        flat = {name: values.reshape(rows * cpus, *values.shape[2:]) for name, values in data.items()}
        frame = _assemble(key_layout, repeated, value_layout, flat)
        frame.insert(len(key_layout.columns), "cpu", np.tile(np.array(bpfsys.possible_cpu_list()), rows))
        return frame

    def _explode(
        self,
        key_layout: Layout,
        columns: dict[str, np.ndarray],
        value_layout: Layout,
        joined: dict[str, np.ndarray],
        member: str,
    ) -> pd.DataFrame:
        if member not in self.spec.arrays or member not in joined:
            raise MapError(
                f"map {self.definition.name} has no histogram {member!r}",
                why=f"it has: {', '.join(self.spec.arrays) or 'none'}",
            )
        counts = joined[member]
        slots = counts.shape[1]
        lo, hi = histogram.log2_edges(slots)
        repeated = {name: np.repeat(values, slots, axis=0) for name, values in columns.items()}
        frame = _assemble(key_layout, repeated, Layout(0, ()), {})
        return frame.assign(
            lo=np.tile(lo, len(counts)),
            hi=np.tile(hi, len(counts)),
            unit=pd.Series([self.spec.arrays[member]["unit"]] * (slots * len(counts)), dtype="str"),
            count=counts.reshape(-1).astype(np.uint64),
        )


def _assemble(
    key_layout: Layout, keys: dict[str, np.ndarray], value_layout: Layout, values: dict[str, np.ndarray]
) -> pd.DataFrame:
    columns: dict[str, pd.Series | np.ndarray] = {}
    for layout, data in ((key_layout, keys), (value_layout, values)):
        for column in layout.columns:
            if column.text or column.count > 1:
                columns.update(layout.series(column, data[column.name]))
            else:
                columns[column.name] = data[column.name]
    return pd.DataFrame(columns, copy=False)  # nobody else holds these arrays


def _round8(size: int) -> int:
    return (size + 7) // 8 * 8


def _kind_name(kind: int) -> str:
    try:
        return MapType(kind).name.lower()
    except ValueError:
        return f"number {kind}"

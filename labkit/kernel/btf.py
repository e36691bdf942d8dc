"""The running kernel's type layouts, from its BTF.

BTF is the kernel's own description of its types (``Documentation/bpf/btf.rst``), at ``/sys/kernel/btf/vmlinux``. It
describes the kernel that runs, whichever headers are installed. This module reads the few kinds of record that
offsets need, in one pass, and writes minimal C structs from them.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import MissingBTF

__all__ = ["BTF", "Member", "kernel", "minimal_structs", "vmlinux_path"]

_MAGIC = 0xEB9F
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
_VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC = 9, 10, 11, 12, 13, 14, 15
_FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = 16, 17, 18, 19
_TRANSPARENT = {_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG}
# Bytes that follow the 12-byte record: a constant, and per element of vlen.
_TAIL = {
    _INT: (4, 0),
    _ARRAY: (12, 0),
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    _ENUM: (0, 8),
    _FUNC_PROTO: (0, 8),
    _VAR: (4, 0),
    _DATASEC: (0, 12),
    _DECL_TAG: (4, 0),
    _ENUM64: (0, 12),
}


def vmlinux_path() -> Path:
    """Where the running kernel's BTF is; ``LABKIT_BTF`` overrides it (tests, or a BTF file from elsewhere)."""
    return Path(os.environ.get("LABKIT_BTF", "/sys/kernel/btf/vmlinux"))


@dataclass(frozen=True)
class Member:
    """A member found in a struct: its place, its size in bytes and its C type as text."""

    offset_bytes: int
    size_bytes: int
    ctype: str
    dims: tuple[int, ...] = ()


class BTF:
    """The types in one BTF blob.

    :param data: the file's content, such as that of ``/sys/kernel/btf/vmlinux``.
    :raises MissingBTF: if it is not BTF, or is cut short.

    >>> kernel().offset("task_struct", "pid")      # doctest: +SKIP
    1464
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.digest = hashlib.sha256(data).hexdigest()[:16]
        try:
            self._index()
        except (struct.error, IndexError) as error:
            raise MissingBTF(
                "the kernel's BTF cannot be read",
                why=str(error) or type(error).__name__,
                remedy="check that /sys/kernel/btf/vmlinux is whole; `labkit doctor` shows the state",
            ) from error

    def _index(self) -> None:
        magic, _version, _flags, header = struct.unpack_from("=HBBI", self._data, 0)
        if magic != _MAGIC:
            raise struct.error(f"magic is {magic:#x}, not {_MAGIC:#x}")
        type_off, type_len, str_off, str_len = struct.unpack_from("=IIII", self._data, 8)
        self._strings = header + str_off
        if self._strings + str_len > len(self._data):
            raise struct.error("the file is cut short")
        start, end = header + type_off, header + type_off + type_len
        records: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)]  # id 0 is void
        named: dict[tuple[int, int], int] = {}
        unpack = struct.Struct("=III").unpack_from
        data, position = self._data, start
        while position < end:
            name, info, size = unpack(data, position)
            kind, vlen = (info >> 24) & 0x1F, info & 0xFFFF
            if kind > _ENUM64:  # of unknown length: what follows would be read at wrong places
                raise struct.error(f"a record of kind {kind}, which is newer than this labkit")
            if name and kind in (_STRUCT, _UNION, _TYPEDEF, _FUNC, _INT, _ENUM, _ENUM64):
                named.setdefault((kind, name), len(records))
            records.append((position, info, size, name))
            fixed, each = _TAIL.get(kind, (0, 0))
            position += 12 + fixed + each * vlen
        self._records, self._named_at = records, named

    @functools.cached_property
    def _names(self) -> dict[tuple[int, str], int]:
        return {(kind, self._string(offset)): number for (kind, offset), number in self._named_at.items()}

    def _string(self, offset: int) -> str:
        start = self._strings + offset
        return self._data[start : self._data.index(b"\0", start)].decode("ascii", "replace")

    def _kind(self, number: int) -> int:
        return (self._records[number][1] >> 24) & 0x1F

    def _resolve(self, number: int) -> int:
        while self._kind(number) in _TRANSPARENT:
            number = self._records[number][2]
        return number

    def _struct(self, name: str) -> int:
        for kind in (_STRUCT, _UNION):
            number = self._names.get((kind, name))
            if number is not None:
                return number
        typedef = self._names.get((_TYPEDEF, name))
        if typedef is not None:
            number = self._resolve(typedef)
            if self._kind(number) in (_STRUCT, _UNION):
                return number
        near = difflib.get_close_matches(name, [n for k, n in self._names if k in (_STRUCT, _UNION)], 3)
        raise MissingBTF(
            f"this kernel has no struct {name}",
            why=f"nearest: {', '.join(near)}" if near else "nothing of a similar name in its BTF",
            remedy="check the name; kernels differ in what they are built with",
        )

    def has_struct(self, name: str) -> bool:
        """True if the kernel has a struct or union of that name."""
        return any((kind, name) in self._names for kind in (_STRUCT, _UNION))

    def function_id(self, name: str) -> int | None:
        """BTF id of a kernel function (for fentry), or None."""
        return self._names.get((_FUNC, name))

    def functions(self) -> list[str]:
        """Names of all functions described."""
        return [name for kind, name in self._names if kind == _FUNC]

    def raw_tracepoints(self) -> list[str]:
        """Names of all tracepoints: each leaves a typedef ``btf_trace_NAME`` (``include/trace/bpf_probe.h``)."""
        prefix = "btf_trace_"
        return [
            name[len(prefix) :] for kind, name in self._names if kind == _TYPEDEF and name.startswith(prefix)
        ]

    def tracepoint_args(self, name: str) -> int | None:
        """How many arguments a raw tracepoint hands over (``sched_switch``: 3, since 5.18 4), or None."""
        typedef = self._names.get((_TYPEDEF, f"btf_trace_{name}"))
        if typedef is None:
            return None
        proto = self._resolve(self._records[self._resolve(typedef)][2])
        if self._kind(proto) != _FUNC_PROTO:
            return None
        return (self._records[proto][1] & 0xFFFF) - 1  # the first is `void *__data`

    def enumerator(self, enum_name: str, name: str) -> int | None:
        """The number of one value of an enum (``cgroup_subsys_id``, ``cpu_cgrp_id``), or None."""
        number = self._names.get((_ENUM, enum_name))
        if number is None:
            return None
        position, info, _, _ = self._records[number]
        for index in range(info & 0xFFFF):
            string, value = struct.unpack_from("=Ii", self._data, position + 12 + 8 * index)
            if self._string(string) == name:
                return int(value)
        return None

    def size(self, struct_name: str) -> int:
        """Size of a struct in bytes."""
        return self._records[self._struct(struct_name)][2]

    def offset(self, struct_name: str, path: str) -> int:
        """Offset in bytes of a member, which may be nested: ``offset("task_struct", "se.cfs_rq")``.

        :raises MissingBTF: if the struct or the member is not there, with the nearest names.
        """
        return self.member(struct_name, path).offset_bytes

    def has(self, struct_name: str, path: str) -> bool:
        """True if the struct has that member."""
        try:
            self.member(struct_name, path)
        except MissingBTF:
            return False
        return True

    def member(self, struct_name: str, path: str) -> Member:
        """Place, size and C type of a member; anonymous structs and unions are looked through."""
        number, base = self._struct(struct_name), 0
        for part in path.split("."):
            found = self._find(self._resolve(number), part)
            if found is None:
                near = difflib.get_close_matches(part, self._member_names(self._resolve(number)), 3)
                raise MissingBTF(
                    f"struct {struct_name} has no member {path} on this kernel",
                    why=f"nearest: {', '.join(near)}" if near else "no member of a similar name",
                    remedy="list it as optional (NAME?) or with alternatives (A|B) in the program's `types:`",
                )
            bits, number = found
            if bits % 8:
                raise MissingBTF(
                    f"{struct_name}.{path} is a bit field",
                    why="it has no byte offset",
                    remedy="read the word around it",
                )
            base += bits // 8
        ctype, dims, size = self._ctype(number)
        return Member(base, size, ctype, dims)

    def _members(self, number: int) -> Iterable[tuple[str, int, int]]:
        position, info, _, _ = self._records[number]
        flagged = info >> 31  # kind_flag: the top byte of the offset is a bit field's size
        for index in range(info & 0xFFFF):
            name, kind, bits = struct.unpack_from("=III", self._data, position + 12 + 12 * index)
            yield self._string(name) if name else "", kind, (bits & 0xFFFFFF) if flagged else bits

    def _find(self, number: int, name: str) -> tuple[int, int] | None:
        if self._kind(number) not in (_STRUCT, _UNION):
            return None
        for member, kind, bits in self._members(number):
            if member == name:
                return bits, kind
            if not member:
                inner = self._find(self._resolve(kind), name)
                if inner is not None:
                    return bits + inner[0], inner[1]
        return None

    def _member_names(self, number: int) -> list[str]:
        if self._kind(number) not in (_STRUCT, _UNION):
            return []
        names = []
        for member, kind, _ in self._members(number):
            names.extend([member] if member else self._member_names(self._resolve(kind)))
        return names

    def _ctype(self, number: int) -> tuple[str, tuple[int, ...], int]:
        """C text, array dimensions and size of a type; what has no simple C form becomes bytes."""
        number = self._resolve(number)
        kind, size = self._kind(number), self._records[number][2]
        if kind == _INT:
            (encoding,) = struct.unpack_from("=I", self._data, self._records[number][0] + 12)
            signed = (encoding >> 24) & 1
            text = {1: "char", 2: "short", 4: "int", 8: "long long"}.get(size)
            if text is None:
                return "unsigned char", (size,), size
            return f"{'signed' if signed else 'unsigned'} {text}", (), size
        if kind in (_ENUM, _ENUM64):
            return {1: "unsigned char", 4: "int", 8: "long long"}.get(size, "int"), (), size
        if kind == _PTR:
            target = self._resolve(self._records[number][2])
            name = self._string(self._records[target][3]) if target else ""
            if self._kind(target) in (_STRUCT, _UNION, _FWD) and name:
                word = "union" if self._kind(target) == _UNION else "struct"
                return f"{word} {name} *", (), 8
            return "void *", (), 8
        if kind == _ARRAY:
            element, _index, count = struct.unpack_from("=III", self._data, self._records[number][0] + 12)
            text, dims, width = self._ctype(element)
            return text, (count, *dims), width * count
        if kind in (_STRUCT, _UNION):
            name = self._string(self._records[number][3])
            word = "union" if kind == _UNION else "struct"
            return (f"{word} {name}" if name else "unsigned char"), (() if name else (size,)), size
        return "unsigned char", (size,), size


@functools.lru_cache(maxsize=4)
def _load(path: str, _mtime_ns: int) -> BTF:
    return BTF(Path(path).read_bytes())


def kernel() -> BTF:
    """The running kernel's BTF, read once per process.

    :raises MissingBTF: if there is none.
    """
    path = vmlinux_path()
    try:
        return _load(str(path), path.stat().st_mtime_ns if "LABKIT_BTF" in os.environ else 0)
    except OSError as error:
        raise MissingBTF(
            f"no BTF at {path}",
            why=error.strerror or str(error),
            remedy="use a kernel built with CONFIG_DEBUG_INFO_BTF=y (Debian 12, Ubuntu 22.04 and later have it); "
            "or go on in replay: --mode replay",
        ) from error


def minimal_structs(btf: BTF, wanted: Iterable[str]) -> str:
    """C definitions of kernel structs with only the wanted members, at this kernel's offsets.

    :param wanted: ``"task_struct.pid"``; ``"task_struct.__state|state"`` takes the first that exists and defines
        ``LK_task_struct___state`` as its name; ``"task_struct.throttled?"`` may be absent. Each member that is there
        defines ``LK_HAS_<struct>_<member>``.
    :raises MissingBTF: if a member is in no variant there.
    """
    chosen: dict[str, dict[str, Member]] = {}
    defines: list[str] = []
    for item in wanted:
        offset_only, item = item.startswith("@"), item.removeprefix("@")
        struct_name, _, rest = item.partition(".")
        optional, names = rest.endswith("?"), rest.rstrip("?").split("|")
        present = [name for name in names if btf.has_struct(struct_name) and btf.has(struct_name, name)]
        if not present:
            if optional:
                continue
            btf.member(struct_name, names[0])  # raises, with the nearest names
        name = present[0]
        if offset_only:
            defines.append(f"#define LK_OFFSET_{struct_name}_{name} {btf.offset(struct_name, name)}")
            continue
        chosen.setdefault(struct_name, {})[name] = btf.member(struct_name, name)
        defines.append(f"#define LK_HAS_{struct_name}_{names[0].replace('.', '_')} 1")
        if len(names) > 1:
            defines.append(f"#define LK_{struct_name}_{names[0]} {name}")
    forward = sorted(
        {
            m.ctype.rstrip(" *")
            for members in chosen.values()
            for m in members.values()
            if m.ctype.endswith("*")
        }
        - {"void"}
    )
    bodies = [_definition(btf, name, chosen[name]) for name in _inner_first(chosen)]
    return "\n".join([*defines, *(f"{name};" for name in forward), *bodies]) + "\n"


def _inner_first(chosen: dict[str, dict[str, Member]]) -> list[str]:
    """Structs embedded in others must be defined before them."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        for member in chosen[name].values():
            inner = member.ctype.removeprefix("struct ").removeprefix("union ")
            if inner in chosen:
                visit(inner)
        order.append(name)

    for name in chosen:
        visit(name)
    return order


def _definition(btf: BTF, name: str, members: dict[str, Member]) -> str:
    lines, checks, position = [f"struct {name} {{"], [], 0
    for member, place in sorted(members.items(), key=lambda item: item[1].offset_bytes):
        if "." in member:
            raise MissingBTF(
                f"{name}.{member}: nested members are named step by step",
                remedy=f"list {name}.{member.split('.')[0]} and the inner struct's member",
            )
        if place.offset_bytes < position:
            raise MissingBTF(f"{name}.{member} overlaps another member", remedy="list one of the two")
        if place.offset_bytes > position:
            lines.append(f"    char lk_gap_{position}[{place.offset_bytes - position}];")
        dims = "".join(f"[{n}]" for n in place.dims)
        lines.append(f"    {place.ctype} {member}{dims};")
        checks.append(
            f'_Static_assert(__builtin_offsetof(struct {name}, {member}) == {place.offset_bytes}, "{name}.{member}");'
        )
        position = place.offset_bytes + place.size_bytes
    if btf.size(name) > position:
        lines.append(f"    char lk_gap_{position}[{btf.size(name) - position}];")
    lines.append("};")
    checks.append(f'_Static_assert(sizeof(struct {name}) == {btf.size(name)}, "size of {name}");')
    return "\n".join(lines + checks)

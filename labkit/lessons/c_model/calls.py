"""What a program can call: methods of bcc's maps, helpers of the kernel, and its own functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pycparser import c_ast

from labkit.lessons.c_model.declarations import integers, line_of
from labkit.lessons.c_model.errors import NotC, NotRun, Refused
from labkit.lessons.c_model.expressions import Expressions, Frame, Value
from labkit.lessons.c_model.machine import Machine, ModelMap, RingRecords
from labkit.lessons.c_model.types import CType, Pointer, Struct, Void, converter

if TYPE_CHECKING:
    from labkit.lessons.c_model.code import Compiler

__all__ = ["compiled"]

_I = integers()
_INT, _U32, _U64, _LONG = _I["int"], _I["unsigned int"], _I["unsigned long long"], _I["long"]
_EFAULT = -14
_MASK = 0xFFFFFFFFFFFFFFFF

Helper = Callable[..., int]


def compiled(node: c_ast.FuncCall, scope: Expressions, compiler: Compiler) -> Value:
    """A call as a value."""
    arguments = list(node.args.exprs) if node.args else []
    if isinstance(node.name, c_ast.StructRef) and isinstance(node.name.name, c_ast.ID):
        name, machine = node.name.name.name, compiler.machine
        if name in machine.maps:
            return _map_method(machine.maps[name], node, arguments, scope, compiler)
        if name in machine.rings:
            return _ring_method(machine.rings[name], node, arguments, scope, compiler)
        raise NotC(f"there is no map `{name}`, in line {line_of(node)}")
    if not isinstance(node.name, c_ast.ID):
        raise NotRun(f"a call by pointer, in line {line_of(node)}, is not known here")
    name = node.name.name
    if name == "offsetof":
        return _offset_of(arguments, compiler)
    if name in compiler.declarations.functions:
        return _own(name, node, [scope.value(one) for one in arguments], compiler)
    return _helper(name, node, [scope.value(one) for one in arguments], compiler)


def _offset_of(arguments: list[Any], compiler: Compiler) -> Value:
    struct, member = compiler.declarations.type(arguments[0]), arguments[1].name
    if not isinstance(struct, Struct) or member not in struct.members:
        raise NotC(f"{struct} has no member `{member}`")
    offset = struct.members[member].offset
    return Value(_I["unsigned long"], lambda frame: offset)


def _own(name: str, node: c_ast.FuncCall, values: list[Value], compiler: Compiler) -> Value:
    result, types, _ = compiler.function(name)
    if len(values) != len(types):
        raise NotC(f"{name}() takes {len(types)} arguments, not {len(values)}, in line {line_of(node)}")
    for value, ctype in zip(values, types, strict=True):
        if isinstance(value.ctype, Void) or isinstance(value.ctype, Struct) is not isinstance(ctype, Struct):
            raise NotC(f"{name}() does not take {value.ctype} for {ctype}, in line {line_of(node)}")
    fits, machine, line = [converter(one) for one in types], compiler.machine, line_of(node)

    def call(frame: Frame) -> int:
        given = [fit(value.get(frame)) for fit, value in zip(fits, values, strict=True)]
        answer = compiler.function(name)[2](*given)
        machine.line = line
        return answer

    return Value(result, call)


# -- maps --------------------------------------------------------------------------------------------------------------


def _bytes_at(value: Value, size: int, machine: Machine, node: Any) -> Callable[[Frame], bytes]:
    if not isinstance(value.ctype, Pointer):
        raise NotC(f"the address of a key or a value is asked for, in line {line_of(node)}")
    memory, get = machine.memory, value.get
    return lambda frame: memory.copied(get(frame), size)


def _map_method(
    table: ModelMap, node: c_ast.FuncCall, arguments: list[Any], scope: Expressions, compiler: Compiler
) -> Value:
    method, declared, machine, line = node.name.field.name, table.declared, compiler.machine, line_of(node)
    known = {"lookup": 1, "lookup_or_try_init": 2, "lookup_or_init": 2, "update": 2, "insert": 2, "delete": 1}
    if method in ("increment", "atomic_increment"):
        return _increment(table, arguments, scope, compiler)
    if method in ("push", "pop", "peek"):
        return _queue_method(table, method, [scope.value(one) for one in arguments], machine, node)
    if method not in known or declared.kind == "queue":
        raise NotRun(f"{declared.name}.{method}(), in line {line}, is not known here")
    if len(arguments) != known[method]:
        raise NotC(f"{declared.name}.{method}() takes {known[method]} arguments, in line {line}")
    values = [scope.value(one) for one in arguments]
    key = _bytes_at(values[0], declared.key.size, machine, node)
    fresh = _bytes_at(values[1], declared.value.size, machine, node) if len(values) > 1 else None
    if method == "delete":
        return Value(_INT, lambda frame: table.delete(key(frame)))
    if method in ("update", "insert"):
        assert fresh is not None
        put = fresh

        def update(frame: Frame) -> int:
            return table.update(key(frame), put(frame), machine.cpu, only_new=method == "insert")

        return Value(_INT, update)
    site = machine.site(f"{declared.name}.{method}()", line)

    def lookup(frame: Frame) -> int:
        where = key(frame)
        start = fresh(frame) if fresh is not None else None
        if machine.failing == site:
            return 0
        found = table.lookup(where, machine.cpu)
        if not found and start is not None and not table.update(where, start, machine.cpu, only_new=True):
            found = table.lookup(where, machine.cpu)
        return found

    return Value(Pointer(declared.value), lookup)


def _increment(table: ModelMap, arguments: list[Any], scope: Expressions, compiler: Compiler) -> Value:
    """bcc's shorthand takes the key itself: ``counts.increment(key)``, or with how much."""
    machine, declared = compiler.machine, table.declared
    place = scope.place(arguments[0])
    by = scope.value(arguments[1]).get if len(arguments) > 1 else None
    if place.address is None:
        raise NotRun(f"{declared.name}.increment() of such a key is not known here")
    address, memory, size = place.address, machine.memory, declared.value.size

    def increment(frame: Frame) -> int:
        key = memory.copied(address(frame), declared.key.size)
        if not table.lookup(key, machine.cpu):
            table.update(key, bytes(size), machine.cpu)
        found = table.lookup(key, machine.cpu)
        if found:
            memory.write(found, size, memory.read(found, size) + (by(frame) if by is not None else 1))
        return 0

    return Value(Void(), increment)


def _queue_method(table: ModelMap, method: str, values: list[Value], machine: Machine, node: Any) -> Value:
    if table.declared.kind != "queue" or not values:
        raise NotC(f"{table.declared.name}.{method}() is for queues, in line {line_of(node)}")
    size, memory, get = table.declared.value.size, machine.memory, values[0].get
    if method == "push":
        return Value(_INT, lambda frame: table.push(memory.copied(get(frame), size)))

    def pop(frame: Frame) -> int:
        address = get(frame)
        if method == "peek" and table.queue:
            memory.put(address, table.queue[0])
            return 0
        found = table.pop() if method == "pop" else None
        if found is None:
            return -2
        memory.put(address, found)
        return 0

    return Value(_INT, pop)


def _ring_method(
    ring: RingRecords, node: c_ast.FuncCall, arguments: list[Any], scope: Expressions, compiler: Compiler
) -> Value:
    method, machine, line = node.name.field.name, compiler.machine, line_of(node)
    values = [scope.value(one) for one in arguments]
    if method == "ringbuf_reserve" and len(values) == 1:
        site = machine.site(f"{ring.declared.name}.ringbuf_reserve()", line)
        size = values[0].get
        return Value(
            Pointer(Void()),
            lambda frame: 0 if machine.failing == site else ring.reserve(size(frame)),
        )
    if method in ("ringbuf_submit", "ringbuf_discard") and len(values) == 2:
        record, keep = values[0].get, method == "ringbuf_submit"

        def finish(frame: Frame) -> int:
            ring.finish(record(frame), keep=keep)
            return 0

        return Value(Void(), finish)
    if method == "ringbuf_output" and len(values) == 3:
        data, length, memory = values[0].get, values[1].get, machine.memory
        return Value(_INT, lambda frame: ring.output(memory.copied(data(frame), length(frame))))
    raise NotRun(
        f"{ring.declared.name}.{method}() with {len(values)} arguments, in line {line}, is not known here"
    )


# -- helpers -----------------------------------------------------------------------------------------------------------


def _helper(name: str, node: c_ast.FuncCall, values: list[Value], compiler: Compiler) -> Value:
    machine, line = compiler.machine, line_of(node)
    if name.startswith("__sync_"):
        return _atomic(name, values, machine, line)
    if name in ("likely", "unlikely", "__builtin_expect") and values:
        return values[0]
    if name in ("bpf_trace_printk", "bpf_printk"):
        return Value(_INT, lambda frame: 0)
    if name not in _HELPERS:
        if name.startswith(("bpf_", "__builtin_", "__atomic_", "PT_REGS")):
            raise NotRun(f"{name}(), in line {line}, is not known here")
        raise NotC(f"there is no function {name}(), in line {line}")
    result, count, helper = _HELPERS[name]
    if len(values) != count:
        raise NotC(f"{name}() takes {count} arguments, not {len(values)}, in line {line}")
    fit = converter(result)
    gets = [one.get for one in values]
    return Value(result, lambda frame: fit(helper(machine, *(get(frame) for get in gets))))


def _atomic(name: str, values: list[Value], machine: Machine, line: int) -> Value:
    operations: dict[str, Callable[[int, int], int]] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "or": lambda a, b: a | b,
        "and": lambda a, b: a & b,
    }
    operation = name.removeprefix("__sync_fetch_and_")
    if operation not in operations or len(values) != 2:
        raise NotRun(f"{name}(), in line {line}, is not known here")
    if not isinstance(values[0].ctype, Pointer):
        raise NotC(f"{name}() takes an address first, in line {line}")
    ctype, memory, change = values[0].ctype.to, machine.memory, operations[operation]
    where, by, fit, size = values[0].get, values[1].get, converter(ctype), ctype.size

    def run(frame: Frame) -> int:
        address = where(frame)
        was = memory.read(address, size)
        memory.write(address, size, change(was, by(frame)))
        return fit(was)

    return Value(ctype, run)


def _probe_read(machine: Machine, into: int, size: int, source: int) -> int:
    """An address that leads nowhere gives zeros and an error, and no fault."""
    memory = machine.memory
    try:
        data, status = memory.copied(source, size), 0
    except Refused:
        data, status = bytes(size), _EFAULT
    memory.put(into, data)
    return status


def _probe_read_str(machine: Machine, into: int, size: int, source: int) -> int:
    memory = machine.memory
    try:
        region, offset = memory.at(source, 1)
    except Refused:
        return _EFAULT
    text = bytes(region.data[offset : offset + size]).split(b"\0")[0][: size - 1]
    memory.put(into, text + b"\0")
    return len(text) + 1


def _comm(machine: Machine, into: int, size: int) -> int:
    machine.memory.put(into, machine.comm[: max(size - 1, 0)].ljust(size, b"\0"))
    return 0


def _set(machine: Machine, into: int, value: int, size: int) -> int:
    machine.memory.put(into, bytes([value & 255]) * size)
    return into


def _copy(machine: Machine, into: int, source: int, size: int) -> int:
    machine.memory.put(into, machine.memory.copied(source, size))
    return into


def _log2(machine: Machine, value: int) -> int:
    return max((value & 0xFFFFFFFF).bit_length() - 1, 0)


_VOID = Pointer(Void())
_HELPERS: dict[str, tuple[CType, int, Helper]] = {
    "bpf_ktime_get_ns": (_U64, 0, lambda machine: machine.now_ns),
    "bpf_ktime_get_boot_ns": (_U64, 0, lambda machine: machine.now_ns),
    "bpf_get_current_pid_tgid": (_U64, 0, lambda machine: machine.tgid << 32 | machine.pid),
    "bpf_get_current_cgroup_id": (_U64, 0, lambda machine: machine.cgroup_id),
    "bpf_get_smp_processor_id": (_U32, 0, lambda machine: machine.cpu),
    "bpf_get_prandom_u32": (_U32, 0, lambda machine: machine.random.getrandbits(32)),
    "bpf_get_current_uid_gid": (_U64, 0, lambda machine: 0),  # root's
    "bpf_get_current_task": (_U64, 0, lambda machine: machine.current),
    "bpf_get_current_comm": (_INT, 2, _comm),
    "bpf_probe_read_kernel": (_LONG, 3, _probe_read),
    "bpf_probe_read": (_LONG, 3, _probe_read),
    "bpf_probe_read_kernel_str": (_LONG, 3, _probe_read_str),
    "bpf_probe_read_str": (_LONG, 3, _probe_read_str),
    "__builtin_memset": (_VOID, 3, _set),
    "memset": (_VOID, 3, _set),
    "__builtin_memcpy": (_VOID, 3, _copy),
    "memcpy": (_VOID, 3, _copy),
    # bcc's own (helpers.h), whose slots for histograms are one too high
    "bpf_log2": (_U32, 1, _log2),
    "bpf_log2l": (_U32, 1, lambda machine, value: max(value.bit_length() - 1, 0) + 1),
}

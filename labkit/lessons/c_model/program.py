"""A program as :class:`labkit.program.Program` is one, in a model instead of the kernel: the same frames and ledger."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping

import numpy as np

from labkit.bpfsys import MapType
from labkit.compiler import MapDef
from labkit.errors import MapError
from labkit.layout import layout_of
from labkit.ledger import Ledger
from labkit.lessons.c_model.code import Compiler
from labkit.lessons.c_model.errors import NotC, NotRun, Refused
from labkit.lessons.c_model.kernel import SYSCALLS, TRACEPOINTS, Kernel, Task, definitions
from labkit.lessons.c_model.machine import CPUS, Machine, ModelMap, RingRecords
from labkit.lessons.c_model.source import preprocess
from labkit.maps import Map
from labkit.paths import bpf_dir
from labkit.program import Program
from labkit.ring import Batch, EventType
from labkit.spec import Hook, LedgerSpec, parse

__all__ = ["DryProgram", "Script", "run"]

#: Feeds a program with what happens; it is handed the program, and makes a kernel of its own each time.
Script = Callable[["DryProgram"], None]

_KINDS = {
    "hash": MapType.HASH,
    "percpu_hash": MapType.PERCPU_HASH,
    "array": MapType.ARRAY,
    "percpu_array": MapType.PERCPU_ARRAY,
    "queue": MapType.QUEUE,
    "ringbuf": MapType.RINGBUF,
}
_EVENTS_WITH_A_FAILURE = 80


class _Enough(Exception):
    """A script has gone on for long enough."""


class _DryMap(Map):
    """A map whose entries are those of the model."""

    model: ModelMap

    def raw(self) -> tuple[np.ndarray, np.ndarray]:
        """All entries as bytes, as the kernel would hand them out; an array's all, a hash's in the order they came."""
        declared, memory = self.model.declared, self.model._memory
        size, cpus = declared.value.size, CPUS if self.per_cpu else 1
        stride = -(-size // 8) * 8 if self.per_cpu else size
        if self.model.array:
            numbers = np.arange(declared.entries, dtype=np.uint32)
            keys = numbers.view(np.uint8).reshape(-1, 4)
            places = {key: int.from_bytes(key, "little") for key in self.model.entries}
        else:
            places = {key: place for place, key in enumerate(self.model.entries)}
            keys = np.frombuffer(b"".join(places), np.uint8).reshape(len(places), declared.key.size)
        values = np.zeros((len(keys), cpus, stride), np.uint8)
        for key, addresses in self.model.entries.items():
            for cpu, address in enumerate(addresses):
                values[places[key], cpu, :size] = np.frombuffer(memory.copied(address, size), np.uint8)
        return keys, values


class _DryRing:
    """What was submitted, in batches by kind; one reading takes it all."""

    def __init__(self, model: RingRecords, kinds: list[EventType], tag: tuple[int, int] | None) -> None:
        self.kinds = kinds
        self.received = 0
        self._model, self._tag = model, tag

    @property
    def backlog_bytes(self) -> int:
        """What is not read yet."""
        return sum(len(record) for record in self._model.submitted)

    def read(self, limit: int = 1 << 30) -> list[Batch]:
        """Everything that was submitted."""
        records, self._model.submitted = self._model.submitted, []
        found = []
        for kind in self.kinds:
            mine = [one for one in records if self._is(one, kind)]
            if mine:
                raw = np.frombuffer(b"".join(mine), np.uint8).reshape(len(mine), kind.layout.size)
                found.append(Batch(kind, kind.layout.arrays(raw.copy())))
                self.received += len(mine)
        if sum(len(batch) for batch in found) != len(records):
            raise MapError("a record is of no kind that the header comment names")
        return found

    def _is(self, record: bytes, kind: EventType) -> bool:
        if self._tag is None or kind.tag is None:
            return len(record) == kind.layout.size
        offset, size = self._tag
        return int.from_bytes(record[offset : offset + size], "little") == kind.tag


class DryProgram(Program):
    """A program that runs on what it is told of: recorded or made-up events.

    :raises NotC: if it cannot be compiled.
    :raises NotRun: if it uses what is not modelled.
    :raises SpecError, ParameterError: as :func:`labkit.load` does.
    """

    def __init__(self, name: str, source: str, params: Mapping[str, object]) -> None:
        spec = parse(source, name=name)
        super().__init__(spec, spec.constants(params), label=f"{name} (not in a kernel)")
        self._chosen = {
            label: next((hook for hook in hooks if _known(hook)), None) for label, hooks in spec.hooks.items()
        }
        for label, hook in self._chosen.items():
            if hook is None:
                raise NotRun(f"none of the hooks of `{label}` is known here")
        self.machine = Machine(seed=7)
        self._left_to_fire: int | None = None
        self._resting = set(spec.on_demand)
        includes = {"lk.h": (bpf_dir() / "lk.h").read_text(), "lk_generated.h": self._header()}
        self._code = Compiler(preprocess(source, f"{name}.c", includes), f"{name}.c", self.machine)
        self._functions = {}
        for label in self._chosen:
            try:
                self._functions[label] = self._code.function(f"lk_{label}")
            except KeyError:
                if label not in self._resting:
                    raise NotC(f"there is no function lk_{label} for the hook `{label}`") from None
        self._make_frames()

    def _header(self) -> str:
        lines = ["struct bpf_raw_tracepoint_args { unsigned long long args[12]; };"]
        for name, value in self.params.items():
            lines.append(f"#define LK_PARAM_{name.upper()} {value}{'ULL' if value >= 2**32 else ''}")
        for label, hook in self._chosen.items():
            assert hook is not None
            lines.append(f"#define LK_HOOK_{label}_{hook.kind.upper()} 1")
            if hook.kind == "raw_tracepoint":
                lines.append(f"#define LK_ARGS_{hook.target} {TRACEPOINTS[hook.target]}")
        lines += [f"#define LK_NR_{name} {number}" for name, number in SYSCALLS.items()]
        return "\n".join([*lines, definitions(self.spec.types)])

    def _make_frames(self) -> None:
        for name, declared in self._code.declarations.maps.items():
            ring = declared.kind == "ringbuf"
            keyless = declared.kind in ("ringbuf", "queue")
            definition = MapDef(
                name,
                int(_KINDS[declared.kind]),
                0 if keyless else declared.key.size,
                0 if ring else declared.value.size,
                declared.entries,
                0,
                "" if keyless else json.dumps(declared.key.describe()),
                "" if ring else json.dumps(declared.value.describe()),
            )
            self._definitions[name] = definition
            if name in self.spec.event_types:
                continue
            table = _DryMap(definition, self.spec.map_spec(name))
            if not ring:
                table.model = self.machine.maps[name]
            self.maps[name] = table
        self.empty()

    def empty(self) -> None:
        """As it was when it was loaded."""
        self._rings.clear()
        for name, table in self.machine.maps.items():
            table.entries.clear()
            first = self.spec.map_spec(name).numbers_from
            numbers = range(first, table.declared.entries) if first is not None else ()
            table.queue = [number.to_bytes(4, "little") for number in numbers]
        for ring in self.machine.rings.values():
            ring.submitted.clear()
        self._resting = set(self.spec.on_demand)

    def kernel(self) -> Kernel:
        """A kernel without tasks, with the fields that this program knows."""
        return Kernel(self.machine, self._code.declarations.structs)

    # -- what happens ----------------------------------------------------------------------------------------------

    def happens(self, event: str, *arguments: int) -> None:
        """A raw tracepoint is passed, with these arguments.

        :raises Refused: if the program does what no program may.
        """
        for label, hook in self._chosen.items():
            if (
                hook is not None
                and _place(hook) == event
                and label in self._functions
                and label not in self._resting
            ):
                count = TRACEPOINTS[event] if hook.kind == "raw_tracepoint" else 8
                words = [one & 0xFFFFFFFFFFFFFFFF for one in arguments] + [0] * count
                self._call(label, words[:count])

    def syscall(self, kernel: Kernel, number: int, *arguments: int) -> None:
        """The current task enters a system call."""
        given = [*arguments, 0, 0, 0, 0, 0, 0][:6]
        names = {value: name for name, value in SYSCALLS.items()}
        for label, hook in self._chosen.items():
            if hook is None or label not in self._functions or label in self._resting:
                continue
            place = _place(hook)
            if hook.kind == "raw_tracepoint" and place == "sys_enter":
                regs = kernel.new("pt_regs", dx=given[2], orig_ax=number, di=given[0])
                self._call(label, [regs, number])
            elif (hook.kind == "tracepoint" and hook.target == "raw_syscalls:sys_enter") or (
                number in names and place.removeprefix("sys_enter_") == names[number]
            ):
                self._call(label, [0, number, *given])

    def switch(self, prev: Task, following: Task, *, preempt: bool = False, state: int = 0) -> None:
        """A CPU goes from one task to another; ``prev`` is current until then."""
        self.happens("sched_switch", int(preempt), prev.address, following.address, state)

    def _call(self, label: str, words: list[int]) -> None:
        if self._left_to_fire is not None:
            self._left_to_fire -= 1
            if self._left_to_fire < 0:
                raise _Enough
        memory = self.machine.memory
        data = b"".join(word.to_bytes(8, "little") for word in words)
        context = memory.new(len(data), "the context of the hook", kernel=True)
        memory.set(context, data)
        _, types, function = self._functions[label]
        try:
            function(*([context] if types else []))
            self.machine.finished()
        except Refused as error:
            raise Refused(self._located(error.what)) from error
        finally:
            memory.free(context)

    def _located(self, what: str) -> str:
        lines, line = self.spec.source.splitlines(), self.machine.line
        failing = self.machine.failing
        if failing is not None:
            _, call, at = self.machine.may_fail[failing]
            return (
                f"{call} in line {at} may return NULL, and the program goes on all the same "
                f"(line {line}: `{lines[line - 1].strip()}`)"
            )
        return f"{what}, in line {line}: `{lines[line - 1].strip()}`" if 0 < line <= len(lines) else what

    # -- as of a program that is loaded ----------------------------------------------------------------------------

    def attach(self, label: str) -> bool:
        """Let a hook that waits to be asked for be called, too."""
        self._resting.discard(label)
        return label in self._functions

    def ring(self, name: str) -> _DryRing:  # type: ignore[override]
        """A ring buffer's records."""
        if name not in self.machine.rings:
            raise MapError(f"program {self.spec.name} has no ring buffer {name!r}")
        return self._ring(name)

    @functools.cache  # noqa: B019 - one per program, and it lives as long
    def _ring(self, name: str) -> _DryRing:
        described = self.spec.map_spec(name).ring
        kinds = []
        for kind, tag in described.get("types", {}).items():
            found = self._definitions[kind]
            kinds.append(EventType(kind, layout_of(found.value_desc, size=found.value_size, name=kind), tag))
        where = None
        if len(kinds) > 1:
            member = next(one for one in kinds[0].layout.columns if one.name == described["tag"])
            where = (member.offset, member.dtype.itemsize)
        return _DryRing(self.machine.rings[name], kinds, where)

    def _read_ledger(self, spec: LedgerSpec) -> Ledger:
        missing = [name for name in ("seen", "delivered", *spec.losses) if name not in self.counters()]
        if missing:
            raise NotC(f"the ledger has no member `{missing[0]}`, which the header comment names")
        return dataclasses.replace(super()._read_ledger(spec), mode="replay")


def _known(hook: Hook) -> bool:
    if hook.kind == "raw_tracepoint":
        return hook.target in TRACEPOINTS
    place = _place(hook)
    if hook.kind == "tracepoint" and place in ("sys_enter", *TRACEPOINTS):
        return hook.target.startswith(("raw_syscalls:", "sched:"))
    return place.removeprefix("sys_enter_").removeprefix("sys_exit_") in SYSCALLS


def _place(hook: Hook) -> str:
    target = hook.target.rpartition(":")[2]
    for prefix in ("__x64_sys_", "__arm64_sys_", "sys_"):
        if hook.kind not in ("tracepoint", "raw_tracepoint") and target.startswith(prefix):
            return target.removeprefix(prefix)
    return target


def run(name: str, source: str, script: Script, **params: object) -> DryProgram:
    """Run a program on what a script makes happen, and as often again as it has calls that can fail.

    The verifier follows the path on which a look-up finds nothing, too, whether or not it ever does: so each of them is
    made to find nothing once, and a program that goes on all the same is refused.

    :raises NotC: it cannot be compiled; :raises NotRun: it is not modelled; :raises Refused: it may not be loaded.
    """
    program = DryProgram(name, source, params)
    for site in range(len(program.machine.may_fail)):
        program.machine.failing, program._left_to_fire = site, _EVENTS_WITH_A_FAILURE
        try:
            script(program)
        except _Enough:
            pass
        finally:
            program.machine.failing, program._left_to_fire = None, None
            program.empty()
    script(program)
    return program

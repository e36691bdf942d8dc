"""A program's header comment: what it is for, where it hooks in, what its maps hold.

The first comment of ``bpf/NAME.c`` is YAML. It is the one place where a program is described, for people and for labkit::

    /*
     * purpose: Count system calls per process, in the kernel.
     * hooks:                      # label -> candidates in order of preference
     *   enter: ["tracepoint:raw_syscalls:sys_enter", "raw_tracepoint:sys_enter"]
     * on_demand: []               # labels that load() leaves unattached (prog.attach); C may leave them out, too
     * types: [task_struct.pid]    # kernel fields it reads; A|B is an alternative, A? is optional
     * params:
     *   tgid: {type: u32, default: 0, help: "count only this process; 0 is all"}
     * maps:
     *   counts: {holds: "calls per process", key: tgid, value: calls}
     *   wait: {holds: "waits", histogram: {slots: log2, unit: ns}}
     * ledger: {event: system call, losses: [map_full]}
     */

``{sys}`` in a hook is the architecture's prefix of system call functions (``__x64_sys_``, ``__arm64_sys_``).
"""

from __future__ import annotations

import difflib
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from labkit.errors import ParameterError, SpecError, UnknownProgram
from labkit.paths import bpf_dir

__all__ = ["Hook", "LedgerSpec", "MapSpec", "Param", "ProgramSpec", "parse", "read"]

KINDS = ("kprobe", "kretprobe", "fentry", "tracepoint", "raw_tracepoint")
_PREFIX = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}
_RANGES = {
    "bool": (0, 1),
    "u8": (0, 2**8 - 1),
    "u16": (0, 2**16 - 1),
    "u32": (0, 2**32 - 1),
    "u64": (0, 2**64 - 1),
    "s32": (-(2**31), 2**31 - 1),
    "s64": (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True)
class Hook:
    """One candidate: its kind and what it attaches to (``"execve"``, ``"sched:sched_switch"``)."""

    kind: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.target}"


@dataclass(frozen=True)
class Param:
    """A typed parameter, a constant in the C program (``LK_PARAM_<NAME>``)."""

    name: str
    ctype: str
    default: int
    help: str = ""

    def check(self, value: object) -> int:
        """The value as the constant it becomes.

        :raises ParameterError: if the type is wrong or it does not fit.
        """
        if self.ctype == "bool" and isinstance(value, bool):
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int) or self.ctype == "bool":
            raise ParameterError(
                f"parameter {self.name} is {self.ctype}",
                why=f"{value!r} is {type(value).__name__}",
                remedy=self.help,
            )
        low, high = _RANGES[self.ctype]
        if not low <= value <= high:
            raise ParameterError(
                f"parameter {self.name} is {self.ctype}", why=f"{value} is not in {low}..{high}"
            )
        return value


@dataclass(frozen=True)
class MapSpec:
    """What a map holds, and the names of its columns where the C type has none.

    :param histogram: ``{"slots": "log2", "unit": "ns"}`` if an array map is a histogram.
    :param arrays: member -> the same, for array members of a value.
    :param ring: for a ring buffer: ``{"types": {"woken": 1, "switched": 2}, "tag": "kind"}``, the kinds of event by
        name with the value of the tag member that marks each. A map of that name describes the kind; it is not made.
    :param swaps: the program keeps it twice, as NAME and NAME_twin, and writes to the one that NAME_turn[0] names, so
        that :meth:`labkit.program.Program.swap` can take a snapshot and start anew without losing an update.
    :param numbers_from: a queue that load() fills with the numbers from this one up to its size: what there is to hand out.
    :param combine: member -> ``sum`` (the default for numbers), ``max``, ``min`` or ``last``: how per-CPU values join.
    """

    holds: str
    key: str = "key"
    value: str = "value"
    histogram: Mapping[str, str] = field(default_factory=dict)
    arrays: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    combine: Mapping[str, str] = field(default_factory=dict)
    numbers_from: int | None = None
    ring: Mapping[str, Any] = field(default_factory=dict)
    swaps: bool = False
    internal: bool = False


@dataclass(frozen=True)
class LedgerSpec:
    """Which members of the ``ledger`` map mean what.

    :param losses: members that count events seen and not delivered, by cause.
    :param notes: member -> words, for counts that a reader must know and that are neither delivered nor lost.
    :param unseen: member that counts what the kernel's own counter saw and the program was not called for.
    """

    event: str = "event"
    losses: tuple[str, ...] = ()
    unseen: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProgramSpec:
    """All that is said of a program, and its source."""

    name: str
    purpose: str
    source: str
    path: Path | None
    hooks: Mapping[str, tuple[Hook, ...]]
    maps: Mapping[str, MapSpec]
    types: tuple[str, ...] = ()
    params: Mapping[str, Param] = field(default_factory=dict)
    ledger: LedgerSpec | None = None
    needs: tuple[str, ...] = ()
    on_demand: tuple[str, ...] = ()

    @property
    def event_types(self) -> frozenset[str]:
        """Names of maps that only describe a kind of event."""
        return frozenset(kind for table in self.maps.values() for kind in table.ring.get("types", {}))

    def map_spec(self, name: str) -> MapSpec:
        """What is said of a map; a twin is like the other, and a map of which nothing is said is internal."""
        pair = self.maps.get(name.removesuffix("_twin"))
        if name.endswith("_twin") and pair is not None and pair.swaps:
            return replace(pair, internal=True)
        return self.maps.get(name, MapSpec(holds="", internal=True))

    def constants(self, given: Mapping[str, object]) -> dict[str, int]:
        """All parameters with the given values checked and put in.

        :raises ParameterError: for an unknown name (with the nearest), a wrong type or a value out of range.
        """
        unknown = set(given) - set(self.params)
        if unknown:
            name = sorted(unknown)[0]
            near = difflib.get_close_matches(name, list(self.params), 1)
            raise ParameterError(
                f"program {self.name} has no parameter {name}",
                why=f"nearest: {near[0]}" if near else f"it has: {', '.join(self.params) or 'none'}",
            )
        values = {name: param.default for name, param in self.params.items()}
        return values | {name: self.params[name].check(value) for name, value in given.items()}


def read(name: str) -> ProgramSpec:
    """The program ``bpf/NAME.c``.

    :raises UnknownProgram: if there is none, with the nearest names.
    :raises SpecError: if its header comment is not as it should be.
    """
    path = bpf_dir() / f"{name}.c"
    if not re.fullmatch(r"[a-z0-9_]+", name) or not path.is_file():
        names = sorted(p.stem for p in bpf_dir().glob("*.c"))
        near = difflib.get_close_matches(name, names, 3)
        raise UnknownProgram(
            f"there is no program {name!r}",
            why=f"nearest: {', '.join(near)}" if near else f"programs: {', '.join(names)}",
            remedy=f"a program is a file NAME.c in {bpf_dir()}",
        )
    return parse(path.read_text(), name=name, path=path)


def parse(source: str, *, name: str, path: Path | None = None) -> ProgramSpec:
    """Read the header comment of a C source.

    :raises SpecError: if there is none, or it is not as it should be.
    """
    comment = re.match(r"\s*/\*(.*?)\*/", source, re.S)
    if not comment:
        raise SpecError(f"program {name} has no header comment", remedy="see labkit/spec.py for its form")
    text = re.sub(r"^ ?\* ?", "", comment.group(1), flags=re.M)
    try:
        data = yaml.safe_load(text)
        if not isinstance(data, dict):
            raise SpecError(
                f"the header comment of {name} is not YAML with keys", remedy="see labkit/spec.py"
            )
        return _build(data, name=name, source=source, path=path)
    except yaml.YAMLError as error:
        raise SpecError(f"the header comment of {name} is not YAML", why=str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpecError(f"the header comment of {name} is not as it should be", why=repr(error)) from error


_KNOWN = {"purpose", "hooks", "on_demand", "types", "params", "maps", "ledger", "needs", "license"}


def _build(data: dict[str, Any], *, name: str, source: str, path: Path | None) -> ProgramSpec:
    unknown = set(data) - _KNOWN
    if unknown:
        raise SpecError(f"the header comment of {name} has unknown keys: {', '.join(sorted(unknown))}")
    params = {
        key: Param(key, item["type"], int(item.get("default", 0)), item.get("help", ""))
        for key, item in (data.get("params") or {}).items()
    }
    for param in params.values():
        if param.ctype not in _RANGES:
            raise SpecError(
                f"{name}: parameter {param.name} has type {param.ctype}", why=f"known: {list(_RANGES)}"
            )
    ledger = data.get("ledger")
    return ProgramSpec(
        name=name,
        purpose=" ".join(str(data["purpose"]).split()),
        source=source,
        path=path,
        hooks={label: tuple(_hook(name, c) for c in items) for label, items in data["hooks"].items()},
        maps={key: MapSpec(**item) for key, item in (data.get("maps") or {}).items()},
        types=tuple(data.get("types") or ()),
        params=params,
        ledger=None if ledger is None else _ledger(ledger),
        needs=tuple(data.get("needs") or ()),
        on_demand=tuple(data.get("on_demand") or ()),
    )


def _ledger(data: dict[str, Any]) -> LedgerSpec:
    return LedgerSpec(
        event=data.get("event", "event"),
        losses=tuple(data.get("losses") or ()),
        unseen=data.get("unseen"),
        notes=dict(data.get("notes") or {}),
    )


def _hook(program: str, text: str) -> Hook:
    kind, _, target = text.partition(":")
    if kind not in KINDS or not target:
        raise SpecError(f"{program}: hook {text!r} is not KIND:TARGET", why=f"kinds: {', '.join(KINDS)}")
    return Hook(kind, target.replace("{sys}", _PREFIX.get(platform.machine(), "sys_")))

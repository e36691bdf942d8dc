"""Which hooks this kernel has: kprobes, fentry, tracepoints, raw tracepoints."""

from __future__ import annotations

import difflib
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from labkit import bpfsys
from labkit.errors import MissingBTF
from labkit.kernel import btf

__all__ = ["Availability", "availability", "kprobe_pmu", "tracefs", "tracepoint_id", "try_raw_tracepoint"]

_TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))


@dataclass(frozen=True)
class Availability:
    """Whether a hook can be tried, why not, and the nearest names where the name is the reason."""

    ok: bool
    reason: str = ""
    nearest: tuple[str, ...] = ()


def tracefs() -> Path | None:
    """Where tracefs is mounted and readable by us, or None."""
    for place in _TRACEFS:
        try:
            if (place / "events" / "sched").is_dir():
                return place
        except OSError:
            continue
    return None


def kprobe_pmu() -> int | None:
    """The number of the kprobe event source, or None if the kernel has no kprobes."""
    try:
        return int(Path("/sys/bus/event_source/devices/kprobe/type").read_text())
    except (OSError, ValueError):
        return None


def tracepoint_id(category: str, name: str) -> int | None:
    """The id of a classic tracepoint, or None if there is none (or tracefs cannot be read)."""
    root = tracefs()
    if root is None:
        return None
    try:
        return int((root / "events" / category / name / "id").read_text())
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=1)
def _symbols() -> frozenset[str]:
    """Names of kernel functions; the names stay readable where addresses are hidden (``kptr_restrict``)."""
    names = set()
    try:
        with open("/proc/kallsyms") as file:
            for line in file:
                parts = line.split()
                if len(parts) >= 3 and parts[1] in "tTwW":
                    names.add(parts[2])
    except OSError:
        pass
    return frozenset(names)


def _near(name: str, names: list[str]) -> tuple[str, ...]:
    return tuple(difflib.get_close_matches(name, names, 3, 0.6))


def availability(kind: str, target: str) -> Availability:
    """Whether this kernel has a hook, as far as can be told without attaching.

    :param kind: ``kprobe``, ``kretprobe``, ``fentry``, ``tracepoint`` or ``raw_tracepoint``.
    :param target: function, ``CATEGORY:NAME``, or name.
    """
    return _CHECKS[kind](target)


def _kprobe(target: str) -> Availability:
    symbols = _symbols()
    if kprobe_pmu() is None:
        return Availability(False, "this kernel has no kprobes (CONFIG_KPROBES)")
    if symbols and target not in symbols:
        return Availability(False, f"no kernel function {target}", _near(target, _like(target, symbols)))
    return Availability(True)


def _like(target: str, names: frozenset[str]) -> list[str]:
    """Names that share a word with the target: comparing with all of 100,000 would take seconds."""
    words = [w for w in target.split("_") if len(w) > 2]
    return [n for n in names if any(w in n for w in words)][:5000]


def _fentry(target: str) -> Availability:
    try:
        known = btf.kernel()
    except MissingBTF as error:
        return Availability(False, error.what)
    if known.function_id(target) is None:
        near = _near(target, _like(target, frozenset(known.functions())))
        return Availability(False, f"no function {target} in BTF", near)
    from labkit.kernel.features import has_fentry  # probing loads a program; only where it is asked for

    if not has_fentry():
        return Availability(False, "this kernel refuses tracing programs (fentry)")
    return Availability(True)


def _tracepoint(target: str) -> Availability:
    category, _, name = target.partition(":")
    root = tracefs()
    if root is None:
        return Availability(False, "tracefs is not mounted or not readable")
    if tracepoint_id(category, name) is None:
        there = [f"{p.parent.parent.name}:{p.parent.name}" for p in root.glob("events/*/*/id")]
        return Availability(False, f"no tracepoint {target}", _near(target, there))
    return Availability(True)


def _raw_tracepoint(target: str) -> Availability:
    try:
        names = btf.kernel().raw_tracepoints()
    except MissingBTF:
        return Availability(True, "no BTF to look it up in")
    if target not in names:
        return Availability(False, f"no raw tracepoint {target}", _near(target, names))
    return Availability(True)


_CHECKS = {
    "kprobe": _kprobe,
    "kretprobe": _kprobe,
    "fentry": _fentry,
    "tracepoint": _tracepoint,
    "raw_tracepoint": _raw_tracepoint,
}


def try_raw_tracepoint(name: str) -> str:
    """Ask the kernel to attach a program that does nothing to a raw tracepoint, and let go at once.

    :returns: ``"works"``, or the kernel's reason.
    """
    try:
        program = bpfsys.prog_load(bpfsys.ProgType.RAW_TRACEPOINT, bpfsys.RETURN_0, name="lk_probe")
    except OSError as error:
        return f"not permitted to try: {error.strerror}"
    try:
        os.close(bpfsys.raw_tracepoint_open(program, name))
    except OSError as error:
        return f"refused: {error.strerror}"
    finally:
        os.close(program)
    return "works"

"""C to artifact: bcc in a process of its own, and a cache of what it made.

An artifact is all that is needed to load a program without a compiler: instructions with map references by name, and the
maps with bcc's description of their C types. It is cached under a key of everything that it depends on: the sources,
parameters and hooks, the running kernel's build and BTF, the headers, bcc's version. What is loaded from the cache is
checked against the digest it was stored with.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit import __version__
from labkit.errors import CompileError
from labkit.kernel import bcc, btf, headers
from labkit.paths import bpf_dir, cache_dir
from labkit.spec import Hook, ProgramSpec

__all__ = ["Artifact", "Function", "MapDef", "compile_program", "source_lines"]

_TIMEOUT_S = 300
# System call numbers (asm/unistd.h) of the few calls that programs tell apart; the headers' own tables need
# includes that differ between releases.
_SYSCALLS = {
    "x86_64": {"execve": 59, "getppid": 110, "read": 0, "write": 1, "clone": 56, "clock_nanosleep": 230},
    "aarch64": {"execve": 221, "getppid": 173, "read": 63, "write": 64, "clone": 220, "clock_nanosleep": 115},
}


@dataclass(frozen=True)
class Function:
    """A BPF function: its instructions, and which of them refer to which map."""

    name: str
    code: bytes
    maps: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class MapDef:
    """A map to create: the arguments of ``BPF_MAP_CREATE`` and the C types of key and value."""

    name: str
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key_desc: str
    value_desc: str


@dataclass(frozen=True)
class Artifact:
    """A compiled program. ``cached`` is True if no compiler ran."""

    functions: tuple[Function, ...]
    maps: tuple[MapDef, ...]
    cached: bool = False

    def function(self, name: str) -> Function:
        """The function of that name (KeyError if there is none)."""
        return next(f for f in self.functions if f.name == name)


def _generated_header(spec: ProgramSpec, hooks: Mapping[str, Hook], constants: Mapping[str, int]) -> str:
    """``lk_generated.h``: constants, chosen hooks, kernel types; what differs between machines and runs."""
    lines = ["/* Written by labkit for the running kernel. */", "#pragma once"]
    for name, value in constants.items():
        suffix = "" if value < 0 else "ULL" if value >= 2**32 else ""
        lines.append(f"#define LK_PARAM_{name.upper()} {value}{suffix}")
    for label, hook in hooks.items():
        lines.append(f"#define LK_HOOK_{label}_{hook.kind.upper()} 1")
        if hook.kind == "raw_tracepoint":
            lines.append(f"#define LK_ARGS_{hook.target} {btf.kernel().tracepoint_args(hook.target) or 0}")
    for name, number in _SYSCALLS.get(platform.machine(), {}).items():
        lines.append(f"#define LK_NR_{name} {number}")
    if spec.types:
        lines.append(btf.minimal_structs(btf.kernel(), spec.types))
    return "\n".join(lines) + "\n"


def _key(spec: ProgramSpec, generated: str, tree: Path, location: bcc.BccLocation) -> str:
    parts = [
        __version__,
        location.version,
        platform.machine(),
        platform.release(),
        platform.version(),
        btf.kernel().digest if btf.vmlinux_path().exists() else "",
        tree.name,
        generated,
        spec.source,
        *(path.read_text() for path in sorted(bpf_dir().glob("*.h"))),
        Path(__file__).with_name("_bcc_worker.py").read_text(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _parse(data: Mapping[str, Any], *, cached: bool) -> Artifact:
    return Artifact(
        functions=tuple(
            Function(f["name"], base64.b64decode(f["code"]), tuple((int(i), str(m)) for i, m in f["maps"]))
            for f in data["functions"]
        ),
        maps=tuple(MapDef(**m) for m in data["maps"]),
        cached=cached,
    )


def _from_cache(path: Path) -> Artifact | None:
    try:
        stored = json.loads(path.read_text())
        body = stored["artifact"]
        if hashlib.sha256(body.encode()).hexdigest() != stored["sha256"]:
            return None
        return _parse(json.loads(body), cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: compile


def _to_cache(path: Path, body: str) -> None:
    text = json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "artifact": body})
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text)
        scratch.replace(path)
    except OSError:  # a full disk costs the next load a second, nothing else
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def compile_program(spec: ProgramSpec, hooks: Mapping[str, Hook], constants: Mapping[str, int]) -> Artifact:
    """Compile, or take from the cache.

    :param hooks: label -> the chosen hook.
    :param constants: all parameters, checked.
    :raises CompileError: with clang's log and the first line it names.
    :raises MissingBcc, MissingHeaders, MissingBTF: if the machine lacks what compiling needs.
    """
    location = bcc.locate()
    tree = headers.merged_tree()
    generated = _generated_header(spec, hooks, constants)
    cached_at = cache_dir() / "programs" / f"{spec.name}-{_key(spec, generated, tree, location)}.json"
    artifact = _from_cache(cached_at)
    if artifact is not None:
        return artifact
    with tempfile.TemporaryDirectory(prefix="labkit-compile-") as room:
        out = Path(room) / "artifact.json"
        status, log = _run_worker(spec, generated, Path(room), tree, location, out, debug=0)
        if status != 0 or not out.exists():
            raise _compile_error(spec, status, log)
        body = out.read_text()
    _to_cache(cached_at, body)
    return _parse(json.loads(body), cached=False)


def _run_worker(
    spec: ProgramSpec,
    generated: str,
    room: Path,
    tree: Path,
    location: bcc.BccLocation,
    out: Path,
    *,
    debug: int,
) -> tuple[int, str]:
    (room / "lk_generated.h").write_text(generated)
    request = {
        "bcc": str(location.package),
        "source": spec.source,
        "cflags": [f"-I{room}", f"-I{bpf_dir()}", "-Wno-macro-redefined", "-Wno-duplicate-decl-specifier"],
        "debug": debug,
        "out": str(out),
    }
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "BCC_"))}
    env["BCC_KERNEL_SOURCE"] = str(tree)
    worker = str(Path(__file__).with_name("_bcc_worker.py"))
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-B", worker],
            input=json.dumps(request),
            env=env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(
            f"compiling {spec.name} took more than {_TIMEOUT_S} s", remedy="is the machine overloaded?"
        ) from error
    return done.returncode, done.stderr


def _compile_error(spec: ProgramSpec, status: int, log: str) -> CompileError:
    match = re.search(r"/virtual/main\.c:(\d+):\d+: (?:fatal )?error: (.*)", log)
    line = int(match.group(1)) if match else None
    where = spec.path.name if spec.path else spec.name
    if match:
        why = f"{where}, line {line}: {match.group(2)}"
    elif status < 0:
        why = f"the compiler was killed by signal {-status}"
    else:
        why = log.strip().splitlines()[-1] if log.strip() else f"the compiler ended with status {status}"
    return CompileError(
        f"{where} does not compile",
        why=why,
        remedy="the log below is clang's; line numbers are those of the file",
        log=log,
        line=line,
    )


def source_lines(
    spec: ProgramSpec, hooks: Mapping[str, Hook], constants: Mapping[str, int]
) -> dict[str, dict[int, int]]:
    """For each function, instruction number -> line of the C source. Compiles again, with bcc's source listing.

    Used to explain a verifier's refusal; empty where bcc cannot tell.
    """
    generated = _generated_header(spec, hooks, constants)
    with tempfile.TemporaryDirectory(prefix="labkit-compile-") as room:
        out = Path(room) / "artifact.json"
        tree, location = headers.merged_tree(), bcc.locate()
        _, log = _run_worker(spec, generated, Path(room), tree, location, out, debug=_DEBUG_LISTING)
    return _parse_listing(log, spec.source)


# bcc's DEBUG_PREPROCESSOR (the rewritten source) and DEBUG_SOURCE (instructions with lines of the rewritten source).
_DEBUG_LISTING = 0x4 | 0x8


def _parse_listing(text: str, source: str) -> dict[str, dict[int, int]]:
    rewritten, _, listing = text.partition("Disassembly of function ")
    to_source = _line_map(rewritten.splitlines()[1:], source.splitlines())
    lines: dict[str, dict[int, int]] = {}
    function, line = "", 0
    for row in ("Disassembly of function " + listing).splitlines():
        if match := re.match(r"^Disassembly of function (\w+)", row):
            function, line = match.group(1), 0
        elif match := re.search(r"; .*// Line\s+(\d+)", row):
            line = to_source.get(int(match.group(1)), 0)
        elif (match := re.match(r"^\s*(\d+):\s", row)) and function and line:
            lines.setdefault(function, {})[int(match.group(1))] = line
    return lines


def _line_map(rewritten: list[str], source: list[str]) -> dict[int, int]:
    """Line of bcc's rewritten source -> line of ours: bcc adds lines and changes some, but keeps the order."""
    matcher = difflib.SequenceMatcher(
        None, [r.strip() for r in rewritten], [s.strip() for s in source], False
    )
    found: dict[int, int] = {}
    for _, start, end, ours, ours_end in matcher.get_opcodes():
        for step in range(end - start):
            if ours < ours_end:
                found[start + step + 1] = min(ours + step, ours_end - 1) + 1
    return found

"""What each program of ``bpf/`` does on the kernel that runs: loaded on every hook that it names, and compared where an
independent account exists; and whether the programs of ``bpf/rejects`` are refused as they are described, and let in when
mended. ``python -m guest.survey`` prints it as JSON; docs/compatibility.md is made of such.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import labkit as lk
from guest.comparisons import COMPARISONS, compared, short
from labkit.errors import CompileError, HookNotFound, LabkitError
from labkit.kernel import environment, probe
from labkit.lessons.rejects import Reject, judge, rejects
from labkit.paths import bpf_dir
from labkit.spec import Hook, ProgramSpec, read

__all__ = ["VERSION", "comparisons", "digest", "hooks", "programs", "survey"]

#: Of the survey itself: what is tried, and what the words mean. Another one makes what was found with it old.
VERSION = 2


def digest(name: str) -> str:
    """Names a program's text as it was surveyed; that of a refused one (``rejects/NAME``) with its description."""
    parts = [bpf_dir() / f"{name}.c", bpf_dir() / "lk.h"]
    if name.startswith("rejects/"):
        parts.append(bpf_dir() / f"{name}.yaml")
    return hashlib.sha256(b"\0".join(Path(part).read_bytes() for part in parts)).hexdigest()[:12]


def survey(only: Collection[str] | None = None) -> dict[str, Any]:
    """Load, attach and compare everything.

    :param only: these programs (``NAME``, ``rejects/NAME``) and nothing else.
    :returns: ``version``, ``digests`` (program -> :func:`digest`), ``machine`` (kernel, distribution, arch, bcc, cgroups),
        ``hooks`` (rows ``program``, ``label``, ``hook``, ``result`` in {"works", "absent", "not compiled", "refused",
        "failed"}, ``detail``), ``comparisons`` (rows ``program``, ``with``, ``result`` in {"agrees", "differs", "absent",
        "failed"}, ``detail``) and ``rejects`` (rows ``program``, ``stage``, ``result`` in {"as described", "let in",
        "differs"}, ``mended`` in {"let in", "refused"}, ``detail``).
    """
    names = [name for name in programs() if only is None or name in only]
    refused = [one for one in rejects() if f"rejects/{one.name}" in names]
    return {
        "version": VERSION,
        "digests": {name: digest(name) for name in names},
        "machine": _machine(),
        "hooks": hooks(names),
        "comparisons": comparisons(names),
        "rejects": [_rejected(one) for one in refused],
    }


def programs() -> list[str]:
    """What there is to survey: programs, and lessons of programs that are refused."""
    return [
        *sorted(path.stem for path in bpf_dir().glob("*.c")),
        *(f"rejects/{one.name}" for one in rejects()),
    ]


def hooks(names: Collection[str] | None = None) -> list[dict[str, str]]:
    """The rows ``hooks`` of a survey."""
    chosen = [name for name in programs() if "/" not in name and (names is None or name in names)]
    return [row for name in chosen for row in _hooks(read(name))]


def comparisons(names: Collection[str] | None = None) -> list[dict[str, str]]:
    """The rows ``comparisons`` of a survey."""
    return [compared(*comparison) for comparison in COMPARISONS if names is None or comparison[0] in names]


def _machine() -> dict[str, str]:
    found = environment()
    features = {name: probe()[name].state for name in ("kprobes", "fentry", "tracefs")}
    return {
        "kernel": str(found["kernel"]),
        "distribution": str(found["distribution"]),
        "arch": platform.machine(),
        "bcc": str(found.get("bcc", "")),
        "cgroups": str(found.get("cgroup_mode", "")),
        **features,
    }


def _hooks(spec: ProgramSpec) -> Iterator[dict[str, str]]:
    """One row per candidate. Where no label has a choice, one load serves all."""
    if all(len(candidates) == 1 for candidates in spec.hooks.values()):
        result, detail = _load(spec, {})
        for label, candidates in spec.hooks.items():
            yield _row(spec, label, candidates[0], result, detail)
        return
    for label, candidates in spec.hooks.items():
        for hook in candidates:
            yield _row(spec, label, hook, *_load(spec, {label: str(hook)}))


def _row(spec: ProgramSpec, label: str, hook: Hook, result: str, detail: str) -> dict[str, str]:
    return {"program": spec.name, "label": label, "hook": str(hook), "result": result, "detail": detail}


def _load(spec: ProgramSpec, hooks: dict[str, str]) -> tuple[str, str]:
    """Load it, let a few things happen, read its ledger."""
    try:
        with lk.load(spec.name, hooks=hooks) as program:
            for label in spec.on_demand:
                program.attach(label)
            subprocess.run(["true"], check=True)
            time.sleep(0.05)
            program.stop()
            if spec.ledger is not None and not program.ledger.balanced:
                return "failed", f"its ledger does not balance: {program.ledger}"
    except HookNotFound as error:
        return "absent", error.why or error.what
    except CompileError as error:
        return "not compiled", short(error)
    except LabkitError as error:
        return "refused", f"{type(error).__name__}: {short(error)}"
    return "works", ""


def _rejected(one: Reject) -> dict[str, str]:
    """One row: refused by whom it says, with the words and at the line of C that it says; and its mend."""
    told, mended = one.judge(), judge(one.mended_program)
    result = "differs" if not one.fits(told) else "as described" if told.refused_by else "let in"
    details = [f"line {told.line}: {told.says}"] if result == "differs" else []
    details += [f"mended, refused by the {mended.refused_by}: {mended.says}"] if mended.refused_by else []
    return {
        "program": one.name,
        "stage": told.refused_by or one.stage,
        "result": result,
        "mended": "refused" if mended.refused_by else "let in",
        "detail": " ".join("; ".join(details).split())[:300],
    }


if __name__ == "__main__":
    json.dump(survey(sys.argv[1:] or None), sys.stdout, indent=1)
    print()

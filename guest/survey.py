"""What each program of ``bpf/`` does on the kernel that runs: loaded on every hook that it names, and compared where an
independent account exists. ``python -m guest.survey`` prints it as JSON; docs/compatibility.md is made of such.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import labkit as lk
from labkit.errors import CgroupError, HookNotFound, LabkitError
from labkit.kernel import environment, probe
from labkit.noisy.watch import Watch
from labkit.paths import bpf_dir
from labkit.sched.state import between
from labkit.spec import Hook, ProgramSpec, read
from labkit.workloads import scenario

__all__ = ["survey"]

CALLS = 23
_AT_THE_ENDS = 2


def survey() -> dict[str, Any]:
    """Load, attach and compare everything.

    :returns: ``machine`` (kernel, distribution, arch, bcc, cgroups), ``hooks`` (rows ``program``, ``label``, ``hook``,
        ``result`` in {"works", "absent", "refused", "failed"}, ``detail``) and ``comparisons`` (rows ``program``,
        ``with``, ``result`` in {"agrees", "differs", "failed"}, ``detail``).
    """
    names = sorted(path.stem for path in bpf_dir().glob("*.c"))
    return {
        "machine": _machine(),
        "hooks": [row for name in names for row in _hooks(read(name))],
        "comparisons": [_compared(*comparison) for comparison in _COMPARISONS],
    }


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
    except LabkitError as error:
        return "refused", f"{type(error).__name__}: {_short(error)}"
    return "works", ""


def _short(error: LabkitError) -> str:
    return " ".join(f"{error.what}; {error.why}".split())[:300]


def _compared(name: str, with_what: str, compare: Callable[[], tuple[bool, str]]) -> dict[str, str]:
    try:
        agrees, detail = compare()
    except CgroupError as error:
        return {"program": name, "with": with_what, "result": "absent", "detail": _short(error)}
    except LabkitError as error:
        return {"program": name, "with": with_what, "result": "failed", "detail": _short(error)}
    return {"program": name, "with": with_what, "result": "agrees" if agrees else "differs", "detail": detail}


def _hello() -> tuple[bool, str]:
    script = f"for i in {{1..{CALLS}}}; do /bin/true; done; :"
    with lk.load("hello") as program:
        subprocess.run(["bash", "-c", f"printf lk_shell >/proc/self/comm; {script}"], check=True)
        program.stop()
        calls = program.frame("hello")
    counted = int(calls.loc[calls["comm"] == "lk_shell", "calls"].sum())
    return counted == CALLS, f"{counted} of {CALLS}"


def _runq_latency() -> tuple[bool, str]:
    with lk.load("runq_latency") as program, lk.workloads.service_beside_hog(seconds=2).run() as truth:
        program.stop()
        compared = lk.sched.compare(program.frame("waits"), truth.tasks)
    missed = int((compared["waits"] - compared["timeslices"]).abs().max())
    worst = compared.loc[compared["residual_share"].abs().idxmax(), "residual_share"]
    # Its stamps and the scheduler's are taken some way apart (labkit/sched/waits.py), which on a busy emulator is long: so
    # the number decides, and the time is told. A task that begins or ends between two readings makes one.
    return (
        missed <= _AT_THE_ENDS,
        f"{int(compared['waits'].sum())} waits, {missed} missed; their time {worst:+.2%}",
    )


def _noisy(name: str, column: str, kind: str | None, tolerance: float) -> tuple[bool, str]:
    """The waits of one kind in a scenario, beside a counter of the kernel's, for the declared victim."""
    with Watch() as watch, scenario(name, seconds=2.0).start() as running:
        before = watch.snapshot()
        running.go()
        truth = running.finish()
        watch.stop()
        found = between(before, watch.snapshot())
    books = truth.cgroups.set_index("role")
    victim = int(books.loc[str(truth.declared["victim"]), "cgroup_id"])
    cells = found.cells[found.cells["victim_id"] == victim]
    mine = int(cells["wait_ns"].sum() if kind is None else cells.loc[cells["kind"] == kind, "wait_ns"].sum())
    theirs = int(truth.cgroups[column].max() if kind else books.loc[str(truth.declared["victim"]), column])
    if theirs == 0:
        return False, f"the kernel counted no {column}"
    share = mine / theirs - 1
    return abs(share) <= tolerance, f"{mine / 1e6:,.0f} ms, {share:+.2%}"


_COMPARISONS: tuple[tuple[str, str, Callable[[], tuple[bool, str]]], ...] = (
    ("hello", f"{CALLS} programs that a shell starts", _hello),
    ("runq_latency", "/proc/PID/schedstat of each task, a service beside a hog", _runq_latency),
    (
        "noisy_neighbor",
        "run_delay of the victim, scenario hog",
        lambda: _noisy("hog", "run_delay_ns", None, 0.01),
    ),
    (
        "noisy_neighbor",
        "throttled_usec of cpu.stat, scenario throttled",
        # cpu.stat lacks the throttled period that has not ended when the scenario does.
        lambda: _noisy("throttled", "throttled_ns", "throttled", 0.15),
    ),
)


if __name__ == "__main__":
    json.dump(survey(), sys.stdout, indent=1)
    print()

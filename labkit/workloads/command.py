"""`labkit workload`: a scenario in the foreground, to be watched from another terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

from labkit.errors import UnsupportedKernel
from labkit.workloads.running import Running
from labkit.workloads.scenarios import SCENARIOS, scenario
from labkit.workloads.truth import Truth

__all__ = ["list_command", "run_command"]

#: As a shell reports a program that Ctrl-C has ended.
_INTERRUPTED = 130


def list_command() -> int:
    """Print the scenarios. Returns the exit code."""
    width, indent = shutil.get_terminal_size().columns, " " * 22
    for name in SCENARIOS:
        print(textwrap.fill(f"{name:<22}{_one_line(name)}", width, subsequent_indent=indent))
    print(
        "\nRun one with: labkit workload NAME --seconds 60; watch it from another terminal with: labkit noisy"
    )
    return 0


def _one_line(name: str) -> str:
    try:
        return scenario(name).what
    except UnsupportedKernel as error:
        return f"not here: {error.what}"


def run_command(name: str, *, seconds: float, cpu: int | None) -> int:
    """Run a scenario, say what is true of it, and afterwards what the kernel counted. Returns the exit code."""
    work = scenario(name, seconds=seconds, cpu=cpu)
    print(f"{name}: {work.what}\n  {_in_words(work.declared)}\n", flush=True)
    try:
        with work.start() as running:
            _say_who_is_where(running)
            print(f"\nworking for {seconds:g} s; Ctrl-C ends it early ...", flush=True)
            running.go()
            _say_what_it_did(running.finish())
    except KeyboardInterrupt:
        print("\nended early; its processes and cgroups are removed")
        return _INTERRUPTED
    return 0


def _in_words(declared: Mapping[str, Any]) -> str:
    said = [f"true by construction, of {declared['victim']}: {declared['verdict']}"]
    if declared["guilty"]:
        shares = (f"{r} ({s:.0%})" if s not in (None, 1.0) else r for r, s in declared["guilty"].items())
        said.append(f"because of {', '.join(shares)}")
    if declared["quota_ancestor"]:
        said.append(f"under the quota of {declared['quota_ancestor']}")
    if declared["innocent"]:
        said.append(f"not because of {', '.join(declared['innocent'])}")
    return "; ".join(said)


def _say_who_is_where(running: Running) -> None:
    for row in running.layout.itertuples():
        limits = [f"weight {row.weight}"] if row.weight not in (0, 100) else []
        limits += [f"quota {row.quota_us // 1000} ms in {row.period_us // 1000}"] if row.quota_us else []
        print(f"  {row.role:<12}{row.cgroup}  {', '.join(limits)}".rstrip())
    print("  processes: " + ", ".join(f"{role} {pid}" for role, pid in running.pids.items()))


def _say_what_it_did(truth: Truth) -> None:
    print(f"\n  {'ms':<12}{'ran':>10}{'waited':>10}{'throttled':>11}   (the kernel's counters)")
    for row in truth.cgroups.itertuples():
        own = (row.run_ns, row.run_delay_ns) if row.timeslices else (None, None)
        times = (*own, row.throttled_ns if row.quota_us else None)
        cells = ["-" if ns is None else f"{ns / 1e6:.1f}" for ns in times]
        print(f"  {row.role:<12}{cells[0]:>10}{cells[1]:>10}{cells[2]:>11}")
    service = truth.results[truth.declared["victim"]]
    print(
        f"\n  {truth.declared['victim']}, by its own clock: {service['requests']} requests, half of them within "
        f"{service['p50_ns'] / 1e6:.1f} ms, 99 in 100 within {service['p99_ns'] / 1e6:.1f} ms"
    )

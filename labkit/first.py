"""`labkit first`: the quickest road to one true finding about this machine's run queues.

A service that needs 4 ms of CPU every 20 ms runs for a few seconds beside a process that never sleeps, pinned to the same
CPU, while the program ``runq_latency`` measures every wait on the machine. The finding is how long the service waited; the
kernel's own counter for that task is the oracle.
"""

from __future__ import annotations

import pandas as pd

from labkit.findings import Finding, Oracle, finding
from labkit.histogram import quantile
from labkit.ledger import Ledger
from labkit.plots import duration
from labkit.sched import allowed_ns
from labkit.session import Chapter, chapter
from labkit.text import plain
from labkit.workloads import Truth, service_beside_hog

__all__ = ["CAPTURE", "first_finding"]

CAPTURE = "first"


def first_finding(*, seconds: float, mode: str) -> int:
    """Measure, print the finding, and say what else this machine did meanwhile. Returns 0 if it can be trusted, else 1."""
    lab = chapter(CAPTURE, mode=mode)
    print(repr(lab))
    how_long = f"for {seconds:g} s" if lab.mode == "live" else "as long as it was recorded"
    print(
        f"\nA service (4 ms of work every 20 ms) shares a CPU with a spinning process {how_long} ...",
        flush=True,
    )
    with lab.load("runq_latency", label="service_beside_hog") as prog:
        truth = lab.run(service_beside_hog(seconds=seconds))
        waits = prog.frame("waits")
        latency = prog.frame("latency")
        prog.stop()
        ledger = prog.ledger
    lab.release()
    result = _service_wait(waits, truth, ledger)
    _say_what_it_means(waits, truth, latency)
    _say_the_rest(lab, waits, truth)
    return 0 if result.trusted else 1


def _service_wait(waits: pd.DataFrame, truth: Truth, ledger: Ledger) -> Finding:
    task = truth.tasks.merge(waits, on="pid").set_index("role").loc["service"]
    print()
    return finding(
        "wait of the service for a CPU",
        float(task["wait_ns"]) / 1e6,
        unit="ms",
        how=f"runq_latency: {task['waits']} waits, each from runnable to running, summed in the kernel",
        ledger=ledger.narrowed("the service", expected=int(task["timeslices"]), delivered=int(task["waits"])),
        oracle=Oracle("run_delay in /proc/PID/schedstat", float(task["run_delay_ns"]) / 1e6),
        tolerance=allowed_ns(task["run_delay_ns"], task["waits"]) / 1e6,
        headline=True,
    )


def _say_what_it_means(waits: pd.DataFrame, truth: Truth, latency: pd.DataFrame) -> None:
    task = truth.tasks.merge(waits, on="pid").set_index("role").loc["service"]
    own = truth.results["service"]
    busy = float(task["run_ns"])
    print(
        f"\nIn words: for every millisecond that the service ran, it stood in line for "
        f"{float(task['wait_ns']) / busy:.2f} ms;\n"
        f"its longest single wait was {duration(float(task['max_wait_ns']))}. By its own clock, half of its requests took "
        f"over {duration(own['p50_ns'])}\nand one in a hundred over {duration(own['p99_ns'])}, for "
        f"4 ms of work."
    )
    print(
        f"On the whole machine half of all waits were below {duration(quantile(latency, 0.5))}, "
        f"one in a hundred above {duration(quantile(latency, 0.99))}."
    )


def _say_the_rest(lab: Chapter, waits: pd.DataFrame, truth: Truth) -> None:
    others = waits[~waits["pid"].isin(truth.tasks["pid"])]
    top = others.groupby("comm")[["wait_ns", "waits"]].sum().nlargest(3, "wait_ns").reset_index()
    if len(top):
        listed = "; ".join(
            f"{plain(row['comm'])} {duration(float(row['wait_ns']))} in {row['waits']} waits"
            for _, row in top.iterrows()
        )
        print(f"Others that waited meanwhile: {listed}.")
    print("\nNext: ./task lab runs all chapters; ./task notebook opens them.")

"""A service of known demand, for the demonstration on a cluster: ``python -m labkit.containers.demand``.

Every period a request is due; it takes so much CPU time, and its latency is from due to done. Every ten seconds it says
what its users saw. It is the victim's own account of a noisy neighbour, and knows nothing of BPF.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

__all__ = ["main", "serve_until", "summary"]

_REPORT_S = 10.0


def summary(latencies_ns: Sequence[int], used_ns: int, wall_ns: int) -> dict[str, float | int]:
    """What a stretch of requests came to, in milliseconds; quantiles are those of a request that was there."""
    ordered = sorted(latencies_ns)

    def quantile_ms(q: float) -> float:
        return round(ordered[min(int(q * len(ordered)), len(ordered) - 1)] / 1e6, 3) if ordered else 0.0

    return {
        "requests": len(ordered),
        "p50_ms": quantile_ms(0.5),
        "p99_ms": quantile_ms(0.99),
        "max_ms": quantile_ms(1.0),
        "cpu_share": round(used_ns / wall_ns, 4) if wall_ns else 0.0,
    }


def serve_until(due_ns: int, end_ns: int, *, period_ns: int, work_ns: int) -> tuple[list[int], int]:
    """Serve requests from the first due one until the end.

    :returns: latencies, and when the next request is due. One that comes late does not make the next ones late on paper: a
        service that cannot keep up drops what is overdue by more than a period, as ours does.
    """
    latencies = []
    while due_ns < end_ns:
        now = time.monotonic_ns()
        if now < due_ns:
            time.sleep((due_ns - now) / 1e9)
        until = time.thread_time_ns() + work_ns
        while time.thread_time_ns() < until:
            pass
        done = time.monotonic_ns()
        latencies.append(done - due_ns)
        due_ns = max(due_ns + period_ns, done)
    return latencies, due_ns


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Serve until told to end, and print a line of JSON every ten seconds."""
    parser = argparse.ArgumentParser(prog="python -m labkit.containers.demand", description=__doc__)
    parser.add_argument("--period-ms", type=float, default=20.0, help="a request is due this often")
    parser.add_argument("--work-ms", type=float, default=4.0, help="CPU time of each")
    parser.add_argument("--report", type=Path, help="a file that always holds the last line")
    options = parser.parse_args()
    if options.period_ms <= 0 or options.work_ms <= 0:
        parser.error("period and work are more than 0 ms")
    signal.signal(signal.SIGTERM, _stop)  # as PID 1 of a container it would be ignored otherwise
    due = time.monotonic_ns() + int(options.period_ms * 1e6)
    while True:
        began, used = time.monotonic_ns(), time.process_time_ns()
        latencies, due = serve_until(
            due,
            began + int(_REPORT_S * 1e9),
            period_ns=int(options.period_ms * 1e6),
            work_ns=int(options.work_ms * 1e6),
        )
        said = summary(latencies, time.process_time_ns() - used, time.monotonic_ns() - began)
        line = json.dumps(said)
        print(line, flush=True)
        if options.report:
            options.report.write_text(line + "\n")


if __name__ == "__main__":
    main()

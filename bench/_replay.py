"""labkit's side of the replay, in a process of its own, to measure its memory: ``python -m bench._replay DIR``."""

from __future__ import annotations

import json
import resource
import sys
import time

from labkit.sched.from_events import task_waits


def main() -> None:
    """Print ``{"cpu_s", "wall_s", "start_cpu_s", "peak_bytes", "waits"}`` as JSON; ``start_cpu_s`` is Python's imports."""
    start_cpu, start = time.process_time(), time.perf_counter()
    waits = task_waits(sys.argv[1])
    cpu, wall = time.process_time() - start_cpu, time.perf_counter() - start
    found = {
        "cpu_s": cpu,
        "wall_s": wall,
        "start_cpu_s": start_cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "waits": int(waits["waits"].sum()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

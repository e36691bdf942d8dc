"""A process that does one known thing. Run as a script: ``_worker.py ROLE JSON``.

It says ``ready``, waits for ``go`` on standard input, does its work, prints what it did as JSON, and then waits for the end
of its input before it ends: so its counters in /proc can be read while it stands still. It is bounded by its own clock, and
ends by itself when its owner is gone.
"""

import json
import os
import sys
import time
from collections.abc import Callable


def _set_name(name: str) -> None:
    with open("/proc/self/comm", "w") as file:
        file.write(name)


def hog(seconds: float, **_unused: object) -> dict[str, object]:
    """Spin until the time is over."""
    start = time.monotonic()
    end = start + seconds
    rounds = 0
    while time.monotonic() < end:
        for _i in range(1000):
            pass
        rounds += 1
    return {
        "rounds": rounds,
        "wall_ns": int((time.monotonic() - start) * 1e9),
        "cpu_ns": time.thread_time_ns(),
    }


def service(
    seconds: float, period_ms: float = 20.0, work_ms: float = 4.0, **_unused: object
) -> dict[str, object]:
    """Serve a request every period: sleep until it is due, then work. Latency is from due to done."""
    period, work = int(period_ms * 1e6), int(work_ms * 1e6)
    latencies = []
    due = time.monotonic_ns() + period
    end = due + int(seconds * 1e9)
    while due < end:
        now = time.monotonic_ns()
        if now < due:
            time.sleep((due - now) / 1e9)
        used = time.thread_time_ns() + work
        while time.thread_time_ns() < used:
            pass
        done = time.monotonic_ns()
        latencies.append(done - due)
        due = max(due + period, done)
    latencies.sort()

    def pick(q: float) -> int:
        return latencies[min(int(q * len(latencies)), len(latencies) - 1)]

    return {"requests": len(latencies), "p50_ns": pick(0.5), "p99_ns": pick(0.99), "max_ns": latencies[-1]}


def pinger(rounds: int, read_fd: int, write_fd: int, first: int, **_unused: object) -> dict[str, object]:
    """Pass one byte to and fro."""
    for _i in range(rounds):
        if first:
            os.write(write_fd, b"x")
        os.read(read_fd, 1)
        if not first:
            os.write(write_fd, b"x")
    return {"rounds": rounds}


def calls(count: int, **_unused: object) -> dict[str, object]:
    """Make exactly so many getppid() calls: one system call each, which nothing else here makes."""
    for _i in range(count):
        os.getppid()
    return {"calls": count}


def spawner(count: int, program: str = "/bin/true", **_unused: object) -> dict[str, object]:
    """Start a program so many times, one after the other."""
    for _i in range(count):
        pid = os.posix_spawn(program, [program], {})
        os.waitpid(pid, 0)
    return {"spawned": count}


_WORK: dict[str, Callable[..., dict[str, object]]] = {
    "hog": hog,
    "service": service,
    "pinger": pinger,
    "calls": calls,
    "spawner": spawner,
}


def main() -> None:
    role, options = sys.argv[1], json.loads(sys.argv[2])
    _set_name(options.pop("comm"))
    if options.get("cpu") is not None:
        os.sched_setaffinity(0, {options["cpu"]})
    if options.get("nice"):
        os.nice(options["nice"])
    print("ready", flush=True)
    if sys.stdin.readline() != "go\n":
        return
    result = _WORK[role](**options)
    print(json.dumps(result), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

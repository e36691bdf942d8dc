"""A process that does one known thing. Run as a script: ``_worker.py ROLE JSON``.

It says ``ready``, waits for ``go`` on standard input, does its work, prints what it did as JSON, and then waits for the end
of its input before it ends: so its counters in /proc can be read while it stands still. It is bounded by its own clock, and
ends by itself when its owner is gone.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable


def _set_name(name: str) -> None:
    with open("/proc/self/comm", "w") as file:
        file.write(name)


def hog(seconds: float, **_unused: object) -> dict[str, object]:
    """Spin until the time is over."""
    cpu = time.thread_time_ns()
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
        "cpu_ns": time.thread_time_ns() - cpu,
    }


def reader(seconds: float, **_unused: object) -> dict[str, object]:
    """Copy zeros until the time is over: nearly all of it is spent in the kernel, in one long call after the other."""
    end = time.monotonic() + seconds
    room = bytearray(1 << 22)
    rounds = 0
    with open("/dev/zero", "rb", buffering=0) as zeros:
        while time.monotonic() < end:
            zeros.readinto(room)
            rounds += 1
    return {"rounds": rounds}


def burst(
    seconds: float, on_ms: float, period_ms: float, cpus: list[int] | None = None, **_unused: object
) -> dict[str, object]:
    """Spin for some of each period, by the wall clock, and sleep for the rest. ``moves`` as in ``service``."""
    where = _cpu_here() if cpus else lambda: 0
    here, moves = where(), 0
    start = time.monotonic()
    bursts = 0
    while (begun := start + bursts * period_ms / 1e3) < start + seconds:
        while time.monotonic() < begun + on_ms / 1e3:
            if here != where():
                here, moves = where(), moves + 1
        bursts += 1
        time.sleep(max(0.0, start + bursts * period_ms / 1e3 - time.monotonic()))
    return {"bursts": bursts, **({"moves": moves} if cpus else {})}


def service(
    seconds: float,
    period_ms: float = 20.0,
    work_ms: float = 4.0,
    cpus: list[int] | None = None,
    **_unused: object,
) -> dict[str, object]:
    """Serve a request every period: sleep until it is due, then work. Latency is from due to done.

    ``beyond_work_ns`` is by how much all latencies together exceed the CPU time that the requests took: what the service
    itself can know of its waits. It also holds how late the kernel's timers are (50 us each by default). One that is free
    to move says how often it found itself on another CPU (``moves``).
    """
    where = _cpu_here() if cpus else lambda: 0
    here, moves = where(), 0
    period, work = int(period_ms * 1e6), int(work_ms * 1e6)
    latencies = []
    used_ns = 0
    due = time.monotonic_ns() + period
    end = due + int(seconds * 1e9)
    while due < end:
        now = time.monotonic_ns()
        if now < due:
            time.sleep((due - now) / 1e9)
        begun = cpu = time.thread_time_ns()
        while cpu < begun + work:
            cpu = time.thread_time_ns()
            if here != where():
                here, moves = where(), moves + 1
        used_ns += cpu - begun
        done = time.monotonic_ns()
        latencies.append(done - due)
        due = max(due + period, done)
    latencies.sort()

    def pick(q: float) -> int:
        return latencies[min(int(q * len(latencies)), len(latencies) - 1)]

    return {
        "requests": len(latencies),
        "p50_ns": pick(0.5),
        "p99_ns": pick(0.99),
        "max_ns": latencies[-1],
        "beyond_work_ns": sum(latencies) - used_ns,
        **({"moves": moves} if cpus else {}),
    }


def _cpu_here() -> Callable[[], int]:
    import ctypes  # not at the top: every worker would pay for it

    found: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
    return found


def pinger(rounds: int, read_fd: int, write_fd: int, first: int, **_unused: object) -> dict[str, object]:
    """Pass one byte to and fro."""
    for _i in range(rounds):
        if first:
            os.write(write_fd, b"x")
        os.read(read_fd, 1)
        if not first:
            os.write(write_fd, b"x")
    return {"rounds": rounds}


def bouncer(seconds: float, read_fd: int, write_fd: int, first: int, **_unused: object) -> dict[str, object]:
    """Pass one byte to and fro until the time of the first of the two is over."""
    end = time.monotonic() + seconds
    rounds = 0
    if first:
        os.write(write_fd, b"x")
    while os.read(read_fd, 1) == b"x":
        rounds += 1
        os.write(write_fd, b"." if first and time.monotonic() > end else b"x")
    if not first:
        os.write(write_fd, b".")
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


_COUNTERS = ("run_ns", "run_delay_ns", "timeslices", "voluntary", "involuntary")


def forker(seconds: float, at_once: int = 4, **_unused: object) -> dict[str, object]:
    """Start children that end at once, so many at a time, and keep the sums of their accounts.

    A child that has ended and was not yet waited for (a zombie) still has its account in /proc.
    """
    end = time.monotonic() + seconds
    forked = alive = 0
    sums = dict.fromkeys(_COUNTERS, 0)
    while alive or time.monotonic() < end:
        while alive < at_once and time.monotonic() < end:
            if os.fork() == 0:
                os._exit(0)
            forked, alive = forked + 1, alive + 1
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        assert ended is not None  # only with WNOHANG
        for counter, value in zip(_COUNTERS, _account(ended.si_pid), strict=True):
            sums[counter] += value
        os.waitpid(ended.si_pid, 0)
        alive -= 1
    return {"forked": forked, "children": sums}


def _account(pid: int) -> list[int]:
    with open(f"/proc/{pid}/schedstat") as file:
        found = [int(word) for word in file.read().split()]
    with open(f"/proc/{pid}/status") as file:
        # voluntary_ctxt_switches and nonvoluntary_ctxt_switches
        return found + [int(line.split()[1]) for line in file if "voluntary_ctxt" in line]


def naps(naps_us: list[int], threads: int = 1, **_unused: object) -> dict[str, object]:
    """Sleep for each of these times, one clock_nanosleep() each, and time each sleep with one's own clock.

    time.sleep() will not do: since Python 3.11 it asks for a moment (``TIMER_ABSTIME``), reckoned before the call, so the
    call itself may be shorter than what was asked for. A relative sleep lasts at least as long, from entry to return.
    """
    import ctypes

    class Timespec(ctypes.Structure):
        _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))

    slept_ns = [0] * len(naps_us)
    nanosleep = ctypes.CDLL(None, use_errno=True).clock_nanosleep
    naps = [ctypes.byref(Timespec(us // 1_000_000, us % 1_000_000 * 1000)) for us in naps_us]

    def sleep_some(first: int) -> None:
        for index in range(first, len(naps_us), threads):
            start = time.monotonic_ns()
            failed = nanosleep(time.CLOCK_MONOTONIC, 0, naps[index], None)
            slept_ns[index] = time.monotonic_ns() - start
            if failed:
                raise OSError(failed, os.strerror(failed))

    others = [threading.Thread(target=sleep_some, args=(first,)) for first in range(1, threads)]
    for thread in others:
        thread.start()
    sleep_some(0)
    for thread in others:
        thread.join()
    return {"naps": len(naps_us), "slept_ns": slept_ns}


def timed_calls(count: int, batches: int, **_unused: object) -> dict[str, object]:
    """Make getppid() calls in batches, and time each batch by the wall clock and by the CPU time of this thread."""
    wall_ns, cpu_ns = [], []
    ask = os.getppid
    for _batch in range(batches):
        wall, cpu = time.monotonic_ns(), time.thread_time_ns()
        for _i in range(count):
            ask()
        cpu_ns.append(time.thread_time_ns() - cpu)
        wall_ns.append(time.monotonic_ns() - wall)
    return {"calls": count * batches, "wall_ns": wall_ns, "cpu_ns": cpu_ns}


def writes(sizes: list[int], rounds: int, pause_us: int, **_unused: object) -> dict[str, object]:
    """Write blocks of these sizes to /dev/null, in this order, so many rounds, with a pause after each."""
    blocks = [bytes(size) for size in sizes]
    with open("/dev/null", "wb", buffering=0) as sink:
        for _round in range(rounds):
            for block in blocks:
                os.write(sink.fileno(), block)
            time.sleep(pause_us / 1e6)
    return {"writes": rounds * len(sizes)}


_WORK: dict[str, Callable[..., dict[str, object]]] = {
    "bouncer": bouncer,
    "burst": burst,
    "reader": reader,
    "forker": forker,
    "hog": hog,
    "service": service,
    "pinger": pinger,
    "calls": calls,
    "spawner": spawner,
    "naps": naps,
    "timed_calls": timed_calls,
    "writes": writes,
}


def main() -> None:
    role, options = sys.argv[1], json.loads(sys.argv[2])
    _set_name(options.pop("comm"))
    if options.get("cpu") is not None:
        os.sched_setaffinity(0, {options["cpu"]})
    if options.get("cpus"):
        os.sched_setaffinity(0, options["cpus"])
    if "nice" in options:
        with contextlib.suppress(PermissionError):  # only root may become less nice
            os.setpriority(os.PRIO_PROCESS, 0, options["nice"])
    print("ready", flush=True)
    if sys.stdin.readline() != "go\n":
        return
    result = _WORK[role](**options)
    print(json.dumps(result), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

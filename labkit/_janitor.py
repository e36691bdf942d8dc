"""Cleans up after a process that can no longer do it: kills its workers and removes its cgroups.

Run as a script, in a session of its own. Reads lines from standard input, whose other end only its owner holds: when the
owner ends, however it ends (kill -9 included), the pipe closes and what is still on the list is cleaned up. PDEATHSIG would
not do: it fires when the *thread* that made the child ends, which in Jupyter is not the end of the kernel.

Lines: ``pid N START`` (start time in clock ticks, so that a reused pid is left alone), ``cgroup PATH``, ``controller PATH``
(a ``cgroup.subtree_control`` that the cpu controller is to leave), and the same with a leading ``-`` to take them off the
list again.
"""

import contextlib
import os
import signal
import sys
import time


def start_ticks(pid: int | str) -> str | None:
    """Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat), or None."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def kill(pid: str, start: str) -> None:
    """Kill a process if it is still the one that was meant."""
    if start_ticks(pid) == start:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def remove_cgroup(path: str) -> bool:
    """Kill what is in a cgroup and below, and remove it, inner ones first. True if it is gone.

    A process of another pid namespace reads as 0, which to kill(2) is our own process group: such a cgroup is left alone.
    """
    for _ in range(100):
        folders = [folder for folder, _, _ in os.walk(path, topdown=False)]
        if not folders:
            return True
        for folder in folders:
            with contextlib.suppress(OSError), open(os.path.join(folder, "cgroup.procs")) as file:
                pids = file.read().split()
                if "0" in pids:
                    return False
                for pid in pids:
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if not os.path.isdir(path):
            return True
        time.sleep(0.02)
    return False


def disable_cpu(control: str) -> bool:
    """Take the cpu controller out of a ``cgroup.subtree_control`` again, unless somebody has come to use it. True if done.

    The kernel refuses while a cgroup below hands it further down, another scope of ours for instance. It would not
    refuse for a leaf, which would lose its limits: so we look.
    """
    top = os.path.dirname(control)
    try:
        for name in next(os.walk(top))[1]:
            for limit, untouched in (("cpu.max", "max 100000"), ("cpu.weight", "100")):
                with contextlib.suppress(FileNotFoundError), open(os.path.join(top, name, limit)) as file:
                    if file.read().strip() != untouched:
                        return False
        with open(control, "w") as file:
            file.write("-cpu")
    except OSError:
        return False
    return True


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pids: dict[str, str] = {}
    cgroups: list[str] = []
    controllers: list[str] = []
    for line in sys.stdin:
        words = line.rstrip("\n").split(" ", 2)
        if words[0] == "pid":
            pids[words[1]] = words[2]
        elif words[0] == "-pid":
            pids.pop(words[1], None)
        else:
            paths = {"cgroup": cgroups, "controller": controllers}[words[0].lstrip("-")]
            path = line.rstrip("\n").split(" ", 1)[1]
            if not words[0].startswith("-"):
                paths.append(path)
            elif path in paths:
                paths.remove(path)
    for pid, start in pids.items():
        kill(pid, start)
    for path in reversed(cgroups):
        remove_cgroup(path)
    for path in controllers:
        disable_cpu(path)


if __name__ == "__main__":
    main()

"""Run a command with the capabilities that BPF needs, if this user was given them; else run it as it is.

    python -I -S labkit/system/launch.py COMMAND ARGUMENT...

The kernelspec of the lab's environment starts every notebook kernel so, and `labkit` starts itself anew so. Set-up
leaves a private copy of setpriv(1) with CAP_BPF and CAP_PERFMON that only the group `labkit` may execute; it hands them
on as ambient capabilities. Where systemd manages this user's processes, the command begins in a scope of its own, below
which it may make control groups (:mod:`labkit.kernel.place` says why it must begin there). The command replaces this
process: nothing stays in between. Only the standard library is used, and nothing of labkit, so that it costs 20 ms (40 ms
more for a scope).
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import shutil
import subprocess
import sys

GROUP = "labkit"
LAUNCHER = "/usr/local/lib/labkit/launch"
_RIGHTS = "+bpf,+perfmon"
_BITS = 1 << 38 | 1 << 39  # CAP_PERFMON, CAP_BPF: include/uapi/linux/capability.h
_MARK = "LABKIT_LAUNCHED"


def has_rights() -> bool:
    """True if this process has both capabilities already (root has, and what the launcher started)."""
    try:
        with open("/proc/self/status") as file:
            effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return True  # not Linux: there is nothing to gain
    return effective & _BITS == _BITS


def _member() -> bool:
    """True if the user is in the group by the system's own books, even if this session is older than that."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name in grp.getgrnam(GROUP).gr_mem
    except KeyError:
        return False


def launched(argv: list[str]) -> list[str] | None:
    """The command that runs ``argv`` with the rights; None if there is no way to them, or no need."""
    if has_rights() or os.environ.get(_MARK) or not os.path.exists(LAUNCHER):
        return None
    # The dynamic linker takes TMPDIR out of the environment of a file with capabilities (ld.so(8), secure execution).
    kept = [f"TMPDIR={os.environ['TMPDIR']}"] if "TMPDIR" in os.environ else []
    inner = [
        LAUNCHER,
        "--inh-caps",
        _RIGHTS,
        "--ambient-caps",
        _RIGHTS,
        "--",
        *(["env", *kept] if kept else []),
        *argv,
    ]
    if os.access(LAUNCHER, os.X_OK):
        return [*_scope(), *inner]
    if not _member() or not shutil.which("sg"):
        return None
    # A session from before set-up: sg(1) enters the group. It also makes it the group of new files; the inner sg
    # takes the user's own again, and the session keeps both.
    own = grp.getgrgid(os.getgid()).gr_name
    return [*_scope(), "sg", GROUP, "-c", shlex.join(["sg", own, "-c", shlex.join(["exec", *inner])])]


def _scope() -> list[str]:
    """The words that begin a command in a scope of its own, if this user's systemd grants one; else none."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    pure_v2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    if not pure_v2 or not os.path.exists(f"{runtime}/systemd/private") or not shutil.which("systemd-run"):
        return []
    os.environ["XDG_RUNTIME_DIR"] = runtime  # `su` and `runuser` leave it out
    run = ["systemd-run", "--user", "--scope", "--quiet", "--collect", "--property=Delegate=yes"]
    try:
        tried = subprocess.run(
            [*run, "--", "true"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [] if tried.returncode else [*run, f"--unit=labkit-{os.getpid()}", "--"]


def gain_rights(argv: list[str]) -> None:
    """Become ``argv`` with the rights. Returns if that is not needed or not possible."""
    command = launched(argv)
    if command is None:
        return
    os.environ[_MARK] = "1"  # once only: where the rights do not come through, the command runs without
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)
    except OSError:
        # EPERM: a container whose bounding set lacks the capabilities.
        del os.environ[_MARK]


if __name__ == "__main__":
    gain_rights(sys.argv[1:])
    os.execvp(sys.argv[1], sys.argv[1:])

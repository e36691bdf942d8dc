"""`labkit setup` and `labkit uninstall`: say it, ask, do it; as root directly, else by sudo, once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from labkit.errors import LabkitError
from labkit.paths import cache_dir
from labkit.system.access import Launcher, TracefsForGroup
from labkit.system.bcc_link import unlink
from labkit.system.gcloud import Gcloud
from labkit.system.kernelspec import wrap_kernelspec
from labkit.system.mounts import Mount
from labkit.system.packages import Packages
from labkit.system.step import STATE_FILE, Done, OutOfReach, Step
from labkit.system.wish import PARTS, Wish

__all__ = ["READY", "REPLAY_ONLY", "apply", "setup", "undo", "uninstall"]

READY = 0
REPLAY_ONLY = 3  # as `labkit doctor` says it: something live needs could not be done; replay goes on


def _say(text: str) -> None:
    print(text, flush=True)


def steps(user: str | None, *, asked: Wish | None = None, given_up: list[str] | None = None) -> list[Step]:
    """All steps, each after those it builds on. ``user`` is who shall measure without being root, if anybody."""
    asked = asked or Wish()
    packages: list[Step] = [
        Packages(given_up or (), asked),
        *([Gcloud(asked.gcloud_archive)] if "gcloud" in asked.chosen else []),
    ]
    if asked.image:
        return packages
    listed = [
        *packages,
        Mount("tracefs", "/sys/kernel/tracing", "names the kernel's tracepoints"),
        Mount("debugfs", "/sys/kernel/debug", "older tools look for tracepoints and kprobes there"),
        Mount("bpf", "/sys/fs/bpf", "bpftool expects it"),
    ]
    if user is not None:
        listed += [Launcher(user), TracefsForGroup()]
    return listed


def _all_steps() -> list[Step]:
    """Every step that may have done something here, whatever was asked for then."""
    return steps("", asked=Wish(parts=PARTS))


def _who() -> str | None:
    """The ordinary user that set-up is for: oneself, or who called sudo; None for root alone, or without a name."""
    if os.geteuid() != 0:
        try:
            return pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:  # a container that runs as a number: nobody whom a group could be given to
            return None
    caller = os.environ.get("SUDO_USER", "root")
    return None if caller == "root" else caller


def _plan(listed: list[Step]) -> list[tuple[Step, list[str]]]:
    plan = [(step, step.missing()) for step in listed]
    return [(step, lines) for step, lines in plan if lines]


def _show(plan: list[tuple[Step, list[str]]]) -> None:
    for step, lines in plan:
        _say(f"  {step.name} ({step.why}):")
        for line in lines:
            _say(f"    - {line}")


def _agreed(question: str, *, assume_yes: bool) -> bool:
    """Ask where a person can answer (the default is yes); go on where none can."""
    if assume_yes or not sys.stdin.isatty():
        return True
    try:
        return input(f"{question} [Y/n] ").strip().lower() in ("", "y", "yes")
    except (EOFError, KeyboardInterrupt):
        print()
        return False


def _impossible() -> str | None:
    """Why nothing can be set up on this system at all, with the remedy, in one line; None where it can."""
    if platform.system() == "Linux":
        return None
    remedy = "live needs a Linux machine (on a Mac a Lima guest: ./task lima-start, then ./task lima-lab; lima/README.md)"
    return f"set-up: {platform.system()} has no eBPF for the lab, so it runs in replay; {remedy}"


def setup(
    *, assume_yes: bool = False, dry: bool = False, quiet: bool = False, asked: Wish | None = None
) -> int:
    """Name, then install, mount and grant what live measurement needs.

    :param assume_yes: do not ask.
    :param dry: only say what would be done.
    :param quiet: say nothing when there is nothing to do.
    :param asked: parts by name, another kernel, or an image; all of it is then needed, and what lacks is an error.
    :returns: 0 when all is done, or nothing more can be done on this system; 3 when something remains undone that
        could be done (declined, no sudo, a failing mount). In both cases the lab goes on, in replay if need be.
    """
    impossible = _impossible()
    if impossible:
        _say(impossible)
        return READY
    wrap_kernelspec()
    user = _who()
    given_up = Done.load().given_up if quiet else []
    asked = asked or Wish()
    plan = _plan(steps(user, asked=asked, given_up=given_up))
    if not plan:
        if not quiet:
            _say("set-up: nothing to do, this machine has all that the lab asks for")
        return READY
    _say("set-up: for live measurement the lab will" + (" (dry run: it will not)" if dry else ""))
    _show(plan)
    if dry:
        return READY
    if not _agreed("Go on?", assume_yes=assume_yes):
        _say("set-up: left as it is; what needs the kernel runs in replay (./task setup asks again)")
        return REPLAY_ONLY
    if os.geteuid() == 0:
        return apply(user, asked)
    return _by_sudo(
        ["apply", "--for-user", user or "root", *asked.arguments()],
        instead="set-up: not done, and the lab runs in replay",
    )


def _by_sudo(arguments: list[str], *, instead: str) -> int:
    """Run this module as root, in one call of sudo; it asks for the password only where a terminal is.

    :param instead: what to say if that fails, before the reason and the command for root.
    """
    own = [sys.executable, "-B", "-m", "labkit.system", *arguments]  # -B: no files of root in the clone
    call = ["sudo", *([] if sys.stdin.isatty() else ["-n"]), "--", *own]
    try:
        code = subprocess.run(call, check=False).returncode
        reason = f"sudo ended with {code}"
    except FileNotFoundError:
        code, reason = 127, "it needs root, and there is no sudo"
    except KeyboardInterrupt:
        code, reason = 130, "interrupted"
    if code not in (READY, REPLAY_ONLY):
        _say(f"{instead}: {reason}. As root, this does it:\n    {shlex.join(own)}")
        return REPLAY_ONLY
    return code


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One set-up at a time: each remembers what it did, and apt has one lock. The second finds less to do."""
    with Path("/run/labkit-setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@_alone()
def apply(user: str | None, asked: Wish | None = None) -> int:
    """Do all that is missing, as root; a failing step is reported and does not stop the others.

    :returns: as :func:`setup`. Parts that were asked for by name and cannot be had are 3, not 0.
    """
    asked = asked or Wish()
    worst = READY
    out_of_reach = ""
    done = Done.load()
    for step, _ in _plan(steps(user, asked=asked)):
        _say(f"set-up: {step.name}")
        try:
            step.apply(done)
        except OutOfReach as error:
            out_of_reach = f"{error.what} ({error.why}). Next: {error.remedy}, then ./task setup"
        except LabkitError as error:
            worst = REPLAY_ONLY
            _say(f"set-up: {error}")
        finally:
            done.save()
    if out_of_reach and asked != Wish():
        worst = REPLAY_ONLY
        _say(f"set-up: {out_of_reach}")
    elif out_of_reach:
        _say(f"set-up: the lab runs in replay: {out_of_reach}")
    elif worst == READY:
        _say("set-up: done (./task uninstall takes it back)")
    return worst


def uninstall(*, assume_yes: bool = False, dry: bool = False) -> int:
    """Take back what set-up did on this machine, and nothing else; asks before it removes the lab's cache.

    :returns: 0 when it is done, 3 when something could not be taken back, or was not wanted.
    """
    done = Done.load()
    plan = [(step, lines) for step in reversed(_all_steps()) if (lines := step.owned(done))]
    cache = cache_dir()
    if plan:
        _say("uninstall: takes back what set-up did here" + (" (dry run: it does not)" if dry else ""))
        for _, lines in plan:
            for line in lines:
                _say(f"    - {line}")
    else:
        _say("uninstall: set-up changed nothing on this machine, or it was taken back already")
    if dry:
        return READY
    code = READY
    if plan:
        if not _agreed("Go on?", assume_yes=assume_yes):
            return REPLAY_ONLY
        code = undo() if os.geteuid() == 0 else _by_sudo(["undo"], instead="uninstall: not done")
    if unlink():
        _say(
            "uninstall: the link to the system's bcc in this environment is gone (`labkit doctor` makes it anew)"
        )
    if "LABKIT_CACHE" in os.environ:
        _say(f"uninstall: the cache is where LABKIT_CACHE says, and yours to remove: {cache}")
    elif any(cache.iterdir()) and _agreed(f"Remove the lab's cache, {cache}, too?", assume_yes=assume_yes):
        shutil.rmtree(cache)
    return code


@_alone()
def undo() -> int:
    """Take everything back, as root, in the opposite order."""
    worst = READY
    done = Done.load()
    for step in reversed(_all_steps()):
        if not step.owned(done):
            continue
        _say(f"uninstall: {step.name}")
        try:
            step.undo(done)
        except LabkitError as error:
            worst = REPLAY_ONLY
            _say(f"uninstall: {error}")
        finally:
            done.save()
    if worst == READY:
        done.given_up = []
        done.save()
        _say(f"uninstall: done; what is installed now was here before ({Path(STATE_FILE)} is gone)")
    return worst

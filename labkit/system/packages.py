"""The system's packages: bcc, kernel headers, and a few tools, by apt."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from labkit.errors import LabkitError
from labkit.kernel import bcc, headers
from labkit.system.step import Done, OutOfReach, SetupFailed, Step, command
from labkit.system.wish import Wish

__all__ = ["Packages", "Want", "install", "parse_candidates", "parse_simulation"]

_DEBIAN_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
_APT = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=2",
        "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20")  # fmt: skip
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # not on the path of Debian's ordinary users
# NEEDRESTART_SUSPEND: Ubuntu's needrestart would restart services, or ask.
_QUIET = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "APT_LISTCHANGES_FRONTEND": "none"}


@dataclass(frozen=True)
class Want:
    """Something the lab uses from the system.

    :param part: what it is called in a :class:`~labkit.system.wish.Wish`.
    :param what: what it is, for people.
    :param packages: packages that provide it, the best first; the first one that the archive has is taken.
    :param present: True if the machine has it already, from wherever.
    :param needed: False if the lab goes on without it.
    """

    part: str
    what: str
    packages: tuple[str, ...]
    present: Callable[[], bool]
    needed: bool = True


def _has_bcc() -> bool:
    try:
        bcc.locate()
    except LabkitError:
        return False
    return True


def _has_headers() -> bool:
    try:
        headers.find()
    except LabkitError:
        return False
    return True


def _has_tool(*names: str) -> Callable[[], bool]:
    return lambda: any(shutil.which(name, path=path) for name in names for path in (None, _SBIN))


def _has_bpftool() -> bool:
    """Ubuntu's is a script that is there for every kernel, and works only where the tools of this one are installed."""
    path = next((found for where in (None, _SBIN) if (found := shutil.which("bpftool", path=where))), None)
    if path is None:
        return False
    try:
        command([path, "version"])
    except SetupFailed:
        return False
    return True


def _headers_packages(asked: Wish) -> tuple[str, ...]:
    """Headers of a kernel, and after them those that the archive has instead, of the same flavour first.

    >>> _headers_packages(Wish(kernel="6.12.9+deb13-cloud-amd64"))[0]
    'linux-headers-6.12.9+deb13-cloud-amd64'
    """
    kernel = asked.kernel or platform.release()
    arch = _DEBIAN_ARCH.get(platform.machine(), platform.machine())
    nearest = [f"linux-headers-{arch}", f"linux-headers-cloud-{arch}", "linux-headers-generic"]
    if "-cloud-" in kernel:
        nearest = [nearest[1], nearest[0], nearest[2]]
    # An image is for other kernels than the one that it is built on.
    exact = [] if asked.image and not asked.kernel else [f"linux-headers-{kernel}"]
    return (*exact, *nearest)


def _everything(asked: Wish) -> list[Want]:
    return [
        Want("bcc", "bcc, the compiler of the lab's programs", ("python3-bpfcc",), _has_bcc),
        Want(
            "headers",
            "kernel headers for it, those of this kernel or the nearest",
            _headers_packages(asked),
            _has_headers,
        ),
        Want(
            "bpftool",
            "shows what is loaded",
            ("bpftool", f"linux-tools-{asked.kernel or platform.release()}", "linux-tools-common"),
            _has_bpftool,
            needed=False,
        ),
        Want("stress-ng", "known workloads", ("stress-ng",), _has_tool("stress-ng"), needed=False),
        Want(
            "kmod",
            "loads kernel modules (headers in the kernel)",
            ("kmod",),
            _has_tool("modprobe"),
            needed=False,
        ),
        Want("browser", "opens JupyterLab and the site in tests", ("chromium",), _has_tool("chromium")),
        Want("containers", "builds container images", ("podman", "docker.io"), _has_tool("podman", "docker")),
        Want("containers", "lets a user build them", ("uidmap",), _has_tool("newuidmap")),
        Want(
            "containers",
            "gives their builds a network",
            ("passt", "slirp4netns"),
            _has_tool("pasta", "slirp4netns"),
        ),
    ]


def wants(asked: Wish | None = None) -> list[Want]:
    """All that the lab uses, or what a wish asks for; offsets come from BTF, so any headers serve.

    What is named in a wish is needed: who asks for it does not go on without.
    """
    asked = asked or Wish()
    chosen = [want for want in _everything(asked) if want.part in asked.chosen]
    return [replace(want, needed=True) for want in chosen] if asked.parts else chosen


def parse_candidates(policy: str) -> set[str]:
    """Names that the archive can install, from the output of ``apt-cache policy NAMES``.

    >>> parse_candidates("kmod:\\n  Installed: (none)\\n  Candidate: 30-1\\nnone:\\n  Candidate: (none)\\n")
    {'kmod'}
    """
    found = re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: (\S+)", policy, flags=re.MULTILINE)
    return {name for name, version in found if version != "(none)"}


def parse_simulation(text: str, verb: str) -> list[str]:
    """Names after ``Inst`` or ``Remv`` in the output of ``apt-get --simulate``.

    >>> parse_simulation("Inst kmod [29] (30 Debian)\\nInst new (1 Debian)\\nConf kmod (30 Debian)\\n", "Inst")
    ['kmod', 'new']
    """
    return re.findall(rf"^{verb} (\S+)", text, flags=re.MULTILINE)


def _installed() -> set[str]:
    listing = command(["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\n"])
    return {line.split()[1] for line in listing.splitlines() if line.startswith("ii")}


def install(names: Sequence[str], done: Done) -> None:
    """Install packages as root, and remember those that were not there before, so that uninstall takes them back.

    :raises SetupFailed: with what apt said.
    """
    argv = [*_APT, "install", "--no-install-recommends", *names]
    before = _installed()
    planned = parse_simulation(command([*argv, "--simulate"], env=_QUIET), "Inst")
    new = [name.split(":")[0] for name in planned if name.split(":")[0] not in before]
    print(f"  apt-get install {' '.join(names)} ({len(new)} packages with what they need) ...", flush=True)
    # Remembered before it is done: a set-up killed half way can still be taken back.
    done.packages = sorted({*done.packages, *new})
    done.save()
    command(argv, env=_QUIET)


class Packages(Step):
    """Debian and Ubuntu packages; other systems may bring the same tools by themselves."""

    name = "packages"
    why = "programs are compiled on this machine, for this kernel"

    def __init__(self, given_up: Collection[str] = (), asked: Wish | None = None) -> None:
        """
        :param given_up: packages that need not be asked for again, if the lab goes on without them.
        :param asked: which of them, and for which kernel; the usual ones for the running kernel by default.
        """
        self.given_up = frozenset(given_up)
        self.asked = asked or Wish()

    def _absent(self) -> list[Want]:
        return [
            want
            for want in wants(self.asked)
            if (want.needed or want.packages[0] not in self.given_up) and not want.present()
        ]

    def missing(self) -> list[str]:
        return [f"install {' or '.join(want.packages[:2])}: {want.what}" for want in self._absent()]

    def apply(self, done: Done) -> None:
        if not shutil.which("apt-get"):
            raise OutOfReach(
                "the packages cannot be installed",
                why="this system has no apt-get",
                remedy=f"install by its own means: {', '.join(want.what for want in self._absent() if want.needed)}",
            )
        names, unavailable = self._choose()
        unreachable = ""
        if unavailable:
            unreachable = self._update()
            names, unavailable = self._choose()
        if names:
            self._install(names, done)
        lacking = [want for want in unavailable if want.needed]
        if lacking:
            absent = " and ".join(want.packages[0] for want in lacking)
            raise OutOfReach(
                f"{absent} cannot be installed",
                why=unreachable or "the archives that apt knows do not have it, nor anything in its place",
                remedy="get on the network"
                if unreachable
                else "add your distribution's main archive to apt's sources",
            )
        if not unreachable:
            given_up = {want.packages[0] for want in unavailable}
            done.given_up = sorted({*done.given_up, *given_up})

    def _choose(self) -> tuple[list[str], list[Want]]:
        """Names to install now, and what the archive (as apt knows it now) does not have."""
        absent = self._absent()
        asked = [name for want in absent for name in want.packages]
        known = parse_candidates(command(["apt-cache", "policy", *asked]) if asked else "")
        choices = [(want, next((name for name in want.packages if name in known), None)) for want in absent]
        return [name for _, name in choices if name], [want for want, name in choices if not name]

    def _update(self) -> str:
        """Fetch the archives' lists; returns why not, if one did not answer (the others may have all we need)."""
        print("  apt-get update ...", flush=True)
        try:
            # By default it ends with 0 even if no archive answered.
            command([*_APT, "-o", "APT::Update::Error-Mode=any", "update"], env=_QUIET)
        except SetupFailed as error:
            return error.why
        return ""

    def _install(self, names: list[str], done: Done) -> None:
        try:
            install(names, done)
        except SetupFailed as first:
            # Usually lists older than the archive. Once more with fresh ones, and only what is needed.
            self._update()
            needed = {name for want in wants(self.asked) if want.needed for name in want.packages}
            try:
                install([name for name in names if name in needed] or names, done)
            except SetupFailed as error:
                raise OutOfReach(
                    "the packages cannot be installed",
                    why=error.why,
                    remedy=f"this shows more: apt-get install {' '.join(names)}",
                ) from first

    def owned(self, done: Done) -> list[str]:
        return [f"remove {len(done.packages)} packages: {', '.join(done.packages)}"] if done.packages else []

    def undo(self, done: Done) -> None:
        removable, kept = self._removable(sorted(set(done.packages) & _installed()))
        if kept:
            print(f"  kept, because other packages use them now: {', '.join(kept)}", flush=True)
        if removable:
            command([*_APT, "purge", *removable], env=_QUIET, what="the packages cannot be removed")
        done.packages = []
        done.given_up = []

    def _removable(self, ours: list[str]) -> tuple[list[str], list[str]]:
        """Ours split in two: what can go alone, and what packages that are not ours depend on by now."""

        def takes_others(names: list[str]) -> bool:
            going = parse_simulation(
                command([*_APT, "purge", "--simulate", *names], env=_QUIET), "(?:Remv|Purg)"
            )
            return not {name.split(":")[0] for name in going} <= set(ours)

        if not ours or not takes_others(ours):
            return ours, []
        kept = [name for name in ours if takes_others([name])]
        return [name for name in ours if name not in kept], kept

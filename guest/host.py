"""What this machine must have to build and run the guest, and where its Debian packages come from."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from guest.arch import Arch
from guest.errors import BuildFailed, HostCannot
from labkit.system.packages import install
from labkit.system.step import Done, SetupFailed

__all__ = ["apt_transport_options", "debian_mirror", "locked", "need_tools", "run_tool", "say", "tool"]

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "LABKIT_DEBIAN_MIRROR"

# Names under which apt sources may call the release itself, beside its codename.
_SUITE_ALIASES = {"stable", "oldstable", "oldoldstable", "testing", "unstable", "sid"}

# The host's settings for reaching its mirrors (proxies, certificates, retries, clocks that are off) hold for
# the guest's packages too; mmdebstrap starts from an empty configuration.
_TRANSPORT = re.compile(r"Acquire::(https?|ftp|Retries|Check-Valid-Until|Check-Date|ForceIPv[46])\b")


def say(text: str) -> None:
    """A progress line, at once."""
    print(f"guest: {text}", flush=True)


def tool(name: str) -> str | None:
    """Where a program is; the superuser's folders are searched too (mke2fs lives there)."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, so that one process at a time makes ``what``; says so if it must wait."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process makes the {what}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _missing_packages(wanted: Mapping[str, str]) -> list[str]:
    missing = {package for program, package in wanted.items() if tool(program) is None}
    if "mmdebstrap" in wanted and not KEYRING.exists():
        missing.add("debian-archive-keyring")
    return sorted(missing)


def need_tools(arch: Arch, *, build: bool) -> None:
    """Make sure that the programs are here; as root they are installed, with a line that says so.

    :param build: whether an image must be built, or only started.
    :raises HostCannot: where they are missing and cannot be installed, or a build lacks the rights.
    """
    if platform.system() != "Linux":
        raise HostCannot(
            "The guest needs a Linux host.", remedy="On a Mac: ./task lima-test (lima/README.md)."
        )
    wanted = {arch.qemu: arch.qemu_package, "qemu-img": "qemu-utils", "setpriv": "util-linux", "git": "git"}
    if build:
        wanted |= {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}
        if os.geteuid() != 0:
            raise HostCannot(
                "Building the guest's image needs root.",
                why="its files belong to root, and its programs run in a chroot to set themselves up.",
                remedy="As root: sudo ./task guest-test",
            )
    missing = _missing_packages(wanted)
    if missing:
        _install(missing)
        still = _missing_packages(wanted)
        if still:
            raise HostCannot(f"Installed, yet not found: {', '.join(still)}.")


def _install(packages: list[str]) -> None:
    by_hand = f"apt-get install {' '.join(packages)}"
    if tool("apt-get") is None:
        raise HostCannot(f"Not installed: {', '.join(packages)}.", remedy="Install what provides them here.")
    if os.geteuid() != 0:
        raise HostCannot(f"Not installed: {', '.join(packages)}.", remedy=f"As root: {by_hand}")
    say(f"installing {' '.join(packages)} (./task uninstall takes them back)")
    done = Done.load()
    try:
        try:
            install(packages, done)
        except SetupFailed:
            # The usual reason is a package list that is empty or out of date.
            run_tool(["apt-get", "update", "-q"])
            install(packages, done)
    except (SetupFailed, BuildFailed) as error:
        raise HostCannot("apt-get could not install what the guest needs.", why=str(error)) from error


def run_tool(
    command: list[str], *, env: Mapping[str, str] | None = None, on_line: Callable[[str], None] | None = None
) -> str:
    """Run a program to its end and return what it printed (both streams).

    :param on_line: called with each line as it comes.
    :raises BuildFailed: if it fails, with the end of its output.
    """
    lines: list[str] = []
    with subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if on_line is not None:
                on_line(line.rstrip("\n"))
    if process.returncode != 0:
        tail = "\n    ".join(line.rstrip("\n") for line in lines[-25:])
        raise BuildFailed(
            f"`{' '.join(command[:3])} ...` failed with {process.returncode}.", why=f"\n    {tail}"
        )
    return "".join(lines)


def debian_mirror(
    *,
    targets: Iterable[str] | None = None,
    os_release: Mapping[str, str] | None = None,
    override: str | None = None,
) -> str | None:
    """The address of the Debian archive that this machine's apt uses itself.

    The arguments are for tests; by default the machine is asked.

    :param targets: lines ``RELEASE|COMPONENT|URI`` as :func:`_index_targets` prints them.
    :param os_release: the fields of /etc/os-release.
    :param override: an address that wins over all (``LABKIT_DEBIAN_MIRROR``).
    :returns: None if the host's sources name none (Ubuntu's do not): mmdebstrap knows where Debian's is.
    """
    chosen = override if override is not None else os.environ.get(MIRROR_VARIABLE)
    if chosen:
        return chosen
    release = os_release if os_release is not None else platform.freedesktop_os_release()
    if release.get("ID") != "debian":
        return None
    names = _SUITE_ALIASES | {release.get("VERSION_CODENAME", "")}
    for line in targets if targets is not None else _index_targets():
        name, component, uri = f"{line}||".split("|")[:3]
        if name in names and component == "main" and uri:
            return uri.rstrip("/")
    return None


def _index_targets() -> list[str]:
    form = "$(RELEASE)|$(COMPONENT)|$(REPO_URI)"
    return run_tool(["apt-get", "indextargets", "--format", form, "Created-By: Packages"]).splitlines()


def apt_transport_options(dump: str | None = None) -> list[str]:
    """The host's apt settings on how to reach mirrors, as lines of apt configuration.

    :param dump: what ``apt-config dump Acquire`` printed; asked for if None.

    >>> apt_transport_options('Acquire::Retries "3";\\nAcquire::cdrom::mount "/media";\\nAcquire::http "";')
    ['Acquire::Retries "3"']
    """
    text = dump if dump is not None else run_tool(["apt-config", "dump", "Acquire"])
    lines = (line.strip().removesuffix(";") for line in text.splitlines())
    return [line for line in lines if _TRANSPORT.match(line) and not line.endswith('""')]

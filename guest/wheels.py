"""The part of requirements.lock that the guest needs, installed for the guest's Python.

The host's environment was installed from the same lock, so its metadata tells who needs whom. The guest takes what the
lab needs to run notebooks headless, and pytest; JupyterLab's server and the linters stay outside.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
import tempfile
import tomllib
import venv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from guest.arch import Arch
from guest.errors import BuildFailed
from guest.host import run_tool

__all__ = ["GUEST_GLIBC", "GUEST_PYTHON", "guest_requirements", "install_wheels", "lock_entries"]

GUEST_PYTHON = "3.13"  # Debian 13's python3
GUEST_GLIBC = (2, 41)  # and its C library: wheels built for an older one run there
_NOT_IN_GUEST = {"jupyterlab"}
_TESTS = ("pytest", "pytest-timeout")

_PIN = re.compile(r"(?P<pin>(?P<name>[A-Za-z0-9._-]+)==[^;\s]+)[^\S\n]*(;(?P<marker>[^\\\n]*))?")

Requires = Callable[[str], Iterable[str]]


def _environment(arch: Arch) -> dict[str, str]:
    """The guest's values for the environment markers of PEP 508."""
    environment = {key: str(value) for key, value in default_environment().items()}
    return environment | {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": arch.machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{GUEST_PYTHON}.0",
        "python_version": GUEST_PYTHON,
        "sys_platform": "linux",
        "extra": "",
    }


def lock_entries(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The lock's pins that hold in an environment: canonical name -> the entry with its hashes.

    The marker is left out: pip would judge it by the Python that runs pip, not by the one it installs for.

    :param text: a lock as ``uv pip compile --universal --generate-hashes --no-annotate`` writes it.
    """
    entries: dict[str, str] = {}
    for block in re.split(r"\n(?=\S)", text.strip()):
        match = _PIN.match(block)
        if match is None:
            continue
        marker = match["marker"]
        pin = Requirement(f"{match['name']} ; {marker}" if marker else match["name"])
        if pin.marker is None or pin.marker.evaluate(dict(environment)):
            entries[str(canonicalize_name(match["name"]))] = f"{match['pin']} {block[match.end() :].lstrip()}"
    return entries


def _installed_requires(name: str) -> Iterable[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def guest_requirements(
    root: Path, arch: Arch, *, requires: Requires = _installed_requires, text: str | None = None
) -> str:
    """A requirements file for the guest: the closure of what it runs, as pinned in the lab's lock.

    :param root: the lab's folder, with pyproject.toml and requirements.lock.
    :param requires: package name -> its requirements; the host's environment by default.
    :param text: the lock's text, if not the file's.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    environment = _environment(arch)
    lock = lock_entries(text if text is not None else (root / "requirements.lock").read_text(), environment)
    todo = [(Requirement(line), "") for line in (*project["dependencies"], *_TESTS)]
    chosen: set[tuple[str, str]] = set()  # name and extra; every package also without one
    while todo:
        requirement, wanted_by = todo.pop()
        name = str(canonicalize_name(requirement.name))
        holds = requirement.marker is None or requirement.marker.evaluate(environment | {"extra": wanted_by})
        if not holds or name in _NOT_IN_GUEST or name not in lock:
            continue
        for extra in {"", *requirement.extras}:
            if (name, extra) not in chosen:
                chosen.add((name, extra))
                todo += [(Requirement(line), extra) for line in requires(name)]
    return "\n".join(lock[name] for name in sorted({name for name, _ in chosen})) + "\n"


def _platform_tags(arch: Arch) -> list[str]:
    """Wheel tags that run on the guest; pip does not derive the older ones from the newest itself."""
    major, newest = GUEST_GLIBC
    manylinux = [f"manylinux_{major}_{minor}_{arch.machine}" for minor in range(newest, 4, -1)]
    legacy = [f"manylinux{name}_{arch.machine}" for name in ("2014", "2010", "1")]
    return [*manylinux, *legacy, f"linux_{arch.machine}"]


def install_wheels(requirements: str, target: Path, arch: Arch) -> None:
    """Install a requirements file for the guest's Python into a folder, checking hashes.

    :raises BuildFailed: if pip fails or cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="pip-", dir=target.parent) as scratch:
        listing = Path(scratch) / "requirements.txt"
        listing.write_text(requirements)
        # It dies with the thread that waits for it.
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            *_pip(Path(scratch)),
            "install",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--no-compile",
        ]
        command += ["--only-binary", ":all:", "--python-version", GUEST_PYTHON, "--implementation", "cp"]
        command += ["--ignore-requires-python"]  # pip would judge this, too, by its own Python
        for tag in _platform_tags(arch):
            command += ["--platform", tag]
        run_tool([*command, "--target", str(target), "--requirement", str(listing)])


def _pip(scratch: Path) -> list[str]:
    """A pip: this environment's, or one in a throwaway environment (uv makes environments without)."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    try:
        venv.create(scratch / "venv", with_pip=True)
    except Exception as error:
        raise BuildFailed("No pip to install the guest's Python packages with.", why=str(error)) from error
    return [str(scratch / "venv" / "bin" / "python"), "-m", "pip"]

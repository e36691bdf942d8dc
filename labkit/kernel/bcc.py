"""Where the distribution's bcc is. It is found here, and imported only in the compiler's own process."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import MissingBcc

__all__ = ["BccLocation", "locate"]

_PLACES = (
    "/usr/lib/python3/dist-packages",
    "/usr/lib/python3/site-packages",
    "/usr/lib/python3*/site-packages",
)


@dataclass(frozen=True)
class BccLocation:
    """A usable bcc: the folder of its Python package and its version."""

    package: Path
    version: str


def locate() -> BccLocation:
    """Find the distribution's bcc; ``LABKIT_BCC`` names the package's folder (``.../bcc``) instead.

    The package is pure Python over ``libbcc.so.0``, so it works from any Python 3. PyPI's ``bcc`` (a lattice
    package) is not it: a folder counts only if it holds ``libbcc.py``.

    :raises MissingBcc: with the command that installs it.
    """
    override = os.environ.get("LABKIT_BCC")
    places = (
        [Path(override)] if override else [p / "bcc" for place in _PLACES for p in Path("/").glob(place[1:])]
    )
    for package in places:
        if (package / "libbcc.py").is_file():
            return BccLocation(package, _version(package))
    raise MissingBcc(
        "bcc, the compiler of the BPF programs, is not installed",
        why=f"no bcc package at {', '.join(map(str, places)) or ' or '.join(_PLACES)}",
        remedy="./task setup (or: sudo apt-get install python3-bpfcc)",
    )


def _version(package: Path) -> str:
    try:
        match = re.search(r"['\"]([0-9][^'\"]*)['\"]", (package / "version.py").read_text())
    except OSError:
        match = None
    return match.group(1) if match else "unknown"

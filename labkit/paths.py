"""Where things are: the lab's folders, labkit's cache, outcomes."""

from __future__ import annotations

import os
from pathlib import Path

from labkit.errors import LabkitError

__all__ = ["bpf_dir", "cache_dir", "captures_dir", "lab_root", "notebooks_dir", "outcomes_dir", "work_dir"]


def lab_root() -> Path:
    """The lab's folder (the one that holds ``bpf/`` and ``notebooks/``); ``LABKIT_ROOT`` overrides it."""
    override = os.environ.get("LABKIT_ROOT")
    return Path(override) if override else Path(__file__).resolve().parent.parent


def bpf_dir() -> Path:
    """C sources, one per program."""
    return lab_root() / "bpf"


def notebooks_dir() -> Path:
    """Notebook sources, committed without outputs."""
    return lab_root() / "notebooks"


def captures_dir() -> Path:
    """Small real captures that ship with the lab, one folder per chapter."""
    return lab_root() / "captures"


def outcomes_dir() -> Path:
    """What runs write; ``LABKIT_OUTCOMES`` overrides it."""
    override = os.environ.get("LABKIT_OUTCOMES")
    return Path(override) if override else lab_root() / "outcomes"


def work_dir() -> Path:
    """The learner's own folder, which git ignores: working copies, progress. ``LABKIT_WORK`` overrides it."""
    override = os.environ.get("LABKIT_WORK")
    return Path(override) if override else lab_root() / "my"


def cache_dir() -> Path:
    """labkit's own cache: merged headers, compiled programs. ``LABKIT_CACHE`` overrides it.

    Otherwise ``$XDG_CACHE_HOME/labkit`` or ``~/.cache/labkit``. Made on first use, private to the user: what is
    in it is loaded into the kernel.

    :raises LabkitError: if it cannot be made.
    """
    override = os.environ.get("LABKIT_CACHE")
    if override:
        path = Path(override)
    else:
        base = os.environ.get("XDG_CACHE_HOME")
        path = (Path(base) if base else Path.home() / ".cache") / "labkit"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LabkitError(
            f"the cache folder {path} cannot be made",
            why=error.strerror or str(error),
            remedy="set LABKIT_CACHE to a folder that can be written",
        ) from error
    return path

"""The run that a site shows, and how its pages say which that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError
from labkit.notebook_io import chapters
from labkit.outcomes import read_summary
from labkit.paths import lab_root, outcomes_dir

__all__ = ["HOW", "Run", "find_run", "which"]

HOW = "`./task lab` runs all chapters on your machine; `./task site` then makes these pages of that run."


@dataclass(frozen=True)
class Run:
    """The run that a site shows.

    :param folder: holds ``summary.json`` and perhaps ``notebooks/``.
    :param before: the summary of the run before it, if there is one to compare with.
    :param kept: it is the example that comes with the lab, since there is no run of one's own.
    """

    folder: Path
    summary: Mapping[str, Any]
    before: Mapping[str, Any] | None = None
    kept: bool = False

    @property
    def shown(self) -> int:
        """How many of the chapters it executed."""
        return sum(self.has(path.stem) for path in chapters())

    def has(self, name: str) -> bool:
        """Whether it executed a chapter."""
        entry = self.entry(name)
        return entry is not None and entry["status"] != "not run"

    def entry(self, name: str) -> Mapping[str, Any] | None:
        """The summary's entry of a chapter."""
        return next((entry for entry in self.summary["notebooks"] if entry["name"] == name), None)


def find_run(outcomes: Path | None = None) -> Run:
    """The last run, or the kept example where there was none.

    :param outcomes: holds ``latest/``, ``previous/``, ``example/``; the lab's own if None.
    :raises LabkitError: neither is there.
    """
    folder = outcomes or outcomes_dir()
    latest = read_summary(folder / "latest")
    if latest is not None:
        return Run(folder / "latest", latest, read_summary(folder / "previous"))
    kept = lab_root() / "outcomes" / "example"
    for example in (folder / "example", kept):
        summary = read_summary(example)
        if summary is not None:
            return Run(example, summary, kept=True)
    raise LabkitError("there is no run to make a site of", why=f"{folder} has none", remedy="./task lab")


def which(run: Run) -> str:
    """Whose run the pages show, and what is missing in it."""
    some = "" if run.shown == len(chapters()) else f", with {run.shown} of the {len(chapters())} chapters"
    if run.kept:
        return f"These pages show **the run that comes with the lab**{some}: there is none of your own yet. {HOW}"
    return f"These pages show your last run{some}.{' ' + HOW if some else ''}"

"""The canonical form of the notebooks' sources, so that diffs show what a person changed and nothing else.

``python -m labkit.notebook_form`` says which of ``notebooks/*.ipynb`` are not in that form (exit code 1);
``--write`` puts them into it. Canonical means: nbformat 4.5 as nbformat writes it, no outputs, no counts, the
kernelspec ``python3``, no metadata but tags, ids that say what a cell is for, sources without trailing blanks, and
code as ruff formats it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nbformat

from labkit.errors import NotebookFailed
from labkit.notebook_io import exercise_id, read_notebook, tags
from labkit.paths import notebooks_dir

__all__ = ["SECTIONS", "canonical", "canonical_text", "is_meaningful_id", "main", "missing_sections"]

#: What every chapter has, in this order.
SECTIONS = (
    "## Goals",
    "## What it needs",
    "## Predict",
    "## Workload",
    "## Measure",
    "## Compare",
    "## Oracle and residual",
    "## The probe's own cost",
    "## Finding",
    "## Exercises",
    "## Further work",
)

_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# nbformat itself and JupyterLab make 8 hex digits or a UUID: stable in no sense, and meaningless in a diff.
_RANDOM_ID = re.compile(r"^[0-9a-f]{8}$|^[0-9a-f]{8}-[0-9a-f]{4}-")
_MEANINGFUL_ID = re.compile(r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")
_MAX_ID = 64  # by nbformat's schema


def is_meaningful_id(cell_id: str) -> bool:
    """True for an id like ``measure-2``; False for ``3f2a9c1b`` and other machine-made ones."""
    return bool(_MEANINGFUL_ID.match(cell_id)) and not _RANDOM_ID.match(cell_id) and len(cell_id) <= _MAX_ID


def canonical(notebook: Any) -> Any:
    """A copy in canonical form; code is not formatted here, that is ruff's part."""
    cells = []
    taken: set[str] = set()
    section = "top"
    for cell in notebook.cells:
        source = _tidy(cell.source)
        heading = re.match(r"#{1,2}\s+(.+)", source)
        if cell.cell_type == "markdown" and heading:
            section = _slug(heading[1])
        clean = nbformat.from_dict({"cell_type": cell.cell_type, "metadata": {}, "source": source})  # type: ignore[no-untyped-call]
        if tags(cell):
            clean.metadata["tags"] = sorted(tags(cell))
        if cell.cell_type == "code":
            clean.update(execution_count=None, outputs=[])
        clean["id"] = _id(cell, section, taken)
        taken.add(clean["id"])
        cells.append(clean)
    return nbformat.from_dict({"cells": cells, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5})  # type: ignore[no-untyped-call]


def _id(cell: Any, section: str, taken: set[str]) -> str:
    old = str(cell.get("id", ""))
    if is_meaningful_id(old) and old not in taken:
        return old
    if "parameters" in tags(cell):
        section = "parameters"
    exercise = exercise_id(cell)
    if exercise is not None:
        section = f"exercise-{exercise.replace('.', '-')}"
    candidate, count = section, 1
    while candidate in taken:
        count += 1
        candidate = f"{section}-{count}"
    return candidate


def _slug(title: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", title.casefold().replace("'", "")).strip("-")[:40].strip("-")
    return slug if is_meaningful_id(slug) else f"cell-{slug}".strip("-")


def _tidy(source: str) -> str:
    return "\n".join(line.rstrip() for line in source.strip("\n").splitlines())


def canonical_text(notebook: Any) -> str:
    """The canonical form as the text of a file."""
    text: str = nbformat.writes(canonical(notebook))  # type: ignore[no-untyped-call]
    return text.rstrip("\n") + "\n"


def missing_sections(notebook: Any) -> list[str]:
    """Headings of :data:`SECTIONS` that a chapter lacks, and ``order`` if they are not in order."""
    lines = [
        line.strip()
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
    ]
    missing = [section for section in SECTIONS if section not in lines]
    present = [line for line in lines if line in SECTIONS]
    in_order = [section for section in SECTIONS if section in present]
    return missing if present == in_order else [*missing, f"order: {present}"]


def ruff(arguments: Sequence[str], paths: Iterable[Path]) -> subprocess.CompletedProcess[str]:
    """Run ruff on notebooks, with the lab's settings."""
    command = [sys.executable, "-m", "ruff", *arguments, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit code."""
    write = "--write" in arguments
    named = [Path(one) for one in arguments if not one.startswith("-")]
    paths = named or sorted(notebooks_dir().glob("*.ipynb"))
    if write and paths:
        formatted = ruff(["format", "--quiet"], paths)
        if formatted.returncode:
            raise NotebookFailed("ruff cannot format the notebooks", why=formatted.stderr.strip())
    wrong = []
    for path in paths:
        text = canonical_text(read_notebook(path))
        if path.read_text(encoding="utf-8") == text:
            continue
        wrong.append(path)
        print(f"{path.name}: {'rewritten' if write else 'not in canonical form'}")
        if write:
            path.write_text(text, encoding="utf-8")
    return 0 if write else int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

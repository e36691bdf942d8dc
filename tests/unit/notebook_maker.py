"""Small real notebooks for tests of the runner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def code(source: str, *, id: str, tags: Sequence[str] = ()) -> Any:
    """A code cell."""
    return new_code_cell(source, id=id, metadata={"tags": list(tags)} if tags else {})


def prose(source: str, *, id: str) -> Any:
    """A Markdown cell."""
    return new_markdown_cell(source, id=id)


def parameters(source: str) -> Any:
    """The cell that papermill puts parameters behind."""
    return code(source, id="parameters", tags=["parameters"])


def notebook(*cells: Any) -> Any:
    """A notebook of cells; text stands for a code cell with the id ``cell-N``."""
    made = [
        code(cell, id=f"cell-{n}") if isinstance(cell, str) else cell for n, cell in enumerate(cells, start=1)
    ]
    return new_notebook(cells=made, metadata={"kernelspec": KERNELSPEC})


def write(path: Path, *cells: Any) -> Path:
    """Write a notebook of cells to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook(*cells), path)
    return path

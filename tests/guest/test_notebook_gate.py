"""The runner's gate, in a machine of its own: what papermill calls completed and is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.guest

LAB = Path(__file__).resolve().parents[2]
CELLS = {
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "left": "import sys\nsys.exit(0)",
}


def test_a_killed_kernel_and_an_early_exit_are_failures(tmp_path: Path) -> None:
    paths = []
    for name, source in CELLS.items():
        cells = [nbformat.v4.new_code_cell(text) for text in (source, "print('never')")]
        book = nbformat.v4.new_notebook(cells=cells)
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        paths.append(tmp_path / f"{name}.ipynb")
        nbformat.write(book, paths[-1])
    command = [
        sys.executable,
        "-m",
        "labkit.cli",
        "run",
        *map(str, paths),
        "--outcomes",
        str(tmp_path / "outcomes"),
    ]
    done = subprocess.run(command, cwd=LAB, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 1, f"{done.stdout}\n{done.stderr}"
    (summary,) = (tmp_path / "outcomes").rglob("summary.json")
    statuses = {book["name"]: book["status"] for book in json.loads(summary.read_text())["notebooks"]}
    assert set(statuses) == set(CELLS)
    assert "ok" not in statuses.values()

"""The runner's gate, in a machine of its own: what papermill calls completed and is not.

One case in the default run, for a kernel takes ten seconds to start in here; tests/unit/test_runner_traps.py has them all.
"""

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


@pytest.mark.parametrize("name", ["killed", pytest.param("left", marks=pytest.mark.slow)])
def test_a_kernel_that_ends_before_its_notebook_is_a_failure(name: str, tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(text) for text in (CELLS[name], "print('never')")]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "labkit.cli", "run", str(tmp_path / f"{name}.ipynb")]
    command += ["--outcomes", str(tmp_path / "outcomes")]
    done = subprocess.run(command, cwd=LAB, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 1, f"{done.stdout}\n{done.stderr}"
    (summary,) = (tmp_path / "outcomes").rglob("summary.json")
    (found,) = json.loads(summary.read_text())["notebooks"]
    assert found["name"] == name
    assert found["status"] != "ok"

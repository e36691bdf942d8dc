"""A chapter is a plain notebook: papermill runs it from any folder, without labkit's runner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from labkit.harvest import findings
from labkit.notebook_io import chapters, declared_parameters, exercise_id, read_notebook


def measuring() -> list[Path]:
    return [path for path in chapters() if "seconds" in declared_parameters(read_notebook(path))]


@pytest.mark.timeout(300)
def test_it_runs_from_any_folder(tmp_path: Path) -> None:
    path = measuring()[-1]
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(path),
        "out.ipynb",
        "-p",
        "seconds",
        "2",
        "-p",
        "mode",
        "replay",
    ]
    # Not headless: a learner's exercises are unanswered, and that is no error.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("LABKIT_HEADLESS", "PYTEST_CURRENT_TEST")
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert findings(executed)
    shown = str([cell.get("outputs") for cell in executed.cells])
    assert (
        shown.count("Not answered yet.") >= sum(exercise_id(cell) is not None for cell in executed.cells) > 0
    )

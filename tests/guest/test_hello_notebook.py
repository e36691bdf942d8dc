"""The first chapter through the runner, on a kernel where its first choice of hook exists."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.guest

NOTEBOOK = "01_hello_world"
RUN_S = 240  # the whole run takes 50 s on an idle host of 2 cores
LAB = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one live run of the chapter writes."""
    folder = tmp_path_factory.mktemp("outcomes")
    command = [sys.executable, "-m", "labkit.cli", "run", f"notebooks/{NOTEBOOK}.ipynb", "--mode", "live"]
    command += ["--timeout", str(RUN_S - 20), "--outcomes", str(folder)]
    done = subprocess.run(command, cwd=LAB, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder


@pytest.fixture(scope="module")
def summary(outcomes: Path) -> dict[str, Any]:
    found = sorted(outcomes.rglob("summary.json"))
    assert found, [str(p) for p in outcomes.rglob("*")]
    loaded: dict[str, Any] = json.loads(found[0].read_text())
    return loaded


def test_the_run_is_live_on_this_kernel(summary: dict[str, Any]) -> None:
    assert summary["mode"] == "live"
    assert platform.release() in str(summary["kernel"])
    assert [(n["name"], n["status"]) for n in summary["notebooks"]] == [(NOTEBOOK, "ok")]


def test_its_findings_are_live_and_trusted(summary: dict[str, Any]) -> None:
    findings = summary["notebooks"][0]["findings"]
    assert findings
    assert all(f["mode"] == "live" and f["trusted"] for f in findings)


def test_the_chapter_says_that_a_kprobe_was_chosen(outcomes: Path) -> None:
    executed = next(p for p in outcomes.rglob(f"{NOTEBOOK}.ipynb"))
    cells = json.loads(executed.read_text())["cells"]
    shown = json.dumps([cell.get("outputs", []) for cell in cells])
    assert "kprobe:" in shown

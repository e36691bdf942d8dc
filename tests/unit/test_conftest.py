"""Live tests cannot skip in silence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.kernel import probe

ROOT = Path(__file__).parents[2]
CASE = """
import pytest

@pytest.mark.live
def test_that_shirks():
    pytest.skip("no wish to")

@pytest.mark.live
@pytest.mark.needs("kprobes")
def test_that_needs_kprobes():
    pass
"""


def run(folder: Path, **variables: str) -> str:
    (folder / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (folder / "test_case.py").write_text(CASE)
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "LABKIT_FORCE_LIVE")} | variables
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "no:cacheprovider",
        str(folder),
    ]
    return subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, check=False).stdout


def test_a_live_test_may_skip_at_home(tmp_path: Path) -> None:
    assert "FAILED" not in run(tmp_path)


@pytest.mark.parametrize("variable", ["CI", "LABKIT_FORCE_LIVE"])
def test_a_live_test_that_could_run_must_not_skip(tmp_path: Path, variable: str) -> None:
    output = run(tmp_path, **{variable: "1"})
    if probe().live:
        assert "a live test skipped on a machine that can run it" in output
    else:
        assert ("FAILED" in output) == (variable == "LABKIT_FORCE_LIVE")


def test_a_missing_feature_is_a_reason_and_forcing_fails(tmp_path: Path) -> None:
    report = probe()
    if report.live and report["kprobes"].state == "yes":
        assert "1 passed" in run(tmp_path, CI="1")
        return
    assert "(LABKIT_FORCE_LIVE=1 fails instead)" in run(tmp_path, CI="1")
    assert "test_that_needs_kprobes" in run(tmp_path, LABKIT_FORCE_LIVE="1").split("short test summary")[1]

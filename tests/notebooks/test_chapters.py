"""Every chapter, through the runner: on the running kernel, and replayed from the capture that ships with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labkit.notebook_io import chapters
from labkit.runner import run_notebooks

EACH = pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)

#: A chapter takes 10 to 30 s on an idle machine of two cores; others may be working on this one.
LIMIT_S = 240


def run(path: Path, mode: str, folder: Path) -> dict[str, Any]:
    """The chapter's entry in the summary of a run of it alone."""
    result = run_notebooks([path], mode=mode, timeout_s=LIMIT_S, outcomes=folder)
    assert result.summary["mode"] in (mode, None)
    assert (folder / "latest" / "pages" / f"{path.stem}.html").is_file()
    entry: dict[str, Any] = result.summary["notebooks"][0]
    return entry


def hold(entry: dict[str, Any], mode: str) -> None:
    """It passed, in the mode asked for, and found something that can be trusted."""
    assert entry["problems"] == []
    assert entry["status"] == "ok"
    assert entry["findings"], "a chapter ends in a finding"
    assert {
        finding["name"]: finding["reasons"] for finding in entry["findings"] if not finding["trusted"]
    } == {}
    assert {finding["mode"] for finding in entry["findings"]} == {mode}
    assert entry["mode"] == mode


@EACH
@pytest.mark.live
@pytest.mark.timeout(LIMIT_S + 60)
def test_live(path: Path, tmp_path: Path) -> None:
    hold(run(path, "live", tmp_path), "live")


@EACH
@pytest.mark.timeout(LIMIT_S + 60)
def test_replay(path: Path, tmp_path: Path) -> None:
    hold(run(path, "replay", tmp_path), "replay")


@EACH
@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
def test_replay_finds_the_same_twice(path: Path, tmp_path: Path) -> None:
    first, second = (run(path, "replay", tmp_path / turn)["findings"] for turn in ("one", "two"))
    assert [finding["value"] for finding in first] == [finding["value"] for finding in second]

"""Every chapter, through the runner: on the running kernel, and replayed from the capture that ships with it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
def test_live(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = os.environ.get("LABKIT_SEED") or str(random.randrange(1_000_000))
    print(f"what is left to chance is drawn with LABKIT_SEED={seed}")  # shown if the test fails
    monkeypatch.setenv("LABKIT_SEED", seed)
    hold(run(path, "live", tmp_path), "live")


@pytest.fixture(scope="module")
def replays(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """All chapters that are asked for, replayed in processes of their own, as many at once as there are CPUs."""
    wanted = {
        item.callspec.params["path"] for item in request.session.items if item.name.startswith("test_replay[")
    }

    def replay(path: Path) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(path.stem)
        done = subprocess.run(
            [sys.executable, "-c", ALONE, str(path), str(folder), str(LIMIT_S)],
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S + 60,
        )
        assert done.returncode == 0, done.stderr
        assert (folder / "latest" / "pages" / f"{path.stem}.html").is_file()
        entry: dict[str, Any] = json.loads((folder / "entry.json").read_text())
        return entry

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return dict(zip([p.stem for p in sorted(wanted)], pool.map(replay, sorted(wanted)), strict=True))


#: Nothing is measured in replay, so that chapters need not wait for each other.
ALONE = """
import json, pathlib, sys
from labkit.runner import run_notebooks
path, folder, limit = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3])
result = run_notebooks([path], mode="replay", timeout_s=limit, outcomes=folder)
(folder / "entry.json").write_text(json.dumps(result.summary["notebooks"][0]))
"""


@EACH
@pytest.mark.timeout(10 * LIMIT_S)
def test_replay(path: Path, replays: dict[str, dict[str, Any]]) -> None:
    hold(replays[path.stem], "replay")


@EACH
@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
def test_replay_finds_the_same_twice(path: Path, tmp_path: Path) -> None:
    first, second = (run(path, "replay", tmp_path / turn)["findings"] for turn in ("one", "two"))
    assert [finding["value"] for finding in first] == [finding["value"] for finding in second]

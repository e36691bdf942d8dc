"""A real Chromium, and a real JupyterLab as `./task notebook` starts it. Where there is no Chromium, the tests skip."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from learner import Lab
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no Chromium (labkit setup --parts browser installs it)")
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root, nor in most containers. What it opens here is ours.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab with a learner's fresh folder, in a browser window."""
    folder = tmp_path_factory.mktemp("lab")
    own = {
        name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    env = os.environ | own | {"LABKIT_WORK": str(folder / "my"), "JUPYTER_PLATFORM_DIRS": "1"}
    argv = [sys.executable, "-m", "labkit.cli", "notebook", "--port=0", "--no-browser"]
    argv += ["--LabApp.expose_app_in_browser=True"]  # lets a test wait for kernels instead of guessing
    _show_whole_notebooks(Path(own["JUPYTER_CONFIG_DIR"]))
    log = folder / "log"
    with log.open("w") as output, subprocess.Popen(argv, env=env, stdout=output, stderr=output) as server:
        try:
            yield Lab.open(chromium, _address(server, log), folder / "my", log)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def _show_whole_notebooks(config: Path) -> None:
    """JupyterLab keeps only the cells in sight in its page; here all of them are to be looked at."""
    settings = config / "lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 180
    while not (found := re.search(r"http://\S+", log.read_text())):
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found.group()

"""`./task metrics-demo` as its user meets it: what it prints leads to a page that draws, and a figure is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import pytest

from labkit.metrics.command import kubernetes_families
from labkit.metrics.prometheus import Prometheus, PrometheusError, binaries, console_queries
from labkit.metrics.text import write
from labkit.names.kubernetes import Pods
from labkit.names.kubernetes_api import ApiAccess, PodWatch

pytestmark = [pytest.mark.live, pytest.mark.needs("cgroups"), pytest.mark.timeout(300)]


def tools() -> tuple[Path, Path]:
    try:
        return binaries(fetch=True)
    except PrometheusError as error:
        pytest.skip(str(error))


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.status, answer.read().decode()


def test_prometheus_serves_our_page_whatever_the_distribution_did_to_its_own() -> None:
    tools()
    with Prometheus([]) as prometheus:
        status, page = get(prometheus.console_url("service"))
        assert status == 200
        assert console_queries(name="x", page=page) == console_queries(name="x")
        assert "<script>" in page
        assert page.rstrip().endswith("</html>")
        for expression in console_queries(name="service", page=page).values():
            prometheus.query(expression)  # it is PromQL: there is nothing yet to find
        own = prometheus.graph_url("up")
        assert not own or get(own)[0] == 200


def test_promtool_finds_nothing_to_say_about_the_metrics_of_a_cluster() -> None:
    watch = PodWatch(ApiAccess("https://localhost:1", "node-1"), Pods())
    watch.errors["api"] = 1
    watch._heard_s = 0.0
    exposed = write(kubernetes_families(watch))
    assert exposed.count(b"# TYPE labkit_kubernetes_") == 6
    done = subprocess.run([tools()[1], "check", "metrics"], input=exposed, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@dataclass
class Demo:
    said: str
    folder: Path

    @property
    def page(self) -> str:
        (found,) = re.findall(r"^graphs +(http://\S+)", self.said, re.MULTILINE)
        return str(found)

    def query(self, expression: str) -> list[dict[str, object]]:
        """What Prometheus says over the last two minutes, as the page asks."""
        asked = {"query": expression, "start": time.time() - 120, "end": time.time(), "step": 1}
        answer = get(
            urllib.parse.urljoin(self.page, "../api/v1/query_range") + "?" + urllib.parse.urlencode(asked)
        )
        found: list[dict[str, object]] = json.loads(answer[1])["data"]["result"]
        return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo when all is made and it waits for Ctrl-C; which it then gets."""
    tools()
    folder = tmp_path_factory.mktemp("demo")
    argv = [sys.executable, "-m", "labkit.metrics.demo", "--out", str(folder)]
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        while "Ctrl-C ends it" not in (said := (folder / "log").read_text()):
            assert running.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        yield Demo(said, folder)
    finally:
        os.kill(running.pid, signal.SIGINT)
        assert running.wait(timeout=120) == 0, (folder / "log").read_text()


@pytest.mark.slow
def test_the_page_it_prints_is_there_and_each_of_its_graphs_has_data(demo: Demo) -> None:
    status, page = get(demo.page)
    assert status == 200
    empty = {
        drawn
        for drawn, expression in console_queries(name="service", page=page).items()
        if not demo.query(expression)
    }
    # Where this process may not have the kernel count what programs cost, that line alone is missing.
    assert empty <= {"program in the kernel"}


@pytest.mark.slow
def test_it_leaves_a_figure_and_names_the_alert(demo: Demo) -> None:
    (path,) = re.findall(r"^figure +(\S+)", demo.said, re.MULTILINE)
    assert Path(path).parent == demo.folder
    picture = matplotlib.image.imread(path)
    assert min(picture.shape[:2]) > 200
    vermilion = abs(picture[:, :, :3] - [0.835, 0.369, 0.0]).max(axis=2) < 0.02
    assert vermilion.mean() > 0.1, "the hog's area is what the figure is about"
    assert "LabkitNoisyNeighbor fired" in demo.said


@pytest.mark.slow
@pytest.mark.needs("chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_draws_in_a_browser_and_fetches_nothing_from_elsewhere(demo: Demo, scheme: str) -> None:
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(color_scheme=scheme)  # type: ignore[arg-type]
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(demo.page)
        for panel in ("causes", "occupants", "latency", "verdict", "losses", "cost"):
            page.wait_for_selector(f"#{panel} .data", state="attached", timeout=30_000)
        assert "hog" in page.locator("#occupants .legend").inner_text()
        assert page.locator("#name").input_value() == "service"
        page.locator("#causes .plot").hover()
        page.wait_for_selector("#verdict .cross", state="attached")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate(
                "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            )
        browser.close()
    origin = urllib.parse.urljoin(demo.page, "/")
    assert [url for url in asked if not url.startswith((origin, "data:"))] == []
    assert complaints == []

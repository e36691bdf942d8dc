"""The site as a reader opens it, from the file system: nothing is fetched from elsewhere, search works, all can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from looks import faint_on_site
from playwright.sync_api import Browser, Page

from labkit.notebook_io import chapters
from labkit.runner import run_notebooks
from labkit.site import Site, build_site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site of a replayed run of all chapters."""
    folder = tmp_path_factory.mktemp("site")
    run_notebooks(chapters(), mode="replay", timeout_s=240, outcomes=folder / "outcomes")
    return build_site(folder / "site", outcomes=folder / "outcomes")


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def pages(site: Site) -> list[Path]:
    return sorted(
        path
        for path in site.index.parent.rglob("*.html")
        if path.name not in ("search.html", "genindex.html")
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read_and_fetches_nothing_from_elsewhere(
    site: Site, page: Page, scheme: str
) -> None:
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on(
        "console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for path in pages(site):
        page.goto(path.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide == 0, f"{path.name} is wider than its window"
        broken = page.evaluate(
            "[...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.src)"
        )
        assert broken == [], path.name
        assert faint_on_site(page) == [], f"{path.name} in {scheme}"
    outside = [url for url in asked if not url.startswith((site.index.parent.as_uri(), "data:"))]
    assert len(asked) > len(pages(site))
    assert outside == []
    assert complaints == []


@pytest.mark.parametrize("width", [390, 1024, 1440], ids=["telephone", "tablet", "three columns"])
def test_every_page_fits_its_window(site: Site, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    for path in pages(site):
        page.goto(path.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide == 0, f"{path.name} is wider than its window"


def test_search_finds_a_chapter_by_a_word_in_it(site: Site, page: Page) -> None:
    page.goto(site.index.as_uri())
    page.locator("input[name=q]").first.fill("preempted")
    page.keyboard.press("Enter")
    results = page.locator("ul.search li a")
    results.first.wait_for(timeout=30_000)
    page.locator("ul.search").get_by_role("link", name="06 Run-queue latency").first.click()
    page.wait_for_url("**/notebooks/06_run_queue_latency.html*")
    assert page.locator("article h1").inner_text().startswith("06 Run-queue latency")


def test_a_term_leads_to_the_glossary(site: Site, page: Page) -> None:
    page.goto((site.index.parent / "notebooks/01_hello_world.html").as_uri())
    page.locator("article a", has_text="kprobe").first.click()
    page.wait_for_url("**/docs/glossary.html#kprobe")
    assert page.locator("#kprobe h2").is_visible()


def test_a_solution_is_shown_on_demand(site: Site, page: Page) -> None:
    page.goto((site.index.parent / "notebooks/01_hello_world.html").as_uri())
    solution = page.locator("details", has_text="Show a solution").first
    assert not solution.locator("pre").first.is_visible()
    solution.locator("summary").click()
    assert solution.locator("pre").first.is_visible()

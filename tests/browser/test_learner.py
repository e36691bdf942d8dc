"""The course in JupyterLab, driven as a learner would: read, run, answer wrong, answer right.

One short walk is part of `./task test`, where there is a Chromium; the tours of all chapters are in `./task test-full`,
which installs one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from learner import HEIGHT, LIMIT_MS, Lab
from looks import faint_in_notebook, figures_in_notebook, wide_in_notebook

from labkit.notebook_io import chapters, read_solutions
from labkit.paths import lab_root

pytestmark = [
    pytest.mark.live,
    pytest.mark.needs("chromium"),
    pytest.mark.timeout(LIMIT_MS / 1000 + 120),
]
SCREENS = lab_root() / "build" / "screens"


def outputs(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


@pytest.mark.slow
def test_the_index_is_in_front_with_the_course_in_order(lab: Lab) -> None:
    lab.open_notebook("index.ipynb")
    links = lab.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) td:first-child a").all_inner_texts()
    assert len(links) == len(chapters())
    assert links == sorted(links)
    listed = lab.page.locator(".jp-DirListing-itemText").all_inner_texts()
    assert [name for name in listed if name[:2].isdigit()] == [path.name for path in chapters()]


def test_a_learner_opens_01_runs_it_answers_wrong_and_then_right(lab: Lab) -> None:
    lab.open_notebook("index.ipynb")
    lab.page.get_by_role("link", name="01 Hello, world").first.click()
    lab.open_notebook("01_hello_world.ipynb")
    lab.run_all()
    figures = figures_in_notebook(lab.page)
    assert figures, "the figure is there"
    assert all(figure["shown"] > 300 and figure["natural"] > 0 for figure in figures), "and can be seen"

    at = lab.position("exercise:01.3")
    assert "Not answered yet" in str(lab.cells()[at]["outputs"])
    wrong = lab.type_and_run(at, 'answer = "lk-spawner"\nlk.check("01.3", answer)')
    assert "Not yet" in wrong
    assert "Hint 1 of" in wrong
    right = lab.type_and_run(at, 'answer = "true"\nlk.check("01.3", answer)')
    assert "Right" in right
    assert "Hint" not in right
    lab.save_and_close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "replay"])
@pytest.mark.parametrize("path", chapters()[:4], ids=lambda path: path.stem)
def test_the_first_hour_by_typing(lab: Lab, path: Path, mode: str) -> None:
    """Chapters 00 to 03: each exercise answered with nonsense, which gets a hint, then with the solution."""
    lab.open_notebook(path.name)
    lab.type_and_run(lab.position("parameters"), f'mode = "{mode}"')
    lab.run_all()
    banner = next(cell for cell in lab.cells() if "lk.chapter(" in "".join(cell["source"]))
    assert mode.upper() in str(banner["outputs"])
    for exercise, solution in read_solutions(path.parent / "solutions" / f"{path.stem}.py").items():
        at = lab.position(f"exercise:{exercise}")
        call = next(line for line in solution.splitlines() if line.startswith("lk.check("))
        nonsense = lab.type_and_run(at, f"answer = 'no idea'\n{call}")
        assert "Not yet" in nonsense
        assert "Hint 1 of" in nonsense
        assert "Traceback" not in nonsense
        assert "Right" in lab.type_and_run(at, solution), exercise
    lab.save_and_close()


@pytest.mark.slow
def test_a_term_leads_to_its_entry_in_the_glossary(lab: Lab) -> None:
    lab.open_notebook("01_hello_world.ipynb")
    lab.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)").get_by_role("link", name="kprobe").first.click()
    heading = lab.page.locator(".jp-MarkdownViewer h2").filter(has_text=re.compile("^kprobe"))
    heading.wait_for(timeout=30_000)
    lab.page.wait_for_timeout(1000)
    box = heading.bounding_box()
    assert box is not None
    assert 0 <= box["y"] < HEIGHT, "it is scrolled to"
    lab.page.evaluate("jupyterapp.shell.currentWidget.close()")
    lab.open_notebook("01_hello_world.ipynb")
    lab.save_and_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "work", "shown"),
    [
        ("06_run_queue_latency", "service beside hog", r"service waited [1-9]\d* %.*hog waited [1-9]\d* %"),
        ("04_events_and_loss", "two pinned hogs", r"hog_[ab] had [1-9]\d* % of a CPU"),
    ],
)
def test_a_live_figure_starts_shows_a_workload_and_stops(lab: Lab, name: str, work: str, shown: str) -> None:
    lab.open_notebook(f"{name}.ipynb")
    lab.run_all()
    front = lab.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    image = front.locator(".widget-image")
    line, work_line = (front.locator(".widget-html-content").nth(at) for at in (0, 1))
    buttons = front.locator("button.jupyter-button")
    start, stop = buttons.filter(has_text="Start"), buttons.filter(has_text="Stop")
    start.scroll_into_view_if_needed()
    still = image.get_attribute("src")
    start.click()
    line.filter(has_text="Live.").wait_for(timeout=90_000)
    assert image.get_attribute("src") != still
    assert not re.search(shown, line.inner_text()), "nobody works before the button is pressed"
    assert work_line.inner_text() == ""
    buttons.filter(has_text=work).click()
    line.filter(has_text=re.compile(shown)).wait_for(timeout=90_000)
    SCREENS.mkdir(parents=True, exist_ok=True)
    lab.page.screenshot(path=SCREENS / f"live-{name}.png", scale="css")
    work_line.filter(has_text="done").wait_for(timeout=90_000)
    stop.click()
    line.filter(has_text="Stopped.").wait_for(timeout=30_000)
    last = image.get_attribute("src")
    lab.page.wait_for_timeout(2500)
    assert image.get_attribute("src") == last, "it stands still again"
    assert front.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    lab.save_and_close()


@pytest.mark.slow
@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_chapter_looks_right(lab: Lab, path: Path) -> None:
    lab.open_notebook(path.name)
    lab.run_all()
    found = outputs(lab.cells())
    assert [output for output in found if output["output_type"] == "error"] == []
    assert ["".join(output["text"]) for output in found if output.get("name") == "stderr"] == []
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        lab.theme(theme)
        assert faint_in_notebook(lab.page) == [], theme
        assert wide_in_notebook(lab.page) == [], theme
        lab.pictures(SCREENS, f"{path.stem}-{theme.split()[-1].lower()}")
    figures = figures_in_notebook(lab.page)
    assert figures, "a chapter has a figure"
    for figure in figures:
        assert figure["shown"] <= figure["room"], "no figure is wider than its place"
        assert figure["natural"] >= 1.5 * figure["shown"], (
            "figures are sharp on a screen of two pixels to one"
        )
    lab.save_and_close()


@pytest.mark.slow
def test_nothing_was_fetched_from_elsewhere_and_nobody_complained(lab: Lab) -> None:
    """After all of the above."""
    assert lab.outside == []
    assert lab.complaints == []
    said = [line for line in lab.log.read_text().splitlines() if "WARN" in line or "ERROR" in line]
    assert said == []

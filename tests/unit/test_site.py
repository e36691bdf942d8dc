"""The static site: what a run left, with search and working links; nothing is executed or loaded from elsewhere."""

from __future__ import annotations

import base64
import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from click.testing import CliRunner

from labkit.cli import main
from labkit.errors import LabkitError
from labkit.notebook_io import chapters, exercise_id, read_notebook
from labkit.outcomes import read_summary
from labkit.paths import lab_root
from labkit.site import Site, build_site, find_run
from labkit.site_run import which

NAME = "01_hello_world"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = '<b>hostile</b><script>alert(1)</script><img src="https://example.org/x.png"><a href="javascript:alert(1)">x</a>'


def a_run(folder: Path, traces: Path) -> None:
    """``latest/`` with one executed chapter: a figure, a hostile table, a solved exercise, and code that leaves a trace."""
    summary = copy.deepcopy(read_summary(lab_root() / "outcomes" / "example"))
    assert summary is not None
    summary["notebooks"] = [entry for entry in summary["notebooks"] if entry["name"] == NAME]
    (entry,) = summary["notebooks"]
    entry |= {
        "mode": "replay",
        "status": "failed",
        "problems": [{"what": "a <made-up> problem", "cell": "", "detail": ""}],
    }
    notebook = read_notebook(next(path for path in chapters() if path.stem == NAME))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[2].source = f"open({str(traces)!r}, 'w')"
    code[2].outputs = [
        nbformat.v4.new_output("display_data", {"text/html": HOSTILE, "text/plain": "hostile"}),
        nbformat.v4.new_output(
            "display_data", {"application/javascript": "alert(1)", "text/plain": "no script"}
        ),
        nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(PIXEL).decode()}),
    ]
    solved = next(cell for cell in code if exercise_id(cell) is not None)
    solved.source = "answer = 'the solution'"
    (folder / "latest/notebooks").mkdir(parents=True)
    (folder / "latest/summary.json").write_text(json.dumps(summary))
    nbformat.write(notebook, folder / f"latest/notebooks/{NAME}.ipynb")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    a_run(folder / "outcomes", folder / "executed")
    made = build_site(folder / "out", outcomes=folder / "outcomes")
    assert not (folder / "executed").exists(), "nothing is executed"
    return made


def page(site: Site, name: str) -> BeautifulSoup:
    return BeautifulSoup((site.index.parent / name).read_bytes(), "html.parser")


def test_each_chapter_is_a_page_and_the_navigation_has_them_in_order(site: Site) -> None:
    links = [str(link["href"]) for link in page(site, "index.html").select(".sidebar-tree a")]
    assert [link for link in links if link.startswith("notebooks/")] == [
        f"notebooks/{path.stem}.html" for path in chapters()
    ]
    for wanted in ("outcomes/findings.html", "docs/glossary.html", "docs/functions.html"):
        assert wanted in links
    assert site.pages >= len(chapters()) + 5
    assert site.links > 100


def test_a_page_says_which_run_it_shows_and_what_went_wrong(site: Site) -> None:
    shown = page(site, f"notebooks/{NAME}.html")
    line = shown.select_one(".run-line")
    assert line is not None
    assert line.get_text().startswith("replay failed Linux")
    problems = shown.select_one(".problems")
    assert problems is not None
    assert "a <made-up> problem" in problems.get_text()
    other = next(path.stem for path in chapters() if path.stem != NAME)
    line = page(site, f"notebooks/{other}.html").select_one(".run-line")
    assert line is not None
    assert "did not include this chapter" in line.get_text()
    assert [code.get_text() for code in line.select("code")] == ["./task lab", "./task site"]


def test_outputs_neither_run_nor_load_anything(site: Site) -> None:
    shown = page(site, f"notebooks/{NAME}.html")
    outputs = shown.select_one(".cell_output")
    assert outputs is not None
    assert "hostile" in outputs.get_text()
    assert "alert(1)" not in str(shown)
    assert "https://example.org/x.png" not in {str(image.get("src")) for image in shown.find_all("img")}
    assert "no script" in shown.get_text()


def test_the_figure_has_its_section_as_alternative_text(site: Site) -> None:
    image = page(site, f"notebooks/{NAME}.html").select_one(".cell_output img")
    assert image is not None
    assert image["alt"]
    assert (site.index.parent / "notebooks" / str(image["src"])).is_file()


def test_solutions_are_folded_away(site: Site) -> None:
    shown = page(site, f"notebooks/{NAME}.html")
    (folded,) = (part for part in shown.find_all("details") if "'the solution'" in part.get_text())
    assert "Show a solution" in folded.get_text()
    assert not folded.has_attr("open")


def test_terms_lead_to_the_glossary_and_the_glossary_back_to_the_chapters(site: Site) -> None:
    link = page(site, f"notebooks/{NAME}.html").find("a", href="../docs/glossary.html#kprobe")
    assert link is not None
    entry = page(site, "docs/glossary.html").find(id="kprobe")
    assert entry is not None
    assert entry.find("a", href=f"../notebooks/{NAME}.html") is not None


def test_the_search_index_knows_the_words_of_the_chapters(site: Site) -> None:
    index = json.loads(
        re.search(r"Search\.setIndex\((.*)\)", (site.index.parent / "searchindex.js").read_text()).group(1)
    )  # type: ignore[union-attr]
    number = index["docnames"].index(f"notebooks/{NAME}")
    found = index["terms"]["spawner"]
    assert number in (found if isinstance(found, list) else [found])


def test_pages_do_not_say_where_they_were_made(site: Site) -> None:
    for file in site.index.parent.rglob("*.html"):
        assert ".site-" not in file.read_text(), f"{file} names the folder that it was made in"


def test_without_a_run_the_kept_one_is_shown_with_its_figures(tmp_path: Path) -> None:
    from labkit.site import _chapter

    run = find_run(tmp_path)
    assert run.folder == lab_root() / "outcomes" / "example"
    shown = _chapter(run, next(path for path in chapters() if path.stem == NAME))
    assert [output for cell in shown.cells if cell.cell_type == "code" for output in cell.outputs]


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = CliRunner().invoke(main, ["site", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert (tmp_path / "thesis.tex").exists()


def test_a_chapter_that_links_into_nothing_makes_no_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labkit import site as module

    monkeypatch.setattr(module, "_findings", lambda *_: "# Findings\n\n[gone](gone.md)\n")
    with pytest.raises(LabkitError, match="Sphinx complains") as caught:
        build_site(tmp_path / "out")
    assert "gone" in caught.value.why
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == [], "nothing half-made is left"


def test_it_says_whose_run_it_shows_how_much_of_the_course_is_in_it_and_how_to_have_one_s_own(
    site: Site, tmp_path: Path
) -> None:
    words = " ".join(page(site, "index.html").select_one("article").get_text().split())  # type: ignore[union-attr]
    assert f"These pages show your last run, with 1 of the {len(chapters())} chapters." in words
    assert "./task lab runs all chapters on your machine; ./task site then makes" in words

    kept = find_run(tmp_path)
    assert kept.kept
    assert "**the run that comes with the lab**" in which(kept)
    assert "`./task lab`" in which(kept)
    whole = replace(
        kept, kept=False, summary={"notebooks": [{"name": p.stem, "status": "ok"} for p in chapters()]}
    )
    assert which(whole) == "These pages show your last run."

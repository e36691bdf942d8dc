"""Documents: what they link to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    p for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")) if p.is_file()
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_readme_names_the_tasks_that_there_are() -> None:
    tasks = set(re.findall(r"^  ([a-z0-9-]+):$", (ROOT / "Taskfile.yml").read_text(), re.M))
    named = set(re.findall(r"\./task ([a-z0-9-]+)", (ROOT / "README.md").read_text()))
    assert named
    assert named <= tasks


def test_the_readme_has_a_row_for_each_chapter() -> None:
    text = (ROOT / "README.md").read_text()
    for notebook in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        assert f"`{notebook.stem}`" in text

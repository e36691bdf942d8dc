"""The index of functions: complete, true, and with examples that run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

import labkit
from labkit import functions
from labkit.notebook_io import chapters
from labkit.paths import lab_root

PAGE = lab_root() / "docs" / "functions.md"
TEXT = PAGE.read_text(encoding="utf-8")
#: Modules that `import labkit as lk` gives: all of their functions are for learners.
MODULES = [name for name in labkit.__all__ if inspect.ismodule(getattr(labkit, name))]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```pycon{kind}\n(.*?)^```", TEXT, flags=re.M | re.S)


def test_everything_that_labkit_offers_at_the_top_is_there() -> None:
    calls = set(re.findall(r"^\| `(?:[\w]+\.)*(\w+)", TEXT, flags=re.M))
    missing = {name for name in labkit.__all__ if name not in MODULES} - calls
    assert not missing, "add them to docs/functions.md, then: python -m labkit.functions"


@pytest.mark.parametrize("module", MODULES)
def test_every_function_of_a_public_module_is_there(module: str) -> None:
    listed = set(re.findall(rf"^\| `{module}\.(\w+)", TEXT, flags=re.M))
    missing = {entry.name for entry in functions.entries(f"labkit.{module}")} - listed
    assert not missing, "bring the tables up to date: python -m labkit.functions"


@pytest.mark.parametrize(
    ("module", "cls", "called"), [("session", "Chapter", "lab"), ("program", "Program", "prog")]
)
def test_what_a_learner_asks_of_a_session_and_of_a_program_is_there(
    module: str, cls: str, called: str
) -> None:
    listed = re.findall(rf"^\| `{called}\.(\w+)[(`]", TEXT, flags=re.M)
    public = [entry.name for entry in functions.methods(f"labkit.{module}", cls, called)]
    assert listed == public, "bring the tables up to date: python -m labkit.functions"
    assert len(public) >= 9


def test_what_the_chapters_take_from_labkit_is_there() -> None:
    """What cells import, but for what the lessons alone need."""
    calls = set(re.findall(r"^\| `(?:[\w]+\.)*(\w+)", TEXT, flags=re.M))
    tables = set(re.findall(r"<!-- functions: ([\w.]+)", TEXT))
    wanted = {
        (f"labkit{module}", name.strip())
        for path in chapters()
        for module, names in re.findall(r"^from labkit([.\w]*) import (.+)$", code(path), flags=re.M)
        for name in names.split(",")
        if not re.match(r"\.(lessons|kernel|metrics)", module)
    }
    assert len(wanted) >= 10
    for module, name in wanted:
        home = importlib.import_module(module)
        thing = getattr(home, name) if hasattr(home, name) else importlib.import_module(f"{module}.{name}")
        if inspect.ismodule(thing):
            assert thing.__name__ in tables, thing.__name__
        else:
            assert name in calls, f"{module}.{name}"


def code(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_what_the_tables_name_is_there_and_says_what_it_is_for() -> None:
    for what, module, names in re.findall(r"<!-- (functions|methods): ([\w.]+)([^>]*?) -->", TEXT):
        listed = tuple(names.split())
        found = (
            functions.entries(module, listed)
            if what == "functions"
            else functions.methods(module, *listed[:2])
        )
        for entry in found:
            assert entry.what.endswith((".", "?", ":")), f"{entry.call}: {entry.what}"


def test_the_examples_run() -> None:
    """All of the page's plain examples, in one session, as a reader would type them."""
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    source = "\n".join(blocks(""))
    assert source.count(">>>") >= 15
    test = doctest.DocTestParser().get_doctest(source, {}, PAGE.name, str(PAGE), 0)
    report: list[str] = []
    runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_docstring_examples_of_the_public_modules_run() -> None:
    for module in MODULES:
        found = doctest.testmod(
            getattr(labkit, module), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
        )
        assert found.failed == 0, module


def test_links_into_the_page_lead_to_its_headings() -> None:
    headings = {line[3:].lower().replace(" ", "-") for line in TEXT.splitlines() if line.startswith("## ")}
    for page in (Path(lab_root(), "docs/glossary.md"), Path(lab_root(), "README.md")):
        assert set(re.findall(r"functions\.md#([\w-]+)", page.read_text())) <= headings

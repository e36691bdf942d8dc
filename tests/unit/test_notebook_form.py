"""The notebooks' sources: canonical, after the chapter template, with exercises that can be solved and checked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebook_maker import code, notebook, parameters, prose, write

from labkit import lessons
from labkit.notebook_form import SECTIONS, canonical, canonical_text, is_meaningful_id, missing_sections, ruff
from labkit.notebook_io import chapters, declared_parameters, exercise_id, read_solutions, tags
from labkit.paths import notebooks_dir

NOTEBOOKS = sorted(notebooks_dir().glob("*.ipynb"))
CHAPTERS = chapters()

#: Sections that a chapter goes without, and why.
WITHOUT = {
    "00_this_machine": {
        "## Workload": "it looks at the kernel and makes it do nothing",
        "## The probe's own cost": "no program of ours is attached",
    },
}


def read(path: Path) -> Any:
    # Warnings are errors here: a cell without an id is one.
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def each(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def test_there_are_chapters() -> None:
    assert CHAPTERS


@each(NOTEBOOKS)
class TestEveryNotebook:
    def test_is_byte_for_byte_what_nbformat_writes(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert text == nbformat.writes(read(path)).rstrip("\n") + "\n"
        assert text == canonical_text(read(path)), "python -m labkit.notebook_form --write"

    def test_has_neither_outputs_nor_counts_nor_foreign_metadata(self, path: Path) -> None:
        book = json.loads(path.read_text(encoding="utf-8"))
        assert book["metadata"]["kernelspec"]["name"] == "python3"
        assert set(book["metadata"]) == {"kernelspec", "language_info"}
        for cell in book["cells"]:
            assert set(cell["metadata"]) <= {"tags"}
            assert cell.get("outputs", []) == []
            assert cell.get("execution_count") is None

    def test_has_ids_that_say_what_a_cell_is_for(self, path: Path) -> None:
        ids = [cell.id for cell in read(path).cells]
        assert [one for one in ids if not is_meaningful_id(one)] == []
        assert len(set(ids)) == len(ids)

    def test_has_no_empty_cell(self, path: Path) -> None:
        assert [cell.id for cell in read(path).cells if not cell.source.strip()] == []


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_notebooks_are_ruff_clean(arguments: list[str]) -> None:
    done = ruff(arguments, NOTEBOOKS)
    assert done.returncode == 0, done.stdout + done.stderr


@each(CHAPTERS)
class TestEveryChapter:
    def test_has_the_sections_of_the_template_in_order(self, path: Path) -> None:
        allowed = set(WITHOUT.get(path.stem, {}))
        missing = missing_sections(read(path))
        assert [section for section in missing if section not in allowed] == []
        assert allowed <= set(missing), "the list of exceptions names a section that is there"

    def test_starts_with_its_title(self, path: Path) -> None:
        first = read(path).cells[0]
        assert first.cell_type == "markdown"
        assert re.match(r"# \S", first.source)

    def test_takes_a_mode(self, path: Path) -> None:
        assert declared_parameters(read(path))["mode"] == ("str", "auto")

    def test_has_code_cells_that_fit_on_a_screen(self, path: Path) -> None:
        lengths = {
            cell.id: len(cell.source.splitlines()) for cell in read(path).cells if cell.cell_type == "code"
        }
        assert {one: length for one, length in lengths.items() if length > 35} == {}

    def test_exercises_are_numbered_solved_and_checked(self, path: Path) -> None:
        cells = [cell for cell in read(path).cells if exercise_id(cell)]
        ids = [str(exercise_id(cell)) for cell in cells]
        number = path.stem[:2]
        assert ids == [f"{number}.{k}" for k in range(1, len(ids) + 1)]
        assert ids, "a chapter has at least one exercise"
        assert list(read_solutions(path.parent / "solutions" / f"{path.stem}.py")) == ids
        assert [exercise.id for exercise in lessons.exercises(number)] == ids
        checks = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
        assert [one for one in ids if not re.search(rf"""check\(\s*["']{one}["']""", checks)] == []

    def test_has_three_goals_and_says_how_long_it_takes(self, path: Path) -> None:
        text = {section: _section(path, section) for section in ("## Goals", "## What it needs")}
        assert len(re.findall(r"^- ", text["## Goals"], re.M)) == 3
        assert re.search(r"\b(seconds?|minutes?)\b", text["## What it needs"])

    def test_lets_predict_and_comes_back_to_it_as_soon_as_it_is_measured(self, path: Path) -> None:
        cells = read(path).cells
        predicts = [at for at, cell in enumerate(cells) if "lab.predict(" in cell.source]
        assert len(predicts) == 1
        after = [cell for cell in cells if _heading_before(cells, cell) == "## Compare"]
        compares = [cell.source for cell in after if cell.cell_type == "code"]
        assert len(compares) >= 1
        assert "lab.compare(" in compares[0], "nothing stands between the measurement and the comparison"

    def test_has_three_exercises_and_one_asks_for_c(self, path: Path) -> None:
        solutions = read_solutions(path.parent / "solutions" / f"{path.stem}.py")
        assert len(solutions) >= 3
        assert any("write_program(" in source for source in solutions.values())
        for exercise in lessons.exercises(path.stem[:2]):
            assert len(exercise.hints) >= 2, f"{exercise.id} has no ladder"

    def test_has_a_figure_and_names_its_sources(self, path: Path) -> None:
        cells = read(path).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        assert re.search(r"\b(plots|drawings|figures)\.\w+\(|metrics\.figures import", code)
        assert len(re.findall(r"\]\(https://", prose)) >= 2

    def test_leads_to_the_next_chapter(self, path: Path) -> None:
        following = CHAPTERS[CHAPTERS.index(path) + 1 :]
        assert not following or f"]({following[0].name})" in read(path).cells[-1].source

    def test_leaves_exercises_unanswered(self, path: Path) -> None:
        cells = [cell for cell in read(path).cells if exercise_id(cell)]
        assert [cell.id for cell in cells if "..." not in cell.source] == []


def _section(path: Path, heading: str) -> str:
    """The prose of a section, up to the next heading of its level."""
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    return prose.split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]


def _heading_before(cells: list[Any], cell: Any) -> str:
    """The section that a cell is in."""
    section = ""
    for one in cells:
        if one.cell_type == "markdown":
            section = next((line for line in one.source.splitlines() if line.startswith("## ")), section)
        if one is cell:
            break
    return section


def test_no_solution_is_without_its_chapter() -> None:
    stems = {path.stem for path in CHAPTERS}
    assert [
        path.name for path in (notebooks_dir() / "solutions").glob("*.py") if path.stem not in stems
    ] == []


class TestCanonicalForm:
    def messy(self) -> Any:
        book = notebook(
            prose("# Title", id="3f2a9c1b"),
            prose("## The probe's own cost\n\nText.", id="b1946ac9"),
            code("x = 1   \n\n", id="0a1b2c3d"),
            code("y = 2", id="0a1b2c3e"),
            code("z = 3", id="keep-me"),
            parameters("mode = 'auto'"),
            code("answer = ...", id="deadbeef", tags=["exercise:06.2"]),
        )
        book.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]
        book.cells[2].execution_count = 3
        book.cells[2].metadata["collapsed"] = True
        book.metadata["widgets"] = {}
        return book

    def test_ids_come_from_what_a_cell_is_for_and_stay(self) -> None:
        first = canonical(self.messy())
        assert [cell.id for cell in first.cells] == [
            "title",
            "the-probes-own-cost",
            "the-probes-own-cost-2",
            "the-probes-own-cost-3",
            "keep-me",
            "parameters",
            "exercise-06-2",
        ]
        first.cells.insert(1, prose("new", id="12345678"))
        again = [cell.id for cell in canonical(first).cells]
        assert again[2:] == [cell.id for cell in canonical(self.messy()).cells][1:]

    def test_it_is_a_fixed_point_and_clean(self) -> None:
        text = canonical_text(self.messy())
        assert canonical_text(nbformat.reads(text, as_version=4)) == text
        book = json.loads(text)
        assert book["cells"][2]["source"] == ["x = 1"]
        assert book["cells"][2]["metadata"] == {}
        assert set(book["metadata"]) == {"kernelspec", "language_info"}

    def test_tags_are_kept(self) -> None:
        assert tags(canonical(self.messy()).cells[-1]) == ["exercise:06.2"]

    @pytest.mark.parametrize(
        "one", ["3f2a9c1b", "deadbeef", "0b9e5f5e-1c2d-4e5f", "Cell_1", "1-a", "", "a" * 65]
    )
    def test_machine_made_ids_are_told_apart(self, one: str) -> None:
        assert not is_meaningful_id(one)
        assert is_meaningful_id("measure-2")

    def test_sections_must_be_there_and_in_order(self) -> None:
        cells = [prose(section, id=f"s-{n}") for n, section in enumerate(SECTIONS)]
        assert missing_sections(notebook(*cells)) == []
        assert missing_sections(notebook(*cells[:-1])) == ["## Further work"]
        assert missing_sections(notebook(*reversed(cells)))[0].startswith("order:")

    def test_the_command_tells_and_mends(self, tmp_path: Path) -> None:
        path = write(tmp_path / "50_a.ipynb", *self.messy().cells)
        command = [sys.executable, "-m", "labkit.notebook_form", str(path)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1
        assert subprocess.run([*command, "--write"], capture_output=True, check=False).returncode == 0
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert '"mode = \\"auto\\""' in path.read_text()

"""The glossary: short entries with sources, each linked where a chapter first uses its term."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from labkit import glossary
from labkit.glossary import Term, for_learner, link_notebook, link_text
from labkit.notebook_io import chapters, read_notebook

TERMS = glossary.terms()
#: Named by the course's plan as what a newcomer meets.
ASKED_FOR = {
    *("kprobe", "tracepoint", "raw tracepoint", "map", "ring buffer", "BTF", "verifier", "run queue", "run_delay"),
    *("cgroup", "cgroup id", "throttling", "steal", "PSI", "histogram bucket", "ledger", "oracle", "residual"),
}  # fmt: skip


def href(term: Term) -> str:
    return f"#{term.anchor}"


def test_it_has_what_a_newcomer_meets() -> None:
    assert {term.name for term in TERMS} >= ASKED_FOR


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_an_entry_is_short_and_names_a_source(term: Term) -> None:
    text, source = term.body.split("\nSource: ")
    assert re.fullmatch(r"\[[^\]]+\]\([^)]+\)\.", source)
    sentences = re.findall(r"[.?!:](?=\s|$)", text)
    assert 1 <= len(sentences) <= 5, text
    assert 60 <= len(text) <= 420


def test_names_and_forms_are_unique_and_in_order() -> None:
    names = [term.name.lower() for term in TERMS]
    assert names == sorted(names)
    forms = [form.lower() for term in TERMS for form in term.forms]
    assert sorted({form for form in forms if forms.count(form) > 1}) == []


@pytest.mark.parametrize(
    ("name", "on_code_hosts", "in_jupyterlab"),
    [("run queue", "run-queue", "run-queue"), ("cpu.max", "cpumax", "cpu.max"), ("BTF", "btf", "BTF"),
     ("run_delay", "run_delay", "run_delay"), ("per-CPU map", "per-cpu-map", "per-CPU-map")],
)  # fmt: skip
def test_headings_have_the_ids_that_each_renderer_makes(
    name: str, on_code_hosts: str, in_jupyterlab: str
) -> None:
    term = Term(name, (name,), "")
    assert (term.anchor, term.heading_id) == (on_code_hosts, in_jupyterlab)


class TestLinks:
    def test_only_the_first_use_is_linked_and_the_longer_term_wins(self) -> None:
        known = [Term("tracepoint", ("tracepoint",), ""), Term("raw tracepoint", ("raw tracepoint",), "")]
        assert link_text("A raw tracepoint, a tracepoint, a tracepoint.", known, href) == (
            "A [raw tracepoint](#raw-tracepoint), a [tracepoint](#tracepoint), a tracepoint."
        )

    @pytest.mark.parametrize(
        "apart",
        [
            "```\nmap\n```",
            "# The map",
            "[the map](elsewhere)",
            "![map](map.png)",
            "[`map`](x) and `map[0]`",
            "<b title='map'>",
            "https://example.org/map",
            "bitmap, map_full, maps/, lab.map, map.frame, map()",
        ],
    )
    def test_what_is_no_prose_is_left_alone(self, apart: str) -> None:
        known = [Term("map", ("map", "maps"), "")]
        assert link_text(apart, known, href) == apart
        assert link_text(f"{apart}\n\na map", known, href) == f"{apart}\n\na [map](#map)"

    def test_a_term_that_stands_alone_as_code_is_linked_with_its_code_look(self) -> None:
        known = [Term("run_delay", ("run_delay",), "")]
        assert link_text("the sum `run_delay` is", known, href) == "the sum [`run_delay`](#run_delay) is"

    def test_capitals_at_the_start_of_a_sentence_count_and_abbreviations_only_as_written(self) -> None:
        known = [Term("kprobe", ("kprobe", "kprobes"), ""), Term("PSI", ("PSI",), "")]
        assert link_text("Kprobes and psi", known, href) == "[Kprobes](#kprobe) and psi"

    def test_a_term_broken_over_two_lines_is_one(self) -> None:
        assert (
            link_text("a run\nqueue", [Term("run queue", ("run queue",), "")], href)
            == "a [run\nqueue](#run-queue)"
        )


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_each_term_is_linked_where_the_chapter_first_uses_it(path: Path) -> None:
    """Held against a plain search: nothing before the link, in what is prose, uses the term."""
    notebook = read_notebook(path)
    used = link_notebook(notebook, TERMS, lambda term: f"glossary.md#{term.heading_id}")
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    by_name = {term.name: term for term in TERMS}
    assert len(used) >= 8, "a chapter speaks of its subject"
    for name in used:
        link = re.search(rf"\[[^\]]+\]\(glossary\.md#{re.escape(by_name[name].heading_id)}\)", prose)
        assert link is not None
        before = re.sub(
            r"```.*?```|^#.*$|\[[^\]]*\]\([^)]*\)|`[^`]*`", " ", prose[: link.start()], flags=re.S | re.M
        )
        others = [form for term in TERMS if term.name != name for form in term.forms]
        for other in sorted(others, key=len, reverse=True):  # "raw tracepoint" is no use of "tracepoint"
            if name.lower() in other.lower() and other.lower() != name.lower():
                before = re.sub(re.escape(other), " ", before, flags=re.I)
        word = re.escape(name)
        flags = 0 if name.isupper() else re.I
        assert not re.search(rf"(?<![\w/.-]){word}(?![\w/(.-])", before, flags), (
            f"{name} is used before its link"
        )


def test_a_learners_copy_differs_in_links_only() -> None:
    source = chapters()[1].read_bytes()
    copy, original = json.loads(for_learner(source)), json.loads(source)
    assert copy.keys() == original.keys()
    for mine, theirs in zip(copy["cells"], original["cells"], strict=True):
        plain = re.sub(r"\[([^\]]+)\]\(glossary\.md#[^)]+\)", r"\1", "".join(mine["source"]))
        assert plain == "".join(theirs["source"])
    assert "glossary.md#kprobe" in for_learner(source).decode()
    assert for_learner(b"no notebook") == b"no notebook"

"""Glossary terms, and their links from the first place where a chapter uses them.

``docs/glossary.md`` has one heading per term, and below it, where there are any, a line ``*Also: other, forms.*``.
Chapters are written without links to it: they are put in when a chapter is copied for a learner
(:mod:`labkit.workbench`) and when the site is made (:mod:`labkit.site`), so that each stands at the first use,
wherever a later edit moves that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.paths import lab_root

__all__ = ["Term", "for_learner", "glossary_path", "link_notebook", "link_text", "terms"]

_ENTRY = re.compile(r"^## (?P<name>.+?)[ \t]*\n(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_ALSO = re.compile(r"^\*Also: (?P<forms>[^*]+?)\.?\*$", re.MULTILINE)
# What is not running text: fenced and inline code, headings, links and images, HTML and bare addresses.
_APART = re.compile(
    r"""
      ^(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^(?P=fence)[ \t]*$
    | ^\#{1,6}[ ][^\n]*$
    | !?\[(?:[^\[\]]|\[[^\[\]]*\])*\](?:\([^()]*(?:\([^()]*\)[^()]*)*\)|\[[^\]]*\])
    | (?P<ticks>`+)(?P<code>[^`\n]+)(?P=ticks)
    | ^<[a-zA-Z!/][^\n]*(?:\n(?![ \t]*$)[^\n]*)*
    | <[^>\n]+>
    | https?://\S+
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Term:
    """One entry.

    :param name: its heading.
    :param forms: how it may be written, its name first.
    :param body: the entry's Markdown, without the line of further forms.
    """

    name: str
    forms: tuple[str, ...]
    body: str

    @property
    def anchor(self) -> str:
        """The fragment of its heading where Markdown is shown as on code hosts: ``run-queue``, ``cpumax``."""
        return re.sub(r"[^\w\- ]", "", self.name).lower().replace(" ", "-")

    @property
    def heading_id(self) -> str:
        """The same as JupyterLab makes it: case is kept."""
        return self.name.replace(" ", "-")


def glossary_path() -> Path:
    """``docs/glossary.md``."""
    return lab_root() / "docs" / "glossary.md"


def terms(text: str | None = None) -> list[Term]:
    """The entries, in the glossary's order.

    :param text: a glossary's Markdown; the lab's own if None.
    """
    text = glossary_path().read_text(encoding="utf-8") if text is None else text
    found = []
    for entry in _ENTRY.finditer(text):
        also = _ALSO.search(entry["body"])
        forms = [form.strip() for form in also["forms"].split(",")] if also else []
        found.append(Term(entry["name"], (entry["name"], *forms), _ALSO.sub("", entry["body"]).strip()))
    return found


def link_text(
    markdown: str, known: Iterable[Term], href: Callable[[Term], str], *, done: set[str] | None = None
) -> str:
    """``markdown`` with the first use of each term made a link.

    :param href: where a term's link leads.
    :param done: names that are linked already; those linked now are added.

    >>> entry = Term("run queue", ("run queue", "run queues"), "")
    >>> link_text("Two run queues, one run queue.", [entry], lambda term: f"glossary.md#{term.anchor}")
    'Two [run queues](glossary.md#run-queue), one run queue.'
    """
    return _linked(markdown, _Matcher(known), href, set() if done is None else done)


def link_notebook(notebook: Any, known: Sequence[Term], href: Callable[[Term], str]) -> list[str]:
    """Link each term where the notebook's prose first uses it; changes the notebook.

    :returns: the names of the terms it uses, in order of first use.
    """
    done: dict[str, None] = {}
    matcher = _Matcher(known)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            source = "".join(cell["source"])
            linked = _linked(source, matcher, href, done)
            cell["source"] = linked if isinstance(cell["source"], str) else linked.splitlines(keepends=True)
    return list(done)


def for_learner(content: bytes) -> bytes:
    """A notebook file as a learner gets it, its terms linked to ``glossary.md``; what is no notebook stays as it is."""
    try:
        notebook = json.loads(content)
        link_notebook(notebook, terms(), lambda term: f"glossary.md#{term.heading_id}")
    except (ValueError, KeyError, TypeError):
        return content
    return (json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


class _Matcher:
    """All forms of all terms as one pattern, the longest first: "raw tracepoint" is no use of "tracepoint"."""

    def __init__(self, known: Iterable[Term]) -> None:
        self._by_form = {_fold(form): term for term in known for form in term.forms}
        forms = sorted(self._by_form, key=len, reverse=True)
        pattern = "|".join(re.escape(form).replace(r"\ ", r"[ \n]") for form in forms)
        self.pattern = re.compile(rf"(?<![\w/.-])(?:{pattern})(?![\w/-]|\.\w|\()", re.IGNORECASE)

    def term(self, written: str) -> Term | None:
        """The term that is meant; abbreviations (BTF, PSI) only as they are written."""
        written = " ".join(written.split())
        return self._by_form.get(written if written in self._by_form else _fold(written))

    def alone(self, code: str) -> Term | None:
        """The term that inline code consists of."""
        match = self.pattern.fullmatch(code.strip())
        return self.term(match[0]) if match else None


def _fold(form: str) -> str:
    return form if form.isupper() else form.lower()


def _linked(
    markdown: str, matcher: _Matcher, href: Callable[[Term], str], done: set[str] | dict[str, None]
) -> str:
    def link(written: str, term: Term | None) -> str:
        if term is None or term.name in done:
            return written
        done.update({term.name: None})
        return f"[{written}]({href(term)})"

    def prose(part: str) -> str:
        return matcher.pattern.sub(lambda match: link(match[0], matcher.term(match[0])), part)

    parts, at = [], 0
    for apart in _APART.finditer(markdown):
        parts.append(prose(markdown[at : apart.start()]))
        code = apart["code"]
        parts.append(link(apart[0], matcher.alone(code)) if code else apart[0])
        at = apart.end()
    return "".join([*parts, prose(markdown[at:])])

"""The course as a static site: the executed chapters of the last run, findings, glossary, functions; with search.

Nothing is executed, and the pages load nothing from elsewhere. Sphinx makes them, with myst-nb for notebooks and furo for
the looks (``docs/site/conf.py``). This module stages what Sphinx reads, in folders as in the repository so that relative
links hold, and checks every link of what comes out.

A chapter that the last run did not execute stands there without outputs and says so. Without any run of your own, the kept
run of ``outcomes/example`` gives findings and figures.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from labkit import glossary, text
from labkit.errors import LabkitError
from labkit.harvest import name_figures
from labkit.links import check_links
from labkit.notebook_io import chapters, exercise_id, read_notebook, tags
from labkit.pages import defused
from labkit.paths import lab_root
from labkit.report import readme
from labkit.site_run import HOW, Run, find_run, which

__all__ = ["Run", "Site", "build_site", "find_run", "site_command"]

_LINK = re.compile(r"(?P<image>!?)\[(?P<label>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^()\s]+)\)")
# Code in a language that the highlighter does not know is shown plain, which is no reason to have no site.
_COMPLAINT = re.compile(r"\b(?:WARNING|ERROR|CRITICAL): (?!Lexing literal_block|Pygments lexer name)")
_DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
_FIRST_DOCUMENTS = ("docs/glossary.md", "docs/functions.md", "docs/first-hour.md")
_ENTRY_TITLES = {"README": "About the lab <README>"}
_SHOWN_TYPES = ("image/png", "image/svg+xml", "text/html", "text/plain")


@dataclass(frozen=True)
class Site:
    """What :func:`build_site` made: its first page, how many pages and checked links, and the run that it shows."""

    index: Path
    pages: int
    links: int
    run: Run


def build_site(target: Path | None = None, *, outcomes: Path | None = None) -> Site:
    """Make the site.

    :param target: where to; ``build/site`` of the lab if None. What is there is replaced, as a whole and at the end.
    :param outcomes: see :func:`find_run`.
    :raises LabkitError: there is no run, Sphinx is not installed or complains, a link leads nowhere, or a page would
        load something from elsewhere.
    """
    target = (target or lab_root() / "build" / "site").absolute()
    if target.exists() and not (target / "searchindex.js").is_file() and any(target.iterdir()):
        raise LabkitError(
            f"{target} is no site of ours", why="it holds other files", remedy="choose an empty folder"
        )
    run = find_run(outcomes)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".site-", dir=target.parent) as scratch:
        source, built = Path(scratch, "source"), Path(scratch, "site")
        _stage(run, source)
        _sphinx(source, built, Path(scratch, "doctrees"))
        pages, links = check_links(built)
        shutil.rmtree(target, ignore_errors=True)
        built.rename(target)
    return Site(target / "index.html", pages, links, run)


def _sphinx(source: Path, built: Path, doctrees: Path) -> None:
    argv = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-E"]
    argv += ["-c", str(lab_root() / "docs" / "site"), "-d", str(doctrees), str(source), str(built)]
    # Sphinx takes the language and the date of its pages from the environment; ours are the same everywhere.
    env = os.environ | {"LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": "0", "NO_COLOR": "1"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if "No module named sphinx" in done.stderr:
        raise LabkitError(
            "the site cannot be made", why="Sphinx is not installed", remedy="use the environment of ./task"
        )
    complaints = [line for line in done.stderr.splitlines() if _COMPLAINT.search(line)]
    if done.returncode or complaints:
        why = "\n".join(complaints or [done.stderr.strip()]).replace(f"{source}/", "")
        raise LabkitError("the site cannot be made: Sphinx complains", why=why)
    # What Sphinx needs to build faster next time, with paths of this machine in it.
    for left in (".buildinfo", "objects.inv"):
        (built / left).unlink(missing_ok=True)


# --- what Sphinx reads ---


def _stage(run: Run, source: Path) -> None:
    documents = _documents()
    names = [path.stem for path in chapters()]
    kept = {*documents, *(f"notebooks/{name}.ipynb" for name in names)}
    used = _stage_chapters(run, source, kept)
    for document in documents:
        content = (lab_root() / document).read_text(encoding="utf-8")
        if document == "docs/glossary.md":
            content = _glossary_with_uses(content, used)
        _write(source / document, _bound(content, document, kept, source))
    _write(source / "outcomes" / "findings.md", _findings(run, names, source))
    _write(source / "index.md", _index(run, names, documents))


def _documents() -> list[str]:
    """The repository's documents that become pages, those for learners first."""
    root = lab_root()
    found = sorted(str(path.relative_to(root)) for path in (root / "docs").glob("*.md"))
    first = [name for name in _FIRST_DOCUMENTS if name in found]
    return [*first, *(name for name in found if name not in first)] + [
        name for name in _DOCUMENTS if (root / name).is_file()
    ]


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def _bound(markdown: str, page: str, kept: set[str], source: Path) -> str:
    """Markdown of ``page`` with links that hold on the site: files that are no pages here become plain text,
    and pictures are brought along."""

    def rewrite(match: re.Match[str]) -> str:
        target = match["target"].partition("#")[0]
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        wanted = os.path.normpath(os.path.join(os.path.dirname(page), target))
        if wanted == "notebooks/index.ipynb":
            up = "../" * page.count("/")
            return f"[{match['label']}]({up}index.md)"
        file = lab_root() / wanted
        if match["image"] and file.is_file():
            (source / wanted).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, source / wanted)
            return match[0]
        return match[0] if wanted in kept else str(match["label"])

    return _LINK.sub(rewrite, markdown)


# --- chapters ---


def _stage_chapters(run: Run, source: Path, kept: set[str]) -> dict[str, list[str]]:
    """Write the chapters; returns term -> the chapters that use it."""
    known = glossary.terms()
    used: dict[str, list[str]] = {}
    for path in chapters():
        notebook = _chapter(run, path)
        for term in glossary.link_notebook(
            notebook, known, lambda term: f"../docs/glossary.md#{term.anchor}"
        ):
            used.setdefault(term, []).append(path.stem)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = _bound(cell.source, f"notebooks/{path.name}", kept, source)
        line = _run_line(run, path.stem)
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(line))  # type: ignore[no-untyped-call]
        content: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
        _write(source / "notebooks" / path.name, content)
    return used


def _chapter(run: Run, path: Path) -> Any:
    """A chapter as it was executed, or as it is written where it was not."""
    entry = run.entry(path.stem)
    executed = run.folder / "notebooks" / path.name
    if entry is not None and executed.is_file():
        notebook = read_notebook(executed)
    else:
        notebook = read_notebook(path)
        _put_in_figures(notebook, entry, run.folder)
    name_figures(notebook)
    # papermill's own cell repeats the parameters.
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in tags(cell)]
    for cell in notebook.cells:
        _prepare(cell)
    notebook.metadata.pop("widgets", None)
    return notebook


def _put_in_figures(notebook: Any, entry: Mapping[str, Any] | None, folder: Path) -> None:
    """The kept figures, under the cells that they came from; the kept run has no executed notebooks."""
    by_cell: dict[str, list[Any]] = {}
    for figure in (entry or {}).get("figures", []):
        file = folder / figure["file"]
        if file.is_file():
            data = {"image/png": base64.b64encode(file.read_bytes()).decode("ascii")}
            output = nbformat.v4.new_output("display_data", data=data)  # type: ignore[no-untyped-call]
            by_cell.setdefault(figure["cell"], []).append(output)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = by_cell.get(cell.get("id", ""), [])


def _prepare(cell: Any) -> None:
    """One cell for the site: outputs that neither run nor load anything, solutions folded away."""
    if cell.cell_type != "code":
        return
    shown = cell.metadata.setdefault("mystnb", {})
    if exercise_id(cell) is not None:
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-cell"]
        shown |= {"code_prompt_show": "Show a solution", "code_prompt_hide": "Hide the solution"}
    for output in cell.outputs:
        data = output.get("data")
        if data is None:
            continue
        picture = output.get("metadata", {}).get("image/png", {})
        if "alt" in picture:
            shown["image"] = {"alt": picture["alt"], "classes": "figure"} | (
                {"width": f"{picture['width']}px"} if "width" in picture else {}
            )
        output["data"] = {kind: data[kind] for kind in _SHOWN_TYPES if kind in data}
        if "text/html" in data:
            output["data"]["text/html"] = defused("".join(data["text/html"]))


def _run_line(run: Run, name: str) -> str:
    """What a page says about the run it shows, as one line of HTML below the title."""
    entry = run.entry(name)
    if entry is None or not run.has(name):
        how = re.sub(r"`(.+?)`", r"<code>\1</code>", HOW)
        return (
            '<p class="run-line">The run that these pages show did not include this chapter: there is its text, '
            f"and no outputs. {how}</p>"
        )
    mode = entry["mode"] or "no measurement"
    line = f'<span class="badge {text.html(mode)}">{text.html(mode)}</span> '
    if entry["status"] != "ok":
        line += f'<span class="badge failed">{text.html(entry["status"])}</span> '
    line += (
        f"Linux {text.html(run.summary['kernel'])} · {run.summary['started'][:10]} · {entry['seconds']:.1f} s"
    )
    if not (run.folder / "notebooks" / f"{name}.ipynb").is_file():
        line += " · of this kept run only figures and findings are shown"
    problems = "".join(f"<li>{text.html(problem['what'])}</li>" for problem in entry["problems"])
    wrong = f'\n<div class="problems"><ul>{problems}</ul></div>' if problems else ""
    return f'<p class="run-line">{line}</p>{wrong}'


# --- pages that are made here ---


def _findings(run: Run, names: list[str], source: Path) -> str:
    summary = copy.deepcopy(dict(run.summary))
    for notebook in summary["notebooks"]:
        for figure in notebook["figures"]:
            file = run.folder / figure["file"]
            if file.is_file():
                (source / "outcomes" / figure["file"]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, source / "outcomes" / figure["file"])
        notebook["figures"] = [
            figure for figure in notebook["figures"] if (source / "outcomes" / figure["file"]).is_file()
        ]
    content = readme(summary, dict(run.before) if run.before else None, alone=True)
    content = re.sub(r"\A# ", "# Findings: ", content)
    # The table of notebooks names the chapters: here they are pages.
    for name in names:
        content = content.replace(f"\n| {name} |", f"\n| [{name}](../notebooks/{name}.ipynb) |")
    return content


def _index(run: Run, names: list[str], documents: list[str]) -> str:
    rows = [_index_row(run, name) for name in names]
    others = [document.removesuffix(".md") for document in documents]
    learner = [name for name in others if f"{name}.md" in _FIRST_DOCUMENTS]
    rest = [name for name in others if name not in learner]
    parts = [
        "# Noisy-neighbour lab",
        "Learn Linux by looking at your own kernel through eBPF, and find out who is slowing whom down on a machine. "
        "[What it is, and how to run it](README.md).",
        f"{which(run)} It was made on {text.markdown(run.summary['machine'])}, "
        f"Linux {text.markdown(run.summary['kernel'])}, on {run.summary['started'][:10]}. "
        "Every finding in it names what it is held against, or says that nothing is: [findings](outcomes/findings.md).",
        "\n".join(["| chapter | what you find out | run |", "| --- | --- | --- |", *rows]),
        _toctree("The course", [f"notebooks/{name}" for name in names]),
        _toctree("Reference", ["outcomes/findings", *learner]),
        _toctree("The lab", [_ENTRY_TITLES.get(name, name) for name in rest]),
    ]
    return "\n\n".join(parts) + "\n"


def _index_row(run: Run, name: str) -> str:
    entry = run.entry(name)
    state = "no&nbsp;outputs"
    if entry is not None and run.has(name):
        mode = text.html(entry["mode"] or "")
        badge = f'<span class="badge {mode}">{mode}</span>' if mode else ""
        state = badge if entry["status"] == "ok" else f'<span class="badge failed">{entry["status"]}</span>'
    title, what = _in_index(name)
    return f"| [{title}](notebooks/{name}.ipynb) | {what} | {state} |"


def _in_index(name: str) -> tuple[str, str]:
    """A chapter's title and what one finds out in it, as the index notebook has them."""
    index = read_notebook(lab_root() / "notebooks" / "index.ipynb")
    prose = "\n".join(cell.source for cell in index.cells if cell.cell_type == "markdown")
    match = re.search(rf"\[([^\]]+)\]\({re.escape(name)}\.ipynb\)\s*\|\s*([^|\n]+)\|", prose)
    return (match[1], match[2].strip()) if match else (name.replace("_", " "), "")


def _toctree(caption: str, pages: list[str]) -> str:
    listed = "\n".join(pages)
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n:maxdepth: 1\n\n{listed}\n```"


def _glossary_with_uses(markdown: str, used: Mapping[str, list[str]]) -> str:
    """The glossary with the chapters that use each term."""

    def add(match: re.Match[str]) -> str:
        names = used.get(match["name"], [])
        if not names:
            return match[0]
        links = ", ".join(f"[{name[:2]}](../notebooks/{name}.ipynb)" for name in names)
        return f"{match[0].rstrip()}\n\nIn chapters {links}.\n\n"

    return re.sub(r"^## (?P<name>.+?)[ \t]*\n.*?(?=^## |\Z)", add, markdown, flags=re.MULTILINE | re.DOTALL)


def site_command(target: Path | None = None, *, outcomes: Path | None = None, as_json: bool = False) -> int:
    """``labkit site``: make it and say where it is."""
    site = build_site(target, outcomes=outcomes)
    if as_json:
        found = {
            "index": str(site.index),
            "pages": site.pages,
            "links": site.links,
            "run": str(site.run.folder),
        }
        print(json.dumps(found))
        return 0
    print(f"site: {site.index}")
    whose = "the run that comes with the lab" if site.run.kept else f"the run in {site.run.folder}"
    print(f"  {site.pages} pages of {whose}")
    if site.run.shown < len(chapters()):
        print(
            f"  it has {site.run.shown} of the {len(chapters())} chapters; for all: ./task lab, then ./task site"
        )
    print(f"  {site.links} links checked; nothing is loaded from elsewhere")
    return 0

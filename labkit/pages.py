"""Executed notebooks as HTML pages that load nothing: no CDN, no script, no font from elsewhere.

nbconvert's own pages fetch require.js, MathJax and jQuery from CDNs. Here only its ``basic`` template is used, which
is the content alone; what would load something is taken out, and a Content-Security-Policy makes the browser refuse
whatever was overlooked. It also refuses scripts, so that a hostile name that got through as HTML does nothing.
"""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag
from nbconvert.exporters import HTMLExporter
from nbconvert.filters import markdown2html
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

from labkit import text
from labkit.harvest import name_figures

__all__ = ["defused", "index_page", "notebook_page"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_ACTIVE = ("script", "link", "iframe", "frame", "object", "embed", "base", "meta", "form", "applet", "portal")
_LOADING = ("src", "srcset", "poster", "background", "data", "action", "formaction", "ping", "manifest")
_CSS_LOADS = re.compile(r"@import|url\s*\(|image-set\s*\(|expression\s*\(", re.IGNORECASE)
_SAFE_LINK = re.compile(r"^(https?:|mailto:|#|[^:]*$)", re.IGNORECASE)

_STYLE = """
:root { color-scheme: light; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; color: #1c1e21; background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1, h2, h3, h4 { line-height: 1.25; margin: 1.8em 0 .5em; }
h1 { font-size: 1.8rem; margin-top: .6em; } h2 { font-size: 1.35rem; border-bottom: 1px solid #ddd; }
a { color: #0b57d0; }
header { font-size: .9rem; color: #555; border-bottom: 1px solid #ddd; padding-bottom: .5rem; }
header .mode { font-weight: 600; padding: .1em .5em; border-radius: .3em; background: #e8f0fe; color: #123; }
header .failed, .problems { background: #fdecea; color: #7f1d1d; }
.problems { margin-top: 1rem; padding: .6rem 1rem; border-left: 4px solid #b71c1c; }
.problems pre { white-space: pre-wrap; font-size: .8rem; }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .875em; }
:not(pre) > code { background: #f3f4f6; padding: .1em .3em; border-radius: .25em; }
.highlight { background: #f6f8fa; border-radius: .35rem; margin: .8rem 0 .3rem; }
.highlight pre { padding: .65rem .9rem; margin: 0; overflow-x: auto; line-height: 1.45; }
.output_area { margin: .3rem 0 .3rem .9rem; overflow-x: auto; }
.output_text pre, .output_stream pre { margin: .2rem 0; white-space: pre; color: #333; }
.output_stderr pre, .output_error pre { background: #fff4f4; padding: .5rem; border-radius: .3rem; }
.prompt, .anchor-link { display: none; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .875rem; margin: .6rem 0; }
th, td { text-align: left; padding: .25rem .65rem; border-bottom: 1px solid #e5e7eb; vertical-align: top; }
thead th { border-bottom: 2px solid #bbb; }
table.dataframe { border: 0; }
table.dataframe td, table.dataframe th { text-align: right; font-variant-numeric: tabular-nums; border-left: 0;
  border-right: 0; border-top: 0; }
blockquote { margin: .8rem 0; padding: .1rem 1rem; border-left: 4px solid #ddd; color: #444; }
.blocked { color: #777; font-style: italic; }
"""


def notebook_page(notebook: Any, *, entry: Mapping[str, Any], kernel: str) -> str:
    """An executed notebook as one HTML file.

    :param entry: the notebook's entry in the summary: ``name``, ``status``, ``mode``, ``seconds``, ``problems``.
    """
    named = copy.deepcopy(notebook)
    name_figures(named)
    content, _ = _exporter().from_notebook_node(named)
    mode = entry["mode"] or "no measurement"
    head = (
        f'<header><a href="index.html">this run</a> · <b>{text.html(entry["name"])}</b> · '
        f'<span class="mode">{text.html(mode)}</span> · Linux {text.html(kernel)} · '
        f"{_status(entry)} · {entry['seconds']:.1f} s</header>"
    )
    return _page(entry["name"], head + _problems(entry) + defused(content))


def index_page(readme: str, folder: Path) -> str:
    """README as the first page; figures are embedded, links point from ``pages/`` outwards."""
    soup = BeautifulSoup(markdown2html(readme), "html.parser")
    for image in soup.find_all("img"):
        file = folder / str(image.get("src", ""))
        if file.suffix == ".png" and file.is_file():
            image["src"] = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
    for link in soup.find_all("a", href=True):
        target = str(link["href"])
        if target.startswith(("pages/", "notebooks/")):
            link["href"] = target.removeprefix("pages/") if target.startswith("pages/") else f"../{target}"
    title = soup.find("h1")
    return _page(title.get_text() if title else "A run", defused(str(soup)))


@cache
def _exporter() -> HTMLExporter:
    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="basic", embed_images=True, exclude_anchor_links=True
    )
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    return exporter


def _status(entry: Mapping[str, Any]) -> str:
    return "ok" if entry["status"] == "ok" else f'<span class="failed">{text.html(entry["status"])}</span>'


def _problems(entry: Mapping[str, Any]) -> str:
    items = "".join(
        f"<li>{text.html(problem['what'])}{_where(problem)}{_detail(problem)}</li>"
        for problem in entry["problems"]
    )
    return f'<div class="problems"><ul>{items}</ul></div>' if items else ""


def _where(problem: Mapping[str, str]) -> str:
    cell = problem.get("cell")
    return f' (<a href="#cell-id={text.html(cell)}">cell {text.html(cell)}</a>)' if cell else ""


def _detail(problem: Mapping[str, str]) -> str:
    detail = problem.get("detail", "")
    lines = "\n".join(text.html(line) for line in detail.splitlines())
    return f"<details><summary>detail</summary><pre>{lines}</pre></details>" if lines else ""


def _page(title: str, body: str) -> str:
    code_style = HtmlFormatter(style="default").get_style_defs(".highlight")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text.html(title)}</title>\n<style>{code_style}\n{_STYLE}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )


def defused(html: str) -> str:
    """``html`` without anything that loads or runs: elements, attributes, style rules."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup.find_all(_ACTIVE):
        element.decompose()
    for element in soup.find_all("style"):
        if _CSS_LOADS.search(element.get_text()):
            element.decompose()
    for element in soup.find_all(True):
        _defuse(element, soup)
    return str(soup)


def _defuse(element: Tag, soup: BeautifulSoup) -> None:
    for name in list(element.attrs):
        value = str(element.attrs[name]).strip()
        lowered = name.lower()
        if lowered.startswith("on") or (lowered == "style" and _CSS_LOADS.search(value)):
            del element.attrs[name]
        elif lowered in ("href", "xlink:href"):
            if element.name != "a" or not _SAFE_LINK.match(value):
                del element.attrs[name]
        elif lowered in _LOADING and not value.startswith("data:image/"):
            del element.attrs[name]
            if element.name == "img":
                remark = soup.new_tag("span", attrs={"class": "blocked"})
                remark.string = f"[not loaded: {text.plain(value)}]"
                element.replace_with(remark)

"""Links of a folder of HTML pages: each leads somewhere, and no page loads anything from elsewhere."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag

from bs4 import BeautifulSoup

from labkit.errors import LabkitError

__all__ = ["check_links"]

#: What a browser fetches by itself when it shows the element; ``a`` waits for a click.
_LOADED = {
    "img": ("src", "srcset"), "script": ("src",), "link": ("href",), "iframe": ("src",), "source": ("src", "srcset"),
    "video": ("src", "poster"), "audio": ("src",), "embed": ("src",), "object": ("data",), "image": ("href", "xlink:href"),
}  # fmt: skip
_UNFETCHED_LINKS = {"canonical", "next", "prev", "index", "search", "author", "help"}  # of <link rel=...>
_ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:)?//|^(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_CSS_URL = re.compile(r"(?:url\(\s*|@import\s+)['\"]?(?P<target>[^'\")\s]+)")


def check_links(folder: Path) -> tuple[int, int]:
    """Check all pages and style sheets below ``folder``.

    :returns: how many pages there are, and how many links within the folder were followed.
    :raises LabkitError: with every link that leads nowhere and everything that would be loaded from elsewhere.
    """
    pages = sorted(folder.rglob("*.html"))
    wrong: list[str] = []
    followed = 0
    for page in pages:
        soup = _soup(page)
        for tag, attributes in _LOADED.items():
            for element in soup.find_all(tag):
                if tag == "link" and _UNFETCHED_LINKS & set(element.get("rel") or []):
                    continue
                for target in (str(element[name]) for name in attributes if element.get(name)):
                    if _ELSEWHERE.match(target):
                        wrong.append(f"{page.relative_to(folder)} loads {target}")
                    elif not target.startswith("data:"):
                        followed += 1
                        wrong += _missing(page, target, folder)
        inline = [element.get_text() for element in soup.find_all("style")]
        inline += [str(element["style"]) for element in soup.find_all(style=True)]
        wrong += [f"{page.relative_to(folder)} loads {target}" for css in inline for target in _fetched(css)]
        for anchor in soup.find_all("a", href=True):
            target = str(anchor["href"])
            if not _ELSEWHERE.match(target):
                followed += 1
                wrong += _missing(page, target, folder)
    wrong += _styles(folder)
    if wrong:
        raise LabkitError(
            f"{len(wrong)} links of the pages are wrong",
            why="; ".join(wrong),
            remedy="mend them in their sources",
        )
    return len(pages), followed


def _missing(page: Path, target: str, folder: Path) -> list[str]:
    path, fragment = urldefrag(target)
    path = unquote(path.split("?")[0])
    file = (page.parent / path).resolve() if path else page
    where = f"{page.relative_to(folder)} links to {target}"
    if not file.is_file():
        return [f"{where}: no such file"]
    if fragment and file.suffix == ".html" and unquote(fragment) not in _anchors(file):
        return [f"{where}: no such place in it"]
    return []


def _styles(folder: Path) -> list[str]:
    return [
        f"{sheet.relative_to(folder)} loads {target}"
        for sheet in sorted(folder.rglob("*.css"))
        for target in _fetched(sheet.read_text(encoding="utf-8", errors="replace"))
    ]


def _fetched(css: str) -> list[str]:
    """What a style sheet would load from elsewhere."""
    return [match["target"] for match in _CSS_URL.finditer(css) if _ELSEWHERE.match(match["target"])]


@cache
def _soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_bytes(), "html.parser")


@cache
def _anchors(page: Path) -> frozenset[str]:
    soup = _soup(page)
    named = {str(element["id"]) for element in soup.find_all(id=True)}
    return frozenset(
        {"", "top", *named, *(str(element["name"]) for element in soup.find_all("a", attrs={"name": True}))}
    )

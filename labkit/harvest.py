"""What an executed notebook brought: its findings, its figures, and whether it ran live or replayed."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.findings import MIME_TYPE, is_finding
from labkit.ledger import Mode
from labkit.notebook_io import tags

__all__ = ["CHAPTER_MIME_TYPE", "Figure", "figures", "findings", "mode", "name_figures", "why_replay"]

#: A chapter's banner says in which mode it runs: ``{"name": ..., "mode": "live" | "replay", "why": ...}``; ``why`` only
#: where it would have been live and could not.
CHAPTER_MIME_TYPE = "application/vnd.labkit.chapter+json"

#: A figure of a cell with this tag explains something: it is no result, and stays in the notebook and its page.
DRAWING_TAG = "drawing"

_PNG = b"\x89PNG\r\n\x1a\n"
_HEADING = re.compile(r"^#{1,6}\s+(?P<title>.+?)\s*#*\s*$", re.MULTILINE)
_MARKUP = re.compile(r"[*_`]")
_TITLE = re.compile(r"""\btitle="([^"\\\n]+)\"""")


@dataclass(frozen=True)
class Figure:
    """A PNG that a cell showed.

    :param section: the heading it stands under.
    :param position: where the cell stands in the notebook, counted from 0.
    :param title: what its cell calls it, ``title="..."``; empty where that is not said, or not of one figure only.
    """

    section: str
    cell: str
    position: int
    png: bytes
    drawing: bool = False
    title: str = ""


def _bundles(notebook: Any) -> list[tuple[int, Mapping[str, Any]]]:
    return [
        (position, output["data"])
        for position, cell in enumerate(notebook.cells)
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]


def findings(notebook: Any) -> list[dict[str, Any]]:
    """The findings in order, each once: :meth:`labkit.findings.Finding.as_dict` and its ``position`` among the cells."""
    found: dict[str, dict[str, Any]] = {}
    for position, data in _bundles(notebook):
        payload = data.get(MIME_TYPE)
        if is_finding(payload):
            found[str(payload["name"])] = dict(payload) | {"position": position}
    return list(found.values())


def mode(notebook: Any) -> Mode | None:
    """``live`` or ``replay``, as the chapter's banner says, else as its findings do; None if neither tells.

    One replayed finding makes it a replay: a notebook is live only if all of it is.
    """
    said = [
        data[CHAPTER_MIME_TYPE].get("mode") for _, data in _bundles(notebook) if CHAPTER_MIME_TYPE in data
    ]
    said += [finding["mode"] for finding in findings(notebook) if finding["ledger"].get("capture") != "none"]
    if not said:
        said = [finding["mode"] for finding in findings(notebook)]
    if "replay" in said:
        return "replay"
    return "live" if "live" in said else None


def why_replay(notebook: Any) -> str:
    """Why a chapter that should have been live was not, as its banner says; empty if it was, or replay was asked for."""
    said = [
        data[CHAPTER_MIME_TYPE].get("why", "") for _, data in _bundles(notebook) if CHAPTER_MIME_TYPE in data
    ]
    return next((str(why) for why in said if why), "")


def figures(notebook: Any) -> list[Figure]:
    """The PNG figures, in order."""
    found = []
    section = ""
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            titles = [match["title"] for match in _HEADING.finditer(cell.source)]
            section = _MARKUP.sub("", titles[-1]) if titles else section
        elif cell.cell_type == "code":
            drawing = DRAWING_TAG in tags(cell)
            pngs = [png for output in cell.outputs if (png := _png(output))]
            names = _TITLE.findall(cell.source) if len(pngs) == 1 else []
            title = names[0] if len(names) == 1 else ""
            found += [Figure(section, cell.id, position, png, drawing, title) for png in pngs]
    return found


def name_figures(notebook: Any) -> None:
    """Give every PNG its section as alternative text, for those who cannot see it."""
    sections = iter(figures(notebook))
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if _png(output) is not None:
                output.metadata.setdefault("image/png", {})["alt"] = next(sections).section


def _png(output: Mapping[str, Any]) -> bytes | None:
    encoded = output.get("data", {}).get("image/png")
    if not isinstance(encoded, str):
        return None
    try:
        png = base64.b64decode(encoded)
    except (binascii.Error, ValueError):
        return None
    return png if png.startswith(_PNG) else None

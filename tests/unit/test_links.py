"""Links of pages: each leads somewhere, and nothing is loaded from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.errors import LabkitError
from labkit.links import check_links


def pages(folder: Path, body: str) -> Path:
    (folder / "deep").mkdir()
    (folder / "index.html").write_text(f"<html><body>{body}</body></html>")
    (folder / "deep/other.html").write_text(
        '<h2 id="a place">x</h2><a href="../index.html">up</a><img src="x.png">'
    )
    (folder / "deep/x.png").write_bytes(b"")
    return folder


def test_good_links_are_counted(tmp_path: Path) -> None:
    body = '<a href="deep/other.html#a%20place">1</a><a href="https://example.org">out</a><a href="#">2</a>'
    body += '<img src="data:,x">'
    assert check_links(pages(tmp_path, body)) == (2, 4)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('<a href="deep/none.html">', "index.html links to deep/none.html: no such file"),
        ('<a href="deep/other.html#b">', "index.html links to deep/other.html#b: no such place"),
        ('<a href="#b">', "index.html links to #b: no such place"),
        ('<img src="none.png">', "index.html links to none.png: no such file"),
        ('<img src="https://example.org/x.png">', "index.html loads https://example.org/x.png"),
        ('<script src="//cdn.example.org/x.js"></script>', "index.html loads //cdn.example.org/x.js"),
        (
            '<link rel="stylesheet" href="http://example.org/x.css">',
            "index.html loads http://example.org/x.css",
        ),
        ('<link rel="preconnect" href="https://example.org">', "index.html loads https://example.org"),
        ('<iframe src="https://example.org"></iframe>', "index.html loads https://example.org"),
        ("<style>@import 'https://example.org/x.css';</style>", "index.html loads https://example.org/x.css"),
        ('<p style="background: url(//example.org/x.png)">', "index.html loads //example.org/x.png"),
    ],
)
def test_a_wrong_link_is_named(tmp_path: Path, body: str, complaint: str) -> None:
    with pytest.raises(LabkitError) as caught:
        check_links(pages(tmp_path, body))
    assert complaint in caught.value.why


def test_style_sheets_are_looked_into(tmp_path: Path) -> None:
    (tmp_path / "x.css").write_text(
        "a { background: url('local.png') } @font-face { src: url(https://example.org/f.woff) }"
    )
    with pytest.raises(LabkitError) as caught:
        check_links(pages(tmp_path, ""))
    assert caught.value.why == "x.css loads https://example.org/f.woff"

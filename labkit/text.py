"""Names from the kernel are hostile input: how they, and numbers, are shown to people.

A task may call itself ``<script>``, a control group may be named ``| **you win** |`` and either may hold
terminal escapes. Everything the lab shows passes through one of :func:`plain` (terminals, logs),
:func:`html` or :func:`markdown` / :func:`markdown_code`.
"""

from __future__ import annotations

import html as _html
import math
import re
import unicodedata

__all__ = ["html", "markdown", "markdown_code", "number", "percent", "plain", "quantity"]

# Control characters move cursors and hide text; "format" characters (Cf) include the bidirectional
# overrides of "Trojan Source" (CVE-2021-42574); Zl and Zp are line breaks; Cs and Co have no agreed look.
_INVISIBLE = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co"}
# No more than needed, so that the source stays readable: an underscore within a word is no markup in GFM.
_MARKDOWN_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_BLOCK_START = re.compile(r"^(\s*)([-+#=]|\d+(?=[.)](?:\s|$)))")


def plain(text: object, *, lines: bool = False) -> str:
    r"""``text`` with every control or invisible character written out; ``lines`` keeps line feeds and tabs.

    >>> plain("\x1b[31mred")
    '\\x1b[31mred'
    """

    def visible(char: str) -> str:
        if lines and char in "\n\t":
            return char
        if unicodedata.category(char) not in _INVISIBLE:
            return char
        return char.encode("unicode_escape").decode("ascii")

    return "".join(visible(char) for char in str(text))


def html(text: object) -> str:
    """``text`` for the inside of an HTML element or a quoted attribute."""
    return _html.escape(plain(text), quote=True)


def markdown(text: object, *, starts_line: bool = False) -> str:
    """``text`` as prose in Markdown (also inside a table cell): no markup, no HTML, no links.

    :param starts_line: nothing stands before it on its line, where some characters begin a list or a heading.

    >>> markdown("<b>|x|</b>")
    '&lt;b&gt;\\\\|x\\\\|&lt;/b&gt;'
    """
    escaped = _MARKDOWN_SPECIAL.sub(r"\\\g<0>", plain(text))
    if starts_line:
        escaped = _BLOCK_START.sub(lambda m: m[1] + (m[2] + "\\" if m[2].isdigit() else "\\" + m[2]), escaped)
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Code hosts turn bare addresses into links (GitHub Flavored Markdown, 6.9 "Autolinks (extension)").
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def markdown_code(text: object) -> str:
    """``text`` as code, safe in a table cell: renderers end a cell at ``|`` even inside a code span."""
    shown = plain(text)
    if shown.strip() and "`" not in shown and "|" not in shown:
        return f"`{shown}`"
    inner = markdown(shown).replace("\\|", "&#124;")
    return f"<code>{inner}</code>"


def number(value: object, *, digits: int = 4, sign: bool = False) -> str:
    """A number for people: thousands separated, ``digits`` significant places; the rest as :func:`plain`.

    >>> number(1234567), number(0.0123456), number(43.0)
    ('1,234,567', '0.01235', '43')
    """
    plus = "+" if sign else ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return plain(value)
    if isinstance(value, int):
        return f"{value:{plus},}"
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-4 <= abs(value) < 1e15:
        return f"{value:{plus}.{digits - 1}e}"
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:{plus},.{max(0, places)}f}"  # never rounded left of the decimal point
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: object, unit: str, *, sign: bool = False) -> str:
    """A number with its unit: ``43.2 us``; ``23 events``; ``12 %``."""
    return f"{number(value, sign=sign)} {plain(unit)}".rstrip()


def percent(share: float | None, *, sign: bool = False) -> str:
    """A share (0.02) as ``2 %``; the empty string where there is none."""
    return "" if share is None else f"{number(share * 100, digits=3, sign=sign)} %"

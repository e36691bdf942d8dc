"""The table of an answer: columns that suit the width, with names that are never cut to nonsense.

Causes differ by shape as well as by colour (Okabe and Ito's).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from labkit import text
from labkit.sched.cause import CAUSES
from labkit.sched.sentence import per_second
from labkit.sched.verdict import Verdict

__all__ = ["COLOURS", "WIDE", "bar", "bar_width", "listed", "marks", "shortened", "table"]

#: From so many columns on there is room for paths; below so many, only for who waits, how long, and because of whom.
WIDE, NARROW = 140, 72
_SHAPES = dict(zip(CAUSES, "█▓▒·≡?", strict=True))
_LETTERS = dict(zip(CAUSES, "FST.H?", strict=True))
COLOURS = dict(zip(CAUSES, ("#d55e00", "#56b4e9", "#e69f00", "grey50", "#cc79a7", "white"), strict=True))
_VERDICT_STYLE = {"quiet": "dim", "noisy_neighbor": "bold #d55e00", "system": "bold #cc79a7", "mixed": "bold"}
#: At most so many are named as the cause, and but for the first only who had this share.
_NAMED, _WORTH = 3, 0.05


def marks(shapes: bool) -> Mapping[str, str]:
    """The mark of each cause; letters where the terminal has no block characters."""
    return _SHAPES if shapes else _LETTERS


def bar_width(width: int) -> int:
    """How wide the bars are in a terminal of ``width`` columns."""
    return 24 if width >= WIDE else 10 if width >= 100 else 7 if width >= NARROW else 6


def bar(verdict: Verdict, width: int, *, shapes: bool = True) -> Text:
    """The cgroup's wait by cause, ``width`` characters in all; a cause that is there at all has one.

    :param shapes: block characters; letters where the terminal has none.
    """
    if not verdict.wait_ns:
        return Text(" " * width)
    cells = {cause: width * ns / verdict.wait_ns for cause, ns in verdict.causes.items() if ns}
    whole = {cause: max(1, int(part)) if part >= 0.25 else 0 for cause, part in cells.items()}
    while sum(whole.values()) > width:
        whole[max(whole, key=lambda cause: (whole[cause], cause))] -= 1
    while sum(whole.values()) < width:
        whole[max(whole, key=lambda cause: cells[cause] - whole[cause])] += 1
    drawn = marks(shapes)
    found = Text()
    for cause, count in whole.items():
        found.append(drawn[cause] * count, style=COLOURS[cause])
    return found


def shortened(name: str, width: int, *, dots: str = "…") -> str:
    """A name in at most ``width`` columns. Its last part stays whole if it can, and so does the end of what is before it:
    there siblings differ.

    >>> shortened("shop/web-7f9c5d6b8-x2x4q/server", 18)
    'shop/…x2x4q/server'
    >>> shortened("containerd ef4160252016", 18), shortened("containerd ef4160252016", 13)
    ('cont… ef4160252016', 'ef4160252016')
    """
    if cell_len(name) <= width:
        return name
    place = max(name.rfind("/"), name.rfind(" "))
    head, last = name[: max(place, 0)], name[place:] if place > 0 else ""
    room = width - cell_len(last)
    if head and name[place] == " " and room >= -1:  # what kind of thing it is, and which
        kept = _first(head, room - cell_len(dots))
        return kept + dots + last if kept else last[1:]
    if head and room >= cell_len(dots) + 4:
        return _both_ends(head, room, dots) + last
    return _both_ends(name, width, dots)


def _both_ends(name: str, width: int, dots: str) -> str:
    room = max(width - cell_len(dots), 0)
    head = _first(name, (room + 1) // 2)
    return head + (dots if width >= cell_len(dots) else "") + _first(name[::-1], room - cell_len(head))[::-1]


def _first(name: str, width: int) -> str:
    while name and cell_len(name) > width:
        name = name[:-1]
    return name


def listed(parts: Sequence[tuple[str, str]], width: int, *, dots: str = "…") -> str:
    """Names, each with what is said of it, in at most ``width`` columns: as many whole ones as fit, and how many more.

    >>> shares = [("hog_a", " 75%"), ("hog_b", " 25%")]
    >>> listed(shares, 20), listed(shares, 16), listed([("a-very-long-name", " 75%")], 16)
    ('hog_a 75%, hog_b 25%', 'hog_a 75% +1', 'a-very…-name 75%')
    """
    for count in range(min(len(parts), _NAMED), 0, -1):
        more = f" +{len(parts) - count}" if len(parts) > count else ""
        shown = ", ".join(name + said for name, said in parts[:count]) + more
        if cell_len(shown) <= width:
            return shown
    if not parts:
        return ""
    (name, said), more = parts[0], f" +{len(parts) - 1}" if len(parts) > 1 else ""
    if cell_len(said + more) + 5 > width:
        more = ""
    return shortened(name, width - cell_len(said + more), dots=dots) + said + more


def table(shown: Iterable[Verdict], width: int, shapes: bool) -> Table:
    """A row for each, in at most ``width`` columns."""
    rows = list(shown)
    cells, dots = bar_width(width), "…" if shapes else ".."
    longest = max([len("cgroup"), *(cell_len(text.plain(verdict.name)) for verdict in rows)])
    most = 18 + max(0, min(width - 80, 48)) // 3 if width >= 60 else 12
    columns = {"cgroup": min(longest, most), "wait/s": 6, "p99": 6, "cause": cells, "verdict": 14, "sure": 4}
    if width < NARROW:
        del columns["p99"], columns["sure"]
    found = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    for title, wide in columns.items():
        side: Literal["left", "right"] = "right" if title in ("wait/s", "p99", "sure") else "left"
        found.add_column(title, justify=side, no_wrap=True, overflow="crop", width=wide)
    rest = max(8, width - sum(columns.values()) - len(columns))
    found.add_column("because of", no_wrap=True, overflow="crop", width=rest)
    for verdict in rows:
        row: dict[str, RenderableType] = {
            "cgroup": Text(shortened(text.plain(verdict.name), columns["cgroup"], dots=dots)),
            "wait/s": per_second(verdict.wait_ns, verdict.seconds),
            "p99": per_second(verdict.p99_ns, 1.0),
            "cause": bar(verdict, cells, shapes=shapes),
            "verdict": Text(verdict.verdict, style=_VERDICT_STYLE.get(verdict.verdict, "bold #e69f00")),
            "sure": f"{100 * verdict.confidence:.0f}%",
        }
        because = Text(listed(_reasons(verdict), rest, dots=dots))
        found.add_row(*(row[title] for title in columns), because)
    return found


def _reasons(verdict: Verdict) -> list[tuple[str, str]]:
    """Who or what, and its share of the wait for others."""
    if verdict.verdict == "self_contended":
        return [("its own tasks", "")]
    found = []
    if verdict.quota is not None:
        own = verdict.quota.holder == verdict.cgroup
        found.append(("its quota" if own else f"quota of {text.plain(verdict.quota.holder or '?')}", ""))
    worth = [one for one in verdict.blame if one.share >= _WORTH] or list(verdict.blame[:1])
    found += [(text.plain(one.name), f" {100 * one.share:.0f}%") for one in worth]
    if verdict.verdict == "system" and not found:
        found.append(("its own tasks" if verdict.cgroup == "/" else "hypervisor, interrupts", ""))
    return found

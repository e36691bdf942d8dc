"""An answer for people: a table that fits 80 columns, a bar of causes for each cgroup, and sentences.

Names are other people's: they are put into :class:`rich.text.Text` (no markup is read from them) through
:func:`labkit.text.plain`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from labkit import text
from labkit.noisy.answer import Answer
from labkit.noisy.columns import COLOURS, WIDE, bar, bar_width, marks, table
from labkit.sched.sentence import BLIND, story
from labkit.sched.verdict import Verdict

__all__ = ["render"]

#: From this share on the tasks that can still be asked make up a cgroup: what left with a task is no disagreement.
_WHOLE = 0.99

_MEANING = {
    "foreign": "others had the CPU",
    "self": "its own tasks had",
    "throttled": "its quota",
    "idle": "CPU waking up",
    "steal": "hypervisor, interrupts",
    "unknown": "nobody knows who",
}
_STORIES = 3


def render(
    answer: Answer, console: Console, *, rows: int = 20, live: bool = False, height: int | None = None
) -> RenderableType:
    """The whole answer for this console.

    :param rows: at most so many cgroups.
    :param live: it is one of many: say how to end.
    :param height: lines that there are; None for as many as it takes. What is wanted most is placed first: how to end it,
        one row, ledger, cost and residual, one story; then rows, then further stories, then what it cannot see.
    """
    shapes = _draws(console)
    page = _Page(console, math.inf if height is None else height)
    shown = answer.verdicts[:rows]
    stories = [Group(Text(), story) for story in _stories(shown, wide=console.width >= WIDE)]
    ends = page.fitting([Text("Ctrl-C ends it", style="dim")] if live else [])
    head = page.fitting([_head(answer), Text()])
    page.left -= 2 + (answer.asked > 1)  # the table's own head, one row, and a line that counts the others
    foot = page.fitting(_foot(answer))
    told = page.fitting(stories[:1])
    legend = page.fitting([Group(Text(), _legend(shown, console.width, shapes))])
    shown = shown[: 1 + page.rows(len(shown) - 1, answer.asked - 1)]
    told += page.fitting(stories[1:] if told else [])
    blind = page.fitting([Text(BLIND, style="dim")])
    rules = page.fitting(_rules(answer))
    if legend:
        legend = [Text(), _legend(shown, console.width, shapes)]
    parts = [*head, table(shown, console.width, shapes)]
    if answer.asked > len(shown):
        parts.append(Text(f"and {answer.asked - len(shown):,} more that waited less", style="dim"))
    if not shown:
        parts.append(Text("Nobody waited that long." if answer.waiting else "Nobody waited for a CPU."))
    return Group(*parts, *told, *legend, *blind, *foot, *rules, *ends)


def _draws(console: Console) -> bool:
    """Can it show block characters?"""
    return "utf" in console.encoding.lower()


@dataclass
class _Page:
    """Lines of a screen that are still free."""

    console: Console
    left: float

    def fitting(self, parts: Iterable[RenderableType]) -> list[RenderableType]:
        """The first of these that find room, which they take."""
        found = []
        for part in parts:
            lines = len(self.console.render_lines(part, pad=False))
            if lines > self.left:
                break
            self.left -= lines
            found.append(part)
        return found

    def rows(self, wanted: int, there_are: int) -> int:
        """Room for so many more rows; if these are all there are, the line that would count the others is free, too."""
        spare = wanted == there_are and wanted <= self.left + 1
        granted = int(max(0, wanted if spare else min(wanted, self.left)))
        self.left -= granted - (spare and wanted > 0)
        return granted


def _head(answer: Answer) -> Text:
    head = Text()
    head.append(answer.mode.upper(), style="bold")
    head.append(
        f" on Linux {text.plain(answer.kernel)}, {answer.seconds:.1f} s; {answer.waiting:,} cgroups waited"
    )
    return head


def _stories(shown: Iterable[Verdict], *, wide: bool) -> list[RenderableType]:
    """The sentences of those that do not just wait a little; of the first one if all are quiet."""
    loud = [verdict for verdict in shown if verdict.verdict != "quiet"][: 2 * _STORIES if wide else _STORIES]
    chosen = loud or list(shown)[:1]
    stories: list[RenderableType] = []
    for verdict in chosen:
        words = Text(story(verdict))
        if verdict.doubts:
            words.append(
                f" ({100 * verdict.confidence:.0f} % sure: {'; '.join(verdict.doubts)}.)", style="dim"
            )
        stories.append(words)
    return stories


def _legend(shown: Iterable[Verdict], width: int, shapes: bool) -> Text:
    """What the marks mean that are in the bars; a cause too small for a mark needs none."""
    drawn = "".join(bar(verdict, bar_width(width), shapes=shapes).plain for verdict in shown)
    there = [(cause, mark) for cause, mark in marks(shapes).items() if mark in drawn]
    legend = Text()
    for cause, mark in there:
        legend.append(mark, style=COLOURS[cause])
        legend.append(f" {cause} ({_MEANING[cause]})  " if len(there) < 4 else f" {cause}  ", style="dim")
    return legend


def _foot(answer: Answer) -> list[Text]:
    cost = answer.cost
    each, share = cost.get("ns_per_switch"), cost.get("cpu_share") or 0.0
    said = f"measuring cost {100 * share:.2f} % of the CPUs in this process; in the kernel: not permitted to be read"
    if each is not None:
        said = f"measuring cost {each:.0f} ns per switch, {100 * share:.2f} % of the CPUs"
    return [Text(line, style="dim") for line in (answer.ledger.describe(), said, _checked(answer)) if line]


def _rules(answer: Answer) -> list[Text]:
    """What could not be compared, what the kernel left to choose, and how large the tables are."""
    said = [
        _not_compared(answer),
        "rules: " + "; ".join(map(text.plain, answer.rules)) if answer.rules else "",
    ]
    return [Text(line, style="dim") for line in said if line]


def _checked(answer: Answer) -> str:
    """How far the numbers are from the kernel's own, over the cgroups whose tasks could all be asked."""
    compared = [delay for delay in _delays(answer) if delay["verifiable_share"] >= _WHOLE]
    oracle = sum(delay["oracle_ns"] for delay in compared)
    residual = sum(abs(delay["residual_ns"]) for delay in compared)
    said = []
    if oracle:
        said.append(f"run_delay in /proc: {oracle / 1e6:,.1f} ms, apart by {100 * residual / oracle:.2f} %")
    stamped = [found["stamps"] for found in answer.residuals.values() if found.get("stamps")]
    if total := sum(one["oracle_ns"] for one in stamped):
        apart = 100 * sum(abs(one["residual_ns"]) for one in stamped) / total
        said.append(
            f"stamps of another clock, in a part of the time: {total / 1e6:,.1f} ms, apart by {apart:.2f} %"
        )
    return f"held against {'; '.join(said)}" if said else ""


def _not_compared(answer: Answer) -> str:
    """Of how many cgroups the tasks could not all be asked, and what those that could account for, by length of wait."""
    rest = [delay for delay in _delays(answer) if delay["verifiable_share"] < _WHOLE]
    waits_ns = [delay["oracle_ns"] + delay["residual_ns"] for delay in rest]
    if not sum(waits_ns):
        return ""
    accounted = sum(delay["verifiable_share"] * ns for delay, ns in zip(rest, waits_ns, strict=True))
    share = math.floor(100 * accounted / sum(waits_ns))  # never "100 %": something is missing
    cgroups = "1 cgroup" if len(rest) == 1 else f"{len(rest):,} cgroups"
    return f"not compared: {cgroups} where the tasks still alive account for {share} % of the waits"


def _delays(answer: Answer) -> list[Mapping[str, Any]]:
    return [delay for found in answer.residuals.values() if (delay := found.get("run_delay"))]

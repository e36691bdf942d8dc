"""How a run of notebooks looks while it goes: one line per notebook, and in a terminal the current cell."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from labkit import text

__all__ = ["Reporter"]

_COLOURS = {"ok": "green", "failed": "bold red", "interrupted": "bold yellow", "not run": "dim"}
_MAX_PROBLEMS = 4


class Reporter:
    """Reports to standard output: with a moving line in a terminal, finished lines only in a pipe."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.width = max((len(name) for name in names), default=0)
        # Read now, not at import: tests and callers may have replaced sys.stdout.
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, name: str, cells: int) -> None:
        """A notebook starts."""
        if not self.console.is_terminal:
            return
        self._live = Progress(
            SpinnerColumn(),
            TextColumn(f"{self._count(name)}  {name}", markup=False),
            TextColumn("cell {task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            transient=True,
        )
        self._task = self._live.add_task("starting the kernel", total=cells)
        self._live.start()

    def cell(self, index: int, cells: Sequence[Mapping[str, Any]]) -> None:
        """A cell starts, the one of ``cells`` at ``index``; those include the one that papermill adds for parameters."""
        if self._live is not None and self._task is not None:
            about = _summary(cells[index])
            self._live.update(self._task, completed=index + 1, total=len(cells), description=about)

    def end(self, result: Mapping[str, Any]) -> None:
        """A notebook has ended, or was not run: one line, and why if it failed."""
        self.stop()
        name, status = str(result["name"]), str(result["status"])
        line = Text(f"{self._count(name)}  {name:<{self.width}}  ")
        line.append(f"{status:<11}", style=_COLOURS.get(status, ""))
        if status != "not run":
            line.append(f"  {result['seconds']:6.1f} s  {result['mode'] or '-':<6}  {_found(result)}")
        self.console.print(Text(line.plain.rstrip()) if not self.console.is_terminal else line)
        problems = result["problems"]
        for problem in problems[:_MAX_PROBLEMS]:
            where = f"cell {problem['cell']}: " if problem.get("cell") else ""
            self.console.print(Text(text.plain(f"       {where}{problem['what']}")))
        if len(problems) > _MAX_PROBLEMS:
            self.console.print(Text(f"       and {len(problems) - _MAX_PROBLEMS} more"))

    def say(self, line: str) -> None:
        """A line of plain words."""
        self.console.print(Text(text.plain(line, lines=True)))

    def stop(self) -> None:
        """End the moving line."""
        if self._live is not None:
            self._live.stop()
            self._live = self._task = None

    def _count(self, name: str) -> str:
        position = f"{self.names.index(name) + 1}/{len(self.names)}"
        return f"[{position:>{2 * len(str(len(self.names))) + 1}}]"


def _found(result: Mapping[str, Any]) -> str:
    findings = result["findings"]
    untrusted = sum(not finding["trusted"] for finding in findings)
    said = f"{len(findings)} finding{'' if len(findings) == 1 else 's'}"
    return f"{said}, {untrusted} NOT TRUSTED" if untrusted else said


def _summary(cell: Mapping[str, Any]) -> str:
    """The first words of a cell: a heading, or code."""
    first = next((line.strip() for line in cell["source"].splitlines() if line.strip()), "")
    return text.plain(re.sub(r"^[#\s%]+", "", first))[:48]

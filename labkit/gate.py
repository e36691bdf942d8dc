"""The strict gate: whether an executed notebook really ran, whole and without a hidden error.

Neither papermill's exit code nor the statuses it writes can be relied on: a killed kernel, a cell that ran
out of time or ``sys.exit(0)`` leave cells "completed" that never ran. What counts here is the execution count
of every code cell, every error output, every traceback on stderr, and the records of
:mod:`labkit.kernel_guard`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from labkit import text
from labkit.findings import MIME_TYPE

__all__ = ["Problem", "correct_statuses", "guard_problems", "notebook_problems", "stderr_problems"]

_TRACEBACK = re.compile(r"Traceback \(most recent call last\)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Problem:
    """Why a notebook did not pass.

    :param what: one line.
    :param cell: the id of the cell, if it can be told.
    :param detail: a traceback or log, if there is one.
    """

    what: str
    cell: str = ""
    detail: str = ""

    def __str__(self) -> str:
        where = f"cell {self.cell}: " if self.cell else ""
        return text.plain(f"{where}{self.what}")

    def as_dict(self) -> dict[str, str]:
        """JSON-ready form."""
        return asdict(self)


def notebook_problems(notebook: Any) -> list[Problem]:
    """What the executed notebook itself shows: errors, cells that never ran, findings that contradict."""
    problems: list[Problem] = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        problems += _output_problems(cell)
    problems += _cells_not_run(code)
    problems += _contradicting_findings(code)
    if not code:
        problems.append(Problem("there is no code cell in it"))
    return problems


def _output_problems(cell: Any) -> list[Problem]:
    problems = []
    for output in cell.outputs:
        if output.output_type == "error":
            trace = _ANSI.sub("", "\n".join(output.get("traceback", [])))
            what = f"{output.ename}: {output.evalue}".strip().removesuffix(":")
            problems.append(Problem(what.splitlines()[0], cell=cell.id, detail=trace))
        elif output.output_type == "stream" and output.name == "stderr":
            shown = _ANSI.sub("", output.text)
            if _TRACEBACK.search(shown):
                problems.append(Problem("a traceback on stderr", cell=cell.id, detail=shown.strip()))
    return problems


def stderr_problems(log: str) -> list[Problem]:
    """A traceback that the kernel or its child processes wrote when no cell was running to show it."""
    shown = _ANSI.sub("", log)
    return [Problem("a traceback on stderr", detail=shown[-4000:])] if _TRACEBACK.search(shown) else []


def _cells_not_run(code: Sequence[Any]) -> list[Problem]:
    """Every code cell must have a count, and counts must rise: a restarted kernel begins again at 1."""
    problems = []
    waiting = [cell for cell in code if cell.execution_count is None and cell.source.strip()]
    if waiting:
        rest = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else ""
        problems.append(Problem(f"never ran{rest}", cell=waiting[0].id))
    counts = [cell.execution_count for cell in code if cell.execution_count is not None]
    if any(later <= earlier for earlier, later in pairwise(counts)):
        problems.append(Problem("the kernel was restarted between cells"))
    return problems


def _contradicting_findings(code: Sequence[Any]) -> list[Problem]:
    """Runs are compared by name: two different findings of one name would hide each other."""
    seen: dict[str, str] = {}
    problems = []
    for cell in code:
        for output in cell.outputs:
            data = output.get("data", {}).get(MIME_TYPE)
            if not isinstance(data, Mapping):
                continue
            name, payload = str(data.get("name")), json.dumps(data, sort_keys=True)
            if seen.setdefault(name, payload) != payload:
                problems.append(Problem(f"two different findings are called {name!r}", cell=cell.id))
    return problems


def guard_problems(records: Path) -> list[Problem]:
    """What the guard inside the kernel wrote down; that it never stood is a problem of its own."""
    try:
        lines = records.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # the kernel was killed while it wrote
            found.append({"kind": "a record cut short", "text": line})
    if not any(record["kind"] == "installed" for record in found):
        return [Problem("the guard against hidden errors was not loaded into the kernel")]
    hidden = [record for record in found if record["kind"] != "installed"]
    return [Problem(_guard_line(record), detail=record["text"]) for record in hidden]


def _guard_line(record: Mapping[str, Any]) -> str:
    last = record["text"].strip().splitlines()[-1:] or [""]
    return f"{record['kind']}: {last[0]}"


def correct_statuses(notebook: Any, problems: Sequence[Problem]) -> None:
    """Mend papermill's cell statuses: it writes ``completed`` for cells that never ran or were cut short."""
    blamed = {problem.cell for problem in problems}
    for cell in notebook.cells:
        papermill = cell.metadata.get("papermill")
        if cell.cell_type == "code" and papermill and cell.execution_count is None and cell.source.strip():
            papermill["status"] = "pending"
        elif papermill and cell.id in blamed:
            papermill["status"] = "failed"

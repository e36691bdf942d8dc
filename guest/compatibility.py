"""docs/compatibility.md out of surveys: kernel x program x hook x result. ``./task compatibility`` makes both anew."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.paths import lab_root

__all__ = ["RESULTS", "document", "load", "render", "save"]

RESULTS = lab_root() / "docs/compatibility.json"

_HEAD = """\
# What runs where

Made by `./task compatibility`; do not edit. Every program of `bpf/` was compiled by the system's bcc, loaded and
attached on every hook that it names, on each of these kernels, and its ledger balanced. Kernels in a guest run under
QEMU's software emulation (`guest/`): what is compared there is what was counted, never how fast.

"""
_WORDS = {
    "works": "yes",
    "absent": "-",
    "refused": "refused",
    "failed": "failed",
    "agrees": "agrees",
    "differs": "differs",
}


def load(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The surveys that the document was made of."""
    surveys: list[dict[str, Any]] = json.loads(path.read_text())
    return surveys


def save(surveys: Sequence[dict[str, Any]], path: Path = RESULTS) -> None:
    """Keep the surveys, and write the document beside them."""
    path.write_text(json.dumps(list(surveys), indent=1) + "\n")
    document(path).write_text(render(surveys))


def document(path: Path = RESULTS) -> Path:
    """Where the document is."""
    return path.with_suffix(".md")


def _kernel(survey: dict[str, Any]) -> str:
    """The release, without a builder's own suffix."""
    release = str(survey["machine"]["kernel"])
    match = re.match(r"[\d.]+(-\d+)?([+~]deb\d+\w*)?", release)
    return match[0] if match else release


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(
    surveys: Sequence[dict[str, Any]], section: str, keys: tuple[str, ...], notes: list[str]
) -> list[list[str]]:
    """A row for each distinct key, in the order of first sight, with one result per survey."""
    found = [{tuple(row[key] for key in keys): row for row in survey[section]} for survey in surveys]
    order = list(dict.fromkeys(key for rows in found for key in rows))
    return [[*(f"`{key[0]}`", *key[1:]), *(_cell(rows.get(key), notes) for rows in found)] for key in order]


def _cell(row: dict[str, Any] | None, notes: list[str]) -> str:
    if row is None:
        return "not tried"
    word = _WORDS[row["result"]]
    if row["result"] in ("agrees", "differs"):
        return f"{word}: {row['detail']}"
    if not row["detail"]:
        return word
    detail = re.sub(r"^\S+:(?:\S+:)?\S+: ", "", str(row["detail"]))
    if detail not in notes:
        notes.append(detail)
    return f"{word} ({notes.index(detail) + 1})"


def render(surveys: Sequence[dict[str, Any]]) -> str:
    """The document."""
    kernels = [_kernel(survey) for survey in surveys]
    machines = [survey["machine"] for survey in surveys]
    rows = [
        [
            kernel,
            machine["distribution"],
            machine["where"],
            machine["arch"],
            machine["bcc"],
            machine["cgroups"],
        ]
        for kernel, machine in zip(kernels, machines, strict=True)
    ]
    notes: list[str] = []
    hooks = _cells(surveys, "hooks", ("program", "label", "hook"), notes)
    compared = _cells(surveys, "comparisons", ("program", "with"), notes)
    parts = [
        _HEAD,
        "## Machines\n\n",
        _table(["kernel", "distribution", "where", "arch", "bcc", "cgroups"], rows),
        "\n## Programs and hooks\n\n",
        _table(
            ["program", "label", "hook", *kernels], [[*row[:2], f"`{row[2]}`", *row[3:]] for row in hooks]
        ),
        "\n## Held against the kernel's own accounts\n\n",
        _table(["program", "held against", *kernels], compared),
    ]
    if notes:
        parts += ["\n", *(f"{number}. {note}\n" for number, note in enumerate(notes, 1))]
    return "".join(parts)

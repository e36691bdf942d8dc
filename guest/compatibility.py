"""docs/compatibility.md out of surveys: kernel x program x hook x result. ``./task compatibility`` makes both anew."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guest.comparisons import COMPARISONS
from guest.survey import VERSION, digest, programs
from labkit.paths import lab_root

__all__ = ["RESULTS", "changed", "document", "load", "merged", "render", "save"]

RESULTS = lab_root() / "docs/compatibility.json"

_HEAD = """\
# What runs where

Made by `./task compatibility`; do not edit. Every program of `bpf/` was compiled by the system's bcc, loaded and
attached on every hook that it names, on each of these kernels, and its ledger balanced. The column *programs* says whether
they are still those that were surveyed (`./task compatibility -- --changed` looks at the others again). Kernels in a guest
run under QEMU's software emulation (`guest/`): what is compared there is what was counted, never how fast.

"""
_WORDS = {
    "works": "yes",
    "absent": "-",
    "not compiled": "does not compile",
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


def changed(survey: dict[str, Any]) -> list[str] | None:
    """Programs whose text is not the one that was surveyed, new ones too; None if the survey itself is an earlier one."""
    if survey.get("version") != VERSION:
        return None
    names, known = set(programs()), survey["digests"]
    return sorted(name for name in names | set(known) if name not in names or known.get(name) != digest(name))


def merged(older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """A survey of the programs that had changed since an older one, with what still holds of that."""
    there, anew = set(programs()), set(newer["digests"])

    def rows(section: str, order: list[str], prefix: str = "") -> list[dict[str, Any]]:
        kept = [row for row in older[section] if f"{prefix}{row['program']}" in there - anew]
        return sorted([*kept, *newer[section]], key=lambda row: order.index(f"{prefix}{row['program']}"))

    return newer | {
        "digests": {
            name: known for name, known in (older["digests"] | newer["digests"]).items() if name in there
        },
        "hooks": rows("hooks", programs()),
        "comparisons": rows("comparisons", [name for name, _, _ in COMPARISONS]),
        "rejects": rows("rejects", programs(), "rejects/"),
    }


def _currency(survey: dict[str, Any]) -> str:
    names = changed(survey)
    if names is None:
        return "of an earlier survey"
    return "as they are now" if not names else f"changed since: {', '.join(f'`{name}`' for name in names)}"


def _reject_rows(surveys: Sequence[dict[str, Any]]) -> list[list[str]]:
    order = {row["program"]: row["stage"] for survey in surveys for row in survey.get("rejects", [])}
    return [[f"`{name}`", stage] for name, stage in order.items()]


def _reject_cell(survey: dict[str, Any], name: str, notes: list[str]) -> str:
    row = next((row for row in survey.get("rejects", []) if row["program"] == name), None)
    if row is None:
        return "not tried"
    words = str(row["result"]) + ("" if row["mended"] == "let in" else ", also mended")
    if not row["detail"]:
        return words
    if row["detail"] not in notes:
        notes.append(str(row["detail"]))
    return f"{words} ({notes.index(str(row['detail'])) + 1})"


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
            _currency(survey),
        ]
        for kernel, machine, survey in zip(kernels, machines, surveys, strict=True)
    ]
    notes: list[str] = []
    hooks = _cells(surveys, "hooks", ("program", "label", "hook"), notes)
    compared = _cells(surveys, "comparisons", ("program", "with"), notes)
    refused = [
        [*row, *(_reject_cell(survey, row[0].strip("`"), notes) for survey in surveys)]
        for row in _reject_rows(surveys)
    ]
    parts = [
        _HEAD,
        "## Machines\n\n",
        _table(["kernel", "distribution", "where", "arch", "bcc", "cgroups", "programs"], rows),
        "\n## Programs and hooks\n\n",
        _table(
            ["program", "label", "hook", *kernels], [[*row[:2], f"`{row[2]}`", *row[3:]] for row in hooks]
        ),
        "\n## Held against the kernel's own accounts\n\n",
        _table(["program", "held against", *kernels], compared),
        "\n## Programs that are refused\n\n"
        "Chapter 05's lessons (`bpf/rejects`). *As described*: refused by whom, with the words, and at the line of C that "
        "the lesson says. Each was let in with its mend, or it says so.\n\n",
        _table(["lesson", "refused by", *kernels], refused),
    ]
    if notes:
        parts += ["\n", *(f"{number}. {note}\n" for number, note in enumerate(notes, 1))]
    return "".join(parts)

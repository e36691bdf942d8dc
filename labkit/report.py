"""``README.md`` of a run: what a person wants to read first, then the rest.

Pure functions from a run's summary (and that of the run before) to Markdown. Names and notes may come from the
kernel, so they go through :mod:`labkit.text`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from labkit.text import markdown, markdown_code, number, percent, quantity

__all__ = ["Difference", "differences", "headline", "readme", "replayed"]

Summary = Mapping[str, Any]
Row = Mapping[str, Any]

_MARKS = {
    "ok": "ok",
    "failed": "**failed**",
    "interrupted": "**interrupted**",
    "running": "running",
    "not run": "not run",
}


#: The chapter that answers what the lab is for.
_QUESTION = "08_the_noisy_neighbour"


def all_findings(summary: Summary) -> Iterator[tuple[Row, Row]]:
    """(notebook, finding), in order."""
    for notebook in summary["notebooks"]:
        for finding in notebook["findings"]:
            yield notebook, finding


def headline(summary: Summary) -> tuple[Row, Row] | None:
    """The finding to name first: one marked as headline, else the last trusted one that has an oracle.

    Of those marked, that of the chapter on the lab's own question, who delayed whom, goes first. Otherwise later
    chapters build on earlier ones, so the last is the one that says most.
    """
    found = list(all_findings(summary))
    trusted = [pair for pair in found if pair[1]["trusted"]]
    marked = [pair for pair in trusted if pair[1].get("headline")]
    checked = [pair for pair in trusted if pair[1]["oracle"]]
    question = [pair for pair in marked if pair[0]["name"] == _QUESTION]
    for choice in (question, marked, checked, trusted, found):
        if choice:
            return choice[-1]
    return None


@dataclass(frozen=True)
class Difference:
    """How one finding differs from the run before; ``old`` or ``new`` is None where there is none."""

    notebook: str
    name: str
    unit: str
    old: Any
    new: Any
    old_trusted: bool = True
    new_trusted: bool = True

    @property
    def change(self) -> str:
        """In words: ``+3.1 us (+12 %)``, ``new``, ``gone``, ``changed``, or the empty string for no change."""
        if self.old is None:
            return "new"
        if self.new is None:
            return "gone"
        if self.old == self.new:
            return ""
        if not (_is_number(self.old) and _is_number(self.new)):
            return "changed"
        change = self.new - self.old
        relative = f" ({percent(change / abs(self.old), sign=True)})" if self.old else ""
        return quantity(change, _apart(self.unit), sign=True) + relative


def differences(before: Summary | None, now: Summary) -> list[Difference]:
    """Findings by notebook and name; a notebook that ran in only one of the runs is left out."""
    if before is None:
        return []
    old = {(notebook["name"], finding["name"]): finding for notebook, finding in all_findings(before)}
    new = {(notebook["name"], finding["name"]): finding for notebook, finding in all_findings(now)}
    both = {notebook for notebook, _ in old} & {
        entry["name"] for entry in now["notebooks"] if entry["status"] != "not run"
    }
    found = []
    for notebook, name in [*new, *(key for key in old if key not in new)]:
        if notebook not in both:
            continue
        then, current = old.get((notebook, name)), new.get((notebook, name))
        found.append(
            Difference(
                notebook,
                name,
                unit=str((current or then or {})["unit"]),
                old=then["value"] if then else None,
                new=current["value"] if current else None,
                old_trusted=bool(then["trusted"]) if then else True,
                new_trusted=bool(current["trusted"]) if current else True,
            )
        )
    return found


def readme(summary: Summary, before: Summary | None = None, *, alone: bool = False) -> str:
    """The run as Markdown.

    :param before: the run it is compared with.
    :param alone: it stands without pages and executed notebooks; no links to them.
    """
    parts = [
        *_head(summary),
        *_headline(summary),
        *_problems(summary),
        *_findings_table(summary),
        *_differences(summary, before),
        *_notebooks(summary, alone=alone),
        *_details(summary),
        *_machine(summary),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


def _head(summary: Summary) -> list[str]:
    word = {"live": "A live run", "replay": "A replay of recorded captures"}.get(summary["mode"], "A run")
    where = f"Linux {markdown(summary['kernel'])}, {markdown(summary['machine'])}"
    lines = [f"# {word}", "", f"{where}. {_when(summary)} {_counts(summary)}", ""]
    modes = summary.get("modes") or {}
    if len(modes) > 1:
        each = "; ".join(
            f"{mode}: {', '.join(map(markdown, names))}" for mode, names in sorted(modes.items())
        )
        lines += [f"**Not all notebooks ran in the same mode.** {each}.", ""]
    for on, names in _by(summary, "recorded_on").items():
        lines += [f"Replayed here, recorded on {markdown(on)}: {', '.join(map(markdown, names))}.", ""]
    for why, names in replayed(summary).items():
        lines += [f"Replayed, not measured here: {', '.join(map(markdown, names))}. {markdown(why)}", ""]
    return lines


def replayed(summary: Summary) -> dict[str, list[str]]:
    """Reason -> notebooks that were replayed for it, of those that would have been live here."""
    return _by(summary, "why_replay")


def _by(summary: Summary, key: str) -> dict[str, list[str]]:
    """What notebooks say under that key -> their names; those that say nothing are left out."""
    found: dict[str, list[str]] = {}
    for notebook in summary["notebooks"]:
        if said := notebook.get(key):
            found.setdefault(said, []).append(notebook["name"])
    return found


def _when(summary: Summary) -> str:
    started = datetime.fromisoformat(summary["started"])
    return f"Started {started:%Y-%m-%d %H:%M} UTC, {_seconds(summary['seconds'])}."


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _counts(summary: Summary) -> str:
    states = [notebook["status"] for notebook in summary["notebooks"]]
    counted = [f"{states.count(state)} {state}" for state in _MARKS if state in states]
    untrusted = sum(not finding["trusted"] for _, finding in all_findings(summary))
    total = sum(1 for _ in all_findings(summary))
    text = f"{_plural(len(states), 'notebook')}: {', '.join(counted)}. {_plural(total, 'finding')}"
    return (
        f"{text}, **{untrusted} not trusted**." if untrusted else f"{text}{', all trusted' if total else ''}."
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _headline(summary: Summary) -> list[str]:
    chosen = headline(summary)
    if chosen is None:
        return []
    notebook, finding = chosen
    if not finding["trusted"]:
        return ["## No trusted finding", "", *_reasons(finding), ""]
    value = markdown(quantity(finding["value"], finding["unit"]))
    lines = [f"## {markdown(finding['name'])}: {value}", ""]
    lines.append(f"- Measured ({finding['mode']}, {markdown(notebook['name'])}): {markdown(finding['how'])}")
    if finding["oracle"]:
        lines.append(f"- Held against {_oracle(finding)}; residual {_residual(finding)}")
    else:
        lines.append("- Held against nothing: it has no oracle")
    lines.append(f"- Ledger: {markdown(finding['losses'])}")
    if finding["note"]:
        lines.append(f"- {markdown(finding['note'], starts_line=True)}")
    figure = _headline_figure(notebook, finding)
    return [*lines, "", *([_image(notebook, figure), ""] if figure else [])]


def _headline_figure(notebook: Row, finding: Row) -> Row | None:
    """The figure that stands nearest before the finding: what it was read from."""
    figures = list(notebook["figures"])
    before = [figure for figure in figures if figure["position"] <= finding["position"]]
    return before[-1] if before else figures[0] if figures else None


def _reasons(finding: Row) -> list[str]:
    because = "; ".join(markdown(reason) for reason in finding["reasons"])
    return [f"{markdown(finding['name'], starts_line=True)}: {because}."]


def _problems(summary: Summary) -> list[str]:
    failed = [notebook for notebook in summary["notebooks"] if notebook["problems"]]
    if not failed:
        return []
    lines = ["## What went wrong", ""]
    for notebook in failed:
        for problem in notebook["problems"]:
            where = f", cell {markdown_code(problem['cell'])}" if problem.get("cell") else ""
            lines.append(
                f"- {markdown(notebook['name'], starts_line=True)}{where}: {markdown(problem['what'])}"
            )
    return [*lines, ""]


def _findings_table(summary: Summary) -> list[str]:
    rows = [
        "| "
        + " | ".join(
            [
                notebook["name"][:2],
                markdown(finding["name"]),
                _value(finding),
                _oracle(finding),
                _residual(finding),
                _allowed(finding),
                _losses(finding),
                _trust(finding),
            ]
        )
        + " |"
        for notebook, finding in all_findings(summary)
    ]
    if not rows:
        return ["## Findings", "", "None.", ""]
    head = [
        "| | finding | value | oracle | residual | allowed | losses | trusted |",
        "|---|---|--:|---|--:|--:|---|---|",
    ]
    return ["## Findings", "", *head, *rows, ""]


def _value(finding: Row) -> str:
    value = markdown(quantity(finding["value"], finding["unit"]))
    return f"**{value}**" if finding["trusted"] else f"(read: {value})"


def _oracle(finding: Row) -> str:
    oracle = finding["oracle"]
    if not oracle:
        return "none"
    return f"{markdown(oracle['name'])}: {markdown(quantity(oracle['value'], finding['unit']))}"


def _residual(finding: Row) -> str:
    if finding["residual"] is None:
        return "" if not finding["oracle"] else "equal" if finding["trusted"] else "differs"
    shown = markdown(quantity(finding["residual"], _apart(finding["unit"]), sign=bool(finding["residual"])))
    relative = percent(finding["residual_relative"], sign=True) if finding["residual"] else ""
    return f"{shown} ({relative})" if relative else shown


def _allowed(finding: Row) -> str:
    """The largest residual that still agrees, as the chapter gave it: a share of the oracle, or a number."""
    tolerance = finding.get("tolerance")
    if finding["residual"] is None:
        return ""
    if not tolerance:
        return "none"
    shown = (
        f"{tolerance} of it" if isinstance(tolerance, str) else quantity(tolerance, _apart(finding["unit"]))
    )
    return f"± {markdown(shown)}"


def _apart(unit: str) -> str:
    """The unit of a difference: two percentages are points apart, for "%" would read as a share of one of them."""
    return "points" if unit == "%" else unit


def _losses(finding: Row) -> str:
    """Short; the whole ledger is in the notebook and in the summary."""
    ledger = finding["ledger"]
    if ledger.get("capture") == "none":
        return "no capture"
    lost, seen, unseen = sum(ledger["losses"].values()), ledger["seen"], ledger["unseen"]
    shown = f"{number(lost) if lost else 'none'} of {number(seen)} {markdown(ledger['event'])}s"
    return f"{shown}, {number(unseen)} unseen" if unseen else shown


def _trust(finding: Row) -> str:
    return "yes" if finding["trusted"] else "**no**: " + "; ".join(map(markdown, finding["reasons"]))


def _differences(summary: Summary, before: Summary | None) -> list[str]:
    if before is None:
        return []
    lines = ["## What differs from the last run", "", *_other_circumstances(summary, before)]
    found = differences(before, summary)
    changed = [difference for difference in found if difference.change]
    if not changed:
        same = f"All {_plural(len(found), 'finding')} that both runs have are equal." if found else ""
        return [*lines, same or "The runs have no finding in common.", ""]
    lines += ["| | finding | last run | this run | change |", "|---|---|--:|--:|--:|"]
    for item in changed:
        old, new = _then(item.old, item), _then(item.new, item, trusted=item.new_trusted)
        change = markdown(item.change)
        lines.append(f"| {item.notebook[:2]} | {markdown(item.name)} | {old} | {new} | {change} |")
    equal = len(found) - len(changed)
    return [*lines, *(["", f"Equal in both: {_plural(equal, 'finding')}."] if equal else []), ""]


def _then(value: Any, item: Difference, *, trusted: bool | None = None) -> str:
    trusted = item.old_trusted if trusted is None else trusted
    shown = "" if value is None else markdown(quantity(value, item.unit))
    return shown if trusted else f"{shown} (not trusted)"


def _other_circumstances(summary: Summary, before: Summary) -> list[str]:
    """Numbers of a replay, or of another machine, are not to be compared without saying so."""
    words = {"mode": "mode", "kernel": "kernel", "machine": "machine"}
    other = [
        f"{word} {markdown(before.get(key))}, now {markdown(summary[key])}"
        for key, word in words.items()
        if before.get(key) != summary[key]
    ]
    last = datetime.fromisoformat(before["started"])
    lines = [f"The last run started {last:%Y-%m-%d %H:%M} UTC."]
    if other:
        lines[0] += f" **It was another case:** {'; '.join(other)}."
    return [*lines, ""]


def _notebooks(summary: Summary, *, alone: bool) -> list[str]:
    lines = ["## Notebooks", "", "| notebook | result | mode | time |" + ("" if alone else " read |")]
    lines.append("|---|---|---|--:|" + ("" if alone else "---|"))
    for notebook in summary["notebooks"]:
        name = notebook["name"]
        row = f"| {markdown(name)} | {_MARKS[notebook['status']]} | {notebook['mode'] or ''} |"
        row += f" {number(round(notebook['seconds'], 1))} s |"
        if not alone:
            links = f"[page](pages/{name}.html), [notebook](notebooks/{name}.ipynb)"
            row += f" {links if notebook['status'] != 'not run' else ''} |"
        lines.append(row)
    return [*lines, ""]


def _details(summary: Summary) -> list[str]:
    """Per notebook: how each finding was measured, and the figures."""
    lines: list[str] = []
    chosen = headline(summary)
    for notebook in summary["notebooks"]:
        shown, above = notebook["figures"], False
        if chosen is not None and notebook is chosen[0] and chosen[1]["trusted"]:
            beside = _headline_figure(*chosen)
            shown = [figure for figure in shown if figure is not beside]
            above = beside is not None
        hows = [
            f"- **{markdown(finding['name'])}**: {markdown(finding['how'])}"
            + (f". {markdown(finding['note'])}" if finding["note"] else "")
            for finding in notebook["findings"]
        ]
        if hows or shown:
            lines += [f"## {markdown(notebook['name'])}", "", *hows, *([""] if hows else [])]
            lines += [*(["One of its figures is at the top of this page.", ""] if above else [])]
            lines += [line for figure in shown for line in (_image(notebook, figure), "")]
    return lines


def _image(notebook: Row, figure: Row) -> str:
    section = markdown(figure.get("title") or figure["section"] or notebook["name"])
    return f"![{section} ({markdown(notebook['name'])})]({figure['file']})"


def _machine(summary: Summary) -> list[str]:
    rows = [
        f"| {markdown(key.removesuffix('_bytes').replace('_', ' '))} | {markdown(_shown(key, value))} |"
        for key, value in summary.get("environment", {}).items()
        if isinstance(value, (str, int, float)) and key != "machine"  # that one is in the first line
    ]
    return ["## The machine", "", "| | |", "|---|---|", *rows, ""] if rows else []


def _shown(key: str, value: Any) -> Any:
    return f"{value / 2**30:.1f} GiB" if key.endswith("_bytes") and _is_number(value) else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

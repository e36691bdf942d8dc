"""README.md and summary.json of the scenarios. Pure: from the table and the recordings' own words to text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from labkit.plots import duration
from labkit.scenarios.recording import Case
from labkit.scenarios.table import OURS, TITLES, published
from labkit.sched import peers
from labkit.sched.rules import MIXED_SHARE, QUIET_NS_PER_S, QUIET_WAIT_NS
from labkit.text import markdown, markdown_code

__all__ = ["readme", "summary"]

#: A verdict is well founded if it is right and the rule charged so much of the true wait to what it belongs to.
FOUNDED_SHARE = 0.9
_RATE_LIMIT_NS = 100_000
_PLACES = 6


def summary(found: Sequence[Case], rows: pd.DataFrame) -> dict[str, Any]:
    """All that README says, for programs.

    :returns: ``rules`` (name -> ``title``, ``source``, ...), ``right`` (rule -> how many verdicts are), ``founded`` (of
        them, those that stand on :data:`FOUNDED_SHARE` of the true wait), ``of`` (how many scenarios), and ``scenarios``:
        each with ``name``, ``what``, ``truth``, ``kernel``, ``recorded``, ``ledger``, ``article`` (what its two metrics
        count), and ``rules``: rows of the table by rule.
    """
    shown = rows.round(_PLACES)
    return {
        "rules": {
            **{
                name: {"title": r.title, "source": r.source, "stamps": r.stamps, "blames": r.blames}
                for name, r in peers.RULES.items()
            },
            OURS: {
                "title": TITLES[OURS],
                "source": "bpf/noisy_neighbor.c; replayed: labkit/sched/kernel_log.py",
                "stamps": "never: the kernel's own note since when the task was queued",
                "blames": "each cgroup for the time that it held the CPU meanwhile; idle, quota and steal apart",
            },
        },
        "right": {rule: int(part["right"].sum()) for rule, part in rows.groupby("rule", sort=False)},
        "founded": {rule: int(_founded(part).sum()) for rule, part in rows.groupby("rule", sort=False)},
        "of": len(found),
        "scenarios": [_scenario(case, shown[shown["scenario"] == case.name]) for case in found],
    }


def _founded(rows: pd.DataFrame) -> pd.Series:
    return rows["right"] & (rows["placed_share"] >= FOUNDED_SHARE)


def _scenario(case: Case, rows: pd.DataFrame) -> dict[str, Any]:
    seen = peers.seen(case.events, "article")
    mine = seen[seen["cgroup_id"].astype("int64") == case.victim]
    limited = peers.rate_limited(mine, _RATE_LIMIT_NS)
    columns = [
        name for name in rows.columns if name not in ("scenario", "rule", "victim", "declared", "confidence")
    ]
    return {
        "name": case.name,
        "what": case.what,
        "truth": {
            key: case.declared[key]
            for key in ("victim", "verdict", "guilty", "causes", "innocent", "quota_ancestor")
        },
        "seconds": case.seconds,
        "kernel": case.environment["kernel"],
        "machine": case.environment["machine"],
        "recorded": case.recorded,
        "ledger": case.ledger.as_dict(),
        "victim_latency": case.results.get(case.declared["victim"], {}),
        "article": {
            "switch_out": dict(published(case)[["cause", "count"]].itertuples(index=False, name=None)),
            "samples": len(mine),
            f"samples_at_a_limit_of_{_RATE_LIMIT_NS}_ns": len(limited),
        },
        "rules": {row["rule"]: {name: row[name] for name in columns} for row in rows.to_dict("records")},
    }


def readme(found: Sequence[Case], rows: pd.DataFrame, data: dict[str, Any]) -> str:
    """The page for people."""
    return (
        "\n".join(
            [*_head(found, data), *_verdicts(rows), *_blame(found, rows, data), *_rules(data), *_foot(found)]
        )
        + "\n"
    )


def _head(found: Sequence[Case], data: dict[str, Any]) -> Iterator[str]:
    yield "# Truth and verdict, side by side"
    yield ""
    yield (
        f"{len(found)} scenarios whose truth holds by construction, run on a real kernel, and recorded as events. Each "
        "rule is replayed over the same events: what does it see of the victim's wait, whom does it blame, what follows? "
        "The scale is the kernel's own account, `run_delay` of the victim's tasks."
    )
    yield ""
    counts = ", ".join(f"{TITLES[rule]} {count}" for rule, count in data["right"].items())
    founded = ", ".join(f"{TITLES[rule]} {count}" for rule, count in data["founded"].items())
    yield (
        f"**Right verdicts of {data['of']}: {counts}.** Of them, those that stand on at least {FOUNDED_SHARE:.0%} of the "
        f"true wait, charged to what it belongs to: {founded}."
    ).replace("%", " %")
    yield ""
    yield "![Verdicts and shares of the true wait, per scenario and rule](verdicts.png)"
    yield ""


def _verdicts(rows: pd.DataFrame) -> Iterator[str]:
    yield "## Verdicts"
    yield ""
    yield (
        "In each cell the verdict, and the share of the true wait that the rule *saw*. Wrong verdicts are struck out. A "
        "rule can be right by luck: where it sees a small part of a wait, that part may have the right name in it."
    )
    yield ""
    yield from _table(["scenario", "truth", "true wait", *TITLES.values()], _verdict_lines(rows))


def _verdict_lines(rows: pd.DataFrame) -> Iterator[list[str]]:
    for scenario, part in rows.groupby("scenario", sort=False):
        cells = [
            _percent(f"{row.verdict if row.right else f'~~{row.verdict}~~'}, {row.seen_share:.1%}")
            for row in part.itertuples()
        ]
        first = part.iloc[0]
        yield [markdown_code(scenario), first["declared"], duration(float(first["true_wait_ns"])), *cells]


def _blame(found: Sequence[Case], rows: pd.DataFrame, data: dict[str, Any]) -> Iterator[str]:
    yield "## Blame"
    yield ""
    yield (
        "What each rule says held the CPU for most of the wait that it saw, with the share; and, in brackets, how much of "
        "the *true* wait it charged to what it belongs to (of each occupant, idle, quota and steal the smaller of its "
        "claim and the exact integral's). The right name can come with wrong shares: who left the CPU last is not who "
        "had it all the while. `root` is the root cgroup: the machine's own tasks."
    )
    yield ""
    yield from _table(["scenario", "by construction", *TITLES.values()], _blame_lines(found, rows))
    yield "The article's own metric `sched.switch.out` gives classes, by count and not by time:"
    yield ""
    causes = ["same_container", "other_container", "system"]
    lines = [
        [markdown_code(one["name"]), *(str(one["article"]["switch_out"].get(cause, 0)) for cause in causes)]
        for one in data["scenarios"]
    ]
    yield from _table(["scenario", "same container", "other container", "system service"], iter(lines))


def _blame_lines(found: Sequence[Case], rows: pd.DataFrame) -> Iterator[list[str]]:
    for case in found:
        guilty = case.declared["guilty"]
        parts = [name if share is None else _percent(f"{name} {share:.0%}") for name, share in guilty.items()]
        parts += [cause for cause in case.declared["causes"] if cause != "foreign"]
        cells = []
        for row in rows[rows["scenario"] == case.name].itertuples():
            said = f"{markdown(row.blamed)} {row.blamed_share:.0%}" if row.blamed else "nobody"
            cells.append(_percent(f"{said} ({row.placed_share:.0%})"))
        yield [markdown_code(case.name), markdown(", ".join(parts) or "nobody"), *cells]


def _rules(data: dict[str, Any]) -> Iterator[str]:
    yield "## The rules"
    yield ""
    lines = [
        [
            rule["title"],
            f"a task is stamped {rule['stamps']}" if name != OURS else rule["stamps"],
            rule["blames"],
            rule["source"],
        ]
        for name, rule in data["rules"].items()
    ]
    yield from _table(["rule", "when", "blames", "source"], iter(lines))
    yield _percent(
        f"One judge for all (`labkit/sched/rules.py`): quiet below {duration(QUIET_NS_PER_S)} of contended wait per "
        f"second, or if less than that is in waits of {duration(QUIET_WAIT_NS)} and more, and the others do not add up; "
        f"mixed if a second author has {MIXED_SHARE:.0%} or more; what is charged to idle is nobody's. What differs is "
        "what a rule sees. The article is replayed without its rate limit, which keeps a sample and does not count the "
        "rest; bpftrace's and bcc's tools name nobody, and are given the article's way to do so. *This lab* is the method "
        "of `bpf/noisy_neighbor.c` with its short memory, step by step (`labkit/sched/kernel_log.py`); the scale in the "
        "brackets is another computation, the exact integral over all events, which forgets nothing "
        "(`labkit/sched/integral.py`). `tests/live/test_noisy_neighbor.py` holds the program itself against both."
    )
    yield ""


def _foot(found: Sequence[Case]) -> Iterator[str]:
    yield "## The recordings"
    yield ""
    kernels = sorted({f"Linux {case.environment['kernel']}, {case.environment['machine']}" for case in found})
    yield f"{markdown('; '.join(kernels))}. Events lost: {sum(case.ledger.lost for case in found)}."
    yield ""
    yield from _table(
        ["scenario", "what runs", "events", "unseen switches"],
        (
            [
                markdown_code(case.name),
                markdown(case.what),
                f"{case.ledger.seen:,}",
                f"{case.ledger.unseen or 0:,}",
            ]
            for case in found
        ),
    )
    yield (
        "`unseen`: switches that the kernel counted and no program was called for. What they hide is made up from the "
        "kernel's notes (`labkit/sched/integral.py`)."
    )
    yield ""
    yield (
        "`./task scenarios` makes this page from `captures/scenarios`, anywhere and without root; "
        "`./task scenarios -- --record` records them anew."
    )


def _table(head: list[str], lines: Iterator[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for line in lines:
        yield "| " + " | ".join(line) + " |"
    yield ""


def _percent(line: str) -> str:
    return line.replace("%", " %")

"""`labkit doctor`: what this machine can do, what follows, how to mend it; and bcc made importable in an environment."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from labkit.kernel import Feature, environment, probe
from labkit.system.bcc_link import link

__all__ = ["LIVE", "REPLAY_ONLY", "report"]

LIVE, REPLAY_ONLY = 0, 3
_STYLE = {"yes": "green", "no": "red", "partly": "yellow", "unknown": "yellow"}


def report(*, as_json: bool) -> int:
    """Print the table (or JSON); returns the exit code: 0 if live measurement works, 3 if only replay does."""
    found = probe()
    linked = link()
    if as_json:
        print(json.dumps(found.as_dict() | {"environment": environment(), "bcc_link": linked}, indent=2))
        return LIVE if found.live else REPLAY_ONLY
    table = Table(
        title=f"What this machine can do: Linux {found.kernel}", title_justify="left", show_lines=False
    )
    table.add_column("feature", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("what was found, what follows, how to mend it", overflow="fold")
    for feature in found.features:
        table.add_row(
            Text(feature.name + (" *" if feature.required else "")),
            Text(feature.state, style=_STYLE[feature.state]),
            _explain(feature),
        )
    console = Console()
    console.print(table)
    console.print("* needed for live measurement", style="dim")
    if linked:
        console.print(Text(linked, style="dim"), soft_wrap=True)
    if found.live:
        console.print("Live: programs run on this kernel.", style="bold green")
        return LIVE
    console.print(Text(f"Replay only: {found.why_not_live()}", style="bold yellow"))
    return REPLAY_ONLY


def _explain(feature: Feature) -> Text:
    text = Text(feature.detail)
    if feature.consequence:
        text.append(f"\nso: {feature.consequence}", style="dim")
    if feature.remedy:
        text.append(f"\nmend: {feature.remedy}", style="bold")
    return text

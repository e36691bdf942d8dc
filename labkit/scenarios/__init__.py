"""Scenarios with declared truth, recorded as events, and what each rule makes of them. `labkit scenarios`.

>>> found = table(cases())                                       # doctest: +SKIP
>>> found.pivot(index="scenario", columns="rule", values="seen_share")
"""

from labkit.scenarios.command import scenarios_command
from labkit.scenarios.recording import NAMES, SECONDS, Case, cases, open_case, record
from labkit.scenarios.table import OURS, TITLES, table

__all__ = [
    "NAMES",
    "OURS",
    "SECONDS",
    "TITLES",
    "Case",
    "cases",
    "open_case",
    "record",
    "scenarios_command",
    "table",
]

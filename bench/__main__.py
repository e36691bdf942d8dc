"""``python -m bench``: run the comparisons, print, draw, write."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import click
import matplotlib as mpl
from rich.console import Console

from bench import cost, maps, noisy, peers, report, ring, sched, scrape
from bench.measure import Row
from labkit.errors import LabkitError
from labkit.paths import outcomes_dir

_FAMILIES: dict[str, Callable[..., list[Row]]] = {
    "ring": ring.compare_rings,
    "maps": maps.compare_maps,
    "sched": sched.compare_replay,
    "cost": cost.compare_costs,
    "noisy": noisy.compare_noisy,
    "scrape": scrape.compare_scrape,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write rows and environment there."
)
@click.option(
    "--figure", type=click.Path(path_type=Path), help="Draw there (default: outcomes/bench/bench.png)."
)
@click.option("--quick", is_flag=True, help="Small sizes: does everything work? Its ratios say little.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=None, help="Repetitions of each side (5; quick: 2)."
)
@click.option("--only", type=click.Choice(sorted(_FAMILIES)), multiple=True, help="Only these families.")
def main(
    json_file: Path | None, figure: Path | None, quick: bool, rounds: int | None, only: tuple[str, ...]
) -> None:
    """labkit's fast path beside the tools people use today, side by side in one run. Needs root."""
    mpl.use("Agg")
    rounds = rounds or (2 if quick else 5)
    missing = peers.install_missing()
    console = Console(width=None if sys.stdout.isatty() else 180)
    if missing:
        console.print(f"not installed, so their rows stay empty: {', '.join(missing)}")
    around = report.environment(rounds=rounds, quick=quick)
    rows: list[Row] = []
    for family, run in _FAMILIES.items():
        if only and family not in only:
            continue
        console.print(f"[dim]{family} ...[/dim]", highlight=False)
        try:
            rows += [dataclasses.replace(row, family=family) for row in run(quick=quick, rounds=rounds)]
        except LabkitError as error:
            console.print(f"error: {family}: {error}", markup=False)
            sys.exit(2)
    report.show(rows, console)
    drawn = figure or outcomes_dir() / "bench" / "bench.png"
    report.draw(drawn, rows, around)
    console.print(f"figure: {drawn}", markup=False)
    if json_file:
        report.write_json(json_file, rows, around)
        console.print(f"numbers: {json_file}", markup=False)


if __name__ == "__main__":
    main()

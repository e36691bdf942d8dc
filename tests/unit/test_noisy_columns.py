"""The table of `labkit noisy`: what is cut where there is little room, and what never."""

from __future__ import annotations

import doctest
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, RenderableType
from snapshot_maker import Group as Made
from snapshot_maker import snapshot

from labkit.noisy import columns, command
from labkit.noisy.answer import Answer
from labkit.noisy.screen import render

S = 10**9
LONG = [
    "shop/checkout-7f9c5d6b8-x2x4q/server",
    "shop/checkout-7f9c5d6b8-pw8bn/server",
    "shop/checkout-7f9c5d6b8-pw8bn/sidecar-with-a-name",
    "docker 3f9a0c1d2e4b",
]


def lines(names: list[str], width: int) -> list[str]:
    """The rows of the table: each waits for the three others, 3 to 2 to 1."""
    made = [
        Made(10 + n, name, {("cgroup", 10 + (n + k) % 4): (4 - k) * S for k in (1, 2, 3)}, waits=1000)
        for n, name in enumerate(names)
    ]
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(render(Answer.from_snapshot(snapshot(*made)), console))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if "noisy_neighbor" in line]


def test_the_examples_hold() -> None:
    found = doctest.testmod(columns)
    assert found.attempted >= 3
    assert found.failed == 0


def test_in_80_columns_two_neighbours_are_named_whole() -> None:
    shown = lines(["hog_a", "hog_b", "service", "root cgroup"], 80)
    assert len(shown) == 4
    assert shown[0].endswith("hog_b 50%, service 33% +1")


@pytest.mark.parametrize("width", [50, 60, 72, 80, 100, 120, 140, 200])
def test_a_share_is_never_cut_off_and_siblings_can_be_told_apart(width: int) -> None:
    shown = lines(LONG, width)
    assert len(shown) == 4
    assert max(map(cell_len, shown)) <= width
    assert all(re.search(r"\d+%( \+\d)?$", line) for line in shown), shown
    if width >= 80:
        assert len({line.split("  ")[0] for line in shown}) == 4, shown


@given(st.text(max_size=60), st.integers(1, 70))
def test_a_shortened_name_fits_and_a_short_one_stays(name: str, width: int) -> None:
    found = columns.shortened(name, width)
    assert cell_len(found) <= width
    if cell_len(name) <= width:
        assert found == name
    elif width >= 5:
        assert "…" in found or name.endswith(f" {found}")


def test_the_legend_explains_the_marks_that_are_there_and_no_others() -> None:
    made = Made(10, "web", {("cgroup", 11): 3 * S, ("idle", 0): 1000}, waits=10), Made(11, "batch")
    console = Console(file=io.StringIO(), width=80, highlight=False)
    console.print(render(Answer.from_snapshot(snapshot(*made)), console))
    assert isinstance(console.file, io.StringIO)
    assert "█ foreign (others had the CPU)\n" in re.sub(r" +\n", "\n", console.file.getvalue())


def test_a_terminal_that_gets_another_size_is_drawn_anew_once() -> None:
    drawn: list[int] = []

    class Screen:
        def update(self, table: RenderableType, *, refresh: bool) -> None:
            drawn.append(console.width)
            with console.capture() as shown:
                console.print(table)
            assert max(map(cell_len, shown.get().splitlines())) <= console.width

    console = Console(file=io.StringIO(), width=120, height=40)
    page = command._Page(console, Screen())  # type: ignore[arg-type]
    page.fit()
    made = Made(10, LONG[0], {("cgroup", 11): 3 * S}, waits=10), Made(11, LONG[1])
    page.show(Answer.from_snapshot(snapshot(*made)))
    page.fit()
    console.size = ConsoleDimensions(60, 20)
    page.fit()
    page.fit()
    assert drawn == [120, 60]

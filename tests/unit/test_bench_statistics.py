"""The bench's own arithmetic: statistics, goals, JSON. No timing is asserted anywhere."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench import report
from bench.measure import Goal, Row, compare, interleave

ROOT = Path(__file__).parents[2]
KEYS = {"name", "ours", "peer", "peer_name", "ratio", "unit", "spread", "goal", "reached", "reason"}


def _row(**changes: object) -> Row:
    samples = {"labkit": [100.0, 80.0, 90.0], "bcc": [2.0, 1.0, 4.0]}
    return compare("a", samples, **({"ours": "labkit", "peer": "bcc", "unit": "events/s"} | changes))  # type: ignore[arg-type]


def test_sides_take_turns_and_the_first_turn_is_dropped() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    samples = interleave({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert samples == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_no_round_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        interleave({}, rounds=0)


def test_a_ratio_is_of_medians_and_its_spread_of_pairs() -> None:
    row = _row()
    assert (row.ours, row.peer, row.ratio) == (90.0, 2.0, 45.0)
    assert row.spread == (22.5, 80.0)
    assert row.goal is None
    assert row.reached is None


@pytest.mark.parametrize(
    ("relation", "bound", "reached"),
    [(">=", 45, True), (">=", 46, False), ("<=", 45, True), ("<=", 44, False)],
)
def test_a_goal_is_a_bound_that_counts_itself(relation: str, bound: float, reached: bool) -> None:
    assert _row(goal=Goal(relation, bound)).reached is reached


def test_a_goal_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="not '=='"):
        Goal("==", 1)


def test_only_a_missed_goal_is_explained() -> None:
    def explain() -> str:
        return "profiled"

    assert _row(goal=Goal(">=", 50), explain=explain, note="n").reason == "profiled; n"
    assert _row(goal=Goal(">=", 40), explain=explain, note="n").reason == "n"


def test_a_comparison_that_could_not_be_made_has_not_reached_its_goal() -> None:
    row = Row.absent("a", peer_name="perf", unit="s", reason="perf is not installed", goal=Goal(">=", 20))
    assert row.reached is False
    assert row.as_dict()["ratio"] is None


def test_json_has_the_environment_and_the_keys_of_each_row(tmp_path: Path) -> None:
    around = report.environment(rounds=3, quick=True)
    report.write_json(tmp_path / "new" / "out.json", [_row(goal=Goal(">=", 40))], around)
    found = json.loads((tmp_path / "new" / "out.json").read_text())
    assert set(found) == {"environment", "rows"}
    assert {"kernel", "cpu", "cpus", "peers", "rounds"} <= set(found["environment"])
    row = found["rows"][0]
    assert set(row) >= KEYS
    assert row["spread"] == [22.5, 80.0]
    assert row["reached"] is True
    assert row["rounds"]["ours"] == [100.0, 80.0, 90.0]


def test_the_table_says_what_is_not_reached_and_why() -> None:
    console = Console(record=True, width=400, file=io.StringIO())
    report.show([_row(goal=Goal(">=", 50), explain=lambda: "the kernel takes all of it")], console)
    text = console.export_text()
    assert ">= 50: not reached" in text
    assert "not reached: a beside bcc: the kernel takes all of it" in text


def test_a_figure_is_drawn_of_what_was_measured(tmp_path: Path) -> None:
    absent = Row.absent("b", peer_name="perf", unit="s", reason="not installed")
    report.draw(tmp_path / "f.png", [_row(goal=Goal(">=", 50)), absent], {"rounds": 3})
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_result_has_that_form_and_each_missed_goal_its_reason() -> None:
    found = json.loads((ROOT / "bench" / "result.json").read_text())
    assert found["environment"]["quick"] is False
    for row in found["rows"]:
        assert set(row) >= KEYS
        if row["reached"] is False:
            assert row["reason"]

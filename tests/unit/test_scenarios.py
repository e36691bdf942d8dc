"""The recorded scenarios, replayed: truth against what each rule makes of it. Rootless, and the same everywhere."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from labkit import cli
from labkit.errors import CaptureMismatch, MissingCapture, ParameterError
from labkit.paths import captures_dir, outcomes_dir
from labkit.program import program_hash
from labkit.recordings import read_events
from labkit.scenarios import NAMES, OURS, TITLES, Case, cases, open_case, table
from labkit.scenarios.command import disturbance_ns
from labkit.scenarios.recording import folder_of
from labkit.scenarios.report import readme, summary
from labkit.sched import integral
from labkit.sched.rules import VERDICTS
from labkit.spec import read

CAPTURES = captures_dir() / "scenarios"


@pytest.fixture(scope="module")
def found() -> list[Case]:
    return cases()


@pytest.fixture(scope="module")
def rows(found: list[Case]) -> pd.DataFrame:
    return table(found)


@pytest.fixture(scope="module")
def seen(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.pivot(index="scenario", columns="rule", values="seen_share")


@pytest.fixture(scope="module")
def placed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.pivot(index="scenario", columns="rule", values="placed_share")


def test_each_scenario_stands_beside_each_rule(rows: pd.DataFrame) -> None:
    pairs = list(zip(rows["scenario"], rows["rule"], strict=True))
    assert pairs == [(name, rule) for name in NAMES for rule in TITLES]
    assert set(rows["verdict"]) | set(rows["declared"]) == set(VERDICTS)


# -- this lab -------------------------------------------------------------------------------------------------------


def test_this_lab_sees_all_of_the_wait_to_the_nanosecond(rows: pd.DataFrame) -> None:
    ours = rows[rows["rule"] == OURS].set_index("scenario")
    assert (ours["wait_ns"] == ours["true_wait_ns"]).all(), ours[["wait_ns", "true_wait_ns"]].to_string()


def test_run_delay_of_every_cgroup_of_every_scenario_is_the_sum_of_its_waits(found: list[Case]) -> None:
    """Not of the victim alone. In the root cgroup (hog_outside) there are others too."""
    for case in found:
        waits = integral.waits(case.events).groupby("victim_id")["wait_ns"].sum()
        for row in case.cgroups[case.cgroups["cgroup_id"] != 1].itertuples():
            assert int(waits.get(np.uint64(row.cgroup_id), 0)) == row.run_delay_ns, (case.name, row.role)


def test_this_lab_s_verdicts_are_right(rows: pd.DataFrame) -> None:
    ours = rows[rows["rule"] == OURS]
    assert ours["right"].all(), ours[["scenario", "declared", "verdict"]].to_string()


def test_blame_has_the_shares_that_hold_by_construction(found: list[Case]) -> None:
    """Among the scenario's own cgroups; what else ran comes on top."""
    for case in found:
        cells = integral.cells(case.events)
        mine = cells[(cells["victim_id"] == np.uint64(case.victim)) & (cells["kind"] == "cgroup")]
        wait = dict(zip(mine["occupant_id"].astype(int), mine["wait_ns"].astype(int), strict=True))
        others = {role: wait.get(case.id_of(role), 0) for role in case.cgroups["role"]}
        others.pop(case.declared["victim"])
        guilty = {role: share for role, share in case.declared["guilty"].items() if share is not None}
        for role, share in guilty.items():
            assert others[role] / sum(others.values()) == pytest.approx(share, abs=0.05), (case.name, others)
        for role in case.declared["innocent"]:
            assert others[role] <= 0.02 * case.true_wait_ns, (case.name, others)


def test_throttled_time_is_what_cpu_stat_says(found: list[Case]) -> None:
    """Where one task has the quota to itself; run_delay would count each of several."""
    for case in found:
        holder = case.declared["quota_ancestor"]
        if not holder:
            continue
        cells = integral.cells(case.events)
        mine = cells[(cells["victim_id"] == np.uint64(case.victim)) & (cells["kind"] == "throttled")]
        said = case.cgroups.set_index("role").loc[holder, "throttled_ns"]
        assert int(mine["wait_ns"].sum()) == pytest.approx(said, rel=0.01), case.name


# -- the others -----------------------------------------------------------------------------------------------------


def test_the_article_sees_nothing_of_two_that_never_sleep(seen: pd.DataFrame, rows: pd.DataFrame) -> None:
    assert (
        seen.loc[["two_pinned_hogs", "two_kernel_hogs", "two_hogs_3_1", "throttled"], "article"] < 0.02
    ).all()
    said = rows[(rows["rule"] == "article") & rows["scenario"].isin(["two_pinned_hogs", "two_kernel_hogs"])]
    assert set(said["verdict"]) == {"quiet"}


def test_the_preempt_flag_sees_tasks_put_off_in_the_kernel_only(seen: pd.DataFrame) -> None:
    assert seen.loc["two_pinned_hogs", "preempt"] < 0.02
    assert seen.loc["two_kernel_hogs", "preempt"] > 0.9


def test_bpftrace_s_rule_sees_just_the_others(seen: pd.DataFrame) -> None:
    assert seen.loc["two_pinned_hogs", "bpftrace"] > 0.99
    assert seen.loc["two_kernel_hogs", "bpftrace"] < 0.1


def test_bcc_s_rule_sees_the_waits_but_not_who_caused_them(seen: pd.DataFrame, placed: pd.DataFrame) -> None:
    contended = [name for name in NAMES if name not in ("quiet", "hog_elsewhere")]
    assert (seen.loc[contended, "bcc"] - 1).abs().max() < 0.02
    assert placed.loc["two_hogs_3_1", "bcc"] < 0.85
    assert (placed.loc[["throttled", "quota_on_parent"], "bcc"] < 0.02).all()


def test_nobody_else_tells_a_quota_from_a_neighbour(rows: pd.DataFrame) -> None:
    quotas = rows[rows["scenario"].isin(["throttled", "throttled_beside_hog", "quota_on_parent"])]
    assert quotas.groupby("rule")["right"].sum().to_dict() == {OURS: 3} | dict.fromkeys(
        set(TITLES) - {OURS}, 0
    )


def test_no_rule_places_more_of_the_wait_than_there_is(placed: pd.DataFrame, seen: pd.DataFrame) -> None:
    assert ((placed >= 0) & (placed <= 1) & (placed <= seen + 1e-9)).all(axis=None)
    # Not all of it by construction: the program's short memory, against an integral that forgets nothing.
    assert (placed[OURS] > 0.999).all()


# -- recordings and page --------------------------------------------------------------------------------------------


def test_recordings_are_of_the_program_as_it_is_now(found: list[Case]) -> None:
    now = program_hash(read("sched_trace"))
    stale = [name for name in NAMES for run in read_events(folder_of(name)).runs if run.hash != now]
    assert not stale, f"{', '.join(stale)}: on a quiet machine, labkit scenarios --record"


def test_recordings_are_whole_small_and_nothing_else_ran_in_their_way(found: list[Case]) -> None:
    for case in found:
        assert case.ledger.balanced
        assert case.ledger.lost == 0
        if case.declared["verdict"] != "quiet":
            assert disturbance_ns(case) <= 0.1 * case.true_wait_ns, case.name
        size = sum(file.stat().st_size for file in folder_of(case.name).rglob("*") if file.is_file())
        assert size < 300_000, case.name
    assert {path.name for path in CAPTURES.iterdir()} == set(NAMES)


def test_the_kept_page_is_what_the_recordings_say(found: list[Case], rows: pd.DataFrame) -> None:
    kept = outcomes_dir() / "scenarios"
    data = json.loads(json.dumps(summary(found, rows)))
    again = "make it again: ./task scenarios"
    assert json.loads((kept / "summary.json").read_text()) == data, again
    assert (kept / "README.md").read_text() == readme(found, rows, data), again
    with Image.open(kept / "verdicts.png") as image:
        assert image.width > 800
        assert image.height > 600


def test_the_page_names_each_rule_with_its_source(found: list[Case], rows: pd.DataFrame) -> None:
    data = summary(found, rows)
    page = readme(found, rows, data)
    for name in TITLES:
        assert data["rules"][name]["source"] in page
    assert "~~quiet~~" in page


def test_the_command_replays_what_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.main, ["scenarios", "hog", "throttled", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "2 of 2 right" in done.output
    data = json.loads((tmp_path / "summary.json").read_text())
    assert [one["name"] for one in data["scenarios"]] == ["hog", "throttled"]
    assert (tmp_path / "verdicts.png").stat().st_size > 10_000
    assert "`throttled`" in (tmp_path / "README.md").read_text()


def test_a_wrong_verdict_of_this_lab_is_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _copy(tmp_path, monkeypatch, "hog")
    path = tmp_path / "captures/scenarios/hog/capture.json"
    data = json.loads(path.read_text())
    data["truths"]["truth"]["declared"]["verdict"] = "quiet"
    path.write_text(json.dumps(data))
    done = CliRunner().invoke(cli.main, ["scenarios", "hog", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "NOT hog" in done.output


def test_an_unknown_scenario_names_those_there_are() -> None:
    done = CliRunner().invoke(cli.main, ["scenarios", "hogs"])
    assert done.exit_code == 2
    assert "there are: two_pinned_hogs" in done.output
    with pytest.raises(ParameterError, match="no scenario 'hogs'"):
        folder_of("hogs")


def test_missing_and_damaged_recordings_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _copy(tmp_path, monkeypatch, "hog")
    with pytest.raises(MissingCapture, match="scenario quiet was not recorded"):
        cases(("quiet",))
    part = tmp_path / "captures/scenarios/hog/events/switched/part-000000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(CaptureMismatch, match="is damaged"):
        open_case(folder_of("hog"))


def _copy(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shutil.copytree(CAPTURES / name, root / "captures/scenarios" / name)
    monkeypatch.setattr("labkit.scenarios.recording.captures_dir", lambda: root / "captures")

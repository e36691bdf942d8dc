"""What scenarios declare, what a truth without cgroups looks like, and that recordings keep both."""

import os
from pathlib import Path

import pandas as pd
import pytest

from labkit import session as chapters
from labkit import workloads
from labkit.capture import Capture, Recorder
from labkit.errors import ParameterError, UnsupportedKernel
from labkit.workloads import SCENARIOS, Truth, scenario, service_beside_hog
from labkit.workloads import _parts as parts

NEED_TWO = {"hog_elsewhere", "migrating"}


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1}, raising=False)


def test_there_are_sixteen_the_simple_ones_first() -> None:
    assert len(SCENARIOS) == len(set(SCENARIOS)) == 16
    assert SCENARIOS[:6] == (
        "quiet",
        "hog",
        "two_hogs_3_1",
        "throttled",
        "throttled_beside_hog",
        "own_threads",
    )


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_declared_names_roles_that_exist_and_is_whole(name: str) -> None:
    work = scenario(name, seconds=1)
    told = work.declared
    roles = {(worker.place or worker.role).split("/")[-1] for worker in work.workers}
    above = {part for worker in work.workers for part in worker.place.split("/")[:-1]}
    assert work.name == name
    assert told["verdict"] in parts.VERDICTS
    assert told["victim"] in roles
    assert set(told["guilty"]) | set(told["innocent"]) | {told["victim"]} == roles
    assert not set(told["guilty"]) & {told["victim"], *told["innocent"]}
    assert (told["quota_ancestor"] or told["victim"]) in roles | above
    assert set(told["causes"]) <= {"foreign", "self", "throttled"}
    assert bool(told["guilty"]) == ("foreign" in told["causes"])
    assert bool(told["quota_ancestor"]) == ("throttled" in told["causes"])
    shares = list(told["guilty"].values())
    assert None in shares or sum(shares) == (1 if shares else 0)
    assert all(worker.options["seconds"] == 1 for worker in work.workers)


@pytest.mark.usefixtures("two_cpus")
def test_each_verdict_has_a_scenario() -> None:
    assert {scenario(name).declared["verdict"] for name in SCENARIOS} == set(parts.VERDICTS)


@pytest.mark.usefixtures("two_cpus")
def test_the_cpu_may_be_chosen_among_those_that_are_there() -> None:
    assert {worker.cpu for worker in scenario("hog", cpu=0).workers} == {0}
    assert {worker.cpu for worker in scenario("hog").workers} == {1}
    with pytest.raises(ParameterError, match="CPU 2"):
        scenario("hog", cpu=2)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(ParameterError, match="two_hogs_3_1"):
        scenario("nobody")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 3601])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ParameterError, match="seconds"):
        scenario("quiet", seconds=seconds)


@pytest.mark.parametrize("name", SCENARIOS)
def test_on_one_cpu_those_that_need_two_say_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0}, raising=False)
    if name in NEED_TWO:
        with pytest.raises(UnsupportedKernel, match="two CPUs"):
            scenario(name)
    else:
        assert {worker.cpu for worker in scenario(name).workers} == {0}


def test_a_truth_without_cgroups_has_an_empty_frame_of_the_same_form() -> None:
    empty = Truth("x", pd.DataFrame(), {}, {}, ()).cgroups
    assert len(empty) == 0
    assert empty["cgroup_id"].dtype == "uint64"
    assert empty["psi_some_us"].dtype == "Int64"


def test_a_recording_from_before_cgroups_were_kept_replays_with_an_empty_frame() -> None:
    truth = chapters.chapter("first", mode="replay").run(service_beside_hog())
    assert len(truth.tasks) == 2
    assert list(truth.cgroups.columns) == list(Truth("x", pd.DataFrame(), {}, {}, ()).cgroups.columns)
    assert len(truth.cgroups) == 0


def test_a_recording_keeps_the_cgroups_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = Truth("hog", pd.DataFrame({"role": ["service"]}), {}, {"verdict": "quiet"}, ())
    row = {name: ["service"] if kind == "str" else [7] for name, kind in blank.cgroups.dtypes.items()}
    told = pd.DataFrame(row).astype(blank.cgroups.dtypes.to_dict()).assign(psi_some_us=pd.NA)
    told["psi_some_us"] = told["psi_some_us"].astype("Int64")
    truth = Truth("hog", blank.tasks, {}, blank.declared, (), cgroups=told)
    Recorder(tmp_path / "x", "x").truth("hog", truth)
    pd.testing.assert_frame_equal(Capture(tmp_path / "x").truth("hog")["cgroups"], told)
    monkeypatch.setattr(chapters, "captures_dir", lambda: tmp_path)
    lab = chapters.Chapter("x", "replay", capture=Capture(tmp_path / "x"))
    pd.testing.assert_frame_equal(lab.run(scenario("hog")).cgroups, told)


def test_what_was_public_before_scenarios_still_is() -> None:
    for name in ("Truth", "Worker", "Workload", "exact_calls", "exact_spawns", "ping_pong"):
        assert name in workloads.__all__
        assert hasattr(workloads, name)

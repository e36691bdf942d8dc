"""The model of the scheduler in chapter 06: fair by weight, at ticks, and nobody waits without somebody who runs."""

from __future__ import annotations

import pandas as pd
import pytest

from labkit.lessons.eevdf import NICE_0, Demand, default_slice_ns, model, waits_per_request


def time_in(played: pd.DataFrame, state: str) -> pd.Series:
    step = played["time_ms"].drop_duplicates().diff().median()
    return step * (played["state"] == state).groupby(played["task"]).sum()


@pytest.mark.parametrize("weight", [NICE_0, 3 * NICE_0])
def test_hogs_share_by_weight(weight: int) -> None:
    played = model([Demand("a", weight=weight), Demand("b")], tick_ms=4, slice_ms=1.4, length_ms=400)
    runs = time_in(played, "runs")
    assert runs["a"] + runs["b"] == pytest.approx(400)
    assert runs["a"] / runs["b"] == pytest.approx(weight / NICE_0, rel=0.05)


def test_the_cpu_changes_hands_at_ticks_only_if_nobody_sleeps_or_wakes() -> None:
    played = model([Demand("a"), Demand("b")], tick_ms=4, slice_ms=1.4, length_ms=100)
    runs = played[played["state"] == "runs"]
    changes = runs.loc[runs["task"] != runs["task"].shift(), "time_ms"]
    assert len(changes) == 25
    assert (changes % 4).round(6).isin([0.0, 4.0]).all()


def test_what_some_are_owed_others_have_had() -> None:
    played = model(
        [Demand("service", 4, 20, 2.3), Demand("heavy", weight=3 * NICE_0), Demand("hog")],
        tick_ms=4,
        slice_ms=1.4,
        length_ms=100,
    )
    weights = played["task"].map({"service": 1, "heavy": 3, "hog": 1})
    owed = (played["lag_ms"] * weights).groupby(played["time_ms"]).sum()
    assert owed.abs().max() == pytest.approx(0, abs=1e-6)
    assert (played.groupby("time_ms")["state"].apply(lambda states: (states == "runs").sum()) == 1).all()


def test_alone_a_service_never_waits_and_beside_a_hog_no_longer_than_it_works_and_a_tick() -> None:
    alone = model([Demand("service", 4, 20, 2.3)], tick_ms=4, slice_ms=1.4, length_ms=100)
    assert time_in(alone, "waits")["service"] == 0
    assert time_in(alone, "runs")["service"] == pytest.approx(20)
    waits = waits_per_request(work_ms=4, every_ms=20, tick_ms=4, slice_ms=1.4)
    assert len(waits) == 8
    assert waits.between(0, 8).all()
    assert waits.max() == pytest.approx(4)
    fine = waits_per_request(work_ms=4, every_ms=20, tick_ms=1, slice_ms=1.4)
    assert fine.between(1, 4).all()  # with finer ticks the place in a tick hardly matters


def test_the_default_slice_grows_with_the_cpus_up_to_eight() -> None:
    assert [default_slice_ns(cpus) for cpus in (1, 2, 4, 8, 64)] == [
        700_000,
        1_400_000,
        2_100_000,
        2_800_000,
        2_800_000,
    ]

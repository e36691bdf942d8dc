"""The program's short memory of a CPU, replayed: against the exact integral, and where many cgroups share a CPU."""

import random
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_model import Machine

from labkit.sched import integral, kernel_log
from labkit.sched.kernel_log import FAR, FAR_STEP, LOG, UNKNOWN, CpuLog
from labkit.spec import read

KEYS = ["victim_id", "kind", "occupant_id"]
US, MS = 1_000, 1_000_000


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), steps=st.integers(0, 400), cpus=st.integers(1, 3), tasks=st.integers(1, 8))
def test_of_short_waits_it_forgets_nothing_but_when_time_was_stolen(
    seed: int, steps: int, cpus: int, tasks: int
) -> None:
    frames = Machine(seed, cpus=cpus, tasks=tasks).run(steps).frames()
    mine, exact = kernel_log.cells(frames), integral.cells(frames)
    assert mine["wait_ns"].sum() == exact["wait_ns"].sum()
    both = pd.concat(
        [
            one.set_index(KEYS)["wait_ns"].astype("int64").rename(name)
            for name, one in (("mine", mine), ("exact", exact))
        ],
        axis=1,
    ).fillna(0)
    for victim, cells in both.groupby("victim_id"):
        assert cells["mine"].sum() == cells["exact"].sum(), victim
    told = both[~both.index.get_level_values("kind").isin(["steal", "unknown"])]
    stolen = both["exact"][both.index.get_level_values("kind") == "steal"].sum()
    # Steal is spread over the interval in which it fell: at most all of it lands elsewhere.
    assert (told["mine"] - told["exact"]).abs().sum() <= 2 * stolen + both["mine"].xs(
        "unknown", level="kind"
    ).sum()


def misplaced(
    occupants: list[int], turn_ns: int, wait_ns: int, *, changes: int = 20_000
) -> tuple[float, float]:
    """Share of long waits that is charged to the wrong one, and that is unknown, where these take random turns."""
    dice = random.Random(1)
    now, since = 1, 1
    log, history = CpuLog(now, 0, occupants[0]), []
    total = wrong = unknown = 0
    for _ in range(changes):
        begun, now = now, now + max(1, int(dice.expovariate(1 / turn_ns)))
        history.append((begun, now, log.occupant))
        if now - since >= wait_ns:
            truth: Counter[int] = Counter()
            for start, end, who in history:
                truth[who] += max(0, end - max(start, since))
            said: Counter[int] = Counter()
            for who, ns in log.charge(since, now, 0):
                said[who] += ns
            assert said.total() == now - since
            total += now - since
            unknown += said[UNKNOWN]
            wrong += sum(abs(said[who] - truth[who]) for who in {*said, *truth}) // 2
            since, history = now, []
        log.change(dice.choice([who for who in occupants if who != log.occupant]), now, 0)
    return wrong / total, unknown / total


@pytest.mark.parametrize(
    ("occupants", "turn_ns", "wait_ns"),
    [
        ([2, 3], 100 * US, 3 * MS),
        ([2, 3], 5 * US, 20 * MS),
        ([2, 2 + 15, 2 + 30, 2 + 45], 20 * US, 3 * MS),  # all of one set of slots
        (list(range(2, 62)), 20 * US, 3 * MS),
        (list(range(2, 62)), 20 * US, 15 * MS),
    ],
    ids=["two", "a pipe", "one set", "sixty", "sixty, long"],
)
def test_waits_of_many_changes_are_exact_too(occupants: list[int], turn_ns: int, wait_ns: int) -> None:
    assert misplaced(occupants, turn_ns, wait_ns) == (0, 0)


def test_beyond_the_log_it_counts_in_proportion() -> None:
    wrong, unknown = misplaced([2, 3, 4], 2 * US, 5 * LOG * US, changes=60_000)
    assert unknown == pytest.approx(0, abs=1e-3)
    assert 0 < wrong < 0.01


def test_what_lies_beyond_everything_that_is_remembered_is_unknown() -> None:
    log = CpuLog(1, 0, 2)
    for now in range(2, FAR * FAR_STEP + 5 * FAR_STEP):
        log.change(2 + now % 2, now, 0)
    said = Counter()
    for who, ns in log.charge(1, log.start + 1, 0):
        said[who] += ns
    assert said.total() == log.start
    assert 4 * FAR_STEP <= said[UNKNOWN] <= 6 * FAR_STEP


def test_more_than_its_slots_hold_is_unknown_and_never_somebody_elses() -> None:
    crowd = [2 + 15 * n for n in range(5)]  # five that may have four slots
    wrong, unknown = misplaced(crowd, 20 * US, 3 * MS)
    assert wrong == pytest.approx(unknown, rel=1e-6)
    assert 0 < unknown < 0.3


def test_the_constants_are_those_of_the_program() -> None:
    source = read("noisy_neighbor").source
    for name in ("WALK", "STEP", "FAR", "SLOTS", "WAYS", "SETS", "FIRST_SLOT", "STEAL_SLOT", "OTHER_SLOT"):
        assert f"#define LK_{name} {getattr(kernel_log, name)}" in source, name
    assert f"#define LK_SLOT_REST_NS {kernel_log.SLOT_REST_NS}ULL" in source
    assert f"#define LK_LONG_NS {kernel_log.LONG_NS}ULL" in source
    assert read("noisy_neighbor").params["log"].default == LOG

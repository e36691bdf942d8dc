"""Buckets: edges, quantiles, merging."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import histogram
from labkit.errors import ParameterError


@pytest.mark.parametrize("k", range(1, 64))
def test_slot_changes_exactly_at_powers_of_two(k: int) -> None:
    assert histogram.log2_slot([2**k - 1, 2**k]).tolist() == [k, k + 1]


def test_zero_and_one_have_slots_of_their_own() -> None:
    assert histogram.log2_slot([0, 1]).tolist() == [0, 1]


@given(st.integers(0, 2**64 - 1))
def test_a_value_lies_within_the_edges_of_its_slot(value: int) -> None:
    lo, hi = histogram.log2_edges()
    slot = int(histogram.log2_slot(value)[0])
    assert slot == value.bit_length()
    assert int(lo[slot]) <= value
    assert value < int(hi[slot]) or value == 2**64 - 1


def test_edges_leave_no_gap() -> None:
    lo, hi = histogram.log2_edges()
    assert (lo[1:] == hi[:-1]).all()


def test_trailing_empty_buckets_are_left_out_and_leading_ones_kept() -> None:
    frame = histogram.from_log2(np.array([0, 0, 5, 0]), unit="ns")
    assert frame["lo"].tolist() == [0, 1, 2]
    assert frame["count"].tolist() == [0, 0, 5]


def test_no_events_give_an_empty_frame_of_the_same_dtypes() -> None:
    empty, full = histogram.from_log2(np.zeros(65), unit="ns"), histogram.from_log2(np.ones(65), unit="ns")
    assert len(empty) == 0
    assert (empty.dtypes == full.dtypes).all()
    assert np.isnan(histogram.quantile(empty, 0.5))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[int], q: float) -> None:
    counts = np.bincount(histogram.log2_slot(values), minlength=65)
    estimate = histogram.quantile(histogram.from_log2(counts, unit="ns"), q)
    true = sorted(values)[max(int(np.ceil(q * len(values))) - 1, 0)]
    lo, hi = histogram.log2_edges()
    slot = int(histogram.log2_slot(true)[0])
    assert lo[slot] <= estimate <= hi[slot]


def test_a_quantile_is_interpolated_within_its_bucket() -> None:
    one_bucket = histogram.from_log2(np.array([0, 0, 0, 4]), unit="ns")  # four values in [4, 8)
    assert [histogram.quantile(one_bucket, q) for q in (0, 0.25, 0.5, 1)] == [4, 5, 6, 8]


def waits_of(values: list[int]) -> pd.DataFrame:
    lo, hi = histogram.wait_edges()
    counts = np.bincount(histogram.wait_slot(values), minlength=histogram.WAIT_SLOTS)
    there = np.flatnonzero(counts)
    return pd.DataFrame({"lo": lo[there], "hi": hi[there], "count": counts[there].astype(np.uint64)})


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_of_waits_is_within_a_sixteenth_however_they_lie_in_their_slot(
    values: list[int], q: float
) -> None:
    true = sorted(values)[max(int(np.ceil(q * len(values))) - 1, 0)]
    estimate = histogram.wait_quantile(waits_of(values), q)
    assert abs(estimate - true) <= max(0.0625 * true, 32)


@pytest.mark.parametrize("value", [1024, 8_388_608, 2**39])
def test_waits_that_are_all_alike_have_one_quantile(value: int) -> None:
    alike = waits_of([value] * 100)
    for q in (0.01, 0.5, 0.99):
        assert histogram.wait_quantile(alike, q) == pytest.approx(value, rel=0.0625)
    assert np.isnan(histogram.wait_quantile(alike.head(0), 0.5))
    assert histogram.wait_quantile(waits_of([2**50]), 0.5) == histogram.wait_edges()[0][-1]


@given(st.lists(st.integers(0, 2**40), max_size=100))
def test_the_time_in_long_waits_is_within_a_sixteenth(values: list[int]) -> None:
    least = 524_288  # an edge
    true = sum(value for value in values if value >= least)
    assert histogram.wait_in_waits_from(waits_of(values), least) == pytest.approx(true, rel=0.0625)


def test_merging_adds_counts_bucket_by_bucket() -> None:
    a, b = (
        histogram.from_log2(np.array([1, 2]), unit="ns"),
        histogram.from_log2(np.array([0, 1, 4]), unit="ns"),
    )
    assert histogram.merge(a, b)["count"].tolist() == [1, 3, 4]


def test_merging_refuses_other_units_and_other_buckets() -> None:
    a = histogram.from_log2(np.array([1, 2]), unit="ns")
    with pytest.raises(ParameterError, match="units"):
        histogram.merge(a, histogram.from_log2(np.array([1]), unit="bytes"))
    other = pd.DataFrame({"lo": [0], "hi": [2], "unit": ["ns"], "count": [1]}).astype(a.dtypes.to_dict())
    with pytest.raises(ParameterError, match="different buckets"):
        histogram.merge(a, other)

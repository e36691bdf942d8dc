"""Counts that nobody in particular is to blame for never shrink, however the tables move while they are read."""

import numpy as np

from labkit.noisy import tables
from labkit.noisy.tables import Tables


def test_switches_by_nobody_never_shrink_when_the_pairs_run_ahead_of_the_sums() -> None:
    reader = Tables.__new__(Tables)
    reader._untold = {}
    ids = np.array([7, 8], np.uint64)

    def read(involuntary: list[int], told: list[int]) -> list[int]:
        fields = np.zeros((2, tables._FIELDS), np.uint64)
        fields[:, tables._INVOLUNTARY] = involuntary
        found: list[int] = reader._rest_of(ids, fields, np.array(told, np.uint64)).tolist()
        return found

    assert read([10, 5], [7, 5]) == [3, 0]
    assert read([20, 6], [19, 9]) == [3, 0]  # two were told after the sums were read
    assert read([30, 9], [26, 9]) == [4, 0]

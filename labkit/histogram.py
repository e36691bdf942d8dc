"""Histogram buckets: edges, slots, quantiles, merging. The same arithmetic as ``bpf/lk.h``.

A histogram is a DataFrame with the columns ``lo`` and ``hi`` (uint64, the bucket holds ``lo <= v < hi``), ``unit`` (str)
and ``count`` (uint64).

Log2 slots: slot 0 holds the value 0 alone; slot k holds ``2**(k-1) <= v < 2**k``. (bcc's ``bpf_log2l`` differs: its
slot 0 is never used, so 0 and 1 share a bucket, and printed ranges are shifted by one.)
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from labkit.errors import ParameterError

__all__ = [
    "LOG2_SLOTS",
    "WAIT_SLOTS",
    "from_log2",
    "log2_edges",
    "log2_slot",
    "merge",
    "quantile",
    "wait_edges",
    "wait_in_waits_from",
    "wait_quantile",
    "wait_slot",
]

LOG2_SLOTS = 65
#: Slots of ``bpf/noisy_neighbor.c``: 64 ns wide below 1,024 ns, then eight to the octave.
WAIT_SLOTS = 256
_MAX = np.iinfo(np.uint64).max


def log2_slot(values: np.ndarray | list[int] | int) -> np.ndarray:
    """Slot of each value: 0 for 0, else its bit length. Exact for all of uint64.

    >>> log2_slot([0, 1, 2, 3, 4, 2**63]).tolist()
    [0, 1, 2, 2, 3, 64]
    """
    rest = np.atleast_1d(np.asarray(values, dtype=np.uint64)).copy()
    slot = np.zeros(rest.shape, dtype=np.int64)
    for shift in (32, 16, 8, 4, 2, 1):
        high = rest >= np.uint64(1) << np.uint64(shift)
        slot[high] += shift
        rest[high] >>= np.uint64(shift)
    return slot + (rest > 0)


def log2_edges(slots: int = LOG2_SLOTS) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edges (uint64) of the first ``slots`` buckets; the last possible upper edge is 2**64 - 1.

    >>> lo, hi = log2_edges(4)
    >>> list(zip(lo.tolist(), hi.tolist()))
    [(0, 1), (1, 2), (2, 4), (4, 8)]
    """
    if not 1 <= slots <= LOG2_SLOTS:
        raise ParameterError(f"a log2 histogram has 1 to {LOG2_SLOTS} slots, not {slots}")
    powers = [1 << k for k in range(slots)]
    hi = np.array([min(p, int(_MAX)) for p in powers], dtype=np.uint64)
    lo = np.concatenate([np.zeros(1, np.uint64), hi[:-1]])
    return lo, hi


def wait_edges() -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edges (uint64, ns) of the :data:`WAIT_SLOTS` slots that waits are counted in.

    The middle of a slot is within 6.25 % of every wait in it from 512 ns on, and within 32 ns below that. The last slot
    also holds all that is longer than its lower edge, 2**40 ns less a sixteenth (17 minutes).

    >>> lo, hi = wait_edges()
    >>> lo[[0, 1, 15, 16, 17, 255]].tolist(), hi[[0, 16]].tolist()
    ([0, 64, 960, 1024, 1152, 1030792151040], [64, 1152])
    """
    slot = np.arange(WAIT_SLOTS, dtype=np.uint64)
    shift = np.where(slot < 16, np.uint64(0), (slot >> np.uint64(3)) - np.uint64(1))
    mantissa = np.where(slot < 16, slot, np.uint64(8) + (slot & np.uint64(7)))
    lo = mantissa << shift << np.uint64(6)
    hi = np.concatenate([lo[1:], np.array([_MAX], np.uint64)])
    return lo, hi


def wait_slot(values_ns: np.ndarray | list[int] | int) -> np.ndarray:
    """Slot of each wait: the arithmetic of ``wait_slot()`` in ``bpf/noisy_neighbor.c``.

    >>> wait_slot([0, 63, 64, 1023, 1024, 1151, 1152, 2**41]).tolist()
    [0, 0, 1, 15, 16, 16, 17, 255]
    """
    lo, _ = wait_edges()
    values = np.atleast_1d(np.asarray(values_ns, dtype=np.uint64))
    return np.searchsorted(lo, values, side="right") - 1


def from_log2(counts: np.ndarray, *, unit: str) -> pd.DataFrame:
    """Buckets from counts per log2 slot, up to the last that is not empty.

    :param counts: shape (slots,), any integer type.
    :returns: columns ``lo``, ``hi`` (uint64), ``unit`` (str), ``count`` (uint64); no rows if all counts are 0.
    """
    counts = np.asarray(counts, dtype=np.uint64)
    filled = np.flatnonzero(counts)
    used = int(filled[-1]) + 1 if filled.size else 0
    lo, hi = log2_edges(max(used, 1))
    return pd.DataFrame(
        {
            "lo": lo[:used],
            "hi": hi[:used],
            "unit": pd.Series([unit] * used, dtype="str"),
            "count": counts[:used],
        }
    )


def merge(*histograms: pd.DataFrame) -> pd.DataFrame:
    """Add histograms bucket by bucket.

    :raises ParameterError: if their units differ, or a bucket of one cuts through a bucket of another.
    """
    filled = [h for h in histograms if len(h)]
    if not filled:
        return histograms[0].copy() if histograms else from_log2(np.zeros(1), unit="")
    together = pd.concat(filled, ignore_index=True)
    if together["unit"].nunique() > 1:
        raise ParameterError(f"histograms of different units: {sorted(together['unit'].unique())}")
    total = together.groupby(["lo", "hi", "unit"], as_index=False, sort=True)["count"].sum()
    if (total["lo"].to_numpy()[1:] < total["hi"].to_numpy()[:-1]).any():
        raise ParameterError(
            "the histograms have different buckets", remedy="merge only histograms of one kind"
        )
    return total


def quantile(histogram: pd.DataFrame, q: float) -> float:
    """The q-quantile (0 <= q <= 1), interpolated within its bucket; NaN if the histogram is empty.

    The true value lies in the bucket the result lies in: no better can be said from buckets. It is the arithmetic of
    PromQL's ``histogram_quantile()``; where all values of a bucket are alike, it is off by up to the bucket's width.
    """
    index, rank, before = _place(histogram, q)
    if index < 0:
        return float("nan")
    lo, hi, count = (float(histogram[name].iloc[index]) for name in ("lo", "hi", "count"))
    return float(lo + (hi - lo) * max(rank - before, 0.0) / count)


def wait_quantile(histogram: pd.DataFrame, q: float) -> float:
    """The q-quantile of waits, ns: the middle of the slot of :func:`wait_edges` that it lies in; NaN if there are none.

    So it is within 6.25 % of the true one from 512 ns on, and within 32 ns below that, however the waits of that slot are
    spread. Of the last slot, which has no end, it is the lower edge.
    """
    index, _, _ = _place(histogram, q)
    return float("nan") if index < 0 else float(_middles(histogram)[index])


def wait_in_waits_from(histogram: pd.DataFrame, least_ns: int) -> float:
    """How much time all waits of ``least_ns`` and more took together, ns, within 6.25 %."""
    middles = _middles(histogram)
    long = middles >= least_ns
    return float((middles[long] * histogram["count"].to_numpy(dtype=np.float64)[long]).sum())


def _middles(histogram: pd.DataFrame) -> np.ndarray:
    lo, hi = (histogram[name].to_numpy(dtype=np.float64) for name in ("lo", "hi"))
    middles: np.ndarray = np.where(hi >= float(_MAX), lo, (lo + hi) / 2)
    return middles


def _place(histogram: pd.DataFrame, q: float) -> tuple[int, float, float]:
    """The bucket of the q-quantile (-1 if there is none), its rank, and how many lie in the buckets before."""
    if not 0 <= q <= 1:
        raise ParameterError(f"a quantile lies between 0 and 1, not {q}")
    counts = histogram["count"].to_numpy(dtype=np.float64)
    total = counts.sum()
    if total == 0:
        return -1, 0.0, 0.0
    cumulative = counts.cumsum()
    rank = q * total
    index = int(np.searchsorted(cumulative, rank, side="left"))
    while counts[index] == 0:
        index += 1
    return index, float(rank), float(cumulative[index] - counts[index])

"""Maps to DataFrames, beside bcc's ``items()`` and ``items_lookup_batch()`` and beside the bare system call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

import numpy as np

from bench.kernel import filled_map
from bench.measure import Goal, Row, clocked, compare, interleave
from bench.peers import BccPeer
from labkit import bpfsys
from labkit.bpfsys import MapType
from labkit.maps import Map

__all__ = ["compare_maps"]

_ITEMS, _BATCH, _RAW = "bcc items()", "bcc items_lookup_batch()", "one raw batch system call"


def _ours(table: Map, entries: int) -> float:
    seconds, frame = clocked(table.frame)
    assert len(frame) == entries
    return seconds


class _Floor:
    """One raw ``BPF_MAP_LOOKUP_BATCH`` over the whole map into memory that is already there."""

    def __init__(self, table: Map, entries: int) -> None:
        cpus = bpfsys.possible_cpus() if table.per_cpu else 1
        self.table, self.entries = table, entries
        self.keys = np.zeros((entries, 8), np.uint8)
        self.values = np.zeros((entries, cpus * 16), np.uint8)
        self.position = np.zeros(8, np.uint8)

    def __call__(self) -> float:
        seconds, found = clocked(
            lambda: bpfsys.map_lookup_batch(
                self.table.fd, None, self.position, self.keys, self.values, self.entries
            )
        )
        assert found == (self.entries, True)
        return seconds


def _explain(table: Map, floor: _Floor, entries: int, peer_s: float | None) -> Callable[[], str]:
    """Why a goal is missed: what the kernel's part is, and what is left on top of it."""

    def explain() -> str:
        samples = interleave(
            {
                "kernel": floor,
                "raw": lambda: clocked(table.raw)[0],
                "frame": lambda: _ours(table, entries),
            },
            rounds=5,
        )
        kernel, raw, frame = (1000 * median(samples[name]) for name in ("kernel", "raw", "frame"))
        said = (
            f"of {frame:.0f} ms the kernel's batch system call takes {kernel:.0f} ms, fresh memory and joining batches "
            f"{raw - kernel:.0f} ms, columns and frame {frame - raw:.0f} ms"
        )
        if peer_s is not None:
            said += f"; the system call alone would give a ratio of {1000 * peer_s / kernel:.0f}"
        return said

    return explain


def _family(
    kind: MapType, form: str, what: str, *, entries: int, rounds: int, goals: Mapping[str, Goal]
) -> list[Row]:
    table = filled_map(kind, entries)
    try:
        floor = _Floor(table, entries)
        with BccPeer(form, fd=table.fd, entries=entries) as peer:
            sides: dict[str, Callable[[], float]] = {
                "labkit": lambda: _ours(table, entries),
                _ITEMS: lambda: peer.seconds("items", expect=entries),
                _RAW: floor,
            }
            if form == "hash":  # on per-CPU maps it fails in the distributions' releases of bcc
                sides[_BATCH] = lambda: peer.seconds("items_lookup_batch", expect=entries)
            seconds = interleave(sides, rounds=rounds)
        rows = []
        for name in sides:
            if name == "labkit":
                continue
            floor_row = name == _RAW
            rows.append(
                compare(
                    f"{what} to DataFrame, {entries:,} entries",
                    {
                        side: [1000 * s if floor_row else entries / s for s in seconds[side]]
                        for side in ("labkit", name)
                    },
                    ours="labkit",
                    peer=name,
                    unit="ms" if floor_row else "entries/s",
                    goal=goals.get(name),
                    explain=_explain(table, floor, entries, None if floor_row else median(seconds[name])),
                )
            )
        return rows
    finally:
        table.close()


def compare_maps(*, quick: bool, rounds: int) -> list[Row]:
    """Rows for a hash map and for a per-CPU hash map."""
    hash_entries, per_cpu_entries = (20_000, 5_000) if quick else (1_000_000, 100_000)
    return [
        *_family(
            MapType.HASH,
            "hash",
            "hash map",
            entries=hash_entries,
            rounds=rounds,
            goals={_ITEMS: Goal(">=", 25), _RAW: Goal("<=", 1.3)},
        ),
        *_family(
            MapType.PERCPU_HASH,
            "percpu_hash",
            "per-CPU hash map",
            entries=per_cpu_entries,
            rounds=rounds,
            goals={_ITEMS: Goal(">=", 50)},
        ),
    ]

"""Cgroups whose series tests look at, and what a book of series adds up to."""

from __future__ import annotations

import numpy as np
from snapshot_maker import Group

from labkit.metrics import Labels, Limits
from labkit.metrics.series import Book
from labkit.sched.state import Snapshot

MS = 1_000_000


def victim(scale: int = 1, **changes: object) -> Group:
    given: dict[str, object] = {
        "id": 7,
        "name": "web",
        "cells": {
            ("cgroup", 7): 1 * MS * scale,
            ("cgroup", 8): 20 * MS * scale,
            ("cgroup", 1): 2 * MS * scale,
            ("throttled", 0): 3 * MS * scale,
            ("idle", 0): MS // 2 * scale,
            ("steal", 0): MS // 4 * scale,
            ("unknown", 0): 7 * scale,
        },
        "waits": 3 * scale,
        "involuntary": 2 * scale,
        "run_ns": 9 * MS * scale,
        "preemptions": scale,
    }
    return Group(**(given | changes))  # type: ignore[arg-type]


HOG = Group(8, "hog", {("cgroup", 7): 5 * MS}, waits=2)


def fresh(snap: Snapshot) -> np.ndarray:
    """What a book that begins with this snapshot holds: a row per series."""
    book = Book(Labels.parse(), Limits(max_cgroups=1000))
    book.advance(snap)
    return np.stack([s.values for s in book.series])


def totals(book: Book) -> np.ndarray:
    return sum((s.values for s in book.exposed), np.zeros(len(book.layout.columns), np.int64))

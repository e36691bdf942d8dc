"""What ``bpf/noisy_neighbor.c`` makes of a stream of events, with the memory that it has: its method, replayed.

The program cannot keep all that happened on a CPU. It has a log of the last changes of occupant, running totals per
occupant noted every 64 changes, and coarser ones beyond that; an occupant's total lives in one of 60 slots, four of which
it may have; and of stolen time it knows the sum between two changes, not the moments. :mod:`labkit.sched.integral`
forgets nothing. Held against each other over the same events, the two show what the short memory costs.

The constants and the steps are those of the C; ``tests/live/test_noisy_neighbor.py`` holds the program itself against this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pandas as pd

from labkit.sched import integral
from labkit.sched.stretches import Stretches, stretches_of
from labkit.sched.trace import Events, Trace, trace

__all__ = ["cells"]

LOG, WALK, STEP, FAR = 8192, 16, 64, 32
NEAR, FAR_STEP = LOG // STEP, LOG
SLOTS, WAYS, SETS, FIRST_SLOT, STEAL_SLOT, OTHER_SLOT = 64, 4, 15, 2, 62, 63
SLOT_REST_NS, LONG_NS = 250_000_000, 10_000_000
IDLE, UNKNOWN = 0, 1
_STEAL = -1

Charge = tuple[int, int]  # occupant's index (or :data:`_STEAL`), ns


class CpuLog:
    """One CPU's log, as ``struct lk_cpu`` and the functions around it. Occupants are indexes; 0 is idle, 1 unknown."""

    def __init__(self, now: int, stolen: int, occupant: int) -> None:
        self.start, self.stolen = now, stolen
        self.settled, self.settled_stolen = now, stolen
        self.occupant = occupant
        self.log: list[
            tuple[int, int, int]
        ] = []  # start, occupant, stolen; all of it, though only the end is used
        self.totals = [0] * SLOTS
        self.owner, self.before, self.last = [0] * SLOTS, [0] * SLOTS, [0] * SLOTS
        self.near: dict[int, tuple[int, list[int]]] = {}
        self.far: dict[int, tuple[int, list[int]]] = {}
        self._note(now)
        self.slot = self._slot_for(occupant, now)

    # -- keeping it ---------------------------------------------------------------------------------------------

    def change(self, occupant: int, now: int, stolen: int) -> None:
        """Another cgroup gets the CPU, or it idles."""
        self._settle(now, stolen)
        self.log.append((self.start, self.occupant, min(stolen - self.stolen, now - self.start)))
        self.last[self.slot] = now
        self._note(now)
        self.start, self.stolen, self.occupant = now, stolen, occupant
        self.slot = self._slot_for(occupant, now)

    def _settle(self, now: int, stolen: int) -> None:
        held = now - self.settled
        lost = min(stolen - self.settled_stolen, held)
        self.totals[self.slot] += held - lost
        self.totals[STEAL_SLOT] += lost
        self.settled, self.settled_stolen = now, stolen

    def _note(self, now: int) -> None:
        for kept, step in ((self.near, STEP), (self.far, FAR_STEP)):
            if len(self.log) % step == 0:
                kept[len(self.log) // step] = (now, list(self.totals))

    def _slot_for(self, occupant: int, now: int) -> int:
        if occupant == IDLE:
            return 0
        if occupant == UNKNOWN:
            return OTHER_SLOT
        first = FIRST_SLOT + occupant % SETS * WAYS
        rested = OTHER_SLOT
        for slot in range(first, first + WAYS):
            if self.owner[slot] == occupant:
                return slot
            if not self.owner[slot] or now - self.last[slot] >= SLOT_REST_NS:
                rested = slot
        if rested != OTHER_SLOT:
            self.owner[rested], self.before[rested] = occupant, self.totals[rested]
        return rested

    # -- charging a wait ----------------------------------------------------------------------------------------

    def charge(self, since: int, now: int, stolen: int) -> Iterator[Charge]:
        """Who had the CPU in [since, now), as far as it is remembered; the parts add up to it exactly."""
        changes = len(self.log)
        number = _last_before(self.near, since, changes // STEP, NEAR)
        if changes >= WALK and self.log[changes - WALK][0] > since and number < changes // STEP:
            yield from self._charge_long(since, now, stolen, number)
        else:
            open_one = (self.start, self.occupant, stolen - self.stolen)
            yield from self._walk(changes, open_one, now, since)

    def _walk(self, place: int, stretch: tuple[int, int, int], end: int, since: int) -> Iterator[Charge]:
        start, occupant, stolen = stretch
        for step in range(STEP + 1):
            begin = max(start, since)
            if end > begin:
                yield from _piece(occupant, end - begin, end - start, stolen)
            end = begin
            if start <= since or step == STEP or place == 0:
                break
            place -= 1
            start, occupant, stolen = self.log[place]
        if end > since:
            yield UNKNOWN, end - since

    def _charge_long(self, since: int, now: int, stolen: int, number: int) -> Iterator[Charge]:
        self._settle(now, stolen)
        noted, totals = self.near[number]
        if noted <= since or number == 0:
            if noted < since:
                number += 1
                noted, totals = self.near[number]
            yield from self._by_totals(totals, totals, 0, now - noted)
            yield from self._walk(number * STEP, (noted, UNKNOWN, 0), noted, since)
            return
        newest = len(self.log) // FAR_STEP
        number = _last_before(self.far, since, newest, FAR)
        noted, totals = self.far[number]
        if noted > since:
            yield UNKNOWN, noted - since
            yield from self._by_totals(totals, self.totals, 0, now - noted)
            return
        following, after = self.far[number + 1] if number < newest else (now, self.totals)
        fraction = ((since - noted) << 12) // (following - noted) if following > noted else 0
        yield from self._by_totals(totals, after, fraction, now - since)

    def _by_totals(self, base: list[int], after: list[int], fraction: int, left: int) -> Iterator[Charge]:
        for slot in range(SLOTS):
            ns = self.totals[slot] - base[slot] - (((after[slot] - base[slot]) * fraction) >> 12)
            ns = min(ns, left)
            if not ns:
                continue
            left -= ns
            if slot == STEAL_SLOT:
                yield _STEAL, ns
                continue
            own = 0 if slot == OTHER_SLOT else self.totals[slot] - self.before[slot]
            if own < ns:
                yield UNKNOWN, ns - own
                ns = own
            yield self.owner[slot], ns
        yield UNKNOWN, left


def _last_before(kept: dict[int, tuple[int, list[int]]], since: int, newest: int, many: int) -> int:
    number = newest - many + 1 if newest >= many else 0
    step = many // 2
    while step:
        if number + step <= newest and kept[number + step][0] <= since:
            number += step
        step //= 2
    return number


def _piece(occupant: int, ns: int, length: int, stolen: int) -> Iterator[Charge]:
    """A piece of an interval of which a part was stolen: in proportion, as only how much is known, not when."""
    if stolen and stolen <= length:
        part = stolen if ns >= length else (ns * ((stolen << 10) // length)) >> 10
        part = min(part, ns)
        yield _STEAL, part
        ns -= part
    yield occupant, ns


def cells(events: Events) -> pd.DataFrame:
    """The matrix that the program would have made of these events.

    :param events: see :func:`labkit.sched.trace.trace`.
    :returns: as :func:`labkit.sched.integral.cells`. What the program takes from the kernel as it stands, throttled
        time and preemptions, is the same in both.
    :raises MissingCapture, CaptureMismatch: see :func:`labkit.sched.trace.trace`.
    """
    found = trace(events)
    stretches = stretches_of(found)
    indexes: dict[int, int] = {}
    sums: Counter[tuple[int, int]] = Counter()
    nowhere = stretches.cpu < 0
    for victim, ns in zip(stretches.victim[nowhere], (stretches.end - stretches.start)[nowhere], strict=True):
        sums[int(victim), UNKNOWN] += int(ns)
    for cpu in found.cpus:
        log, moves = None, _moves(found, cpu, indexes)
        move = next(moves, None)
        for victim, since, end, stolen in _waits(found, stretches, cpu):
            while move is not None and move[0] < end:
                log = _moved(log, *move)
                move = next(moves, None)
            if log is None:
                sums[victim, UNKNOWN] += end - since
                continue
            for occupant, ns in log.charge(since, end, max(stolen, log.settled_stolen)):
                sums[victim, occupant] += ns
    return _frame(sums, {index: one for one, index in indexes.items()}, integral.cells(found))


def _waits(found: Trace, stretches: Stretches, cpu: int) -> Iterator[tuple[int, int, int, int]]:
    """Victim, since when and until when it waited for the CPU, and what had been stolen of that by then, in order."""
    mine = np.flatnonzero((stretches.cpu == cpu) & (stretches.start + stretches.throttled < stretches.end))
    ends = stretches.end[mine]
    yield from zip(
        stretches.victim[mine].tolist(),
        (stretches.start + stretches.throttled)[mine].tolist(),
        ends.tolist(),
        _stolen_by(found, cpu, ends),
        strict=True,
    )


def _moves(found: Trace, cpu: int, indexes: dict[int, int]) -> Iterator[tuple[int, int, int]]:
    """Since when somebody has the CPU, who, and what had been stolen by then."""
    held = integral.occupants_of(found, cpu)
    real = np.flatnonzero((held.start[:-1] < held.start[1:]) & (held.start[:-1] > integral.EVER))
    starts = held.start[real]
    for place, start, stolen in zip(
        real.tolist(), starts.tolist(), _stolen_by(found, cpu, starts), strict=True
    ):
        occupant = {integral.IDLE: IDLE, integral.UNKNOWN: UNKNOWN}.get(int(held.kind[place]))
        if occupant is None:
            occupant = indexes.setdefault(int(held.occupant[place]), 2 + len(indexes))
        yield start, occupant, stolen


def _stolen_by(found: Trace, cpu: int, times: np.ndarray) -> list[int]:
    time, stolen = integral.stolen_of(found, cpu)
    grown = np.interp(times - time[0], time - time[0], stolen - stolen[0]).round().astype(np.int64)
    return [int(one) for one in grown]


def _moved(log: CpuLog | None, now: int, occupant: int, stolen: int) -> CpuLog:
    if log is None:
        return CpuLog(now, stolen, occupant)
    if occupant != log.occupant or now - log.start >= LONG_NS:
        log.change(occupant, now, max(stolen, log.settled_stolen))
    return log


def _frame(sums: Counter[tuple[int, int]], identities: dict[int, int], exact: pd.DataFrame) -> pd.DataFrame:
    kinds = {IDLE: "idle", UNKNOWN: "unknown", _STEAL: "steal"}
    rows = [
        (victim, kinds.get(occupant, "cgroup"), identities.get(occupant, 0), ns, 0)
        for (victim, occupant), ns in sums.items()
        if ns
    ]
    charged = pd.DataFrame(rows, columns=list(exact.columns)).astype(exact.dtypes.to_dict())
    kept = exact.assign(wait_ns=exact["wait_ns"].where(exact["kind"] == "throttled", 0))
    whole = pd.concat([charged, kept], ignore_index=True)
    whole = whole.groupby(["victim_id", "kind", "occupant_id"], as_index=False, sort=True).sum()
    return whole[(whole["wait_ns"] > 0) | (whole["preemptions"] > 0)].reset_index(drop=True)

"""The noisy-neighbour program at work: load it with tables that suit the machine, and take snapshots.

>>> with Watch() as watch:                        # doctest: +SKIP
...     before = watch.snapshot()
...     time.sleep(5)
...     answer = between(before, watch.snapshot())
"""

from __future__ import annotations

import os
import platform
import time

from labkit import bpfsys, program
from labkit.closing import Closing
from labkit.names import Directory
from labkit.names.paths import UNKNOWN
from labkit.noisy.plan import Plan, plan
from labkit.noisy.tables import Tables
from labkit.sched.state import Cost, Room, Snapshot

__all__ = ["NOTED", "Watch"]

#: Members of the program's ledger that tell what is in the results, but only in part.
NOTED = (
    "missed_waits",
    "missed_ns",
    "reconstructed",
    "cgroups_full",
    "cells_full",
    "slots_full",
    "beyond_log",
    "evicted",
)


_ROOT_ID = 1  # kernfs numbers its nodes from 1 (fs/kernfs/dir.c)
_MOST_HEARD = 4096


class Watch(Closing):
    """The program, loaded and attached; a context manager that frees everything.

    :param label: what the capture is called in its ledger.
    :param chosen: table sizes and rules; :func:`labkit.noisy.plan.plan` if not given.
    :param directory: where names come from; one of its own if not given.
    :param rest_s: how long the place of a dead cgroup rests; see :class:`labkit.noisy.tables.Tables`.
    :raises MissingPrivilege, MissingBcc, MissingHeaders, MissingBTF, UnsupportedKernel: if this machine cannot do it.
    """

    def __init__(
        self,
        *,
        label: str = "noisy_neighbor",
        chosen: Plan | None = None,
        directory: Directory | None = None,
        rest_s: float | None = None,
    ) -> None:
        self.plan = chosen or plan()
        self.directory = directory or Directory()
        self.program = program.load("noisy_neighbor", label=label, **self.plan.params)
        try:
            if self.plan.wakeup:
                self.program.attach("wakeup")
            self.tables = Tables(self.program, rest_s)
        except BaseException:
            self.program.close()
            raise
        self._began_ns = time.monotonic_ns()
        self._user_ns = time.process_time_ns()
        self._map_bytes: int | None = None
        self._heard: dict[int, str] = {}
        # The kernel tells paths from the real root; in a cgroup namespace, ours begin elsewhere.
        root = self.directory.tree.identity
        self._whole_tree = root is not None and os.stat(root).st_ino == _ROOT_ID

    def close(self) -> None:
        """Detach, unload, free. May be called twice."""
        self.program.close()
        self.directory.close()

    def stop(self) -> None:
        """Detach; snapshots can still be taken, and stay the same."""
        self.program.stop()
        bpfsys.wait_for_programs()

    def tend(self) -> bool:
        """What a long measurement needs every second or so: names of cgroups that may be gone by the next snapshot, and the
        places of those that died given back, so that there is one for each that comes.

        :returns: True if the tables fill up: come back sooner.
        """
        self._alive()
        return self.tables.crowded

    def _hear(self) -> None:
        """Paths of new cgroups, as the kernel tells them: one that ends within a moment has a name all the same."""
        for cgroup_id, path in self.tables.born():
            if self._whole_tree:
                self._heard[cgroup_id] = path
        while len(self._heard) > _MOST_HEARD:  # most never run a task
            del self._heard[next(iter(self._heard))]

    def _alive(self) -> set[int]:
        """Ids of the cgroups that have a place and are known to live; the places of the dead are taken back."""
        self._hear()
        ids = self.tables.ids()
        for cgroup_id in ids & self._heard.keys():
            self.directory.learn(cgroup_id, self._heard.pop(cgroup_id))
        names = self.directory.names(ids)
        gone = {identity for identity in ids if self.directory.gone(identity)}
        self.tables.retire(gone)
        return {identity for identity in ids if identity not in gone and names[identity] is not UNKNOWN}

    def snapshot(self) -> Snapshot:
        """What was measured since the program was loaded."""
        alive = self._alive()
        ledger = self.program.ledger
        counters = self.program.counters()
        taken_ns = time.monotonic_ns()
        frames = self.tables.frames()
        seen = frames["cells"]["occupant_id"], frames["cells"]["victim_id"], frames["cgroups"]["cgroup_id"]
        return Snapshot(
            taken_ns=taken_ns,
            seconds=(taken_ns - self._began_ns) / 1e9,
            mode="live",
            kernel=platform.release(),
            names=self.directory.frame(
                sorted(set().union(*(column.tolist() for column in seen))), alive=alive
            ),
            ledger=ledger,
            cost=self._cost(counters["calls"]),
            rules=self.plan.rules,
            noted={name: counters[name] for name in NOTED},
            room=self._room(),
            **frames,
        )

    def _cost(self, calls: int) -> Cost:
        spent_ns = time.process_time_ns() - self._user_ns
        return Cost(calls, self.program.run_time_ns, spent_ns, os.cpu_count() or 1)

    def _room(self) -> Room:
        if self._map_bytes is None:  # none of them grows
            sizes = [one.memory_bytes for one in self.program.maps.values()]
            self._map_bytes = sum(size or 0 for size in sizes) or None
        taken = self.tables.occupancy
        entries = {"cgroups": int(taken["in_use"] + taken["resting"]), "cells": int(taken["cells"])}
        limits = {"cgroups": int(taken["room"]), "cells": self.program.params["cells"]}
        return Room(entries, limits, self._map_bytes)

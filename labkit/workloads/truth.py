"""What a workload did, as itself and the kernel's counters tell it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pandas as pd

from labkit import oracles
from labkit.cgroups import Scope
from labkit.closing import Closing
from labkit.kernel.cgroup import hierarchy

if TYPE_CHECKING:
    from labkit.workloads.running import Worker

__all__ = ["Books", "Place", "Released", "Truth", "tasks_frame"]

#: Columns of Truth.cgroups.
_COLUMNS = {
    "role": "str",
    "cgroup": "str",
    "cgroup_id": "uint64",
    "cpu_cgroup": "str",
    "quota_us": "int64",
    "period_us": "int64",
    "weight": "int64",
    "nr_throttled": "int64",
    "throttled_ns": "int64",
    "psi_some_us": "Int64",
    "run_ns": "int64",
    "run_delay_ns": "int64",
    "timeslices": "int64",
    "voluntary": "int64",
    "involuntary": "int64",
}
_COUNTERS = ("run_ns", "run_delay_ns", "timeslices", "voluntary", "involuntary")


class Released(Closing):
    """Processes and cgroups that go away at the end of a block."""

    _stack: contextlib.ExitStack

    def release(self) -> None:
        """End the processes and remove their cgroups. May be called twice."""
        self._stack.close()

    close = release


class Truth(Released):
    """What a workload did. Its processes are parked until released.

    :ivar tasks: one row per process: ``role``, ``pid``, ``cpu`` (-1: free), ``cgroup``, ``cgroup_id``, ``run_ns``,
        ``run_delay_ns``, ``timeslices``, ``voluntary``, ``involuntary``; the counters are since the process began.
    :ivar cgroups: one row per cgroup of a role, and per cgroup above those that was made for it: ``role`` (the last part of
        its path), ``cgroup`` (str, path in the cgroup2 tree), ``cgroup_id`` (uint64), ``cpu_cgroup`` (str, path in the cpu
        controller's tree, the same on v2; ``/`` where its tasks compete in the root), ``quota_us`` (int64, 0: none),
        ``period_us`` (0: none), ``weight`` (as ``cpu.weight``; 0 in the root). Over the time from go to rest:
        ``nr_throttled``, ``throttled_ns`` (``cpu.stat``), ``psi_some_us`` (Int64, ``cpu.pressure``; NA where there is no
        PSI), and the sums over the processes that are directly in it, with children that have ended where their parent
        kept their account (``fork_storm``): ``run_ns``, ``run_delay_ns``, ``timeslices``, ``voluntary``, ``involuntary``.
        A process joins its cgroup asleep and before it works, so these are also sums since the cgroup was made. No rows if
        the workload has no cgroups, or was recorded before this frame was.
    :ivar results: role -> what the worker says it did (``service``: ``requests``, ``p50_ns``, ``p99_ns``, ``max_ns``).
    :ivar declared: facts that hold by construction, such as ``{"getppid_calls": 23}``; of scenarios see
        :func:`labkit.workloads.scenario`.
    :ivar notes: what could not be done as declared (no cgroups, say).
    """

    def __init__(
        self,
        name: str,
        tasks: pd.DataFrame,
        results: Mapping[str, Mapping[str, Any]],
        declared: Mapping[str, Any],
        notes: tuple[str, ...],
        stack: contextlib.ExitStack | None = None,
        *,
        cgroups: pd.DataFrame | None = None,
    ) -> None:
        self.name = name
        self.tasks = tasks
        self.results = dict(results)
        self.declared = dict(declared)
        self.notes = notes
        self.cgroups = pd.DataFrame(columns=list(_COLUMNS)).astype(_COLUMNS) if cgroups is None else cgroups
        self._stack = stack or contextlib.ExitStack()

    def __repr__(self) -> str:
        roles = ", ".join(f"{row.role} (pid {row.pid})" for row in self.tasks.itertuples())
        return f"<Truth of {self.name}: {roles}>"


def tasks_frame(workers: list[Worker], pids: list[int]) -> pd.DataFrame:
    """The frame of :attr:`Truth.tasks`."""
    tree = hierarchy()
    paths = [tree.path_of(pid) for pid in pids]
    frame = pd.DataFrame(
        {
            "role": pd.Series([worker.role for worker in workers], dtype="str"),
            "pid": pd.Series(pids, dtype="int64"),
            "cpu": pd.Series([-1 if w.cpu is None else w.cpu for w in workers], dtype="int64"),
            "cgroup": pd.Series(paths, dtype="str"),
            "cgroup_id": pd.Series([tree.id_of(p) if tree.unified else 1 for p in paths], dtype="uint64"),
        }
    )
    return frame.merge(oracles.schedstat(pids), on="pid").merge(oracles.switches(pids), on="pid")


@dataclass(frozen=True)
class Place:
    """A cgroup of the workload and the roles whose processes are directly in it."""

    name: str
    roles: tuple[str, ...]


class Books:
    """Reads the cgroups' counters at two moments, and makes the frame of :attr:`Truth.cgroups` of the difference."""

    def __init__(self, scope: Scope, places: list[Place], pids: Mapping[str, int]) -> None:
        self._scope, self._places, self._pids = scope, places, pids
        self.layout = self._layout()
        self._before = self._read()

    def _layout(self) -> pd.DataFrame:
        """Where the cgroups are, and their limits as the kernel says."""
        tree = hierarchy()
        rows = []
        for place in self._places:
            path = self._scope.path(place.name) if place.name else "/"
            # A task's own word, where there is one: a real-time task may not be in its role's cpu cgroup.
            pid = self._pids[place.roles[0]] if place.roles else None
            cpu_path = self._scope.cpu_path(place.name) if place.name else "/"
            if pid is not None and "cpu" in tree.controllers:
                cpu_path = tree.path_of(pid, "cpu")
            role = PurePosixPath(place.name).name or place.roles[0]
            rows.append((role, path, tree.id_of(path), cpu_path))
        frame = pd.DataFrame(rows, columns=list(_COLUMNS)[:4])
        self._unified = [str(tree.unified) + path for path in frame["cgroup"]]
        self._cpu = [str(tree.controllers.get("cpu", tree.unified)) + path for path in frame["cpu_cgroup"]]
        limits = oracles.cpu_limits(self._cpu).drop(columns="folder").fillna(0)
        # The root's weight is there to be read on v1, and means nothing.
        limits.loc[frame["cpu_cgroup"] == "/", :] = 0
        limits.loc[limits["quota_us"] == 0, "period_us"] = 0
        frame = pd.concat([frame, limits], axis=1)
        return frame.astype({name: _COLUMNS[name] for name in frame.columns})

    def _read(self) -> pd.DataFrame:
        pids = list(self._pids.values())
        tasks = oracles.schedstat(pids).merge(oracles.switches(pids), on="pid").set_index("pid")
        sums = [
            tasks.loc[[self._pids[role] for role in place.roles], list(_COUNTERS)].sum()
            for place in self._places
        ]
        frame = pd.DataFrame([dict(one) for one in sums], columns=list(_COUNTERS)).astype("int64")
        stat = oracles.cpu_stat(self._cpu)
        frame["nr_throttled"] = stat["nr_throttled"].fillna(0).astype("int64")
        frame["throttled_ns"] = stat["throttled_ns"].fillna(0).astype("int64")
        frame["psi_some_us"] = oracles.pressure(self._unified)["some_us"]
        return frame

    def close(self, results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
        """The frame, with what workers say of their children added.

        :param results: role -> what the worker says; ``children`` holds sums of their children's counters.
        """
        difference = self._read() - self._before
        for row, place in enumerate(self._places):
            for role in place.roles:
                for counter, value in results.get(role, {}).get("children", {}).items():
                    difference.loc[row, counter] += value
        return pd.concat([self.layout, difference], axis=1)[list(_COLUMNS)].astype(_COLUMNS)

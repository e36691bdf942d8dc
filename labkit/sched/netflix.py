"""The two metrics of "Noisy Neighbor Detection with eBPF", from its events: latency per container, and who came before.

The article (Netflix Technology Blog, September 2024) describes what its user space does with each event: the cgroup id is
looked up among the containers, and what is not found is a *system service*; for a container the latency goes into
``runq.latency`` (a percentile timer), and ``sched.switch.out`` is counted up, tagged by whether ``prev_cgroup_id`` is of
the same container, of another one, or of the system. Both are needed: latency alone also rises under one's own quota.

Kept as published, with what is wrong with it. Idle tasks are in the root cgroup, so a task woken on an idle CPU counts as
one that came after the *system*; so does one that came after a container that nobody knows yet, or no longer. A switch
counts whether the task before was put off or left of its own accord, and for one whatever the length of the wait.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

__all__ = ["CLASSES", "latency", "switch_outs"]

#: The tags of ``sched.switch.out``.
CLASSES = ("same_container", "other_container", "system")


def latency(events: pd.DataFrame, containers: Mapping[int, str]) -> pd.DataFrame:
    """``runq.latency``: percentiles of the sampled latencies of each container.

    :param events: ``prev_cgroup_id``, ``cgroup_id``, ``runq_lat`` (ns); the ring of ``bpf/netflix_noisy_neighbor.c``.
    :param containers: cgroup id -> container.
    :returns: one row per container with events: ``container`` (str), ``samples`` (int64), ``p50_ns``, ``p90_ns``,
        ``p99_ns``, ``max_ns`` (float64).
    """
    named = _named(events, containers)
    mine = named[named["container"] != ""]
    grouped = mine.groupby("container")["runq_lat"]
    quantiles = {f"p{q}_ns": grouped.quantile(q / 100) for q in (50, 90, 99)}
    frame = pd.DataFrame({"samples": grouped.size(), **quantiles, "max_ns": grouped.max()}).reset_index()
    floats = dict.fromkeys(["p50_ns", "p90_ns", "p99_ns", "max_ns"], "float64")
    return frame.astype({"container": "str", "samples": "int64", **floats})


def switch_outs(events: pd.DataFrame, containers: Mapping[int, str]) -> pd.DataFrame:
    """``sched.switch.out``: how often a container's tasks got the CPU from whom.

    :param events, containers: as :func:`latency`.
    :returns: one row per container with events, and class (:data:`CLASSES`): ``container``, ``cause`` (str), ``count``
        (int64).
    """
    named = _named(events, containers)
    mine = named[named["container"] != ""]
    prev = mine["prev"].to_numpy(dtype=object)
    same = prev == mine["container"].to_numpy(dtype=object)
    cause = np.where(prev == "", "system", np.where(same, "same_container", "other_container"))
    counted = pd.crosstab(mine["container"], pd.Categorical(cause, categories=CLASSES), dropna=False)
    whole = [(container, one, int(row[one])) for container, row in counted.iterrows() for one in CLASSES]
    return pd.DataFrame(whole, columns=["container", "cause", "count"]).astype(
        {"container": "str", "cause": "str", "count": "int64"}
    )


def _named(events: pd.DataFrame, containers: Mapping[int, str]) -> pd.DataFrame:
    """The container of each side; empty where there is none: a system service, as the article has it."""
    by_id = {np.uint64(cgroup_id): name for cgroup_id, name in containers.items()}
    return pd.DataFrame(
        {
            "container": events["cgroup_id"].map(by_id).fillna("").astype("str"),
            "prev": events["prev_cgroup_id"].map(by_id).fillna("").astype("str"),
            "runq_lat": events["runq_lat"],
        }
    )

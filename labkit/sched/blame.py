"""Who held the CPU while others waited: the matrix of victims and occupants, weighted by time."""

from __future__ import annotations

import pandas as pd

__all__ = ["labels", "matrix", "shares"]


def labels(names: pd.DataFrame) -> dict[int, str]:
    """What to call each cgroup where names must differ: its name, with its path where that alone would be ambiguous.

    :param names: ``cgroup_id``, ``cgroup``, ``name``; see :class:`labkit.sched.state.Snapshot`.
    """
    rows = list(
        zip(names["cgroup_id"].tolist(), names["name"].tolist(), names["cgroup"].tolist(), strict=True)
    )
    count: dict[str, int] = {}
    for _, name, _ in rows:
        count[name] = count.get(name, 0) + 1
    return {
        cgroup_id: name if count[name] == 1 else f"{name} ({path or f'id {cgroup_id}'})"
        for cgroup_id, name, path in rows
    }


def matrix(cells: pd.DataFrame, names: pd.DataFrame) -> pd.DataFrame:
    """Of the time each cgroup waited, how much went by while each other one held the CPU.

    :param cells: ``victim_id``, ``kind``, ``occupant_id``, ``wait_ns``.
    :param names: ``cgroup_id``, ``cgroup``, ``name``.
    :returns: ns (uint64); index ``victim``, columns ``occupant``: cgroups as :func:`labels` calls them, the victim
        itself among them, then ``(idle)``, ``(throttled)``, ``(steal)`` and ``(unknown)`` as far as they occur.
        Those who waited, and those who were waited for, most come first. Rows add up to the victim's wait exactly.
    """
    called = labels(names)

    def label(cgroup_id: int) -> str:
        return called.get(cgroup_id, f"unknown (id {cgroup_id})")

    kinds, occupants = cells["kind"].tolist(), cells["occupant_id"].tolist()
    flat = pd.DataFrame(
        {
            "victim": [label(victim) for victim in cells["victim_id"].tolist()],
            "occupant": [
                label(occupant) if kind == "cgroup" else f"({kind})"
                for kind, occupant in zip(kinds, occupants, strict=True)
            ],
            "wait_ns": cells["wait_ns"].astype("uint64"),
        }
    ).astype({"victim": "str", "occupant": "str"})
    wide = flat.pivot_table(index="victim", columns="occupant", values="wait_ns", aggfunc="sum", fill_value=0)
    wide = wide.astype("uint64")
    rows = wide.sum(axis=1).sort_values(ascending=False, kind="stable").index
    columns = wide.sum(axis=0).sort_values(ascending=False, kind="stable").index
    last = [f"({kind})" for kind in ("idle", "throttled", "steal", "unknown")]
    ordered = [name for name in columns if name not in last] + [name for name in last if name in columns]
    found: pd.DataFrame = wide.loc[rows, ordered]
    return found


def shares(cells: pd.DataFrame, names: pd.DataFrame) -> pd.DataFrame:
    """Each victim's foreign wait, by who held the CPU.

    :returns: ``victim_id``, ``occupant_id`` (uint64), ``cgroup``, ``name``, ``owner`` (str, the occupant's;
        ``unknown`` where nobody knows it), ``wait_ns``, ``preemptions`` (uint64), ``share`` (float64, of the
        victim's foreign wait, adds up to 1); by victim, the largest share first.
    """
    foreign = cells[(cells["kind"] == "cgroup") & (cells["victim_id"] != cells["occupant_id"])]
    found = foreign.merge(
        names[["cgroup_id", "cgroup", "name", "owner"]],
        left_on="occupant_id",
        right_on="cgroup_id",
        how="left",
    )
    found = found.assign(
        cgroup=found["cgroup"].fillna("").astype("str"),
        name=found["name"].fillna("unknown").astype("str"),
        owner=found["owner"].fillna("unknown").astype("str"),
    )
    total = found.groupby("victim_id")["wait_ns"].transform("sum")
    found = found.assign(share=(found["wait_ns"] / total).fillna(0.0).astype("float64"))
    found = found.sort_values(
        ["victim_id", "wait_ns", "occupant_id"], ascending=[True, False, True], ignore_index=True
    )
    columns = ["victim_id", "occupant_id", "cgroup", "name", "owner", "wait_ns", "preemptions", "share"]
    return found[columns]

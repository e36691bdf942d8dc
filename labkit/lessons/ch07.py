"""Chapter 07, whose latency: what it looks at, and its exercises."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from labkit.cgroups import Scope
from labkit.errors import SpecError
from labkit.kernel.cgroup import hierarchy
from labkit.ledger import Ledger
from labkit.lessons import (
    Context,
    Feedback,
    exercise,
    expect_choice,
    expect_number,
    explained,
    is_number,
    rehearsals,
    rehearse,
    right,
    source_of,
    wrong,
)
from labkit.lessons.programs import try_program
from labkit.names import Directory, from_path
from labkit.program import Program
from labkit.spec import parse, read
from labkit.workloads import Running, Truth, scenario

__all__ = [
    "EXAMPLES",
    "both_keys",
    "current_at_wakeups",
    "filtered_waits",
    "folders",
    "names_of",
    "short_lives",
    "timed_by_current",
]

_PROGRAM = "wakeup_cgroups"
#: The root cgroup of every tree: kernfs numbers its nodes from 1 (``fs/kernfs/dir.c``). Idle lives there, too.
ROOT_ID = 1

_HEX = "1f" * 32
_UID_REST = re.compile(r"(?<=pod[0-9a-f]{8})[-_0-9a-f]+")
#: Paths as systemd, runtimes and the kubelet make them.
EXAMPLES = (
    "/",
    "/init.scope",
    "/system.slice/nginx.service",
    "/user.slice/user-1000.slice/session-3.scope",
    f"/system.slice/docker-{_HEX}.scope",
    f"/machine.slice/libpod-{_HEX}.scope/container",
    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod8f1c2a9e_0b7d_4c57_9a3e_5d0f6b2c4e71.slice"
    f"/cri-containerd-{_HEX}.scope",
    "/batch/job-17",
)


def names_of(paths: tuple[str, ...] = EXAMPLES) -> pd.DataFrame:
    """What the paths of cgroups alone tell.

    :returns: columns ``cgroup`` (long ids cut, and long paths at their head), ``name``, ``kind``, ``owner``, ``runtime``,
        ``pod_uid`` (all str); see :class:`labkit.names.Name`.
    """
    rows = []
    for path in paths:
        name, shown = from_path(path), _UID_REST.sub("…", path.replace(_HEX, "1f1f…"))
        shown = shown if len(shown) <= 48 else f"…{shown[-47:]}"
        rows.append((shown, name.name, name.kind, name.owner, name.runtime, name.pod_uid[:8]))
    columns = ["cgroup", "name", "kind", "owner", "runtime", "pod_uid"]
    return pd.DataFrame(rows, columns=columns).astype("str")


def short_lives() -> pd.DataFrame:
    """Two cgroups that are removed again: one that a directory of names was asked for in time, one that it was not.

    :returns: columns ``asked`` (str: when), ``cgroup_id`` (uint64), ``name``, ``kind``, ``owner`` (str), ``alive`` (bool).
    :raises CgroupError: if no cgroup can be made here.
    """
    with Directory() as directory:
        with Scope(["asked_in_time"]) as scope:
            known = scope.id("asked_in_time")
            before = directory.frame([known])
        with Scope(["never_asked"]) as scope:
            missed = scope.id("never_asked")
        after = directory.frame([known, missed])
    both = pd.concat([before.assign(asked="while it lives"), after.assign(asked="when it is gone")])
    return both[["asked", "cgroup_id", "name", "kind", "owner", "alive"]].reset_index(drop=True)


def folders(truth: Truth) -> dict[str, Any]:
    """What the file system and ``/proc`` say of a workload's cgroups, asked while they exist.

    :returns: ``mode`` (of the machine's cgroups), ``inodes`` (of each task's folder, in the order of ``truth.tasks``) and
        ``proc`` (the lines of the first task's ``/proc/PID/cgroup`` that are of identity or of the cpu controller).
    """
    tree, tasks = hierarchy(), truth.tasks
    inodes = [os.stat(f"{tree.identity}{path}").st_ino for path in tasks["cgroup"]]
    lines = Path(f"/proc/{tasks['pid'].iloc[0]}/cgroup").read_text().splitlines()
    kept = [line for line in lines if line.split(":")[1] in ("", "cpu", "cpu,cpuacct")]
    return {"mode": tree.mode, "inodes": inodes, "proc": kept}


def both_keys(wakeups: pd.DataFrame, roles: Mapping[str, int]) -> pd.DataFrame:
    """Wakeups of some roles, keyed by the task that is woken, and by current.

    :param wakeups: the map of ``wakeup_cgroups``.
    :param roles: role -> cgroup id.
    :returns: indexed by role: ``by task``, ``by current`` (int64).
    """
    keys = {"by task": "woken_id", "by current": "current_id"}
    sums = {name: wakeups.groupby(key)["wakeups"].sum() for name, key in keys.items()}
    found = pd.DataFrame({name: one.reindex(list(roles.values())).fillna(0) for name, one in sums.items()})
    return found.astype("int64").set_axis(list(roles), axis=0)


def filtered_waits(
    events: Mapping[str, pd.DataFrame], own_ns: Mapping[int, int], roles: Mapping[int, str]
) -> pd.DataFrame:
    """Who waited, and what a filter on `current` shows of it (:func:`timed_by_current`).

    :param events: ``occupancy`` and ``waits`` of a run.
    :param own_ns: cgroup id -> how long it waited.
    :param roles: cgroup id -> role.
    :returns: in ms, two rows for each role (what is true, what the filter shows) and a column for whose waits (float64).
    """
    filtered = timed_by_current(events["occupancy"], events["waits"])
    rows = {}
    for cgroup_id, role in roles.items():
        rows[f"{role} really waited"] = {f"waits of {role}": own_ns[cgroup_id] / 1e6}
        asked = filtered[filtered["cgroup_id"] == cgroup_id].set_index("victim_id")["wait_ns"] / 1e6
        rows[f"runqlat -c {role}"] = {f"waits of {other}": asked.get(i, 0.0) for i, other in roles.items()}
    return pd.DataFrame(rows).T.fillna(0.0)


def current_at_wakeups(wakeups: pd.DataFrame, woken_id: int) -> pd.Series:
    """Whose task `current` was, at the wakeups of one cgroup's tasks.

    :param wakeups: the map of ``wakeup_cgroups``.
    :returns: wakeups (float64) while ``another cgroup``, ``the idle task``, ``a task of the root cgroup`` or ``itself`` was
        current.
    """
    mine = wakeups[wakeups["woken_id"] == woken_id]
    counts, idle = mine["wakeups"].astype("float64"), float(mine["while_idle"].sum())
    in_root = float(counts[mine["current_id"] == ROOT_ID].sum()) - idle
    itself = float(counts[mine["current_id"] == woken_id].sum())
    return pd.Series(
        {
            "another cgroup": float(counts.sum()) - idle - in_root - itself,
            "the idle task": idle,
            "a task of the root cgroup": in_root,
            "itself": itself,
        }
    )


def timed_by_current(occupancy: pd.DataFrame, waits: pd.DataFrame) -> pd.DataFrame:
    """The waits that a filter on `current` lets through, as bcc's ``runqlat -c`` has it, over a recorded stream of events.

    Such a tool stamps a task only if `current` is in the wanted cgroup, and takes the difference only if it is so again
    when the task gets its CPU, where `current` is the task that leaves. Taken for granted: a wakeup is told on the CPU on
    which the task then waits, which holds where all are pinned to one. A stamp that is
    passed over stays behind in such a tool, and may be taken for the beginning of a later wait; that is left out here.

    :param occupancy, waits: see :func:`labkit.sched.integral.occupancy` and :func:`~labkit.sched.integral.waits`.
    :returns: columns ``cgroup_id`` (uint64, the one that is asked for), ``victim_id`` (uint64, whose waits are shown),
        ``waits`` (int64), ``wait_ns`` (int64).
    """
    held = occupancy[["cpu", "start_ns", "occupant_id"]].sort_values("start_ns")
    held = held.assign(occupant_id=held["occupant_id"].where(occupancy["kind"] != "idle", ROOT_ID))
    seen = waits[["cpu", "victim_id", "wait_ns", "start_ns", "end_ns"]]
    for moment in ("start_ns", "end_ns"):
        # At a switch the one who leaves is still current: who had the CPU just before.
        asked = seen.assign(before_ns=seen[moment] - 1).sort_values("before_ns")
        found = pd.merge_asof(asked, held.rename(columns={"start_ns": "before_ns"}), on="before_ns", by="cpu")
        seen = found.rename(columns={"occupant_id": f"current_{moment}"}).drop(columns="before_ns")
    passed = seen[seen["current_start_ns"] == seen["current_end_ns"]].astype({"wait_ns": "int64"})
    sums = passed.groupby(["current_start_ns", "victim_id"])["wait_ns"].agg(["size", "sum"]).reset_index()
    sums.columns = pd.Index(["cgroup_id", "victim_id", "waits", "wait_ns"])
    return sums.astype({"cgroup_id": "uint64", "victim_id": "uint64", "waits": "int64", "wait_ns": "int64"})


@exercise(
    "07.1",
    question="At what share (0 to 1) of all wakeups on the machine was current in another cgroup than the woken task?",
    hints=[
        "One row of `wakeups` is a pair of cgroups, not a wakeup: its column `wakeups` says how often.",
        "The rows asked for are those with current_id != woken_id.",
        "wakeups.loc[wakeups['current_id'] != wakeups['woken_id'], 'wakeups'].sum() / wakeups['wakeups'].sum()",
    ],
)
def share_of_strangers(answer: Any, context: Context) -> Feedback:
    """Weighted by wakeups; the rest is not all right either, since idle is in the root cgroup."""
    wakeups = context["wakeups"]
    apart = wakeups["current_id"] != wakeups["woken_id"]
    truth = float(wakeups.loc[apart, "wakeups"].sum() / wakeups["wakeups"].sum())
    if is_number(answer):
        if abs(answer - (1 - truth)) < 0.001 < abs(1 - 2 * truth):
            return wrong("That is the share at which both were in the same cgroup.")
        if abs(answer - float(apart.mean())) < 0.001 < abs(float(apart.mean()) - truth):
            return wrong("That is a share of rows. A row stands for as many wakeups as its column says.")
    judged = expect_number(answer, truth, within=0.001)
    if not judged.passed:
        return judged
    return right(
        f"{judged.message} And in the rest current is seldom the waker: idle is in the root cgroup, like the "
        "kernel's threads that are woken while it runs."
    )


_WOKEN = 60  # times, in replay
_WHOSE = "At the service's wakeups `current` is the hog. Which of the two ids does your filter compare?"


@exercise(
    "07.2",
    question="Give wakeup_cgroups a parameter cgroup: it counts only wakeups of tasks in that cgroup, or all if it is 0.",
    hints=[
        "A parameter is a line of the header comment, before `maps:`; in C it is the constant LK_PARAM_CGROUP.",
        'Header: " * params:\\n *   cgroup: {type: u64, default: 0, help: \\"...\\"}\\n * maps:\\n" for " * maps:\\n".',
        "Before the ledger is looked up, so that what is passed over is not `seen`: "
        "if (LK_PARAM_CGROUP && pair.woken_id != LK_PARAM_CGROUP) return 0;",
    ],
)
def filter_by_the_task(answer: Any, context: Context) -> Feedback:
    """Live: asked for the service beside a hog, it must count the service's wakeups, all of them and no others."""
    source = source_of(answer, contains="lk_wakeup", original=read(_PROGRAM).source)
    if isinstance(source, Feedback):
        return source
    try:
        declared = parse(source, name=_PROGRAM, path=None).params
    except SpecError as error:
        return wrong(f"The header comment cannot be read any more: {error.why}")
    if "cgroup" not in declared:
        return wrong(
            "The header comment declares no parameter `cgroup`: params, with type u64 and default 0."
        )
    if declared["cgroup"].default != 0 or declared["cgroup"].ctype != "u64":
        return wrong("The parameter is a cgroup id, a u64, and 0 by default.")
    reading = ""
    if "LK_PARAM_CGROUP" not in source:
        reading = "The parameter is declared, and nothing in C asks for it: LK_PARAM_CGROUP."
    return explained(_tried(source) if context["lab"].mode == "live" else _rehearsed(source), reading)


def _rehearsed(source: str) -> Feedback:
    script = rehearsals.wakeups(service=_WOKEN, others=_WOKEN // 2)
    everybody = rehearse(_PROGRAM, source, script, _counted_all)
    if not everybody.passed:
        return everybody

    def judge(program: Program) -> Feedback:
        return judge_filter(program.frame("wakeups"), program.ledger, rehearsals.SERVICE_ID, _WOKEN)

    return rehearse(_PROGRAM, source, script, judge, cgroup=rehearsals.SERVICE_ID)


def _tried(source: str) -> Feedback:
    everybody = try_program(_PROGRAM, source, _counts_all)
    if not everybody.passed:
        return everybody
    with scenario("hog", seconds=0.6).start() as running:
        ids = dict(zip(running.layout["role"], running.layout["cgroup_id"].astype(int), strict=True))
        judge = partial(_counts_only, running=running, service_id=ids["service"])
        return try_program(_PROGRAM, source, judge, cgroup=ids["service"])


def _counts_all(program: Program) -> Feedback:
    time.sleep(0.05)  # and this process is woken
    program.stop()
    return _counted_all(program)


def _counted_all(program: Program) -> Feedback:
    if not len(program.frame("wakeups")):
        return wrong("With cgroup=0 it counts nothing: 0 was to mean every cgroup.")
    return right()


def _counts_only(program: Program, *, running: Running, service_id: int) -> Feedback:
    running.go()
    books = running.finish().cgroups.set_index("role")
    program.stop()
    slept = int(books.loc["service", "voluntary"])
    return judge_filter(program.frame("wakeups"), program.ledger, service_id, slept)


def judge_filter(wakeups: pd.DataFrame, ledger: Ledger, service_id: int, slept: int) -> Feedback:
    """What was counted when one cgroup was asked for, against how often that one's tasks slept."""
    own = wakeups["woken_id"] == service_id
    found, others = int(wakeups.loc[own, "wakeups"].sum()), int(wakeups.loc[~own, "wakeups"].sum())
    if found < slept / 2:
        return wrong(f"Asked for the service, which slept {slept} times, it counts {found} wakeups. {_WHOSE}")
    if others:
        return wrong(f"It still counts {others} wakeups of other cgroups.")
    if ledger.seen > ledger.delivered + ledger.lost:
        return wrong("What is passed over is counted as seen, and so as lost: return before `seen++`.")
    if not ledger.balanced:
        return wrong(f"The ledger does not balance: {ledger.describe()}.")
    return right(f"{found} wakeups of the service, which slept {slept} times, and of nobody else.")


@exercise(
    "07.3",
    question="Four tenths of a service's wait went by while `unknown` held the CPU. What do you report?",
    hints=[
        "What does the directory know about an id that it calls unknown?",
        "The number of ns is sound. Only the name is missing; say both.",
    ],
)
def what_unknown_means(answer: Any, context: Context) -> Feedback:
    """Unknown is no class of cgroups."""
    truth = "40 % by a cgroup that nobody could name"
    judged = expect_choice(
        answer,
        truth,
        ["40 % by the system", truth, "60 % of the wait; the rest is left out"],
        {
            "40 % by the system": "Nothing says so. A container that was started and ended between two looks is unknown, "
            "too, and often it is just the batch job that you are after.",
            "60 % of the wait; the rest is left out": "The 40 % were waited, and measured as well as the rest: "
            "without them no sum agrees with run_delay any more.",
        },
    )
    return (
        right("The time is certain, the name is not; the reader can go and look.")
        if judged.passed
        else judged
    )


@exercise(
    "07.4",
    question="Draw `keyed` as bars: for each role its wakeups by task and by current, with a legend and a labelled axis.",
    hints=[
        "`keyed` has one row per role and one column per key: a group of bars for each row.",
        "answer = keyed.plot.barh() draws both columns and makes the legend; the axis wants answer.set_xlabel(...).",
        "answer = keyed.plot.barh(); answer.set_xlabel('wakeups')",
    ],
)
def draw_both_keys(answer: Any, context: Context) -> Feedback:
    """The bars are read back from the axes."""
    if not hasattr(answer, "patches") or not hasattr(answer, "get_xlabel"):
        return wrong("The Axes is asked for: what keyed.plot.barh() returns, or plt.subplots() second.")
    keyed = context["keyed"]
    wanted = sorted(float(value) for value in keyed.to_numpy().ravel())
    lying = sorted(float(bar.get_width()) for bar in answer.patches)
    upright = sorted(float(bar.get_height()) for bar in answer.patches)
    if len(lying) != len(wanted):
        return wrong(f"There are {len(lying)} bars; two keys of {len(keyed)} roles are {len(wanted)}.")
    if wanted not in (lying, upright):
        return wrong("The bars are not as long as `keyed` says.")
    label = answer.get_xlabel() if wanted == lying else answer.get_ylabel()
    if "wakeup" not in label.casefold():
        return wrong("The axis along which the bars grow does not say what they count: wakeups.")
    if answer.get_legend() is None:
        return wrong("Which bar is which? A legend says so: answer.legend().")
    return right("By task, the sleeper is woken. By current, the hog is, which never slept.")

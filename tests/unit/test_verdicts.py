"""What the numbers mean: causes, blame, fair shares, verdicts and their sentences, on snapshots made up for it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_maker import Group as Made
from snapshot_maker import crowd, snapshot

from labkit.sched import rules
from labkit.sched.blame import labels, matrix, shares
from labkit.sched.cause import CAUSES, split
from labkit.sched.fair import Classes, Group, standing
from labkit.sched.sentence import BLIND, BLIND_QUIET
from labkit.sched.state import KINDS, SCHEMAS, Snapshot
from labkit.sched.verdict import Verdict, verdicts

MS, S = 10**6, 10**9
ROOT = Made(1, "kernel threads", owner="system", run_ns=S)


def cells(rows: list[tuple[int, str, int, int]]) -> pd.DataFrame:
    return pd.DataFrame([(*row, 0) for row in rows], columns=list(SCHEMAS["cells"])).astype(SCHEMAS["cells"])


def judged(made: Snapshot, cgroup_id: int = 10, **more: object) -> Verdict:
    return next(v for v in verdicts(made, **more) if v.cgroup_id == cgroup_id)  # type: ignore[arg-type]


def web(waited: dict[tuple[str, int], int], **more: object) -> Snapshot:
    """``web`` (id 10), beside batch (11), other (12) and the kernel's threads (1), over 10 s."""
    settings: dict[str, object] = {"waits": 1000, "run_ns": S} | more
    others = [Made(11, "batch", run_ns=6 * S), Made(12, "other", run_ns=2 * S)]
    return snapshot(ROOT, Made(10, "web", waited, **settings), *others)  # type: ignore[arg-type]


# -- causes and the matrix -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3), st.sampled_from([*KINDS, "new kind"]), st.integers(1, 3), st.integers(0, 2**60)
        ),
        max_size=30,
    )
)
def test_causes_and_matrix_rows_add_up_to_the_wait_exactly(rows: list[tuple[int, str, int, int]]) -> None:
    frame = cells([(v, kind, o if kind == "cgroup" else 0, min(ns, 2**58)) for v, kind, o, ns in rows])
    waited = frame.groupby("victim_id")["wait_ns"].sum()
    parts = split(frame).set_index("victim_id")
    assert parts["wait_ns"].to_dict() == waited.to_dict()
    assert parts[list(CAUSES)].sum(axis=1).to_dict() == waited.to_dict()
    if rows:
        names = snapshot(*(Made(n, f"n{n}") for n in (1, 2, 3))).names
        wide = matrix(frame, names).sum(axis=1)
        assert {int(name[1:]): int(ns) for name, ns in wide.items()} == waited.to_dict()


def test_own_tasks_are_self_others_foreign_and_what_is_new_unknown() -> None:
    found = split(
        cells([(10, "cgroup", 10, 1), (10, "cgroup", 1, 2), (10, "idle", 0, 4), (10, "gremlin", 0, 8)])
    ).iloc[0]
    assert (found["self"], found["foreign"], found["idle"], found["unknown"]) == (1, 2, 4, 8)


def test_cgroups_of_one_name_stay_apart_in_the_matrix() -> None:
    made = snapshot(Made(2, "web", {("cgroup", 3): 5}), Made(3, "web", {("idle", 0): 7}))
    names = made.names.assign(cgroup=["/a/web", "/b/web"])
    assert labels(names) == {2: "web (/a/web)", 3: "web (/b/web)"}
    wide = matrix(made.cells, names)
    assert wide.loc["web (/a/web)", "web (/b/web)"] == 5
    assert wide.loc["web (/b/web)", "(idle)"] == 7
    assert list(wide.columns)[-1] == "(idle)"


def test_shares_are_of_the_foreign_wait_and_nobody_is_called_system_for_being_unknown() -> None:
    made = web({("cgroup", 11): 3 * S, ("cgroup", 99): S, ("cgroup", 10): 5 * S, ("throttled", 0): S})
    found = shares(made.cells, made.names)
    assert found["share"].tolist() == [0.75, 0.25]
    assert found["owner"].tolist() == ["workload", "unknown"]
    assert found["name"].tolist() == ["batch", "unknown"]


# -- fair shares ---------------------------------------------------------------------------------------------------


def test_equal_groups_that_share_evenly_are_within_their_share_and_a_hog_of_the_cpu_is_not() -> None:
    groups = ([Group("/web")], [Group("/batch")])
    even = standing(behind_ns=1, ahead_ns=1, waiting=1, occupant_waiting=1, groups=groups)
    assert (even.held, even.entitled, even.within, even.exceeded) == (0.5, 0.5, True, False)
    greedy = standing(behind_ns=9, ahead_ns=1, waiting=1, occupant_waiting=1, groups=groups)
    assert (greedy.held, greedy.within, greedy.exceeded) == (0.9, False, True)


def test_siblings_compete_where_their_paths_part() -> None:
    ours = [Group("/shop", 300), Group("/shop/web", 10)]
    sibling, stranger = [Group("/shop", 300), Group("/shop/db", 30)], [Group("/batch", 100)]
    ask = {"behind_ns": 1.0, "ahead_ns": 1.0, "waiting": 1.0, "occupant_waiting": 1.0}
    assert standing(groups=(ours, sibling), **ask).entitled == 0.75  # 30 beside 10
    assert standing(groups=(ours, stranger), **ask).entitled == 0.25  # 100 beside 300


def test_several_waiting_tasks_do_not_count_the_occupants_time_twice() -> None:
    # two tasks of one group beside a hog of equal weight: the group has half of the CPU, each of its tasks a quarter
    groups = ([Group("/web")], [Group("/hog")])
    found = standing(behind_ns=2 * S, ahead_ns=S, waiting=2.0, occupant_waiting=1, groups=groups)
    assert found.held == 0.5
    seen_by_the_hog = standing(behind_ns=S, ahead_ns=2 * S, waiting=1, occupant_waiting=2.0, groups=groups)
    assert seen_by_the_hog.held == 0.5


def contest(
    victim_cells: dict[tuple[str, int], int],
    batch_cells: dict[tuple[str, int], int],
    *,
    run_ns: int,
    batch: int = S,
) -> Verdict:
    """``web`` (weight 100) and ``batch`` (weight 10), with what each waited for and how long each ran."""
    table = weights().replace({"weight": {100.0: 10.0}})
    table.loc[table["group"] == "/web", "weight"] = 100.0
    made = snapshot(
        ROOT,
        Made(10, "web", victim_cells, waits=1000, run_ns=run_ns),
        Made(11, "batch", batch_cells, waits=50, run_ns=batch),
    )
    return judged(made, weights=table)


def test_a_share_is_of_the_time_in_which_both_wanted_the_cpu_not_of_all_the_time_the_victim_ran() -> None:
    # A victim that runs for 5 s, nearly always alone, waits for 1 s behind batch, which waits for 20 ms behind it.
    found = contest({("cgroup", 11): S}, {("cgroup", 10): 20 * MS}, run_ns=5 * S)
    one = found.blame[0].standing
    assert one.held == pytest.approx(1 / 1.02)
    assert one.entitled == pytest.approx(10 / 110)
    assert one.exceeded
    assert "batch had the CPU 98 % of the time, although its weight gives it 9 %" in found.sentence
    assert "over all the time" not in found.sentence  # it used 10 % of a CPU, more than it was due


def test_two_tasks_that_wait_at_once_count_the_same_time_once() -> None:
    """Two spinning tasks of web beside one of batch, of equal weight: each cgroup has half of the CPU, by both accounts."""
    made = snapshot(
        Made(10, "web", {("cgroup", 11): 10 * S, ("cgroup", 10): 5 * S}, waits=1000, run_ns=5 * S),
        Made(11, "batch", {("cgroup", 10): 5 * S}, waits=500, run_ns=5 * S),
    )
    for cgroup_id in (10, 11):
        one = judged(made, cgroup_id, weights=weights()).blame[0].standing
        assert (one.held, one.entitled, one.within) == (0.5, 0.5, True)


def test_what_the_victim_does_on_another_cpu_is_no_part_of_the_contest() -> None:
    # On CPU 0 the two share evenly for 10 s; on CPU 1 the victim runs alone, for as long, or not at all.
    for alone_ns in (0, 10 * S):
        found = contest({("cgroup", 11): 5 * S}, {("cgroup", 10): 5 * S}, run_ns=5 * S + alone_ns)
        assert found.blame[0].standing.held == 0.5


def test_a_bursty_occupant_is_told_from_a_hog() -> None:
    """The scheduler lets in who slept: a small part of the CPU, and all of it whenever both want it."""
    table = weights()
    made = snapshot(
        Made(10, "web", {("cgroup", 11): S}, waits=1000, run_ns=8 * S),
        Made(11, "burst", {("cgroup", 10): S // 9}, waits=80, run_ns=S),
    )
    found = judged(made, weights=table)
    assert found.blame[0].standing.held == pytest.approx(0.9)
    assert (
        "burst had the CPU 90 % of the time, although its weight gives it 50 % (in short bursts: over all the time it "
        "used 10 % of one CPU)" in found.sentence
    )


def test_tasks_without_groups_compete_each_for_itself_by_nice_and_class() -> None:
    ask = {"behind_ns": 1.0, "ahead_ns": 1.0}
    one = ask | {"waiting": 1.0, "occupant_waiting": 1.0}
    nice = {"victim": Classes(1), "occupant": Classes(1, nice=19)}
    due = standing(groups=([], []), classes=nice, **one).entitled
    assert due == pytest.approx(15 / (1024 + 15), rel=0.05)  # weights of nice 0 and 19 in kernel/sched/core.c
    idle = standing(groups=([], []), classes={"occupant": Classes(2, idle=2)}, **one)
    assert idle.entitled == pytest.approx(3 / 1027, rel=0.01)
    # Two tasks beside three, all alike: of five slices the three have three. While one of theirs runs, two of ours wait;
    # while one of ours runs, three of theirs do.
    five = standing(behind_ns=2 * 3, ahead_ns=3 * 2, waiting=2, occupant_waiting=3, groups=([], []))
    assert (five.held, five.entitled) == (0.6, 0.6)
    realtime = standing(groups=([], []), classes={"occupant": Classes(1, realtime=1)}, **one)
    assert (realtime.by, realtime.entitled, realtime.exceeded) == ("realtime", None, False)


# -- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waited", "verdict", "blamed"),
    [
        ({("cgroup", 11): 3 * S, ("cgroup", 1): S // 10}, "noisy_neighbor", ["batch", "kernel threads"]),
        ({("cgroup", 99): 3 * S}, "noisy_neighbor", ["unknown"]),
        ({("cgroup", 1): 3 * S}, "system", ["kernel threads"]),
        ({("steal", 0): 3 * S}, "system", []),
        ({("cgroup", 10): 3 * S, ("cgroup", 11): S // 10}, "self_contended", []),
        ({("throttled", 0): 3 * S, ("cgroup", 11): S // 10}, "throttled", []),
        ({("throttled", 0): 3 * S, ("cgroup", 11): 2 * S}, "mixed", ["batch"]),
        ({("throttled", 0): 3 * S, ("cgroup", 10): 2 * S}, "mixed", []),
        ({("unknown", 0): 3 * S, ("cgroup", 11): S}, "mixed", ["batch"]),
        ({("idle", 0): 3 * S}, "quiet", []),
        ({("cgroup", 11): 5 * MS}, "quiet", []),
        ({}, "quiet", []),
    ],
)
def test_the_verdict_names_who_is_at_fault_and_nobody_else(
    waited: dict[tuple[str, int], int], verdict: str, blamed: list[str]
) -> None:
    found = judged(web(waited))
    assert (found.verdict, [one.name for one in found.blame]) == (verdict, blamed)


def test_short_waits_are_quiet_as_on_any_host_and_long_ones_with_the_same_sum_are_not() -> None:
    waited = {("cgroup", 11): 300 * MS}
    short = web(waited, run_ns=4 * S, buckets={(30_000, 32_000): 9_000})
    assert judged(short).verdict == "quiet"
    long = web(waited, run_ns=4 * S, buckets={(3 * MS, 4 * MS): 90})
    assert judged(long).verdict == "noisy_neighbor"
    assert (
        judged(web(waited, run_ns=100 * S, buckets={(3 * MS, 4 * MS): 90})).verdict == "quiet"
    )  # 0.3 % slower


def test_the_quota_that_bit_is_named_with_what_would_be_enough() -> None:
    quotas = pd.DataFrame(
        {
            "cgroup_id": [10, 10],
            "holder": ["/web", "/pod"],
            "quota_ns": [80 * MS, 20 * MS],
            "period_ns": [100 * MS] * 2,
            "throttled_ns": [0, 8 * S],
            "throttled_periods": [0, 100],
            "setting": ["cpu.max"] * 2,
        }
    )
    found = judged(web({("throttled", 0): 8 * S}, run_ns=2 * S), quotas=quotas)
    assert found.quota is not None
    assert (found.quota.holder, found.quota.quota_ns, found.quota.needed_ns) == ("/pod", 20 * MS, 100 * MS)
    assert found.quota.enough_ns == 200 * MS
    assert "the quota of /pod, 20 ms of CPU time in every 100 ms" in found.sentence
    assert (
        'about cpu.max "100000 100000" there would have been enough on average, "200000 100000" for sure'
        in found.sentence
    )
    alone = judged(web({("throttled", 0): 8 * S}, run_ns=2 * S), quotas=quotas, cpus=1)
    assert 'cpu.max "100000 100000" there would be enough for sure' in alone.sentence
    assert "No neighbour is at fault" in found.sentence
    without = judged(web({("throttled", 0): 8 * S}, run_ns=2 * S))
    assert "a CPU quota that could not be read" in without.sentence


def weights(**more: float) -> pd.DataFrame:
    rows = [(10, 0, "/", np.nan), (11, 0, "/", np.nan), (10, 1, "/web", 100.0), (11, 1, "/batch", 100.0)]
    frame = pd.DataFrame(rows, columns=["cgroup_id", "depth", "group", "weight"]).assign(idle=False)
    return frame.replace({"weight": {100.0: more["both"]}}) if more else frame


def test_the_sentence_says_whether_the_occupant_stayed_within_its_share() -> None:
    def beside(behind_ns: int, ahead_ns: int) -> Snapshot:
        ours = Made(10, "web", {("cgroup", 11): behind_ns}, waits=1000, run_ns=S)
        return snapshot(
            ROOT, ours, Made(11, "batch", {("cgroup", 10): ahead_ns}, run_ns=9 * S), Made(12, "other")
        )

    even = judged(beside(S, S), weights=weights())
    assert (
        "batch had the CPU 50 % of the time, and its weight gives it 50 %: it stayed within its share"
        in even.sentence
    )
    greedy = judged(beside(9 * S, S), weights=weights())
    assert "batch had the CPU 90 % of the time, although its weight gives it 50 %" in greedy.sentence
    realtime = pd.DataFrame({"cgroup_id": [11], "tasks": [1], "realtime": [1], "idle": [0], "nice": [0]})
    fifo = judged(web({("cgroup", 11): 9 * S}), weights=weights(), classes=realtime)
    assert "batch has real-time tasks, which go before all others" in fifo.sentence
    nothing = judged(web({("cgroup", 11): 9 * S}))
    assert "weight" not in nothing.sentence


def test_each_verdict_says_what_it_cannot_see_and_is_one_line_whatever_the_names_hold() -> None:
    hostile = "evil\x1b[2J\u202e\n" + "x" * 300
    for waited in ({("cgroup", 11): 3 * S}, {}, {("cgroup", 11): 3 * S, ("throttled", 0): 3 * S}):
        made = web(waited)  # type: ignore[arg-type]
        found = judged(
            Snapshot(**(vars(made) | {"names": made.names.assign(name=hostile, cgroup="/" + hostile)}))
        )
        assert found.sentence.isprintable()
        assert len(found.sentence) < 1000
        assert found.sentence.endswith(BLIND if waited else BLIND_QUIET)


def test_confidence_falls_with_loss_with_what_is_unknown_with_few_waits_and_with_disagreement() -> None:
    clear = judged(web({("cgroup", 11): 3 * S}))
    assert clear.confidence > 0.95
    assert clear.doubts == ()
    few = judged(web({("cgroup", 11): 3 * S}, waits=3))
    lossy = judged(
        snapshot(Made(10, "web", {("cgroup", 11): 3 * S}, waits=1000), Made(11, "batch"), lost=900)
    )
    unclear = judged(web({("cgroup", 11): 3 * S, ("unknown", 0): 2 * S}))
    oracle = pd.DataFrame({"cgroup_id": [10], "run_delay_ns": [6 * S], "timeslices": [1000]})
    apart = judged(web({("cgroup", 11): 3 * S}), oracles=oracle)
    for doubted, word in [
        (few, "only 3 waits"),
        (lossy, "lost"),
        (unclear, "not known"),
        (apart, "run_delay"),
    ]:
        assert doubted.confidence < 0.7, word
        assert any(word in doubt for doubt in doubted.doubts), word
    gone = judged(
        web({("cgroup", 11): 3 * S}), oracles=oracle.assign(timeslices=100)
    )  # most of its tasks ended
    came = judged(
        web({("cgroup", 11): 3 * S}), oracles=oracle.assign(timeslices=5000)
    )  # with counters of before
    assert gone.confidence == came.confidence == clear.confidence


def test_a_share_is_only_judged_where_the_weights_of_both_could_be_read() -> None:
    known = weights()
    assert judged(web({("cgroup", 11): 9 * S}), weights=known).blame[0].standing.exceeded
    for missing in (10, 11):
        partly = judged(web({("cgroup", 11): 9 * S}), weights=known[known["cgroup_id"] != missing])
        assert partly.blame[0].standing.entitled is None
        assert "weight" not in partly.sentence


def test_rare_long_stalls_are_not_hidden_by_many_short_waits() -> None:
    """1,000 wakeups of 30 us a second, and one stall of 100 ms: the p99 is 30 us, and the stall is three quarters of it."""
    buckets = {(28672, 30720): 10_000, (96_468_992, 104_857_600): 10}
    stalls = web(
        {("cgroup", 11): S, ("idle", 0): 10_000 * 30_000}, waits=10_010, run_ns=5 * S, buckets=buckets
    )
    found = judged(stalls)
    assert found.p99_ns < 31_000
    assert (found.verdict, found.blame[0].name) == ("noisy_neighbor", "batch")
    assert found.confidence > 0.9
    short = web({("cgroup", 11): S}, waits=33_000, run_ns=8 * S, buckets={(28672, 30720): 33_000})
    assert judged(short).verdict == "quiet"  # as much time, in short pieces, and below 20 %


def test_an_idle_cpu_that_is_slow_to_wake_up_is_nobodys_fault_and_no_peace_either() -> None:
    slow = web({("idle", 0): 5 * S}, waits=100, run_ns=S, buckets={(48 << 20, 52 << 20): 100})
    found = judged(slow)
    assert found.verdict == "quiet"
    assert found.confidence <= 0.6
    assert "slow to wake up" in found.sentence
    assert any("slow to wake up" in doubt for doubt in found.doubts)
    usual = web({("idle", 0): S // 2}, waits=10_000, run_ns=S, buckets={(48 << 10, 52 << 10): 10_000})
    assert "slow to wake up" not in judged(usual).sentence
    assert judged(usual).confidence > 0.9


def test_tasks_of_the_root_that_wait_for_each_other_wait_for_the_system() -> None:
    made = snapshot(
        Made(1, "kernel threads", {("cgroup", 1): S}, waits=1000, owner="system", run_ns=S // 10),
        Made(10, "web", {("cgroup", 10): S}, waits=1000, run_ns=S // 10),
    )
    made = Snapshot(**(vars(made) | {"names": made.names.assign(cgroup=["/", "/web"])}))
    root = judged(made, 1)
    assert (root.verdict, root.authors["self"], root.blame) == ("system", 0, ())
    assert "all of it for tasks of its own" in root.sentence
    beside = snapshot(Made(1, "/", {("cgroup", 1): S, ("cgroup", 10): S // 50}, waits=1000), Made(10, "web"))
    beside = Snapshot(**(vars(beside) | {"names": beside.names.assign(cgroup=["/", "/web"])}))
    assert (judged(beside, 1).verdict, judged(beside, 1).blame) == ("system", ())
    both = snapshot(
        Made(1, "/", {("cgroup", 1): S // 2, ("cgroup", 10): S}, waits=1000, owner="system", run_ns=S // 10),
        Made(10, "web", run_ns=S),
    )
    both = Snapshot(**(vars(both) | {"names": both.names.assign(cgroup=["/", "/web"])}))
    assert judged(both, 1).verdict == "mixed"
    assert "100 ms while web held the CPU; 50 ms for other tasks of its own" in judged(both, 1).sentence
    little = Snapshot(**(vars(both) | {"cells": both.cells.assign(wait_ns=[S // 10, S])}))
    assert "while web held that CPU" in judged(little, 1).sentence
    own = judged(made)
    assert own.verdict == "self_contended"
    assert "wanted 0.1 CPUs at once on average and had under 0.1 CPUs" in own.sentence


def test_what_was_seen_beyond_the_ledger_never_makes_surer() -> None:
    made = web({("cgroup", 11): 3 * S})
    less = Snapshot(**(vars(made) | {"ledger": replace(made.ledger, unseen=-50)}))
    none = Snapshot(**(vars(made) | {"ledger": replace(made.ledger, unseen=0)}))
    assert judged(less).confidence == judged(none).confidence <= 1.0


def test_close_calls_are_less_sure() -> None:
    share = rules.MIXED_SHARE
    close = judged(web({("cgroup", 11): 4 * S, ("cgroup", 10): int(4 * S * share / (1 - share)) - MS}))
    far = judged(web({("cgroup", 11): 4 * S, ("cgroup", 10): MS}))
    assert close.verdict == far.verdict == "noisy_neighbor"
    assert close.confidence < 0.6 < far.confidence


def test_only_asks_for_some_and_those_never_seen_never_waited() -> None:
    made = web({("cgroup", 11): 3 * S})
    found = verdicts(made, only=[10, 4711])
    assert [v.cgroup_id for v in found] == [10, 4711]
    assert (found[1].verdict, found[1].wait_ns) == ("quiet", 0)
    assert "never waited for a CPU" in found[1].sentence


def test_a_crowd_is_judged_whole() -> None:
    made = crowd(300)
    found = verdicts(made)
    assert len(found) == 300
    assert sum(v.wait_ns for v in found) == int(made.cgroups["wait_ns"].sum())
    assert [v.wait_ns for v in found] == sorted((v.wait_ns for v in found), reverse=True)

"""The answer of `labkit noisy`: its JSON form, its oracles, whom it is about, and what it shows to people."""

import io
import json
from dataclasses import replace

import pandas as pd
import pytest
from answer_maker import MS, S, made, proof, recording
from rich.console import Console
from snapshot_maker import Group as Made
from snapshot_maker import crowd, snapshot

from labkit.errors import NoSuchCgroup, ParameterError
from labkit.noisy import command, witnesses
from labkit.noisy.answer import Answer
from labkit.noisy.columns import bar
from labkit.noisy.command import noisy_command
from labkit.noisy.screen import render
from labkit.noisy.select import Selection
from labkit.noisy.witnesses import Evidence
from labkit.sched.cause import CAUSES
from labkit.sched.state import Cost


def as_text(answer: Answer, width: int, **more: object) -> str:
    console = Console(file=io.StringIO(), width=width, height=50, highlight=False)
    console.print(render(answer, console, **more))  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# -- the JSON form -------------------------------------------------------------------------------------------------


def test_the_answer_has_exactly_the_fields_that_were_promised() -> None:
    found = recording().answer().as_dict()
    assert list(found) == ["mode", "kernel", "seconds", "cgroups", "ledger", "cost"]
    assert list(found["cost"]) == ["ns_per_switch", "cpu_share"]
    assert [one["name"] for one in found["cgroups"]] == ["shop/web", "shop/db", "batch", "kernel threads"]
    for one in found["cgroups"]:
        assert list(one) == [
            "cgroup",
            "name",
            "verdict",
            "confidence",
            "sentence",
            "blame",
            "wait_ns",
            "wait_by_cause",
            "p50_ns",
            "p99_ns",
            "involuntary_switches",
            "residual",
        ]
        assert list(one["wait_by_cause"]) == list(CAUSES)
        assert sum(one["wait_by_cause"].values()) == one["wait_ns"]
    web = found["cgroups"][0]
    assert web["verdict"] == "noisy_neighbor"
    assert web["blame"] == [{"cgroup": "/batch", "name": "batch", "share": 1.0}]


def test_json_is_ascii_on_one_line_whatever_names_hold() -> None:
    bad = made()
    bad = replace(
        bad, names=bad.names.assign(name="a\x1b[31m\u202e\n\ud800".encode("utf-8", "replace").decode())
    )
    text = Answer.from_snapshot(bad).as_json()
    assert text.isascii()
    assert text.isprintable()
    assert len(json.loads(text)["cgroups"]) == 4


def test_every_answer_stands_beside_the_kernels_own_counters() -> None:
    found = {one["name"]: one["residual"] for one in recording().answer().as_dict()["cgroups"]}
    web, db = found["shop/web"], found["shop/db"]
    assert web["run_delay"] == {
        "oracle_ns": 3101 * MS,
        "residual_ns": 0,
        "residual_share": 0.0,
        "tasks": 1,
        "verifiable_share": 1.0,
    }
    assert web["involuntary_switches"] == {"oracle": 40, "residual": -40}
    assert web["voluntary_switches"] == {"oracle": 860, "residual": 40}  # 900 waits, none left involuntarily
    assert web["throttled"] is None
    assert web["pressure"] == {"some_ns": 2900 * MS, "waits_ns": 3101 * MS, "holds": True}
    assert db["throttled"]["residual_ns"] == 0
    assert db["pressure"]["holds"] is False  # "some" is more than all waits together: that cannot be
    assert db["throttled"]["comparable"] is True
    assert found["kernel threads"] == dict.fromkeys(
        (
            "run_delay",
            "involuntary_switches",
            "voluntary_switches",
            "throttled",
            "pressure",
            "stamps",
            "requests",
        )
    )


def test_what_left_with_tasks_that_ended_is_not_called_disagreement() -> None:
    one = recording()
    web = int(one.snapshot.names.set_index("name").loc["shop/web", "cgroup_id"])
    oracles = one.evidence.oracles[one.evidence.oracles["cgroup_id"] == web]
    # 900 waits; those who are left have 873 of them, and 81 % of the wait
    short = oracles.assign(timeslices=873, run_delay_ns=2500 * MS)
    answer = replace(one, evidence=replace(one.evidence, oracles=short)).answer()
    said = " ".join(as_text(answer, 200).split())
    assert "not compared: 1 cgroup where the tasks still alive account for 97 % of the waits" in said
    assert "apart by" not in said
    assert "run_delay says" not in said
    # All are left, and their sum is another: that is disagreement.
    answer = replace(one, evidence=replace(one.evidence, oracles=short.assign(timeslices=899))).answer()
    said = " ".join(as_text(answer, 200).split())
    assert "apart by 24.04 %" in said
    assert "run_delay says 19% otherwise" in said
    assert "not compared" not in said


def test_a_task_put_off_that_has_not_come_back_is_no_negative_leave() -> None:
    one = recording()
    web = int(one.snapshot.names.set_index("name").loc["shop/web", "cgroup_id"])
    cgroups = one.snapshot.cgroups.copy()
    cgroups.loc[cgroups["cgroup_id"] == web, "involuntary_switches"] = 901  # of 900 switch-ins
    oracles = one.evidence.oracles.assign(voluntary=0)
    answer = replace(
        one, snapshot=replace(one.snapshot, cgroups=cgroups), evidence=replace(one.evidence, oracles=oracles)
    ).answer()
    assert answer.residuals[web]["voluntary_switches"] == {"oracle": 0, "residual": 0}


def test_stamps_of_another_clock_stand_beside_the_answer_that_has_them() -> None:
    one = recording()
    web = int(one.snapshot.names.set_index("name").loc["shop/web", "cgroup_id"])
    # What ended in that part lies between two bounds: what is read before and after the stamps are attached differs.
    for stamped_ns, apart in ((500, 5), (505, 0), (512, 0), (600, -80)):
        stamped = pd.DataFrame([(web, 9, 505, 520, stamped_ns)], columns=list(witnesses.SCHEMAS["stamps"]))
        stamped = stamped.astype(witnesses.SCHEMAS["stamps"])
        answer = replace(one, evidence=replace(one.evidence, stamps=stamped)).answer()
        assert answer.residuals[web]["stamps"] == {
            "oracle_ns": stamped_ns,
            "residual_ns": apart,
            "residual_share": round(apart / stamped_ns, 6),
            "measured_ns": 505,
            "most_ns": 520,
            "waits": 9,
        }
        assert "stamps of another clock" in " ".join(as_text(answer, 80).split())


def test_a_scenarios_victim_is_held_against_its_own_clock() -> None:
    one = recording()
    ids = one.snapshot.names.set_index("name")["cgroup_id"]
    said = pd.DataFrame(
        [(int(ids["shop/web"]), 100, 3000 * MS)], columns=list(witnesses.SCHEMAS["requests"])
    ).astype(witnesses.SCHEMAS["requests"])
    found = replace(one, evidence=replace(one.evidence, requests=said)).answer().residuals
    requests = found[int(ids["shop/web"])]["requests"]
    assert (requests["oracle_ns"], requests["residual_ns"]) == (3000 * MS, 101 * MS)
    assert (requests["requests"], requests["comparable"]) == (100, True)
    assert found[int(ids["shop/db"])]["requests"] is None


def test_wall_time_of_several_tasks_is_marked_as_not_comparable() -> None:
    one = proof()
    several = replace(one, oracles=one.oracles.assign(tasks=3))
    found = Answer.from_snapshot(made(), evidence=several).residuals
    assert found[12]["throttled"]["comparable"] is False


def test_the_answer_says_by_which_rules_and_what_it_cost_also_where_the_kernel_does_not_tell() -> None:
    answer = recording().answer()
    assert answer.as_dict()["ledger"]["notes"] == ["throttled time: by task_struct.throttled"]
    assert "rules: throttled time: by task_struct.throttled" in " ".join(as_text(answer, 80).split())
    silent = replace(made(), cost=Cost(switches=1000, kernel_ns=None, user_ns=200_000_000, cpus=2))
    found = Answer.from_snapshot(silent)
    assert found.as_dict()["cost"] == {"ns_per_switch": None, "cpu_share": 0.01}
    assert "1.00 % of the CPUs in this process" in " ".join(as_text(found, 80).split())


def test_pressure_counts_what_lies_below_a_cgroup() -> None:
    snap = snapshot(
        Made(5, "pod", {("idle", 0): 2}),
        Made(6, "pod/a", {("idle", 0): 3}),
        Made(7, "podium", {("idle", 0): 5}),
    )
    proof = Evidence(
        **{name: getattr(Evidence.none(), name) for name in ("quotas", "weights", "classes")},
        oracles=pd.DataFrame([(5, 1, 2, 1, 0, 5, -1, -1)], columns=list(witnesses.SCHEMAS["oracles"])),
    )
    found = Answer.from_snapshot(snap, evidence=proof)
    assert found.residuals[5]["pressure"]["waits_ns"] == 5


# -- what was asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (Selection(globs=("/shop",)), ["shop/web", "shop/db"]),
        (Selection(globs=("shop/*",)), ["shop/web", "shop/db"]),
        (Selection(globs=("/*/web",)), ["shop/web"]),
        (Selection(globs=("/batch", "/shop/db")), ["shop/db", "batch"]),
        (Selection(containers=("db",)), ["shop/db"]),
        (Selection(pods=("shop/db-0",)), ["shop/db"]),
        (Selection(containers=("db",), globs=("/batch",)), ["shop/db", "batch"]),
        (Selection(min_wait_ms=150), ["shop/web", "shop/db"]),
        (Selection(globs=("/batch",), min_wait_ms=150), []),
        (Selection(globs=("/kernel threads",)), ["kernel threads"]),
    ],
    ids=str,
)
def test_only_those_asked_for_are_in_the_answer(selection: Selection, names: list[str]) -> None:
    assert [one.name for one in recording(selection).answer().verdicts] == names


@pytest.mark.parametrize(
    ("selection", "near"),
    [
        (Selection(globs=("/bach",)), ["/batch"]),
        (Selection(globs=("/nothing/*",)), []),
        (Selection(containers=("dbb",)), ["db"]),
        (Selection(pods=("shop/db-1",)), ["shop/db-0"]),
        (Selection(globs=("/batch",), containers=("nobody",)), []),
        (Selection(globs=("\x1b[2J",)), []),
    ],
    ids=str,
)
def test_what_is_not_there_is_an_error_that_says_what_comes_near(
    selection: Selection, near: list[str]
) -> None:
    with pytest.raises(NoSuchCgroup) as error:
        recording(selection).answer()
    assert error.value.nearest == near
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("crowded", "cpu_s", "tended"), [(False, 0.0, 10), (True, 0.0, 37), (False, 0.04, 2)]
)
def test_tables_are_tended_while_it_measures_sooner_if_they_fill_up_and_not_at_any_cost(
    monkeypatch: pytest.MonkeyPatch, crowded: bool, cpu_s: float, tended: int
) -> None:
    """Ten seconds: each second; four times a second in a crowd; 40 ms of CPU each time are paid for with 5 s of rest."""

    class Clock:
        now = spent = 0.0

        def monotonic(self) -> float:
            return self.now

        def process_time(self) -> float:
            return self.spent

        def sleep(self, seconds: float) -> None:
            self.now += max(seconds, 0.001)

    class Tended:
        times = 0

        def tend(self) -> bool:
            self.times += 1
            clock.spent += cpu_s
            return crowded

    clock, watch = Clock(), Tended()
    monkeypatch.setattr(command, "time", clock)
    command._Session(watch, Selection(), (), None)._rest(10.0)  # type: ignore[arg-type]
    assert abs(watch.times - tended) <= 1


@pytest.mark.parametrize("pod", ["web", "a/b/c", "/web", "shop/", ""])
def test_a_pod_is_named_with_its_namespace(pod: str) -> None:
    with pytest.raises(ParameterError, match="NAMESPACE/NAME"):
        Selection(pods=(pod,))


@pytest.mark.parametrize("least", [-1.0, float("nan"), float("inf")])
def test_a_shortest_wait_is_a_time(least: float) -> None:
    with pytest.raises(ParameterError):
        Selection(min_wait_ms=least)


@pytest.mark.parametrize("seconds", [0.0, -3.0, float("nan"), float("inf")])
def test_no_time_to_measure_is_an_error_before_anything_is_loaded(seconds: float) -> None:
    with pytest.raises(ParameterError, match="nothing to measure"):
        noisy_command(seconds=seconds)


# -- for people ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 140, 200])
def test_the_table_fits_its_width_and_tells_the_story(width: int) -> None:
    text = as_text(recording().answer(), width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("noisy_neighbor", "throttled", "because of") if width >= 80 else ():
        assert word in text
    assert "shop/web waited 310 ms per second for a CPU" in " ".join(text.split())
    assert "held against run_delay in /proc" in " ".join(text.split())


def test_names_cannot_move_the_cursor_nor_be_markup() -> None:
    bad = made()
    bad = replace(bad, names=bad.names.assign(name="[red]x\x1b[2J\n"))
    text = as_text(Answer.from_snapshot(bad), 200)
    assert "\x1b" not in text
    assert r"[red]x\x1b[2J\n" in text


def test_rows_that_do_not_fit_are_counted() -> None:
    answer = Answer.from_snapshot(crowd(50))
    assert "and 30 more that waited less" in as_text(answer, 80, rows=20)
    assert "Nobody waited that long." in as_text(
        Answer.from_snapshot(crowd(5), selection=Selection(min_wait_ms=1e9)), 80
    )


@pytest.mark.parametrize("many", [1, 3, 4, 5, 50])
@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_live_table_fits_its_screen_and_keeps_what_an_answer_needs(many: int, width: int) -> None:
    loud = Answer.from_snapshot(
        snapshot(
            *(
                Made(10 + n, f"pod-{n}", {("cgroup", 11 + n): 3 * S + n, ("throttled", 0): 3 * S}, waits=900)
                for n in range(many)
            ),
            Made(10 + many, "batch"),
        ),
        evidence=proof(),
    )
    for height in range(16, 45):
        lines = as_text(loud, width, rows=20, live=True, height=height).splitlines()
        assert len(lines) <= height
        text = " ".join(" ".join(lines).split())
        for words in ("pod-", "seen", "measuring cost", "Ctrl-C ends it", "per second for a CPU"):
            assert words in text, (height, words)
        rows = sum(" mixed " in line for line in lines)
        assert ("more that waited less" in text) == (rows < many + 1 and f"and {many + 1 - rows}" in text)
        if height >= 24:
            assert rows >= min(many, 3)
            assert "held against run_delay" in text
    assert len(as_text(loud, 80, rows=20, live=True, height=8).splitlines()) <= 8


def test_a_bar_is_as_wide_as_asked_and_shows_each_cause_that_matters() -> None:
    web = next(v for v in recording().answer().verdicts if v.name == "shop/web")
    assert bar(web, 10).plain == "█████████▓"
    assert bar(web, 10, shapes=False).plain == "FFFFFFFFFS"
    for verdict in Answer.from_snapshot(crowd(40)).verdicts:
        for width in (1, 3, 10, 24):
            assert len(bar(verdict, width).plain) == width

"""The answer of `labkit noisy`: its JSON form, its oracles, what it shows to people, recordings and their replay."""

import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console
from snapshot_maker import Group as Made
from snapshot_maker import crowd, snapshot

from labkit.cli import main
from labkit.errors import CaptureMismatch, MissingCapture, NoSuchCgroup, OutcomesError, ParameterError
from labkit.kernel.cgroup import Level
from labkit.noisy import archive, command, witnesses
from labkit.noisy.answer import Answer
from labkit.noisy.archive import Recording
from labkit.noisy.columns import bar
from labkit.noisy.command import noisy_command
from labkit.noisy.screen import render
from labkit.noisy.select import Selection
from labkit.noisy.witnesses import Evidence, Reading, Task, evidence
from labkit.sched.cause import CAUSES
from labkit.sched.state import Cost, Snapshot

MS, S = 10**6, 10**9


def made() -> Snapshot:
    """Over 10 s ``web`` waits for ``batch`` (3 s), itself and an idle CPU; ``db`` is throttled below a quota on its pod."""
    return snapshot(
        Made(1, "kernel threads", owner="system"),
        Made(
            10,
            "shop/web",
            {("cgroup", 11): 3 * S, ("cgroup", 10): S // 10, ("idle", 0): MS},
            waits=900,
            run_ns=S,
        ),
        Made(11, "batch", {("cgroup", 10): S}, waits=500, run_ns=6 * S),
        Made(
            12,
            "shop/db",
            {("throttled", 0): 2 * S},
            waits=200,
            run_ns=S,
            namespace="shop",
            pod="db-0",
            container="db",
        ),
    )


def level(path: str, **more: object) -> Level:
    return Level(path, weight=None if path == "/" else 100.0, **more)  # type: ignore[arg-type]


def reading(factor: int = 1) -> Reading:
    """Counters of tasks as they might be at the start (0) and end (1)."""
    groups = {
        10: (Task(S, 3101 * MS, 900, 40, 0, 0), [level("/shop"), level("/shop/web")]),
        11: (Task(6 * S, S, 500, 80, 5, 0), [level("/batch")]),
        12: (
            Task(S, 2 * S, 200, 1, 0, 0),
            [
                level("/shop", quota_ns=20 * MS, throttled_ns=8 * S * factor, throttled=100 * factor),
                level("/shop/db", local_throttled_ns=2 * S * factor),
            ],
        ),
    }
    members = {
        cgroup_id: witnesses._Member(
            {
                100 + cgroup_id: Task(
                    task.run_ns * factor,
                    task.run_delay_ns * factor,
                    task.timeslices * factor,
                    task.involuntary * factor,
                    task.nice,
                    task.policy,
                    (task.timeslices - task.involuntary) * factor,
                )
            },
            2_900_000 * factor,
            (level("/"), *levels),
        )
        for cgroup_id, (task, levels) in groups.items()
    }
    return Reading(members, complete=True)


def proof() -> Evidence:
    return evidence(reading(0), reading(1))


def recording(selection: Selection | None = None) -> Recording:
    return Recording(made(), proof(), selection or Selection())


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


# -- evidence ------------------------------------------------------------------------------------------------------


def test_evidence_is_what_grew_and_knows_whose_quota_bit() -> None:
    found = proof()
    quota = found.quotas.set_index("cgroup_id").loc[12]
    assert (quota["holder"], quota["throttled_ns"], quota["throttled_periods"]) == ("/shop", 8 * S, 100)
    assert found.weights[found.weights["cgroup_id"] == 10]["group"].tolist() == ["/", "/shop", "/shop/web"]
    assert found.classes.set_index("cgroup_id").loc[11, "nice"] == 5
    for name, schema in witnesses.SCHEMAS.items():
        assert getattr(found, name).dtypes.astype(str).to_dict() == schema


def test_a_reused_task_id_starts_at_zero_and_a_task_from_elsewhere_is_left_out() -> None:
    was, now = Task(9 * S, 5 * S, 70, 9, 0, 0), Task(S, 2 * S, 30, 4, 0, 0)
    older = Reading({1: witnesses._Member({7: was, 8: was}, None, ())}, complete=True)
    newer = Reading(
        {1: witnesses._Member({7: now}, None, ()), 2: witnesses._Member({8: was, 9: now}, None, ())}
    )
    found = evidence(older, newer).oracles.set_index("cgroup_id")
    assert found.loc[1, ["tasks", "run_delay_ns"]].tolist() == [1, 2 * S]
    assert found.loc[2, ["tasks", "run_delay_ns", "some_ns"]].tolist() == [1, 2 * S, -1]


def test_without_a_first_reading_of_a_cgroup_nothing_is_said_of_what_grew() -> None:
    some = Reading(reading().members, complete=False)
    found = evidence(Reading(), some)
    assert found.oracles.empty
    assert found.quotas["throttled_ns"].tolist() == [0]
    assert len(found.weights) == 8


def test_tasks_that_were_not_read_the_first_time_are_no_oracle() -> None:
    """A look has so much time for tasks; counters of one that is seen for the first time are those of its whole life."""
    life = {7: Task(900 * S, 5000 * S, 2_000_000, 9, 0, 0)}
    now = Reading({10: witnesses._Member(life, None, ())})
    unasked = Reading({10: witnesses._Member({}, None, (), asked=False)})
    assert evidence(unasked, now).oracles.empty
    assert evidence(now, unasked).oracles.empty
    assert evidence(now, now).oracles["run_delay_ns"].tolist() == [0]
    found = Answer.from_snapshot(made(), evidence=evidence(unasked, now))
    assert found.residuals[10]["run_delay"] is None


def test_a_task_older_than_the_first_reading_came_from_a_cgroup_that_was_not_read() -> None:
    young, old = (Task(S, S, 9, 0, 0, 0, 0, started_s) for started_s in (101.0, 99.0))
    older = Reading({10: witnesses._Member({}, None, ())}, began_s=100.0)
    newer = Reading({10: witnesses._Member({7: young, 8: old}, None, ())})
    assert evidence(older, newer).oracles[["tasks", "run_delay_ns"]].to_numpy().tolist() == [[1, S]]


def test_before_linux_6_6_cpu_stat_of_the_quotas_own_group_of_one_task_is_the_oracle() -> None:
    def at(factor: int, *, tasks: int = 1, holder: str = "/a") -> Reading:
        one = Task(S, S, 9, 0, 0, 0)
        quota = {"quota_ns": 10 * MS, "throttled_ns": 7 * S * factor, "throttled": 5}
        chain = tuple(level(path, **(quota if path == holder else {})) for path in ("/", "/a"))
        return Reading({10: witnesses._Member(dict.fromkeys(range(tasks), one), None, chain)}, complete=True)

    def throttled(**more: object) -> int:
        return int(evidence(at(1, **more), at(2, **more)).oracles["throttled_ns"].iloc[0])  # type: ignore[arg-type]

    assert throttled() == 7 * S
    assert throttled(tasks=2) == -1
    assert throttled(holder="/") == -1


def test_a_cgroup_that_died_keeps_its_weight() -> None:
    found = evidence(reading(1), Reading())
    assert set(found.weights["cgroup_id"]) == {10, 11, 12}
    assert found.classes.empty


def test_realtime_counts_only_where_it_had_most_of_the_time() -> None:
    def of(fifo_ns: int) -> int:
        tasks = {1: Task(fifo_ns, 0, 1, 0, 0, 1), 2: Task(S, 0, 1, 0, 0, 0)}
        newer = Reading({1: witnesses._Member(tasks, None, ())})
        return int(evidence(Reading(complete=True), newer).classes.loc[0, "realtime"])

    assert (of(2 * S), of(S // 2)) == (1, 0)


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


# -- recordings ----------------------------------------------------------------------------------------------------


def test_a_replay_gives_the_identical_answer(tmp_path: Path) -> None:
    kept = recording(Selection(globs=("/shop",)))
    archive.save(tmp_path / "night.noisy", kept)
    live, replayed = kept.answer().as_dict(), archive.load(tmp_path / "night.noisy").answer().as_dict()
    assert (live.pop("mode"), replayed.pop("mode")) == ("live", "replay")
    assert (live["ledger"].pop("mode"), replayed["ledger"].pop("mode")) == ("live", "replay")
    assert replayed == live


def test_labkit_replay_shows_a_recording_as_a_table_and_as_json(tmp_path: Path) -> None:
    file = tmp_path / "night.noisy"
    archive.save(file, recording())
    shown = CliRunner().invoke(main, ["replay", str(file)])
    assert shown.exit_code == 0
    assert "REPLAY on Linux 6.18.0-test" in shown.output
    as_json = CliRunner().invoke(main, ["replay", "--json", str(file)])
    assert json.loads(as_json.output)["cgroups"][0]["verdict"] == "noisy_neighbor"
    assert CliRunner().invoke(main, ["replay", "--json", str(tmp_path)]).exit_code == 2


def test_recordings_of_before_later_columns_and_frames_still_replay(tmp_path: Path) -> None:
    archive.save(tmp_path / "new", recording())
    with zipfile.ZipFile(tmp_path / "new") as file:
        oracles = pd.read_parquet(io.BytesIO(file.read("oracles.parquet"))).drop(columns="voluntary")
    packed = io.BytesIO()
    oracles.to_parquet(packed)
    change = {"oracles.parquet": packed.getvalue(), "requests.parquet": None, "stamps.parquet": None}
    old = archive.load(_rewritten(tmp_path / "new", tmp_path / "old", change)).answer().as_dict()
    new = archive.load(tmp_path / "new").answer().as_dict()
    assert old["cgroups"][0]["residual"].pop("voluntary_switches") is None
    assert new["cgroups"][0]["residual"].pop("voluntary_switches") is not None
    assert old["cgroups"][0] == new["cgroups"][0]


def test_letters_that_the_output_cannot_show_are_escaped_and_lose_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "name.noisy"
    one = recording()
    names = one.snapshot.names.assign(name="caf\u00e9-" + "x" * 80)
    archive.save(file, replace(one, snapshot=replace(one.snapshot, names=names)))
    found = subprocess.run(
        [sys.executable, "-m", "labkit.cli", "replay", str(file)],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert found.returncode == 0, found.stderr.decode()
    assert "caf\\xe9-x" in found.stdout.decode("ascii")


def test_an_answer_is_shown_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk may be full: what was measured for minutes is on the screen by then."""

    def full(path: Path, write: object) -> None:
        raise OutcomesError("cannot write", why="No space left on device")

    class Nothing:
        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> "Nothing":
            return self

        def __exit__(self, *_: object) -> None: ...

    for name in ("Directory", "Watch", "Stamps"):
        monkeypatch.setattr(f"labkit.noisy.command.{name}", Nothing)
    monkeypatch.setattr("labkit.noisy.command._Session.once", lambda *_, **__: recording())
    monkeypatch.setattr(archive, "write_whole", full)
    with pytest.raises(OutcomesError, match="cannot write"):
        noisy_command(seconds=1.0, as_json=True, record=tmp_path / "full.noisy")
    assert json.loads(capsys.readouterr().out)["cgroups"][0]["name"] == "shop/web"


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    archive.save(tmp_path / "a", recording())
    with pytest.raises(OutcomesError, match="exists"):
        archive.save(tmp_path / "a", recording())
    with pytest.raises(OutcomesError, match="no folder"):
        archive.save(tmp_path / "nowhere/a", recording())


def _rewritten(source: Path, target: Path, change: dict[str, bytes | None]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change.get(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def test_every_piece_of_a_truncated_recording_is_refused_clearly(tmp_path: Path) -> None:
    archive.save(tmp_path / "whole", recording())
    whole = (tmp_path / "whole").read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "part").write_bytes(whole[:size])
        with pytest.raises(CaptureMismatch):
            archive.load(tmp_path / "part")
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    (tmp_path / "flipped").write_bytes(flipped)
    with pytest.raises(CaptureMismatch):
        archive.load(tmp_path / "flipped")
    with pytest.raises(MissingCapture):
        archive.load(tmp_path / "absent")


def test_a_recording_of_another_program_format_or_shape_is_refused(tmp_path: Path) -> None:
    archive.save(tmp_path / "whole", recording())
    with zipfile.ZipFile(tmp_path / "whole") as file:
        head = json.loads(file.read("recording.json"))
    wrong: dict[str, tuple[dict[str, bytes | None], str]] = {
        "program": (
            {"recording.json": json.dumps(head | {"program": "runq_latency"}).encode()},
            "runq_latency",
        ),
        "format": ({"recording.json": json.dumps(head | {"format": 99}).encode()}, "format 99"),
        "list": ({"recording.json": b"[]"}, "recording of None"),
        "missing": ({"cells.parquet": None}, "no cells.parquet"),
        "no head": ({"recording.json": None}, "no recording.json"),
        "garbage": ({"cells.parquet": b"PAR1 nonsense"}, "damaged"),
        "head": ({"recording.json": b"{"}, "damaged"),
    }
    for name, (change, words) in wrong.items():
        file = _rewritten(tmp_path / "whole", tmp_path / name, change)
        with pytest.raises(CaptureMismatch, match=words):
            archive.load(file)
        assert CliRunner().invoke(main, ["replay", str(file)]).exit_code == 2

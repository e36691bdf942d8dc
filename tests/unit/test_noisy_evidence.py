"""Evidence of an answer: what the kernel's own counters grew by, and whose quota bit."""

from answer_maker import MS, S, level, made, proof, reading

from labkit.noisy import witnesses
from labkit.noisy.answer import Answer
from labkit.noisy.witnesses import Reading, Task, evidence


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

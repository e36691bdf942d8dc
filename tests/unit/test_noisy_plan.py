"""Table sizes: bounded on every machine, with room for what is there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.noisy import plan as planning
from labkit.noisy.plan import plan, power_of_two, sizes
from labkit.spec import read

MIB = 1 << 20


@given(
    st.integers(min_value=1, max_value=4096),
    st.integers(min_value=1, max_value=100_000),
    st.integers(min_value=1, max_value=4_194_304),
)
def test_memory_is_bounded_whatever_the_machine(cpus: int, cgroups: int, tasks: int) -> None:
    chosen = sizes(cpus, cgroups, tasks)
    assert chosen["cgroups"] * chosen["shards"] * planning._CGROUP_BYTES <= 70 * MIB
    assert chosen["dense"] ** 2 * chosen["dense_shards"] * planning._CELL_BYTES <= 16 * MIB
    assert chosen["tasks"] * planning._TASK_BYTES <= 56 * MIB
    assert chosen["cells"] <= 1 << 16
    assert cpus * planning.cpu_bytes(chosen["log"]) <= max(16 * MIB, cpus * 44_000)
    # The program masks with these less one.
    for name in ("tasks", "shards", "dense", "dense_shards", "log"):
        assert chosen[name] == power_of_two(chosen[name])
    assert chosen["shards"] <= power_of_two(cpus)
    assert chosen["cpus"] == cpus


@given(st.integers(min_value=1, max_value=512), st.integers(min_value=1, max_value=8000))
def test_there_is_room_for_twice_the_cgroups_there_are(cpus: int, cgroups: int) -> None:
    assert sizes(cpus, cgroups, 1000)["cgroups"] >= min(2 * cgroups, 1 << 14)


@given(st.integers(min_value=1, max_value=4096))
def test_cpus_that_share_a_copy_add_atomically(cpus: int) -> None:
    chosen = sizes(cpus, 100, 1000)
    shared = chosen["shards"] < cpus or chosen["dense_shards"] < cpus
    assert chosen["atomic"] is (shared if cpus == power_of_two(cpus) else chosen["atomic"])
    assert not shared or chosen["atomic"]


def test_small_machines_share_nothing() -> None:
    assert sizes(2, 50, 200)["atomic"] is False
    assert sizes(16, 50, 200)["dense"] == 256


def test_every_size_is_a_parameter_of_the_program() -> None:
    assert set(sizes(2, 50, 200)) | {"subsystem"} == set(read("noisy_neighbor").params)


def test_the_plan_says_what_it_chose(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    rules = "\n".join(plan(cgroups=5).rules)
    for word in ("cgroups are told apart", "throttled time", "room for"):
        assert word in rules
    assert "sched_ext" not in rules
    state = tmp_path / "state"  # type: ignore[operator]
    state.write_text("enabled\n")
    monkeypatch.setattr(planning, "_SCHED_EXT", state)
    assert "sched_ext scheduler is at work" in "\n".join(plan(cgroups=5).rules)


class OtherKernel:
    """BTF of a kernel that lacks some members."""

    def __init__(self, *lacking: str) -> None:
        self.lacking = lacking

    def has(self, struct: str, member: str) -> bool:
        return f"{struct}.{member}" not in self.lacking

    def enumerator(self, enum: str, name: str) -> int:
        return 1


@pytest.mark.parametrize(
    ("lacking", "says", "wakeup"),
    [
        ((), "6.18 and later", False),
        (("task_struct.throttled",), "6.6 to 6.17", True),
        (("task_struct.throttled", "cfs_rq.throttled_clock_self"), "upper bound", True),
        (
            ("task_struct.throttled", "cfs_rq.throttled_clock_self", "cfs_rq.throttle_count"),
            "no CFS bandwidth control",
            False,
        ),
    ],
)
def test_older_kernels_get_the_next_best_rule_by_name(
    monkeypatch: pytest.MonkeyPatch, lacking: tuple[str, ...], says: str, wakeup: bool
) -> None:
    monkeypatch.setattr(planning.btf, "kernel", lambda: OtherKernel(*lacking))
    chosen = plan(cgroups=5)
    assert any(says in rule for rule in chosen.rules)
    assert chosen.wakeup is wakeup


def test_a_kernel_without_sched_info_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.btf, "kernel", lambda: OtherKernel("task_struct.sched_info.last_queued"))
    with pytest.raises(planning.UnsupportedKernel) as caught:
        plan(cgroups=5)
    assert "CONFIG_SCHED_INFO" in str(caught.value)
    assert "runq_latency" in str(caught.value)

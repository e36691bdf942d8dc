"""Each scenario gets the verdict that is true by construction, for the right reason, with oracles that agree.

The machine may be busy with other things, and a verdict tells the truth about those too. So what foreign cgroups did to
the victim is taken out of the matrix first; what is judged is what the scenario's own cgroups did to each other. All the
rest stays in it: what the measure itself charges to nobody, or to the hypervisor, is its own doing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from tolerances import switches_agree, throttling_agrees

from labkit.errors import UnsupportedKernel
from labkit.noisy import witnesses
from labkit.noisy.answer import Answer
from labkit.noisy.stamps import Stamps
from labkit.noisy.watch import Watch
from labkit.noisy.witnesses import Reading
from labkit.sched import allowed_ns
from labkit.sched.state import Snapshot, between
from labkit.sched.verdict import Verdict
from labkit.workloads import SCENARIOS, Truth, scenario

pytestmark = [pytest.mark.live, pytest.mark.needs("schedstat", "cgroups", "root")]

SECONDS = 1.5
MS = 1_000_000
#: Those that are judged in every run of the tests; the others only in the whole one.
EVERY_TIME = {
    "quiet",
    "hog",
    "two_hogs_3_1",
    "throttled",
    "throttled_beside_hog",
    "own_threads",
    "hog_outside",
    "fifo_hog",
    "quota_on_parent",
}


@dataclass
class Judged:
    """A scenario, and the answer about it."""

    truth: Truth
    answer: Answer
    moved_ns: int

    @property
    def victim(self) -> Verdict:
        of = self.truth.cgroups.set_index("role")["cgroup_id"]
        wanted = int(of[self.truth.declared["victim"]])
        return next(verdict for verdict in self.answer.verdicts if verdict.cgroup_id == wanted)


def _without_outsiders(snapshot: Snapshot, truth: Truth) -> Snapshot:
    insiders = [int(cgroup_id) for cgroup_id in truth.cgroups["cgroup_id"]]
    cells = snapshot.cells
    ours = cells["occupant_id"].isin(insiders) | (cells["kind"] != "cgroup")
    return replace(snapshot, cells=cells[cells["victim_id"].isin(insiders) & ours])


def _read(watch: Watch, truth_ids: list[int]) -> Reading:
    names = watch.directory.names(truth_ids)
    return witnesses.read(
        watch.directory.tree, {i: name.cgroup for i, name in names.items()}, everything=True
    )


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in EVERY_TIME else pytest.mark.slow) for name in SCENARIOS],
)
def run(request: pytest.FixtureRequest) -> Iterator[Judged]:
    try:
        work = scenario(request.param, seconds=SECONDS)
    except UnsupportedKernel as error:
        pytest.skip(error.what)
    with Watch() as watch, Stamps(watch) as second, work.start() as running:
        ids = [int(cgroup_id) for cgroup_id in running.layout["cgroup_id"]]
        before, first = watch.snapshot(), _read(watch, ids)
        running.go()
        stamped = second.check(SECONDS / 3)
        truth = running.finish()
        interval, last = between(before, watch.snapshot()), _read(watch, ids)
        assert stamped is not None, second.problem
        evidence = replace(witnesses.evidence(first, last), stamps=stamped)
        answer = Answer.from_snapshot(_without_outsiders(interval, truth), evidence=evidence)
        ours = interval.cgroups["cgroup_id"].isin(ids)
        yield Judged(truth, answer, int(interval.cgroups.loc[ours, "migrated_ns"].sum()))


def test_the_verdict_is_the_true_one(run: Judged) -> None:
    assert run.victim.verdict == run.truth.declared["verdict"], run.victim.sentence


def test_it_is_surer_than_at_a_threshold(run: Judged) -> None:
    assert run.victim.confidence > 0.5, (run.victim.doubts, run.victim.sentence)


def test_the_guilty_are_blamed_by_their_share_and_the_innocent_are_not(run: Judged) -> None:
    roles = dict(
        zip(run.truth.cgroups["cgroup_id"].tolist(), run.truth.cgroups["role"].tolist(), strict=True)
    )
    blamed = {roles[one.cgroup_id]: one.share for one in run.victim.blame}
    guilty = run.truth.declared["guilty"]
    assert set(guilty) <= set(blamed)
    for role, share in guilty.items():
        assert share is None or blamed[role] == pytest.approx(share, abs=0.05)
    assert not set(run.truth.declared["innocent"]) & {role for role, share in blamed.items() if share > 0.1}


def test_the_quota_that_bites_is_named(run: Judged) -> None:
    wanted = run.truth.declared["quota_ancestor"]
    if not wanted:
        assert run.victim.quota is None
        return
    paths = run.truth.cgroups.set_index("role")["cgroup"]
    assert run.victim.quota is not None
    assert run.victim.quota.holder == paths.get(wanted, run.victim.cgroup.rpartition("/")[0])
    assert run.victim.quota.quota_ns < run.victim.quota.needed_ns <= run.victim.quota.enough_ns


def test_oracles_agree(run: Judged) -> None:
    """These are counters of the kernel, read while the workload's tasks stand parked."""
    whole = run.answer.residuals[run.victim.cgroup_id]
    delay = whole["run_delay"]
    assert delay["verifiable_share"] > 0.95
    assert abs(delay["residual_ns"]) <= max(MS, 0.001 * delay["oracle_ns"])
    kinds = ("involuntary_switches", "voluntary_switches")
    switches = sum(
        whole[kind]["oracle"] for kind in kinds
    )  # what is one too many of one kind lacks in the other
    for kind in kinds:
        assert switches_agree(whole[kind]["residual"], switches), kind
    if whole["throttled"] is not None and whole["throttled"]["comparable"]:
        wall_ns, apart_ns = (whole["throttled"][name] for name in ("oracle_ns", "residual_ns"))
        period_ns = run.victim.quota.period_ns if run.victim.quota else 0
        assert throttling_agrees(wall_ns + apart_ns, wall_ns, period_ns), whole["throttled"]
    if whole["pressure"] is not None:
        assert whole["pressure"]["holds"], whole["pressure"]


#: The run queue's clock is read a moment before the stamp: a virtual CPU that is paused in between parts the two.
VCPU_PAUSED_NS = 2_000_000


def test_another_clock_agrees(run: Judged) -> None:
    """A wait that was moved to another CPU is charged in two parts, so that one of them may lie before the stamps began."""
    stamps = run.answer.residuals[run.victim.cgroup_id]["stamps"]
    assert stamps is not None
    allowed = allowed_ns(stamps["oracle_ns"], stamps["waits"]) + run.moved_ns + VCPU_PAUSED_NS
    assert abs(stamps["residual_ns"]) <= allowed, stamps

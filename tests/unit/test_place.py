"""Where cgroups of our own may be made, and what follows for a chapter that needs them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest

from labkit import session
from labkit.errors import CgroupError, UnsupportedKernel
from labkit.kernel import place as places
from labkit.kernel.cgroup import Hierarchy
from labkit.kernel.place import HOME, Place, place
from labkit.kernel.probe import Feature, Report
from labkit.system import launch

MINE = "/user.slice/user@1000.service/app.slice/labkit-7.scope"


class Tree(Hierarchy):
    """A hierarchy in which this process has a place of our choosing."""

    own = ""
    own_v1 = ""

    def path_of(self, pid: int | str = "self", controller: str | None = None) -> str:
        return self.own_v1 if controller else self.own


def made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: Collection[str], *, own: str = MINE, v1: str | None = None,
    controllers: str = "cpu memory",
) -> Tree:  # fmt: skip
    unified, cpu = tmp_path / "unified", tmp_path / "cpu"
    for path in ("", MINE, f"{MINE}/{HOME}"):
        folder = unified / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.controllers").write_text(controllers)
    tree = Tree("v2" if v1 is None else "hybrid", unified, {} if v1 is None else {"cpu": cpu})
    object.__setattr__(tree, "own", own)
    object.__setattr__(tree, "own_v1", v1)
    allowed = {tmp_path / path for path in writable}
    monkeypatch.setattr(places, "_writable", lambda folder: folder in allowed)
    return tree


def test_root_makes_them_at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = made(tmp_path, monkeypatch, ["unified", f"unified{MINE}"])
    assert place(tree) == Place(tmp_path / "unified", None, has_cpu=True, whole=True)


@pytest.mark.parametrize("own", [MINE, f"{MINE}/{HOME}"])
def test_a_user_in_a_scope_of_their_own_makes_them_there_also_from_its_leaf(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = made(tmp_path, monkeypatch, [f"unified{MINE}", f"unified{MINE}/{HOME}"], own=own)
    assert place(tree) == Place(tmp_path / f"unified{MINE}", None, has_cpu=True, whole=False)


def test_without_the_cpu_controller_there_are_no_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = place(made(tmp_path, monkeypatch, [f"unified{MINE}"], controllers="memory pids"))
    assert not found.has_cpu
    assert "without weights and quotas" in found.describe()


@pytest.mark.parametrize("given", [True, False])
def test_on_a_hybrid_machine_limits_are_where_v1_lets_us(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writable = [f"unified{MINE}", *(["cpu/mine"] if given else [])]
    found = place(made(tmp_path, monkeypatch, writable, v1="/mine"))
    assert (found.cpu, found.has_cpu, found.whole) == (tmp_path / "cpu/mine" if given else None, given, False)


@pytest.mark.parametrize("own", [MINE, "/../../elsewhere"])
def test_what_may_not_be_written_is_no_place_and_the_error_says_what_to_do(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = made(tmp_path, monkeypatch, ["unified/elsewhere", "elsewhere"], own=own)
    with pytest.raises(CgroupError, match=f"user id {os.geteuid()} may neither write") as caught:
        place(tree)
    assert "as root it works" in caught.value.remedy


def test_without_a_cgroup2_tree_there_is_none() -> None:
    with pytest.raises(CgroupError, match="cgroups are v1 here"):
        place(Hierarchy("v1", None, {"cpu": Path("/x")}))


def report(own: str) -> Report:
    features = (
        Feature("Linux", "yes", "", required=True),
        Feature("own cgroups", own, "nobody gave us one", remedy="as root"),  # type: ignore[arg-type]
    )
    return Report("6.0", features)


@pytest.mark.parametrize("state", ["no", "partly"])
def test_a_chapter_that_needs_them_is_replayed_without_and_says_why(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "probe", lambda: report(state))
    lab = session.chapter("09_throttled_or_noisy", needs=["own cgroups"])
    assert lab.mode == "replay"
    assert "Nothing is measured on this machine: own cgroups: nobody gave us one; as root" in repr(lab)
    with pytest.raises(UnsupportedKernel, match="nobody gave us one"):
        session.chapter("09_throttled_or_noisy", mode="live", needs=["own cgroups"])
    assert session.chapter("06_run_queue_latency").mode == "live"


def test_with_them_it_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "probe", lambda: report("yes"))
    assert session.chapter("09_throttled_or_noisy", needs=["own cgroups"]).mode == "live"


def test_a_feature_that_does_not_exist_is_no_silent_yes() -> None:
    with pytest.raises(KeyError):
        report("yes").why_not_live(["own cgroup"])


SYSTEMD_RUN = """#!/bin/sh
echo "$*" >>"$CALLS"
[ "$ANSWER" = 0 ] || exit 1
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""


@pytest.mark.parametrize(("answer", "pure_v2"), [("0", True), ("1", True), ("0", False)])
def test_a_command_begins_in_a_scope_where_systemd_grants_one(
    answer: str, pure_v2: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd/private").touch()
    tool = tmp_path / "systemd-run"
    tool.write_text(SYSTEMD_RUN)
    tool.chmod(0o755)
    real = os.path.exists
    monkeypatch.setattr(
        launch.os.path,
        "exists",
        lambda path: pure_v2 if str(path).endswith("/cgroup.controllers") else real(path),
    )
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("ANSWER", answer)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = launch._scope()
    if answer == "1" or not pure_v2:
        assert words == []
        return
    assert (tmp_path / "calls").read_text().endswith("Delegate=yes -- true\n")
    assert words[-2:] == [f"--unit=labkit-{os.getpid()}", "--"]
    assert {"--user", "--scope", "--property=Delegate=yes"} <= set(words)


def test_without_a_user_manager_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert launch._scope() == []

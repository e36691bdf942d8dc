"""`labkit noisy` on pure cgroup v2 under systemd: names of real units, and limits where v2 has them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from labkit.kernel.cgroup import hierarchy
from labkit.names import Directory
from labkit.noisy.command import noisy_command, replay_command
from labkit.noisy.select import Selection
from labkit.noisy.watch import Watch
from labkit.program import load
from labkit.workloads import scenario

pytestmark = pytest.mark.guest


def answer(name: str, file: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    """What the command says of a scenario's cgroups while it runs, in this process: imports are slow in here."""
    with Watch(), load("runq_latency"):  # compiled, and in the cache
        pass
    with scenario(name, seconds=20).start() as running:
        selection = Selection(globs=(f"/labkit-{os.getpid()}-*",))
        running.go()
        assert noisy_command(seconds=4, as_json=True, selection=selection, record=file) == 0
        found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["cgroups"]
        running.finish()
    return found


def test_systemds_units_have_their_names_and_the_root_is_the_kernels() -> None:
    tree = hierarchy()
    assert tree.mode == "v2"
    with Directory() as directory:
        names = {name.cgroup: name for name in directory.all().values()}
        root = names["/"]
        assert (root.name, root.kind, root.owner) == ("kernel threads", "root", "system")
        assert (names["/init.scope"].name, names["/init.scope"].owner) == ("init.scope", "system")
        units = [name for name in names.values() if name.cgroup.startswith("/system.slice/")]
        assert units
        assert all(unit.owner == "system" for unit in units)
        assert tree.unified is not None
        own = directory.frame([os.stat(tree.unified / tree.path_of().lstrip("/")).st_ino]).iloc[0]
        assert own["cgroup"] == tree.path_of()


@pytest.mark.slow
def test_a_quota_on_the_parent_is_named_with_the_cpu_max_it_would_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer("quota_on_parent", tmp_path / "kept", capsys)
    service = next(one for one in found if one["name"] == "service")
    assert service["verdict"] == "throttled"
    assert service["blame"] == []
    holder = str(service["cgroup"]).rpartition("/")[0]
    assert f'the quota of {holder}, 20 ms of CPU time in every 100 ms; cpu.max "' in str(service["sentence"])
    assert replay_command(tmp_path / "kept", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["cgroups"] == found


@pytest.mark.slow
def test_weights_of_sibling_groups_say_whose_share_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer("two_hogs_3_1", tmp_path / "kept", capsys)
    service = next(one for one in found if one["name"] == "service")
    assert service["verdict"] == "noisy_neighbor"
    assert "and its weight gives it 75 %: it stayed within its share" in str(service["sentence"])

"""A machine with cgroup v2 and nothing else."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.kernel.cgroup import hierarchy, table
from labkit.program import load

pytestmark = pytest.mark.guest

ROOT = Path("/sys/fs/cgroup")


@pytest.fixture
def group() -> Iterator[Path]:
    """An empty cgroup beside all others."""
    folder = ROOT / f"lk-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    yield folder
    folder.rmdir()


def test_the_mode_is_pure_v2() -> None:
    tree = hierarchy()
    assert (tree.mode, tree.unified, tree.controllers) == ("v2", ROOT, {})


def test_the_table_names_every_directory_by_its_inode(group: Path) -> None:
    found = table().set_index("cgroup")["cgroup_id"]
    assert found["/"] == ROOT.stat().st_ino
    assert found[f"/{group.name}"] == group.stat().st_ino
    assert found.is_unique


def test_waits_are_charged_to_the_cgroup_in_which_the_task_runs(group: Path) -> None:
    script = f"echo $$ >{group}/cgroup.procs; echo moved; read go; for i in 1 2 3 4 5; do sleep 0.02; done"
    with subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "moved\n"
        with load("runq_latency", tgid=child.pid) as program:
            child.communicate("go\n", timeout=60)
            program.stop()
            waits, ledger = program.frame("waits"), program.ledger
    assert child.returncode == 0
    assert list(waits["tgid"]) == [child.pid]
    assert list(waits["cgroup_id"]) == [group.stat().st_ino]
    assert waits["waits"][0] >= 5
    assert ledger.balanced

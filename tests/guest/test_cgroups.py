"""A machine with cgroup v2 and nothing else."""

from __future__ import annotations

import os
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
    script = (
        f"echo $$ >{group}/cgroup.procs; exec python3 -c 'import time; [time.sleep(.01) for _ in range(50)]'"
    )
    with load("runq_latency") as program:
        child = subprocess.Popen(["sh", "-c", script])
        assert child.wait(timeout=60) == 0
        program.stop()
        waits = program.frame("waits")
    ours = waits[waits["tgid"] == child.pid]
    assert not ours.empty
    # The first wait of the process was before it moved: the entry holds where it was then or is now.
    assert set(ours["cgroup_id"]) <= {
        group.stat().st_ino,
        os.stat(f"/sys/fs/cgroup{hierarchy().path_of()}").st_ino,
    }

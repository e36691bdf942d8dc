"""The running kernel's layouts, against pahole's reading of the same BTF and against tasks that we know."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path

import pandas as pd
import pytest

from labkit.kernel import btf
from labkit.kernel.cgroup import hierarchy
from labkit.program import load

pytestmark = pytest.mark.guest

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def pahole(struct: str) -> tuple[int, dict[str, int]]:
    """Size of a struct, and offsets of its members outside of unions and nested structs."""
    listed = subprocess.run(
        ["pahole", "-F", "btf", "-C", struct, "/sys/kernel/btf/vmlinux"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    size = re.search(r"/\* size: (\d+),", listed)
    assert size is not None, listed
    members = {}
    for line in listed.splitlines():
        match = re.match(r"\t(?!\t).*?(\w+)(?:\[\d+\])*;\s*/\*\s*(\d+)\s+\d+ \*/", line)
        if match:
            members[match[1]] = int(match[2])
    return int(size[1]), members


@pytest.mark.parametrize(
    ("struct", "at_least"),
    [("task_struct", 100), ("css_set", 10), ("cgroup", 20), ("kernfs_node", 5), ("rq", 40), ("cfs_rq", 15)],
)
def test_sizes_and_offsets_are_those_that_pahole_reads(struct: str, at_least: int) -> None:
    size, members = pahole(struct)
    assert len(members) >= at_least
    kernel = btf.kernel()
    assert kernel.size(struct) == size
    assert {name: kernel.offset(struct, name) for name in members} == members


@pytest.fixture(scope="module")
def sight() -> pd.Series:
    """What the kernel's structs say about this thread."""
    source = Path(__file__).with_name("identity.c").read_text()
    with load("identity", source=source, tgid=os.getpid()) as program:
        os.getppid()
        program.stop()
        frame = program.frame("seen")
    ours = frame[frame["thread"] == threading.get_native_id()]
    assert len(ours) == 1
    return ours.iloc[0]


def test_a_known_task_is_seen_as_it_is(sight: pd.Series) -> None:
    assert sight["pid"] == threading.get_native_id()
    assert sight["tgid"] == os.getpid()
    assert sight["parent_tgid"] == os.getppid()
    assert sight["comm"] == Path("/proc/thread-self/comm").read_text().rstrip("\n")


def test_its_start_is_the_one_in_proc(sight: pd.Series) -> None:
    fields = Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()
    assert sight["start_boottime_ns"] * TICKS_PER_S // 1_000_000_000 == int(fields[19])  # field 22 of proc(5)


def test_its_cgroup_id_is_the_inode_of_its_directory(sight: pd.Series) -> None:
    tree = hierarchy()
    assert tree.unified is not None
    folder = tree.unified / tree.path_of().lstrip("/")
    assert sight["cgroup_id"] == folder.stat().st_ino
    assert sight["cgroup_id"] == sight["helper_cgroup_id"]
    assert sight["cgroup_id"] == tree.id_of(tree.path_of())

"""Weight, quota and throttling, read from folders laid out as v1 and v2 lay them out; and which tree holds them."""

from pathlib import Path

import pytest

from labkit.kernel.cgroup import Hierarchy, ancestors, walk

MS = 1_000_000


def fill(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_on_v2_limits_stand_in_the_one_tree(tmp_path: Path) -> None:
    fill(
        tmp_path / "pod",
        cpu__max="20000 100000\n",
        cpu__weight="300\n",
        cpu__idle="0\n",
        cpu__stat="usage_usec 5\nnr_periods 9\nnr_throttled 7\nthrottled_usec 123\n",
        cpu__stat__local="throttled_usec 130\n",
    )
    tree = Hierarchy("v2", tmp_path)
    found = tree.level("/pod")
    assert found is not None
    assert (found.weight, found.quota_ns, found.period_ns, found.idle) == (300.0, 20 * MS, 100 * MS, False)
    assert (found.throttled_ns, found.throttled, found.local_throttled_ns) == (123_000, 7, 130_000)
    assert found.setting == "cpu.max"
    assert tree.cpu_path("/pod") == "/pod"


def test_without_a_limit_and_without_a_controller(tmp_path: Path) -> None:
    fill(tmp_path / "free", cpu__max="max 100000\n", cpu__weight="100\n", cpu__stat="usage_usec 5\n")
    fill(tmp_path / "plain", cgroup__procs="")
    tree = Hierarchy("v2", tmp_path)
    free, plain = tree.level("/free"), tree.level("/plain")
    assert free is not None
    assert free.quota_ns is None
    assert plain is not None
    assert (plain.weight, plain.quota_ns) == (None, None)  # its tasks compete in the group above
    assert tree.level("/gone") is None


def test_on_a_hybrid_machine_limits_stand_in_the_v1_tree(tmp_path: Path) -> None:
    fill(
        tmp_path / "cpu/web",
        cpu__cfs_quota_us="20000\n",
        cpu__cfs_period_us="100000\n",
        cpu__shares="3072\n",
        cpu__stat="nr_periods 9\nnr_throttled 7\nthrottled_time 123\n",
    )
    fill(tmp_path / "cpu", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n", cpu__shares="1024\n")
    tree = Hierarchy("hybrid", fill(tmp_path / "unified/web").parent, {"cpu": tmp_path / "cpu"})
    web, root = tree.level("/web"), tree.level("/")
    assert web is not None
    assert (web.weight, web.quota_ns, web.throttled_ns, web.throttled) == (300.0, 20 * MS, 123, 7)
    assert (web.local_throttled_ns, web.setting) == (None, "cpu.cfs_quota_us")
    assert root is not None
    assert (root.weight, root.quota_ns) == (None, None)
    assert (tree.cpu_path("/web"), tree.cpu_path("/elsewhere")) == ("/web", "/")
    assert tree.identity == tmp_path / "unified"


def test_on_v1_alone_cgroups_are_those_of_the_cpu_controller(tmp_path: Path) -> None:
    tree = Hierarchy("v1", None, {"cpu": tmp_path})
    assert tree.identity == tree.cpu == tmp_path
    assert tree.cpu_path("/docker/1") == "/docker/1"
    assert Hierarchy("v1", None, {"memory": tmp_path}).identity is None
    assert Hierarchy("none", None).level("/") is None


@pytest.mark.parametrize("text", ["", "max", "one two", "-5 100000", "20000"])
def test_a_limit_that_cannot_be_understood_is_none(tmp_path: Path, text: str) -> None:
    fill(tmp_path / "odd", cpu__max=text, cpu__weight="heavy")
    found = Hierarchy("v2", tmp_path).level("/odd")
    assert found is not None
    assert (found.quota_ns, found.weight) == (None, None)


def test_a_walk_finds_every_folder_with_its_inode(tmp_path: Path) -> None:
    fill(tmp_path / "a/b", file="x")
    fill(tmp_path / "c")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = dict(walk(tmp_path))
    assert {path: inode for inode, path in found.items()} == {
        "/": tmp_path.stat().st_ino,
        **{f"/{name}": (tmp_path / name).stat().st_ino for name in ("a", "a/b", "c")},
    }
    assert list(walk(tmp_path / "nowhere")) == []
    assert ancestors("/a/b") == ["/", "/a", "/a/b"]

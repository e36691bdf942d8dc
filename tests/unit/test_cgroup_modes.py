"""The hierarchy, told from mount tables of each kind."""

from pathlib import Path

from labkit.kernel import cgroup

V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
V1 = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
HYBRID = (
    V1
    + "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n"
)


def test_pure_v2() -> None:
    tree = cgroup.hierarchy(V2)
    assert (tree.mode, tree.unified) == ("v2", Path("/sys/fs/cgroup"))


def test_hybrid_has_both() -> None:
    tree = cgroup.hierarchy(HYBRID)
    assert (tree.mode, tree.unified) == ("hybrid", Path("/sys/fs/cgroup/unified"))
    assert tree.controllers["cpu"] == tree.controllers["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")


def test_v1_only_and_none() -> None:
    assert cgroup.hierarchy(V1).mode == "v1"
    assert cgroup.hierarchy("proc /proc proc rw 0 0\n").mode == "none"


def test_a_mount_point_with_a_blank_is_unescaped() -> None:
    assert cgroup.hierarchy("cgroup2 /mnt/my\\040groups cgroup2 rw 0 0\n").unified == Path("/mnt/my groups")

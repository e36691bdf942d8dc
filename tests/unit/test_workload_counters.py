"""Readings of the cgroup file system in each of its forms, from files as kernels write them."""

from pathlib import Path

import pandas as pd
import pytest

from labkit import oracles
from labkit._janitor import disable_cpu
from labkit.errors import UnsupportedKernel

V1_STAT = "nr_periods 23\nnr_throttled 21\nthrottled_time 1550924355\nnr_bursts 0\nburst_time 0\n"
V2_STAT = (
    "usage_usec 437\nuser_usec 400\nsystem_usec 37\nnice_usec 0\ncore_sched.force_idle_usec 0\n"
    "nr_periods 5\nnr_throttled 4\nthrottled_usec 1234\nnr_bursts 0\nburst_usec 0\n"
)


def _folder(root: Path, **files: str) -> Path:
    root.mkdir(exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)
    return root


def test_throttled_time_is_nanoseconds_whether_v1_or_v2_says_it(tmp_path: Path) -> None:
    v1 = _folder(tmp_path / "v1", cpu__stat=V1_STAT, cpu__stat__local="throttled_time 99\n")
    v2 = _folder(tmp_path / "v2", cpu__stat=V2_STAT, cpu__stat__local="throttled_usec 9\n")
    found = oracles.cpu_stat([v1, v2])
    assert found["throttled_ns"].tolist() == [1_550_924_355, 1_234_000]
    assert found["throttled_local_ns"].tolist() == [99, 9_000]
    assert found[["periods", "nr_throttled"]].to_numpy().tolist() == [[23, 21], [5, 4]]
    assert found["usage_ns"].isna().tolist() == [True, False]
    assert found["usage_ns"][1] == 437_000


def test_what_a_kernel_does_not_tell_is_missing_and_not_zero(tmp_path: Path) -> None:
    hybrid = _folder(tmp_path / "unified", cpu__stat="usage_usec 1\nuser_usec 1\nsystem_usec 0\n")
    found = oracles.cpu_stat([hybrid, tmp_path / "gone"])
    assert found["throttled_ns"].isna().all()
    assert found["usage_ns"].tolist() == [1000, pd.NA]
    assert set(found.dtypes[1:].astype(str)) == {"Int64"}


def test_pressure_totals(tmp_path: Path) -> None:
    text = "some avg10=0.00 avg60=0.23 avg300=1.13 total=1839113766\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    old = "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"  # before 5.13 the cpu had no full
    folders = [_folder(tmp_path / "a", cpu__pressure=text), _folder(tmp_path / "b", cpu__pressure=old)]
    found = oracles.pressure([*folders, tmp_path / "off"])
    assert found["some_us"].tolist() == [1_839_113_766, 5, pd.NA]
    assert found["full_us"].tolist() == [7, pd.NA, pd.NA]


def test_limits_read_alike(tmp_path: Path) -> None:
    v1 = {"cpu__cfs_quota_us": "-1\n", "cpu__cfs_period_us": "100000\n", "cpu__shares": "1024\n"}
    folders = [
        _folder(tmp_path / "a", cpu__max="max 100000\n", cpu__weight="100\n"),
        _folder(tmp_path / "b", cpu__max="30000 50000\n", cpu__weight="300\n"),
        _folder(tmp_path / "c", **v1),
        _folder(tmp_path / "d", **(v1 | {"cpu__cfs_quota_us": "10000\n", "cpu__shares": "3072\n"})),
        _folder(tmp_path / "e", cpu__shares="2\n"),
        tmp_path / "gone",
    ]
    found = oracles.cpu_limits(folders)
    assert found["quota_us"].tolist() == [0, 30_000, 0, 10_000, 0, pd.NA]
    assert found["period_us"].tolist() == [100_000, 50_000, 100_000, 100_000, pd.NA, pd.NA]
    assert found["weight"].tolist() == [100, 300, 100, 300, 1, pd.NA]


def test_a_kernel_without_accounts_of_waits_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedKernel, match="CONFIG_SCHED_INFO is not set"):
        oracles.require_schedstat(tmp_path)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/schedstat").write_text("0 0 0\n")
    with pytest.raises(UnsupportedKernel, match="turned off"):
        oracles.require_schedstat(tmp_path)
    (tmp_path / "self/schedstat").write_text("1200 30 4\n")
    oracles.require_schedstat(tmp_path)


@pytest.mark.parametrize(
    ("limits", "done"),
    [
        ({}, True),
        ({"cpu__max": "max 100000\n", "cpu__weight": "100\n"}, True),
        ({"cpu__max": "50000 100000\n", "cpu__weight": "100\n"}, False),
        ({"cpu__max": "max 100000\n", "cpu__weight": "30\n"}, False),
    ],
)
def test_the_cpu_controller_is_not_taken_from_those_who_came_to_use_it(
    tmp_path: Path, limits: dict[str, str], done: bool
) -> None:
    control = tmp_path / "cgroup.subtree_control"
    control.write_text("cpu memory")
    _folder(tmp_path / "somebody.service", **limits)
    assert disable_cpu(str(control)) is done
    assert control.read_text() == ("-cpu" if done else "cpu memory")

"""Where headers are found, and the merged copy, on made-up trees of each distribution's shape."""

import os
import platform
import tarfile
from pathlib import Path

import pytest

from labkit.errors import LabkitError, MissingHeaders
from labkit.kernel import headers
from labkit.paths import cache_dir

ARCH = {"x86_64": "x86", "aarch64": "arm64"}[platform.machine()]


def _write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _debian(root: Path, version: str) -> None:
    """Debian: a common half and a half for the architecture."""
    common, arch = (
        root / f"usr/src/linux-headers-{version}-common",
        root / f"usr/src/linux-headers-{version}-amd64",
    )
    _write(common / "include/linux/kconfig.h")
    _write(common / "include/uapi/linux/bpf.h", "common")
    _write(common / f"arch/{ARCH}/include/asm/page.h")
    _write(arch / "include/generated/autoconf.h")
    _write(arch / "include/generated/utsrelease.h", f'#define UTS_RELEASE "{version}-amd64"\n')


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LABKIT_HEADERS", raising=False)


def test_the_nearest_version_is_taken_and_said_not_to_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.18.44-own")
    for version in ("5.10.0-8", "6.12.0-3", "6.1.0-56"):
        _debian(tmp_path, version)
    found = headers.find(tmp_path)
    assert found.release == "6.12.0-3-amd64"
    assert not found.matches
    assert "not of the running kernel" in found.describe()


@pytest.mark.parametrize(
    ("flavour", "common"),
    [
        ("6.1.0-44-cloud-amd64", "6.1.0-44-common"),
        ("6.1.0-44-amd64", "6.1.0-44-common"),
        ("6.12.107+deb13-cloud-amd64", "6.12.107+deb13-common"),
        ("6.12.107+deb13-amd64", "6.12.107+deb13-common"),
        ("6.8.0-31-generic", "6.8.0-31"),
    ],
)
def test_the_common_half_is_found_by_its_name(
    flavour: str, common: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABKIT_HEADERS", raising=False)
    _write(tmp_path / f"usr/src/linux-headers-{flavour}/include/generated/autoconf.h")
    half = tmp_path / f"usr/src/linux-headers-{common}"
    for name in ("include/linux/kconfig.h", "include/uapi/linux/bpf.h", f"arch/{ARCH}/include/asm/page.h"):
        _write(half / name)
    assert headers.find(tmp_path).trees[0] == half


def test_split_trees_are_merged_into_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-56-amd64")
    _debian(tmp_path, "6.1.0-56")
    source = headers.find(tmp_path)
    assert source.matches
    tree = headers.merged_tree(source)
    assert (tree / "include/uapi/linux/bpf.h").read_text() == "common"
    assert (tree / "include/generated/autoconf.h").is_file()
    assert headers.merged_tree(source) == tree


def test_ubuntus_links_into_a_common_tree_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.8.0-31-generic")
    common, own = (
        tmp_path / "usr/src/linux-headers-6.8.0-31",
        tmp_path / "usr/src/linux-headers-6.8.0-31-generic",
    )
    _write(common / "include/linux/kconfig.h")
    _write(common / "include/uapi/linux/bpf.h", "ubuntu")
    _write(common / f"arch/{ARCH}/include/asm/page.h")
    _write(own / "include/generated/autoconf.h")
    for part in ("linux", "uapi"):
        os.symlink(f"../../linux-headers-6.8.0-31/include/{part}", own / "include" / part)
    tree = headers.merged_tree(headers.find(tmp_path))
    copied = tree / "include/uapi/linux/bpf.h"
    assert copied.read_text() == "ubuntu"
    assert not copied.is_symlink()


def test_the_kernels_own_archive_serves_where_there_is_no_other(tmp_path: Path) -> None:
    content = tmp_path / "content"
    _write(content / "include/linux/kconfig.h")
    _write(content / "include/uapi/linux/bpf.h", "kheaders")
    _write(content / f"arch/{ARCH}/include/asm/page.h")
    archive = tmp_path / "sys/kernel/kheaders.tar.xz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(content, arcname=".")
    source = headers.find(tmp_path)
    assert (source.kind, source.matches) == ("kheaders", True)
    assert (headers.merged_tree(source) / "include/uapi/linux/bpf.h").read_text() == "kheaders"


def test_a_given_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _debian(tmp_path, "6.1.0-56")
    given = tmp_path / "mine"
    for name in (
        "include/linux/kconfig.h",
        "include/uapi/linux/bpf.h",
        "include/generated/autoconf.h",
        f"arch/{ARCH}/include/asm/page.h",
    ):
        _write(given / name)
    monkeypatch.setenv("LABKIT_HEADERS", str(given))
    assert headers.find(tmp_path).trees == (given.resolve(),)


def test_a_merged_copy_is_taken_as_it_is_and_not_copied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _debian(tmp_path, "6.1.0-56")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    merged = headers.merged_tree(headers.find(tmp_path))
    moved = merged.rename(tmp_path / "in-an-image")
    monkeypatch.setenv("LABKIT_HEADERS", str(moved))
    assert headers.merged_tree() == moved.resolve()
    assert not list((tmp_path / "cache/headers").iterdir())


def test_no_headers_name_the_command_that_installs_them(tmp_path: Path) -> None:
    with pytest.raises(MissingHeaders, match=r"apt-get install linux-headers-"):
        headers.find(tmp_path)


def test_an_incomplete_tree_is_passed_over(tmp_path: Path) -> None:
    _write(tmp_path / "usr/src/linux-headers-6.1.0-1-amd64/include/linux/kconfig.h")
    with pytest.raises(MissingHeaders):
        headers.find(tmp_path)


def test_a_cache_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    _debian(tmp_path, "6.1.0-56")
    source = headers.find(tmp_path)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "headers").write_text("a file where a folder should be")
    with pytest.raises(MissingHeaders, match="cannot be written"):
        headers.merged_tree(source)


def test_a_cache_folder_that_cannot_be_made_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(LabkitError, match="LABKIT_CACHE"):
        cache_dir()

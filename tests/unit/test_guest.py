"""The host's side of the guest: what is built, how it is started, and that nothing of it outlives its asker."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from guest import __main__ as command_line
from guest import host, image, janitor
from guest.agent import Done as Ended
from guest.arch import ARCHITECTURES, Arch, host_arch
from guest.errors import BootFailed, BuildFailed, GuestDied, HostCannot
from guest.host import apt_transport_options, debian_mirror, run_tool
from guest.image import Image, image_key
from guest.machine import Machine, TimedOut
from guest.qemu import qemu_arguments
from guest.release import DEFAULT, RELEASES, Release
from guest.repo import pack, shipped_files
from guest.root import BASE_PACKAGES, TEST_PACKAGES
from labkit.paths import lab_root
from labkit.system.step import Done

DEBIAN = {"ID": "debian", "VERSION_CODENAME": "bookworm"}
AMD64 = ARCHITECTURES["amd64"]


def arguments(arch: Arch, *, throwaway: bool = True, restore: Path | None = None) -> str:
    built = Image(Path("/cache/x"), arch, "6.12")
    disk = Path("/cache/x/disk.img")
    listed = qemu_arguments(
        arch, built, Path("/run/g"), disk, disk_format="raw", throwaway=throwaway, restore=restore
    )
    return " ".join(listed)


# -- architecture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("machine", "debian"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_the_guest_has_the_architecture_of_the_host(machine: str, debian: str) -> None:
    arch = host_arch(machine)
    assert arch.debian == debian
    assert all(name.endswith(debian) for name in arch.kernel_packages)


def test_a_host_without_an_entry_is_told_so() -> None:
    with pytest.raises(HostCannot, match="riscv64"):
        host_arch("riscv64")


# -- the emulator's command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_the_guest_has_no_network_no_kvm_and_a_throwaway_disk(arch: Arch) -> None:
    line = arguments(arch)
    assert "-nic none" in line
    assert "-accel tcg,thread=multi" in line
    assert "kvm" not in line
    assert "daemonize" not in line
    assert "snapshot=on" in line
    assert f"console={arch.console} " in line


def test_the_cpu_can_run_numpy_and_the_kernel_leaves_cmpxchg16b_alone() -> None:
    line = arguments(AMD64)
    assert "cx16=off" not in line
    assert "clearcpuid=cx16" in line


def test_the_cpu_has_no_avx_which_qemu_emulates_wrongly() -> None:
    assert "avx=off,avx2=off" in arguments(AMD64)


def test_a_restore_differs_from_the_save_only_in_where_it_starts() -> None:
    saved = arguments(AMD64, throwaway=False).replace("snapshot=off", "snapshot=on")
    restored = arguments(AMD64, restore=Path("/with space/memory"))
    assert restored == f"{saved} -incoming exec:cat '/with space/memory'"


# -- where packages come from ------------------------------------------------------------------------------------------


def test_the_mirror_is_the_one_of_the_hosts_own_release() -> None:
    targets = [
        "vendor-bookworm|main|http://vendor.invalid/apt/",
        "bookworm-security|main|http://mirror.invalid/debian-security/",
        "bookworm|contrib|http://other.invalid/debian/",
        "bookworm|main|http://mirror.invalid/debian/",
    ]
    assert debian_mirror(targets=targets, os_release=DEBIAN, override="") == "http://mirror.invalid/debian"


def test_elsewhere_mmdebstraps_own_choice_stands_unless_a_variable_says_otherwise() -> None:
    ubuntu = {"ID": "ubuntu", "VERSION_CODENAME": "noble"}
    assert (
        debian_mirror(targets=["noble|main|http://mirror.invalid/ubuntu/"], os_release=ubuntu, override="")
        is None
    )
    assert debian_mirror(os_release=ubuntu, override="http://mirror.invalid/d") == "http://mirror.invalid/d"


def test_proxies_come_along_and_folders_do_not() -> None:
    dump = "\n".join(
        [
            'Acquire "";',
            'Acquire::http::Proxy "http://proxy.invalid:3128";',
            'Acquire::https::Verify-Peer "true";',
            'Acquire::http "";',
            'Acquire::cdrom::mount "/media/cdrom";',
            'Acquire::IndexTargets::deb::Packages::Optional "0";',
        ]
    )
    assert apt_transport_options(dump) == [
        'Acquire::http::Proxy "http://proxy.invalid:3128"',
        'Acquire::https::Verify-Peer "true"',
    ]


def test_a_failing_tool_shows_the_end_of_its_log() -> None:
    with pytest.raises(BuildFailed, match="no space left"):
        run_tool(["sh", "-c", "echo no space left >&2; exit 3"])


def test_packages_installed_for_the_guest_are_remembered_for_uninstall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[list[str], Done]] = []
    monkeypatch.setattr(host.os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "install", lambda names, done: seen.append((list(names), done)))
    host._install(["qemu-system-x86"])
    assert seen == [(["qemu-system-x86"], Done.load())]


# -- which Debian, and what it is made from ----------------------------------------------------------------------------


def test_a_kernel_of_the_backports_is_asked_for_by_name_and_its_archive_is_there() -> None:
    release = RELEASES["debian-13-backports"]
    assert release.kernel_package(AMD64) == "linux-image-cloud-amd64/trixie-backports"
    assert release.sources("http://mirror.invalid/d") == [
        "deb http://mirror.invalid/d trixie main",
        "deb http://mirror.invalid/d trixie-backports main",
    ]
    assert RELEASES["debian-12"].kernel_package(AMD64) == "linux-image-cloud-amd64"
    assert RELEASES["debian-12"].sources(None) == []  # mmdebstrap knows where Debian's is
    with pytest.raises(HostCannot, match="backports"):
        release.sources(None)


def test_the_base_leaves_python_and_all_the_lab_needs_to_the_script() -> None:
    brought = {"python3", "python3-venv", "python3-bpfcc", "bpftool", "stress-ng", "podman"}
    assert brought.isdisjoint({*BASE_PACKAGES, *TEST_PACKAGES})


@pytest.mark.parametrize(
    "changed",
    [
        *("lima/provision.sh", "labkit/system/packages.py", "requirements.lock", "task"),
        *("labkit/kernel/bcc.py", "labkit/kernel/headers.py"),
    ],
)
def test_a_change_in_what_provisions_it_makes_another_image(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lima/provision.sh", "requirements.lock", "task"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(lab_root() / name, tmp_path / name)
    for name in ("system", "kernel"):
        shutil.copytree(lab_root() / "labkit" / name, tmp_path / "labkit" / name)
    monkeypatch.setattr(image, "lab_root", lambda: tmp_path)
    before = image_key(AMD64, DEFAULT)
    assert before == image_key(AMD64, DEFAULT)
    with (tmp_path / changed).open("a") as file:
        file.write("# changed\n")
    assert image_key(AMD64, DEFAULT) != before


def test_an_image_is_for_one_release_and_one_architecture() -> None:
    keys = {image_key(AMD64, release) for release in RELEASES.values()}
    assert len(keys | {image_key(ARCHITECTURES["arm64"], DEFAULT)}) == len(RELEASES) + 1


def test_the_disks_modules_come_after_those_that_they_need_and_once(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/modules/6.1"
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text(
        "k/virtio.ko:\nk/virtio_ring.ko: k/virtio.ko\nk/virtio_pci.ko: k/virtio_ring.ko k/virtio.ko\n"
        "k/virtio_blk.ko.xz: k/virtio_ring.ko k/virtio.ko\nk/other.ko: k/virtio.ko\n"
    )
    names = [path.name for path in image._disk_modules(tmp_path, "6.1")]
    assert names == [
        "virtio.ko",
        "virtio_ring.ko",
        "virtio_pci.ko",
        "virtio_blk.ko.xz",
    ]  # ext4 is built in there


# -- what is shipped ---------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("ignored\n")
    (tmp_path / "kept.py").write_text("old\n")
    (tmp_path / "deleted.py").write_text("")
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    (tmp_path / "kept.py").write_text("new\n")
    (tmp_path / "deleted.py").unlink()
    (tmp_path / "added.py").write_text("")
    (tmp_path / "ignored").write_text("")
    return tmp_path


def test_the_working_tree_is_shipped_as_it_is_without_ignored_files(clone: Path) -> None:
    assert shipped_files(clone) == [".gitignore", "added.py", "kept.py"]
    with tarfile.open(fileobj=BytesIO(pack(clone))) as archive:
        member = archive.extractfile("kept.py")
        assert member is not None
        assert member.read() == b"new\n"


# -- the janitor -------------------------------------------------------------------------------------------------------

ASKER = """
import subprocess, sys, time
janitor, folder = sys.argv[1:]
child = subprocess.Popen([sys.executable, "-I", janitor, folder, "sleep", "1000"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(1000)
"""


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """Ended; nobody may have reaped it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="the janitor uses Linux's death signal")
@pytest.mark.parametrize("victim", ["asker", "janitor"])
def test_no_emulator_survives_a_kill_9(victim: str, tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    folder.mkdir()
    command = [sys.executable, "-c", ASKER, janitor.__file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        keeper = int(asker.stdout.readline())
        try:
            assert eventually(lambda: bool(children(keeper)))
            program = children(keeper)[0]
            assert eventually(lambda: "sleep" in Path(f"/proc/{program}/comm").read_text())
            os.kill(asker.pid if victim == "asker" else keeper, signal.SIGKILL)
            assert eventually(lambda: gone(program))
            if victim == "asker":
                assert eventually(lambda: gone(keeper) and not folder.exists())
        finally:
            asker.kill()


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "LABKIT_FORCE_LIVE"):
        monkeypatch.delenv(name, raising=False)


def test_where_no_guest_can_be_had_its_tests_skip_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Release) -> Image:
        raise HostCannot("Not installed: qemu-system-x86.", remedy="As root: apt-get install qemu-system-x86")

    monkeypatch.setattr(command_line, "ensure_image", refuse)
    result = CliRunner().invoke(command_line.main, ["test"])
    assert result.exit_code == 0
    assert "skipped here: Not installed: qemu-system-x86." in result.output
    assert "apt-get install" in result.output
    monkeypatch.setenv("CI", "1")
    for command in ("test", "matrix"):
        assert CliRunner().invoke(command_line.main, [command]).exit_code == command_line.INFRASTRUCTURE


@pytest.mark.parametrize(
    ("codes", "ci", "expected"),
    [
        ({"debian-12": 1, "debian-13-backports": None}, "", 1),
        ({"debian-12": None, "debian-13-backports": 1}, "", 1),
        ({"debian-12": 0, "debian-13-backports": None}, "", 0),
        ({"debian-12": 0, "debian-13-backports": None}, "1", 75),
        ({"debian-12": 0, "debian-13-backports": 0}, "1", 0),
    ],
)
def test_a_release_that_cannot_be_had_hides_no_failure_of_another(
    codes: dict[str, int | None], ci: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ensure(release: Release) -> Image:
        asked.append(release.name)
        if codes[release.name] is None:
            raise HostCannot(f"{release.name} needs another mirror.")
        return Image(Path(release.name), AMD64, "6.1")

    monkeypatch.setattr(command_line, "ensure_image", ensure)
    monkeypatch.setattr(command_line, "_retried", lambda image, *_, **__: codes[image.folder.name])
    monkeypatch.setenv("CI", ci)
    assert CliRunner().invoke(command_line.main, ["matrix"]).exit_code == expected
    assert asked == list(codes)


@pytest.mark.parametrize("error", [GuestDied, TimedOut])
@pytest.mark.parametrize(("times", "expected"), [(1, 0), (2, 1)])
def test_a_guest_that_dies_or_falls_silent_gets_one_more_chance(
    error: type[Exception], times: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def test(*_: object, **__: object) -> int:
        tries.append(1)
        if len(tries) <= times:
            raise error("no answer")
        return 0

    monkeypatch.setattr(command_line, "_test", test)
    assert command_line._retried(Image(Path("x"), AMD64, "6.1"), [], 1.0, fresh=True) == expected
    assert len(tries) == 2


def test_the_limit_of_tests_is_for_the_time_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pytest that goes on printing may take long; one test's own limit speaks before the silence is too long."""

    class Agent:
        clock, ticks = 0.0, 0

        def poll(self, _: int) -> Ended | None:
            self.ticks += 1
            self.clock += 0.6
            return Ended(0, b"", b"") if self.ticks > 10 else None

        def read(self, _: int) -> bytes:
            said, self.said = getattr(self, "said", False), not getattr(self, "said", False)
            return b"" if said or not talks else b"."

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: Ended(0, b"", b"") if name == "run" else 1

    fake = Agent()
    guest = Machine.__new__(Machine)
    guest.agent, guest._runs = fake, 0  # type: ignore[assignment]
    monkeypatch.setattr("guest.machine.time.monotonic", lambda: fake.clock)
    monkeypatch.setattr("guest.machine.time.sleep", lambda _: None)
    talks = True
    assert guest.run(["pytest"], timeout_s=1.0, silence=True)[0] == 0
    fake.ticks = 0
    with pytest.raises(TimedOut, match="took longer"):
        guest.run(["pytest"], timeout_s=1.0)
    fake.ticks, talks = 0, False
    with pytest.raises(TimedOut, match="said nothing"):
        guest.run(["pytest"], timeout_s=1.0, silence=True)
    assert command_line.TEST_LIMIT_S < command_line.TEST_S


def test_a_guest_that_does_not_boot_is_not_a_failing_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Release) -> Image:
        raise BootFailed("The guest did not come up in two tries.")

    monkeypatch.setattr(command_line, "ensure_image", fail)
    result = CliRunner().invoke(command_line.main, ["test"])
    assert result.exit_code == command_line.INFRASTRUCTURE == 75
    assert "infrastructure, not a failing test" in result.output

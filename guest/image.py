"""The guest's kernel, initrd and disk: a provisioned Debian (:mod:`guest.root`), built once and kept in labkit's cache.

The cache folder is named by a key over all that the image is made from. A build happens in a scratch folder that takes
its place by one rename, so that a half-made image is never used; a lock file keeps two builds apart.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from guest.arch import Arch, host_arch
from guest.errors import BuildFailed
from guest.host import locked, need_tools, run_tool, say
from guest.release import DEFAULT, Release
from guest.root import VENV, in_root, make_root
from labkit.paths import cache_dir, lab_root

__all__ = ["Image", "ensure_image", "guest_cache", "image_key", "remove_images"]

HERE = Path(__file__).resolve().parent
DISK_SIZE = "4G"
MACHINE_ID = "1ab1ab1ab1ab1ab1ab1ab1ab1ab1ab1a"  # fixed: systemd then takes no boot for a first one

# What nothing here needs, and what would make every boot under emulation slower.
_MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty-static.service",
    "getty.target",
    "getty@.service",
    "modprobe@.service",
    "qemu-guest-agent.service",
    "serial-getty@.service",
    "systemd-binfmt.service",
    "systemd-hwdb-update.service",
    "systemd-logind.service",
    "systemd-network-generator.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-udev-settle.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
    "timers.target",
)

# An image in which one of these cannot be imported is not one.
_MUST_IMPORT = (
    "ipykernel",
    "matplotlib.pyplot",
    "nbconvert",
    "pandas",
    "papermill",
    "pyarrow",
    "pytest",
    "yaml",
)

# What may stand between the kernel and its root disk; those that these need come with them, and what a kernel does not
# have as a module is built in. The checksum is asked for by name when ext4 mounts, so that no dependency shows it.
_DISK_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")


@dataclass(frozen=True)
class Image:
    """A built image.

    :param folder: where it is; other files derived from it (snapshots) may lie beside it.
    :param kernel: the guest's kernel release.
    """

    folder: Path
    arch: Arch
    kernel: str

    @property
    def disk(self) -> Path:
        """The root file system, raw; never written to."""
        return self.folder / "disk.img"

    @property
    def vmlinuz(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"


def guest_cache() -> Path:
    """The folder of all images: ``guest`` in labkit's cache (``LABKIT_CACHE`` moves it)."""
    path = cache_dir() / "guest"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def image_key(arch: Arch, release: Release) -> str:
    """Names an image by what it is made from: the recipe, what provisions it, the pinned Python packages."""
    root = lab_root()
    sources = [
        HERE / "image.py",
        HERE / "root.py",
        root / "lima/provision.sh",
        root / "task",
        root / "requirements.lock",
        # Set-up asks these two whether bcc and headers are there.
        root / "labkit/kernel/bcc.py",
        root / "labkit/kernel/headers.py",
    ]
    sources += sorted((root / "labkit/system").glob("*.py"))
    sources += sorted(p for folder in ("rootfs", "initrd") for p in (HERE / folder).rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    digest.update(repr((release, arch.debian, release.kernel_package(arch))).encode())
    return digest.hexdigest()[:16]


def ensure_image(release: Release = DEFAULT, arch: Arch | None = None) -> Image:
    """The image, built first if there is none for this recipe.

    :raises HostCannot: if this machine cannot build it.
    :raises BuildFailed: if a step fails.
    """
    arch = arch or host_arch()
    folder = guest_cache() / f"{release.name}_{arch.debian}_{image_key(arch, release)}"
    if not (folder / "manifest.json").exists():
        with locked(guest_cache() / "build.lock", "image"):
            if not (folder / "manifest.json").exists():
                need_tools(arch, build=True)
                _build(folder, arch, release)
    need_tools(arch, build=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    return Image(folder=folder, arch=arch, kernel=manifest["kernel"])


def remove_images() -> list[Path]:
    """Delete every cached image and what scratch folders killed builds have left; returns what went."""
    with locked(guest_cache() / "build.lock", "image"):
        gone = [path for path in guest_cache().iterdir() if path.is_dir()]
        for path in gone:
            _remove(path)
    return gone


def _build(folder: Path, arch: Arch, release: Release) -> None:
    """All steps, in a scratch folder that becomes ``folder`` at the end."""
    started = time.monotonic()
    for stale in guest_cache().glob("build-*"):
        _remove(stale)
    scratch = Path(tempfile.mkdtemp(prefix="build-", dir=guest_cache()))
    try:
        root, out = scratch / "root", scratch / "out"
        out.mkdir()
        say(f"building the {release.name} image (once; two or three minutes): packages")
        done = make_root(root, release, arch)
        in_root(root, [f"{VENV}/bin/python", "-c", f"import {', '.join(_MUST_IMPORT)}"], network=False)
        say("building: units, initrd, disk")
        _configure(root)
        _make_initrd(root, done.kernel, out / "initrd")
        shutil.copy(root / "boot" / f"vmlinuz-{done.kernel}", out / "vmlinuz")
        _make_disk(root, out / "disk.img")
        (out / "manifest.json").write_text(json.dumps(done.as_dict(), indent=1) + "\n")
        _forget_older_images(release)
        out.rename(folder)
    finally:
        _remove(scratch)
    say(f"image built in {time.monotonic() - started:.0f} s, kept in {folder}")


def _remove(folder: Path) -> None:
    """Delete a folder, unless something is mounted in it."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    inside = [point for point in mounted if point.startswith(f"{folder}/")]
    if inside:
        say(f"{folder} is left: {', '.join(inside)} is mounted there (umount it first)")
        return
    shutil.rmtree(folder, ignore_errors=True)


def _forget_older_images(release: Release) -> None:
    """Images of old recipes would only fill the disk (3 GB each); the last one stays, for a branch that still has it."""
    images = sorted(guest_cache().glob(f"{release.name}_*"), key=lambda path: path.stat().st_mtime)
    for old in (*images[:-1], *guest_cache().glob("trixie-*")):  # the latter: names of earlier recipes
        _remove(old)


def _configure(root: Path) -> None:
    shutil.copytree(HERE / "rootfs", root, dirs_exist_ok=True)
    etc = root / "etc"
    for folder in (etc, root / "var"):  # else the first boot rebuilds caches
        (folder / ".updated").touch()
    (etc / "machine-id").write_text(f"{MACHINE_ID}\n")
    (etc / "hostname").write_text("labkit-guest\n")
    (etc / "labkit-guest").write_text(
        "This machine is the lab's throwaway guest: tests may do anything to it.\n"
    )
    units = etc / "systemd" / "system"
    for unit in _MASKED:
        link = units / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "lab-agent.service").symlink_to("/etc/systemd/system/lab-agent.service")
    shutil.rmtree(root / "lab")  # each start ships the lab as it is then
    (root / "lab").mkdir()
    in_root(
        root, ["sh", "-c", "apt-get clean; rm -rf /var/lib/apt/lists/*_* /var/cache/apt/*.bin"], network=False
    )


def _disk_modules(root: Path, kernel: str) -> list[Path]:
    """The modules that the disk needs, each after those that it needs itself. Empty if all are built in."""
    folder = root / "usr" / "lib" / "modules" / kernel
    if not folder.is_dir():  # before the move to /usr
        folder = root / "lib" / "modules" / kernel
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        needs[Path(module).name.split(".")[0]] = [*reversed(others.split()), module]
    listed = [path for name in _DISK_MODULES for path in needs.get(name, [])]
    return [folder / path for path in dict.fromkeys(listed)]


def _make_initrd(root: Path, kernel: str, target: Path) -> None:
    """busybox, the disk's modules and ``initrd/init``, packed by the guest's own cpio."""
    tree = root / "run" / "initrd"
    for name in ("bin", "dev", "disk", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(root / "usr/bin/busybox", tree / "bin" / "busybox")
    shutil.copy(HERE / "initrd" / "init", tree / "init")
    for number, module in enumerate(_disk_modules(root, kernel)):
        data = module.read_bytes()
        plain = lzma.decompress(data) if module.suffix == ".xz" else data  # busybox cannot
        (tree / "modules" / f"{number:02}-{module.name.split('.')[0]}.ko").write_bytes(plain)
    pack = "cd /run/initrd && find . | busybox cpio -o -H newc"
    with target.open("wb") as archive:
        done = subprocess.run(["chroot", str(root), "sh", "-c", pack], stdout=archive, stderr=subprocess.PIPE)
    if done.returncode != 0:
        raise BuildFailed("The initrd could not be packed.", why=done.stderr.decode(errors="replace"))
    shutil.rmtree(tree)


def _make_disk(root: Path, target: Path) -> None:
    """An ext4 file system from the folder, without mounting anything. No journal: the disk is thrown away."""
    run_tool(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(target), DISK_SIZE])

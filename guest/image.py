"""The guest's kernel, initrd and disk: Debian 13, built once and kept in labkit's cache.

The cache folder is named by a key over all that the image is made from. A build happens in a scratch folder that takes
its place by one rename, so that a half-made image is never used; a lock file keeps two builds apart.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from guest.arch import Arch, host_arch
from guest.errors import BuildFailed
from guest.host import apt_transport_options, debian_mirror, locked, need_tools, run_tool, say
from guest.wheels import GUEST_PYTHON, guest_requirements, install_wheels
from labkit.paths import cache_dir, lab_root

__all__ = ["SUITE", "Image", "ensure_image", "guest_cache", "image_key", "remove_images"]

HERE = Path(__file__).resolve().parent
SUITE = "trixie"
DISK_SIZE = "4G"
MACHINE_ID = "1ab1ab1ab1ab1ab1ab1ab1ab1ab1ab1a"  # fixed: systemd then takes no boot for a first one

PACKAGES = (
    "bpftool",
    "busybox-static",  # the initrd
    "dbus",  # systemd-run --wait
    "iproute2",
    "kmod",
    "less",
    "pahole",  # the tests' second reader of BTF
    "procps",
    "python3",
    "python3-bpfcc",
    "qemu-guest-agent",
    "systemd-sysv",
    "udev",
)

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
    "bcc",
    "ipykernel",
    "matplotlib.pyplot",
    "nbconvert",
    "pandas",
    "papermill",
    "pyarrow",
    "pytest",
    "yaml",
)

# The only module between the kernel and its root disk; those it needs come with it.
_DISK_MODULE = "virtio_blk"


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


def image_key(arch: Arch, requirements: str) -> str:
    """Names an image by what it is made from: recipe, packages, architecture, Python packages.

    :param requirements: the guest's Python packages as :func:`guest.wheels.guest_requirements` gives them.
    """
    digest = hashlib.sha256()
    sources = [Path(__file__), HERE / "wheels.py"]
    sources += sorted(p for folder in ("rootfs", "initrd") for p in (HERE / folder).rglob("*") if p.is_file())
    for path in sources:
        digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes() + b"\0")
    digest.update(repr((SUITE, arch.debian, arch.kernel_packages, requirements)).encode())
    return digest.hexdigest()[:16]


def ensure_image(arch: Arch | None = None) -> Image:
    """The image, built first if there is none for this recipe.

    :raises HostCannot: if this machine cannot build it.
    :raises BuildFailed: if a step fails.
    """
    arch = arch or host_arch()
    requirements = guest_requirements(lab_root(), arch)
    folder = guest_cache() / f"{SUITE}-{arch.debian}-{image_key(arch, requirements)}"
    with locked(guest_cache() / "build.lock", "image"):
        if not (folder / "manifest.json").exists():
            need_tools(arch, build=True)
            _build(folder, arch, requirements)
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


def _build(folder: Path, arch: Arch, requirements: str) -> None:
    """All steps, in a scratch folder that becomes ``folder`` at the end."""
    started = time.monotonic()
    for stale in guest_cache().glob("build-*"):
        _remove(stale)
    scratch = Path(tempfile.mkdtemp(prefix="build-", dir=guest_cache()))
    try:
        root, wheels, out = scratch / "root", scratch / "wheels", scratch / "out"
        out.mkdir()
        say(f"building the Debian {SUITE} image (once; about two minutes): packages")
        with ThreadPoolExecutor(1) as pool:  # the wheels come while Debian's packages are unpacked
            fetched = pool.submit(install_wheels, requirements, wheels, arch)
            _debootstrap(root, arch)
            fetched.result()
        kernel = _kernel_release(root)
        say("building: Python packages, units, initrd")
        _install_lab(root, wheels)
        _configure(root)
        _make_initrd(root, kernel, out / "initrd")
        shutil.copy(root / "boot" / f"vmlinuz-{kernel}", out / "vmlinuz")
        say("building: disk")
        _make_disk(root, out / "disk.img")
        (out / "manifest.json").write_text(json.dumps({"kernel": kernel, "suite": SUITE}) + "\n")
        _forget_older_images()
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


def _forget_older_images() -> None:
    """Images of old recipes would only fill the disk (2 GB each); the last one stays, for a branch that still has it."""
    images = sorted(guest_cache().glob(f"{SUITE}-*"), key=lambda path: path.stat().st_mtime)
    for old in images[:-1]:
        _remove(old)


def _debootstrap(root: Path, arch: Arch) -> None:
    """Debian's packages, unpacked and configured into a folder."""
    # It mounts /proc and others inside the folder: left behind, they would turn the removal of a scratch folder into the
    # removal of what is mounted there. In namespaces of their own, mounts and processes end with us, however we end.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
    command += ["mmdebstrap", "--mode=root", "--variant=apt", f"--architectures={arch.debian}"]
    command += [f"--include={','.join((*PACKAGES, *arch.kernel_packages))}"]
    command += ["--dpkgopt=force-unsafe-io"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    command += [f"--aptopt={line}" for line in (*apt_transport_options(), 'Acquire::Languages "none"')]
    # initramfs-tools comes with the kernel; INITRD=No keeps it from making an initrd that nobody boots.
    mirror = debian_mirror()
    run_tool([*command, SUITE, str(root), *([mirror] if mirror else [])], env=os.environ | {"INITRD": "No"})
    # It holds how this host reaches its mirrors, possibly with a password in a proxy's address.
    (root / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)


def _kernel_release(root: Path) -> str:
    kernels = sorted(path.name.removeprefix("vmlinuz-") for path in (root / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise BuildFailed("The image should hold one kernel.", why=f"it holds {kernels}")
    return kernels[0]


def _install_lab(root: Path, wheels: Path) -> None:
    """A virtual environment at /opt/lab that also sees bcc, and finds labkit in /lab."""
    lab = root / "opt" / "lab"
    shutil.copytree(HERE / "rootfs", root, dirs_exist_ok=True)
    (lab / "bin" / "python").symlink_to("/usr/bin/python3")
    packages = lab / "lib" / f"python{GUEST_PYTHON}" / "site-packages"
    packages.parent.mkdir(parents=True)
    wheels.rename(packages)
    for name in ("share", "etc"):  # pip's --target puts these beside the packages
        if (packages / name).is_dir():
            (packages / name).rename(lab / name)
    (packages / "lab.pth").write_text("/lab\n")
    # Compiling under emulation, at the first import, would cost far more.
    compile_all = ["/opt/lab/bin/python", "-m", "compileall", "-q", "-j", "0"]
    run_tool(["chroot", str(root), *compile_all, f"/{packages.relative_to(root)}"])
    run_tool(["chroot", str(root), "/opt/lab/bin/python", "-c", f"import {', '.join(_MUST_IMPORT)}"])


def _configure(root: Path) -> None:
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
    (root / "lab").mkdir()


def _disk_modules(root: Path, kernel: str) -> list[Path]:
    """The modules that the disk needs, those needed by others first. Empty if they are built in."""
    folder = root / "usr" / "lib" / "modules" / kernel
    for line in (folder / "modules.dep").read_text().splitlines():
        module, _, needs = line.partition(":")
        if Path(module).name.split(".")[0] == _DISK_MODULE:
            return [folder / name for name in [*reversed(needs.split()), module]]
    return []


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

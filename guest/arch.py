"""What differs between processor architectures: one table, chosen by dpkg's name for the host's.

amd64 is what the tests run on. arm64 follows QEMU's and Debian's documentation and has not been run.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from guest.errors import HostCannot

__all__ = ["ARCHITECTURES", "Arch", "host_arch"]


@dataclass(frozen=True)
class Arch:
    """One architecture.

    :param debian: dpkg's name.
    :param machine: the kernel's name, as in wheel tags and ``uname -m``.
    :param qemu: the emulator's program, in the Debian package ``qemu_package``.
    :param board: QEMU's ``-M``.
    :param cpu: QEMU's ``-cpu``.
    :param console: the kernel's name of the first serial port.
    :param kernel_options: more of the kernel's command line.
    :param kernel_packages: Debian's kernel and the headers that bcc compiles against.
    """

    debian: str
    machine: str
    qemu: str
    qemu_package: str
    board: str
    cpu: str
    console: str
    kernel_options: str
    kernel_packages: tuple[str, ...]


ARCHITECTURES = {
    "amd64": Arch(
        debian="amd64",
        machine="x86_64",
        qemu="qemu-system-x86_64",
        qemu_package="qemu-system-x86",
        board="q35,sata=off,smbus=off,vmport=off",
        # 5-level paging and nested virtualisation cost time and serve nothing here; without the latter QEMU hides
        # the leaves of cpuid that tell cache sizes, and OpenBLAS complains into every notebook.
        # AVX came to QEMU's emulation in 7.2 and is not right there: NumPy's sorts by AVX2 lost elements or crashed.
        cpu="max,la57=off,svm=off,xlevel=0x8000000a,avx=off,avx2=off,f16c=off,fma=off,vaes=off,vpclmulqdq=off",
        console="ttyS0",
        # QEMU 7.2's software emulation crashes most systemd guests whose kernel uses cmpxchg16b. The kernel alone
        # must do without: NumPy's wheels (2.4 and later) refuse to start on a CPU that lacks it (x86-64-v2).
        kernel_options="clearcpuid=cx16",
        kernel_packages=("linux-image-cloud-amd64", "linux-headers-cloud-amd64"),
    ),
    "arm64": Arch(
        debian="arm64",
        machine="aarch64",
        qemu="qemu-system-aarch64",
        qemu_package="qemu-system-arm",
        board="virt,gic-version=3",
        # Emulated pointer authentication doubles the cost of calls unless its cheap variant is chosen.
        cpu="max,pauth-impdef=on",
        console="ttyAMA0",
        kernel_options="",
        kernel_packages=("linux-image-cloud-arm64", "linux-headers-cloud-arm64"),
    ),
}

_DEBIAN_NAMES = {arch.machine: arch.debian for arch in ARCHITECTURES.values()}


def host_arch(machine: str | None = None) -> Arch:
    """The guest's architecture: the host's own (the image is built in a chroot, which must run here).

    :param machine: ``uname -m``; this machine's if None.
    :raises HostCannot: if there is no entry for it.
    """
    name = machine or platform.machine()
    debian = _DEBIAN_NAMES.get(name)
    if debian is None:
        raise HostCannot(
            f"There is no guest for a {name} host.",
            why="The guest's disk is made by running its programs here, so it has the host's architecture.",
            remedy=f"Run it on one of {', '.join(sorted(_DEBIAN_NAMES))}, or add {name} to guest/arch.py.",
        )
    return ARCHITECTURES[debian]

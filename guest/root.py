"""A fresh Debian, made ready for the lab by `lima/provision.sh`, exactly as Lima does it.

The folder is bootstrapped with what Debian's cloud image holds as far as it matters here, and an ordinary user. Then
the script runs in it twice: once with the network, and once more without any, when it must find nothing to do.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from guest.arch import Arch
from guest.errors import BuildFailed
from guest.host import apt_transport_options, debian_mirror, run_tool, say
from guest.release import Release
from guest.repo import pack
from labkit.paths import lab_root

__all__ = ["USER", "VENV", "Provisioned", "in_root", "make_root"]

USER = "learner"  # as Lima makes one: ordinary, uid 1000, with a home of its own
USER_ID = 1000
VENV = "/opt/labkit/venv"  # lima/provision.sh's default

# As in a cloud image. Neither Python nor a compiler: the script is to bring what it needs.
BASE_PACKAGES = (
    "bash",
    "ca-certificates",
    "dbus",
    "iproute2",
    "kmod",
    "less",
    "procps",
    "systemd-sysv",
    "udev",
)
# What the guest and its tests need beside the lab: the initrd, commands from the host, a second reader of BTF.
TEST_PACKAGES = ("busybox-static", "pahole", "qemu-guest-agent")

# What reaches the package index, if this machine needs it to.
_NETWORK = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT",
            "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")  # fmt: skip
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# In namespaces of its own: mounts and processes end with us, however we end, and no host file system is under the
# folder when it is removed. /sys stays empty: set-up in here must not touch this machine's kernel.
_ENTER = """
set -e
root=$1; shift
mount --make-rprivate /
mount -t proc proc "$root/proc"
: >"$root/run/resolv.conf"; : >"$root/run/ca.crt"
[ -L "$root/etc/resolv.conf" ] || [ -e "$root/etc/resolv.conf" ] || : >"$root/etc/resolv.conf"
mount --bind "$(realpath /etc/resolv.conf)" "$root/etc/resolv.conf"
[ ! -e "$CERTIFICATES" ] || mount --bind "$CERTIFICATES" "$root/run/ca.crt"
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Provisioned:
    """What `lima/provision.sh` did in a fresh root.

    :param kernel: the release that the root will run.
    :param first: what it printed; ``first_s`` how long it took.
    :param second: the same of the run without a network.
    """

    kernel: str
    first: str
    first_s: float
    second: str
    second_s: float

    def as_dict(self) -> dict[str, str | float]:
        """For the image's manifest."""
        return asdict(self)


def make_root(root: Path, release: Release, arch: Arch) -> Provisioned:
    """Bootstrap a Debian into a folder and provision it twice; the lab's files are in ``/lab``.

    :raises BuildFailed: if a step fails, or the second run finds anything to do.
    """
    _bootstrap(root, release, arch)
    kernel = _kernel_release(root)
    in_root(root, ["useradd", "--create-home", "--uid", str(USER_ID), "--shell", "/bin/bash", USER])
    _ship(root)
    script = ["/lab/lima/provision.sh", "--user", USER, "--kernel", kernel]
    say(f"building: lima/provision.sh in a fresh Debian {release.suite}")
    started = time.monotonic()
    first = in_root(root, script)
    between = time.monotonic()
    second = in_root(root, script, network=False)
    if "nothing to do" not in second:
        raise BuildFailed("A second run of lima/provision.sh finds something to do.", why=second)
    # It holds how this host reaches its mirrors, possibly with a password in a proxy's address.
    (root / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)
    return Provisioned(kernel, first, between - started, second, time.monotonic() - between)


def in_root(root: Path, command: list[str], *, network: bool = True) -> str:
    """Run a command in the folder as root, in namespaces of its own; returns what it printed.

    :param network: False: without any.
    :raises BuildFailed: if it fails.
    """
    passed = {name: os.environ[name] for name in _NETWORK if name in os.environ}
    inner = {
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    inner |= {"INITRD": "No", **passed}  # INITRD: nobody boots what initramfs-tools would make
    if _CERTIFICATES.exists():
        inner |= {"PIP_CERT": "/run/ca.crt"}
    spaces = ["--mount", "--pid", "--fork", "--kill-child", *([] if network else ["--net"])]
    enter = ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "sh", "-c", _ENTER, "enter", str(root)]
    assignments = [f"{name}={value}" for name, value in inner.items()]
    return run_tool(
        [*enter, "/usr/bin/env", "-i", *assignments, *command],
        env=os.environ | {"CERTIFICATES": str(_CERTIFICATES)},
    )


def _bootstrap(root: Path, release: Release, arch: Arch) -> None:
    """Debian's packages, unpacked and configured into a folder."""
    # It mounts /proc and others inside the folder: left behind, they would turn the removal of a scratch folder into the
    # removal of what is mounted there. Hence namespaces here, too.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
    command += ["mmdebstrap", "--mode=root", "--variant=apt", f"--architectures={arch.debian}"]
    packages = (*BASE_PACKAGES, *TEST_PACKAGES, release.kernel_package(arch))
    command += [f"--include={','.join(packages)}"]
    command += ["--dpkgopt=force-unsafe-io"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    command += [f"--aptopt={line}" for line in (*apt_transport_options(), 'Acquire::Languages "none"')]
    sources = release.sources(debian_mirror())
    run_tool([*command, release.suite, str(root), *sources], env=os.environ | {"INITRD": "No"})


def _kernel_release(root: Path) -> str:
    kernels = sorted(path.name.removeprefix("vmlinuz-") for path in (root / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise BuildFailed("The image should hold one kernel.", why=f"it holds {kernels}")
    return kernels[0]


def _ship(root: Path) -> None:
    """The lab's files, as the user's own."""
    lab = root / "lab"
    lab.mkdir()
    with tarfile.open(fileobj=BytesIO(pack(lab_root()))) as archive:
        # Filters came to Python in 3.11.4, and Debian 12 has 3.11.2; the archive is our own.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(lab, **safely)
    for path in (lab, *lab.rglob("*")):
        shutil.chown(path, USER_ID, USER_ID)

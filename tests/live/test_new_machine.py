"""A new machine: a Debian root with Python, and nothing else; from a fresh clone to a finding, and back.

The kernel is the running one. Everything else is new: packages, home, cache, and a mount namespace without tracefs,
debugfs and bpffs, as after a boot. Takes some minutes and the network, hence only in ./task test-full.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.needs("root"), pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NOT_COPIED = (".venv*", "my", "build", ".mypy_cache", ".ruff_cache", ".pytest_cache", "__pycache__", "latest")
ENTER = r"""
set -eu
for point in /sys/kernel/tracing /sys/kernel/debug /sys/fs/bpf; do umount "$point" 2>/dev/null || :; done
for point in proc sys dev; do mount --rbind "/$point" "$1/$point"; done
exec chroot "$1" /bin/sh -c "$2"
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    tool = shutil.which("mmdebstrap")
    if tool is None:
        pytest.skip("mmdebstrap is not installed: apt-get install mmdebstrap")
    root = tmp_path_factory.mktemp("machine") / "root"
    suite = next(
        line for line in Path("/etc/os-release").read_text().splitlines() if "VERSION_CODENAME" in line
    )
    packages = "--include=python3-venv,git,ca-certificates"
    argv = [tool, "--mode=root", "--variant=minbase", packages, suite.partition("=")[2], str(root)]
    made = subprocess.run(argv, text=True, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    shutil.copytree(ROOT, root / "root/lab", ignore=shutil.ignore_patterns(*NOT_COPIED), symlinks=True)
    # The way to the network is this machine's.
    for name in ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).is_file():
            shutil.copyfile(Path("/", name), root / name)
    yield root
    shutil.rmtree(root)  # 3 GB


def run(root: Path, script: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy") or k.startswith("PIP_")}
    env = kept | {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "dumb"}
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", str(root), script]
    result = subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


def installed(root: Path) -> set[str]:
    listing = run(root, "dpkg-query -W -f '${db:Status-Abbrev}${Package}\\n'")
    return {line for line in listing.splitlines() if line.startswith("ii")}


def test_from_a_fresh_clone_to_a_finding_and_back(machine: Path) -> None:
    before = installed(machine)
    output = run(machine, "cd /root/lab && ./task first")
    assert "LIVE" in output
    assert "oracle" in output

    output = run(
        machine, "cd / && root/lab/task setup && grep -c -e ' /sys/kernel/tracing ' /proc/self/mounts"
    )
    assert "mount tracefs" in output  # a new boot: the mounts are gone, the packages are not
    assert "install python3-bpfcc" not in output

    output = run(
        machine, "cd /root/lab && ./task setup && ./task uninstall && ls /var/lib/labkit ~/.cache/labkit || :"
    )
    assert "kept, because" not in output
    assert output.count("No such file or directory") == 2
    assert installed(machine) == before

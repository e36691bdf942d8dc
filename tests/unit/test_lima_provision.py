"""lima/provision.sh: what it says and refuses; and (slow) executed for real in a fresh Debian 13, by root with a network.

Each build of the guest's image executes it as well, twice (guest/root.py), and tests/guest/test_lima_machine.py once more
in the booted machine. Here is what those do not show: something broken that it mends, uninstall, and an image.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.arch import host_arch
from guest.errors import BuildFailed, HostCannot
from guest.host import need_tools
from guest.release import DEFAULT
from guest.root import USER, VENV, Provisioned, in_root, make_root

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "lima/provision.sh"


def script(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", SCRIPT, *arguments],
        env={"PATH": os.environ["PATH"], **env},
        text=True,
        capture_output=True,
        check=False,
    )


def test_help_is_its_own_head() -> None:
    done = script("--help")
    assert done.returncode == 0
    known = set(re.findall(r"^        (--[a-z-]+)\)", SCRIPT.read_text(), flags=re.MULTILINE))
    assert {"--user", "--with", "--gcloud-archive", "--packages"} <= known
    assert known <= set(re.findall(r"^  (--[a-z-]+)", done.stdout, flags=re.MULTILINE))
    assert "set -eu" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--imgae"], "unknown option --imgae"),
        (["--user"], "--user needs a value"),
        (["--user", "no-such-user"], "no user"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="as another user it says that it needs root, and nothing else")
def test_what_is_wrong_is_said_before_anything_is_done(arguments: list[str], words: str) -> None:
    done = script(*arguments)
    assert done.returncode == 1
    assert words in done.stderr


def test_without_apt_it_points_to_set_up(tmp_path: Path) -> None:
    for name in ("sh", "dirname", "id"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    if os.geteuid() == 0:
        assert "no apt-get" in script(PATH=str(tmp_path)).stderr
    else:
        assert "needs root" in script(PATH=str(tmp_path)).stderr


APT = """#!/bin/sh
echo "$*" >>"$CALLS"
case " $* " in *" update "*) exit 0 ;; esac
[ "$(grep -c ' install ' "$CALLS")" -gt "$FAILURES" ] || { echo 'E: Could not get lock' >&2; exit 100; }
"""


def stand_ins(folder: Path, **scripts: str) -> str:
    """A PATH on which some programs are ours; returns it."""
    for name, text in {
        "id": "#!/bin/sh\necho 0\n",
        "sleep": '#!/bin/sh\necho "slept $1" >>"$CALLS"\n',
        **scripts,
    }.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(("failures", "code"), [(0, 0), (2, 0), (4, 1)])
def test_what_fails_in_passing_is_tried_again_with_longer_pauses_and_not_for_ever(
    failures: int, code: int, tmp_path: Path
) -> None:
    path = stand_ins(tmp_path, **{"apt-get": APT, "dpkg-query": "#!/bin/sh\nexit 1\n"})
    calls = tmp_path / "calls"
    done = script(
        *("--no-environment", "--packages", "bpftool"), PATH=path, CALLS=str(calls), FAILURES=str(failures)
    )
    assert (done.returncode != 0) == bool(code), done.stderr
    assert ("provision: ready" in done.stderr) == (code == 0)
    said = calls.read_text().splitlines()
    tries = min(failures, 3)
    assert [line for line in said if line.startswith("slept")] == ["slept 5", "slept 15", "slept 30"][:tries]
    assert sum(" install " in line for line in said) == tries + 1
    assert sum(" update" in line for line in said) == 1
    assert done.stderr.count("once more in") == tries


LABKIT = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in *"$BAD"*) echo 'set-up: cannot be had' >&2; exit 3 ;; esac
"""


def provisioned(
    tmp_path: Path, *arguments: str, bad: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The script with a set-up that refuses some part; what it was asked for. /etc/profile.d is not this machine's."""
    clone, venv = tmp_path / "clone", tmp_path / "venv/bin"
    (clone / "lima").mkdir(parents=True)
    venv.mkdir(parents=True)
    shutil.copyfile(SCRIPT, clone / "lima/provision.sh")
    for path, text in ((clone / "task", "#!/bin/sh\n"), (venv / "python", LABKIT)):
        path.write_text(text)
        path.chmod(0o755)
    enter = 'mount -t tmpfs none /etc/profile.d && exec sh "$@"'
    calls = tmp_path / "calls"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", enter, "sh", clone / "lima/provision.sh",
         "--venv", venv.parent, *arguments],
        env={"PATH": stand_ins(tmp_path, **{"apt-get": "#!/bin/sh\n"}), "CALLS": str(calls), "BAD": f"{bad},"},
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    return done, [line for line in calls.read_text().splitlines() if "labkit setup" in line]


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="hides /etc/profile.d from itself, which needs root")


@as_root
@pytest.mark.parametrize("bad", ["gcloud", "containers", "stress-ng"])
def test_a_convenience_that_cannot_be_had_is_named_and_never_a_failure(bad: str, tmp_path: Path) -> None:
    address = "https://g.example/apt"
    done, asked = provisioned(tmp_path, "--with", "gcloud", "--gcloud-archive", address, bad=bad)
    assert done.returncode == 0, done.stderr
    assert "not all of bpftool,stress-ng,containers,gcloud, could be had" in done.stderr
    assert "provision: ready" in done.stderr
    assert "--parts bcc,headers,kmod," in asked[0]
    assert len(asked) == 1 + 4  # it may have failed in passing
    assert all(f"--gcloud-archive {address}" in line for line in asked)


@as_root
def test_what_live_measurement_needs_is_a_failure_where_it_cannot_be_had(tmp_path: Path) -> None:
    done, asked = provisioned(tmp_path, bad="bcc")
    assert done.returncode != 0
    assert "provision: ready" not in done.stderr
    assert len(asked) == 4
    assert not any("containers" in line for line in asked)


@as_root
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [["bcc", "headers", "kmod"], ["bpftool", "stress-ng", "containers"]]),
        (["--without", "containers,kmod"], [["bcc", "headers"], ["bpftool", "stress-ng"]]),
        (["--parts", "gcloud"], [["gcloud"]]),
        (["--parts", "bfptool"], [["bfptool"]]),
    ],
)
def test_parts_are_asked_for_in_two_goes_what_is_needed_first(
    arguments: list[str], expected: list[list[str]], tmp_path: Path
) -> None:
    _, asked = provisioned(tmp_path, *arguments, bad="nothing")
    parts = [re.findall(r"--parts (\S*)", line)[0] for line in asked]
    assert [[part for part in one.split(",") if part] for one in parts] == expected


# --- for real ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine() -> Iterator[tuple[Path, Provisioned]]:
    """A fresh root that was provisioned twice."""
    arch = host_arch()
    try:
        need_tools(arch, build=True)
    except HostCannot as error:
        pytest.skip(str(error))
    # Not under /tmp, which may be memory: it is 2.5 GB.
    with tempfile.TemporaryDirectory(prefix="labkit-root-", dir="/var/tmp") as scratch:
        root = Path(scratch) / "root"
        yield root, make_root(root, DEFAULT, arch)


slow = pytest.mark.slow


@slow
def test_the_first_run_brings_everything_and_the_second_finds_nothing_to_do(
    machine: tuple[Path, Provisioned],
) -> None:
    root, done = machine
    assert "making the environment in /opt/labkit/venv" in done.first
    assert done.second.count("nothing to do") == 1
    assert "apt-get" not in done.second
    for tool in ("bpftool", "stress-ng", "podman", "newuidmap"):
        assert any((root / folder / tool).exists() for folder in ("usr/bin", "usr/sbin")), tool
    assert (root / f"lib/modules/{done.kernel}/build/include/generated/autoconf.h").exists()
    assert not list(root.glob("lab/**/__pycache__/*.root"))


@slow
def test_the_environment_is_the_users_and_nothing_in_the_clone_is_roots(
    machine: tuple[Path, Provisioned],
) -> None:
    root, _ = machine
    assert (root / VENV.lstrip("/")).stat().st_uid == 1000
    assert [path for path in (root / "lab").rglob("*") if path.lstat().st_uid != 1000] == []


@slow
def test_the_user_has_the_launcher_and_the_profile(machine: tuple[Path, Provisioned]) -> None:
    root, _ = machine
    assert USER in in_root(root, ["getent", "group", "labkit"], network=False)
    assert (
        in_root(root, ["sh", "-c", ". /etc/profile.d/labkit.sh; echo $LABKIT_VENV"], network=False).strip()
        == VENV
    )


@slow
def test_what_is_broken_is_mended_and_only_that(machine: tuple[Path, Provisioned]) -> None:
    root, done = machine
    (root / VENV.lstrip("/") / ".labkit-stamp").write_text("half\n")
    in_root(root, ["dpkg", "--purge", "--force-depends", "bpftool"], network=False)
    text = in_root(root, ["/lab/lima/provision.sh", "--user", USER, "--kernel", done.kernel])
    assert "making the environment" in text
    assert "apt-get install bpftool" in text
    assert in_root(root, ["bpftool", "version"], network=False)


@slow
def test_without_a_network_a_lacking_package_is_named_and_a_failure_only_if_needed(
    machine: tuple[Path, Provisioned],
) -> None:
    root, done = machine
    in_root(root, ["dpkg", "--purge", "--force-depends", "stress-ng"], network=False)
    in_root(root, ["apt-get", "clean"], network=False)  # else apt has it at hand
    # `again` must not wait here for minutes: a sleep that returns at once goes before the real one.
    fast = "mkdir -p /tmp/fast; printf '#!/bin/sh\\n' >/tmp/fast/sleep; chmod +x /tmp/fast/sleep; PATH=/tmp/fast:$PATH"
    command = f"{fast} exec /lab/lima/provision.sh --user {USER} --kernel {done.kernel}"
    said = in_root(root, ["sh", "-c", command], network=False)
    assert "stress-ng cannot be installed" in said
    assert "provision: ready" in said
    in_root(root, ["dpkg", "--purge", "--force-depends", "python3-bpfcc"], network=False)
    with pytest.raises(BuildFailed, match="python3-bpfcc"):
        in_root(root, ["sh", "-c", command], network=False)
    in_root(root, ["/lab/lima/provision.sh", "--user", USER, "--kernel", done.kernel])


@slow
def test_uninstall_takes_back_what_set_up_brought(machine: tuple[Path, Provisioned]) -> None:
    root, _ = machine
    state = json.loads((root / "var/lib/labkit/setup.json").read_text())
    assert {"python3-bpfcc", "podman"} <= set(state["packages"])
    in_root(root, [f"{VENV}/bin/python", "-B", f"{VENV}/bin/labkit", "uninstall", "--yes"], network=False)
    assert not (root / "usr/lib/python3/dist-packages/bcc").exists()
    assert not (root / "usr/local/lib/labkit").exists()
    assert not (root / "var/lib/labkit").exists()


@slow
def test_an_image_gets_only_its_parts_and_is_left_tidy(machine: tuple[Path, Provisioned]) -> None:
    root, _ = machine
    in_root(root, ["/lab/lima/provision.sh", "--image", "--parts", "bcc,headers"])
    assert (root / "usr/lib/python3/dist-packages/bcc").exists()
    assert not (root / "usr/bin/stress-ng").exists()
    assert not (root / "usr/local/lib/labkit").exists()  # no rights: nobody is to log in
    assert [
        path for path in (root / "var/lib/apt/lists").iterdir() if path.name not in ("partial", "lock")
    ] == []

"""The provisioned machine after its first boot, as Lima has it: no network, an ordinary user, the script run once more."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.system.launch import LAUNCHER

pytestmark = pytest.mark.guest

LAB = Path(__file__).resolve().parents[2]
USER = "learner"


def run(*command: str, user: str = "root", **changes: str) -> subprocess.CompletedProcess[str]:
    login = ["runuser", "-u", user, "--", "env", f"HOME=/home/{user}"] if user != "root" else ["env"]
    # What the tests of this process were given, such as a cache, is nobody else's.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LABKIT_", "PYTEST"))}
    settings = [
        f"{name}={value}" for name, value in {"LABKIT_VENV": os.environ["LABKIT_VENV"], **changes}.items()
    ]
    return subprocess.run(
        [*login, *settings, *command],
        env=clean,
        cwd=LAB,
        text=True,
        capture_output=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def boots() -> list[subprocess.CompletedProcess[str]]:
    """What the script says at the first boot, and at the next."""
    return [run("sh", "lima/provision.sh", "--user", USER) for _ in range(2)]


def test_at_the_first_boot_the_script_does_what_only_a_running_kernel_lets_it(
    boots: list[subprocess.CompletedProcess[str]],
) -> None:
    first = boots[0]
    assert first.returncode == 0, first.stderr
    assert "apt-get" not in first.stderr
    options = subprocess.run(
        ["findmnt", "-no", "OPTIONS", "/sys/kernel/tracing"], capture_output=True, text=True, check=True
    ).stdout
    assert "gid=" in options


def test_at_the_next_it_finds_nothing_to_do(boots: list[subprocess.CompletedProcess[str]]) -> None:
    second = boots[1]
    assert second.returncode == 0, second.stderr
    assert "nothing to do" in second.stderr
    assert "making the environment" not in second.stderr


def test_all_that_was_promised_is_there() -> None:
    lacking = [tool for tool in ("bpftool", "stress-ng", "podman", "newuidmap") if shutil.which(tool) is None]
    assert lacking == []
    assert Path(f"/lib/modules/{os.uname().release}/build/include/generated/autoconf.h").exists()
    assert (
        run("sh", "-lc", 'echo "$LABKIT_VENV"', user=USER, LABKIT_VENV="").stdout.strip()
        == "/opt/labkit/venv"
    )
    assert run("./task", "--version", user=USER).returncode == 0


@pytest.mark.usefixtures("boots")
def test_the_probe_of_lima_compiles_and_loads_a_program_as_the_user() -> None:
    assert Path(LAUNCHER).exists()
    done = run("sh", "lima/ready.sh", user=USER)
    assert done.returncode == 0, done.stderr
    # Not the kprobe: Debian lets nobody but CAP_SYS_ADMIN open perf events (kernel.perf_event_paranoid is 3), and the
    # program's next hook is the same function by fentry.
    assert "ready: fentry:" in done.stdout


def test_the_probe_says_no_where_bcc_is_missing() -> None:
    done = run("sh", "lima/ready.sh", user=USER, LABKIT_BCC="/nonexistent")
    assert done.returncode != 0
    assert "ready" not in done.stdout


def test_the_probe_says_no_to_who_may_not_load_programs() -> None:
    done = run("sh", "lima/ready.sh", user="nobody", HOME="/tmp")
    assert done.returncode != 0
    assert "ready" not in done.stdout


OWN_CGROUPS = """
import os, sys
from labkit.cgroups import Group, Scope
from labkit.kernel import probe
print(probe()["own cgroups"].state, os.getuid())
with Scope([Group("pod", quota_us=30_000), "pod/service"], cpu=True, weight=500) as scope:
    pid = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "1000")
    scope.add("pod/service", pid)
    print(open(f"/proc/{pid}/cgroup").read().strip().replace(scope.root.name, "OURS"))
    print((scope.folder("pod") / "cpu.max").read_text().strip(), (scope.root / "cpu.weight").read_text().strip())
    root = scope.root
os.waitpid(pid, 0)
print(root.exists())
"""


@pytest.fixture
def user_manager() -> Iterator[str]:
    """The user's own systemd, as a login starts it; the guest boots without logind, which is slow under emulation."""
    masked = Path("/etc/systemd/system/systemd-logind.service")
    uid = pwd.getpwnam(USER).pw_uid
    masked.unlink()
    # What pam_systemd does at a login; the guest has no recommended packages.
    drop_in = Path(f"/etc/systemd/system/user@{uid}.service.d/runtime.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/{uid}\n")
    for command in (["daemon-reload"], ["start", "systemd-logind.service", f"user@{uid}.service"]):
        subprocess.run(["systemctl", *command], check=True)
    yield f"/run/user/{uid}"
    subprocess.run(["systemctl", "stop", f"user@{uid}.service", "systemd-logind.service"], check=True)
    masked.symlink_to("/dev/null")
    shutil.rmtree(drop_in.parent)
    subprocess.run(["systemctl", "daemon-reload"], check=True)


@pytest.mark.usefixtures("boots", "user_manager")
def test_an_ordinary_user_makes_cgroups_with_limits_in_a_scope_of_their_own() -> None:
    python = f"{os.environ['LABKIT_VENV']}/bin/python"
    done = run(python, "-I", "-S", "labkit/system/launch.py", python, "-B", "-c", OWN_CGROUPS, user=USER)
    assert done.returncode == 0, done.stderr
    uid = pwd.getpwnam(USER).pw_uid
    state, where, limits, left = done.stdout.splitlines()
    assert state == f"yes {uid}"
    assert re.fullmatch(
        rf"0::/user\.slice/user-{uid}\.slice/user@{uid}\.service/.*labkit-\d+\.scope/OURS/pod/service", where
    )
    assert limits == "30000 100000 500"
    assert left == "False"


@pytest.mark.usefixtures("boots")
def test_without_a_login_the_user_is_told_why_cgroups_cannot_be_made() -> None:
    script = "from labkit.kernel.features import own_cgroups; print(own_cgroups())"
    done = run(f"{os.environ['LABKIT_VENV']}/bin/python", "-B", "-c", script, user=USER)
    assert "state='no'" in done.stdout, done.stderr
    assert "log in where systemd has a user manager" in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("boots")
def test_an_ordinary_user_builds_an_image(tmp_path: Path) -> None:
    shutil.copy("/usr/bin/busybox", tmp_path / "busybox")
    (tmp_path / "Containerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/busybox\nENTRYPOINT ["/bin/busybox", "echo", "built"]\n'
    )
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    podman = ("podman", "--cgroup-manager", "cgroupfs")
    built = run(*podman, "build", "--tag", "tiny:1", str(tmp_path), user=USER)
    assert built.returncode == 0, built.stderr
    said = run(*podman, "image", "inspect", "--format", "{{.Config.Entrypoint}}", "tiny:1", user=USER)
    assert said.stdout.strip() == "[/bin/busybox echo built]", said.stderr

"""The provisioned machine after its first boot, as Lima has it: no network, an ordinary user, the script run once more."""

from __future__ import annotations

import os
import shutil
import subprocess
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

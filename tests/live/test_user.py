"""Live measurement as an ordinary user: a throwaway user, set up, runs programs and a notebook on this kernel.

The user gets a copy of this working tree and an environment of their own: the packages of the running one, by hard
links, under a Python that other users can reach. What the test grants it takes back, and nothing that was there before.
"""

from __future__ import annotations

import copy
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labkit._janitor import disable_cpu, remove_cgroup
from labkit.kernel.cgroup import hierarchy
from labkit.kernel.place import HOME
from labkit.system import launch
from labkit.system.access import Launcher, TracefsForGroup
from labkit.system.step import Done

pytestmark = [pytest.mark.live, pytest.mark.needs("root")]

ROOT = Path(__file__).parents[2]
NAME = f"lab-test-{os.getpid()}"
NOT_COPIED = (
    ".git",
    ".venv",
    ".venv*",
    "my",
    "build",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "latest",
)


@dataclass(frozen=True)
class Learner:
    """The throwaway user, and what set-up said to them before root had a hand in it."""

    entry: pwd.struct_passwd
    lab: Path
    python: Path
    before: subprocess.CompletedProcess[str]

    def run(
        self, *argv: str | Path, session: str = "new", **changes: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, in a session from before or after the user entered the group."""
        return run_as(self.entry, self.lab, argv, session=session, **changes)

    def labkit(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.python, "-m", "labkit.cli", *arguments, **changes)


def run_as(
    user: pwd.struct_passwd, cwd: Path, argv: tuple[str | Path, ...], *, session: str = "new", **changes: str
) -> subprocess.CompletedProcess[str]:
    groups = {"new": "--init-groups", "old": "--clear-groups"}[session]
    switch = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", groups, "--reset-env"]
    variables = [f"{key}={value}" for key, value in changes.items()]
    command = [*switch, "env", *variables, *map(str, argv)]
    return subprocess.run(
        command, cwd=cwd, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=300, check=False
    )


def reachable_python(user: pwd.struct_passwd) -> str:
    """A Python of this very minor version that the user may run (root's own may lie in a closed folder)."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (
        f"{sys.base_prefix}/bin/python{version}",
        f"/usr/bin/python{version}",
        "/usr/bin/python3",
    ):
        probe = (candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
        result = run_as(user, Path("/"), probe)
        if result.returncode == 0 and result.stdout.strip() == version:
            return candidate
    pytest.skip(f"no Python {version} that another user can run: make the environment with /usr/bin/python3")


def make_lab(user: pwd.struct_passwd) -> tuple[Path, Path]:
    """The user's own copy of the lab, and of the environment; returns the folder and its Python."""
    home = Path(user.pw_dir)
    lab = home / "a lab"
    shutil.copytree(ROOT, lab, ignore=shutil.ignore_patterns(*NOT_COPIED), symlinks=True)
    subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", lab], check=True)
    made = run_as(user, lab, (reachable_python(user), "-m", "venv", lab / ".venv"))
    assert made.returncode == 0, made.stderr

    packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    shutil.copytree(
        Path(sys.prefix) / packages,
        lab / ".venv" / packages,
        dirs_exist_ok=True,
        copy_function=link_or_copy,
        ignore=shutil.ignore_patterns("noisy_neighbour_lab*", "labkit.pth"),
    )
    (lab / ".venv" / packages / "noisy_neighbour_lab.pth").write_text(f"{lab}\n")
    # A few packages of the lock differ between patch releases of Python; pip finds them and leaves the others alone.
    pip = [
        lab / ".venv/bin/python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-deps",
    ]
    lock = [*("--root-user-action", "ignore"), "--require-hashes", "-r", ROOT / "requirements.lock"]
    subprocess.run([*pip, *lock], check=True)
    share = Path("share/jupyter")
    own = shutil.ignore_patterns("kernels", "lab")
    shutil.copytree(Path(sys.prefix) / share, lab / ".venv" / share, copy_function=link_or_copy, ignore=own)
    kernels = lab / ".venv" / share / "kernels"  # copied, as set-up rewrites them
    shutil.copytree(Path(sys.prefix) / share / "kernels", kernels)
    subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", kernels], check=True)
    return lab, lab / ".venv/bin/python"


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def learner() -> Iterator[Learner]:
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", NAME], check=True)
    user = pwd.getpwnam(NAME)
    found = Done.load()
    try:
        lab, python = make_lab(user)
        before = run_as(user, lab, (python, "-m", "labkit.cli", "setup"), PATH="/nonexistent")
        granted = subprocess.run(
            [sys.executable, "-m", "labkit.system", "apply", "--for-user", NAME],
            text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert granted.returncode == 0, granted.stdout + granted.stderr
        yield Learner(user, lab, python, before)
    finally:
        take_back(found)
        subprocess.run(["userdel", "--remove", NAME], check=False, capture_output=True)


def take_back(found: Done) -> None:
    """What set-up did for the throwaway user, but not what it had done before."""
    done = Done.load()
    mine = copy.deepcopy(done)
    mine.members = [NAME]
    if not found.group:
        mine.files = [path for path in done.files if path not in found.files]
    else:
        mine.group, mine.files = False, []
    for step in (TracefsForGroup(), Launcher(NAME)):
        if found.tracefs_options is None or isinstance(step, Launcher):
            step.undo(mine)
    done.members = [name for name in done.members if name != NAME]
    if not found.group:
        done.group, done.files, done.tracefs_options = False, found.files, None
    done.save()


def test_set_up_without_sudo_names_what_it_wants_and_the_exact_command(learner: Learner) -> None:
    assert learner.before.returncode == 3
    assert f"add {NAME} to the group {launch.GROUP}" in learner.before.stdout
    assert f"-B -m labkit.system apply --for-user {NAME}" in learner.before.stdout


def test_set_up_has_nothing_left_to_do(learner: Learner) -> None:
    result = learner.labkit("setup", "--quiet")
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


@pytest.mark.parametrize("session", ["new", "old"])
def test_launcher_gives_two_capabilities_and_changes_nothing_else(learner: Learner, session: str) -> None:
    script = (
        "import json, os; "
        "caps = [l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff')]; "
        "print(json.dumps([int(caps[0], 16), os.getuid(), os.getgid()])); "
        "os.listdir('/sys/kernel/tracing/events/sched')"
    )
    argv = (learner.python, "-I", "-S", learner.lab / "labkit/system/launch.py", learner.python, "-c", script)
    result = learner.run(*argv, session=session)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [1 << 38 | 1 << 39, learner.entry.pw_uid, learner.entry.pw_gid]


def test_somebody_else_gets_nothing(learner: Learner) -> None:
    nobody = pwd.getpwnam("nobody")
    result = run_as(nobody, Path("/"), (launch.LAUNCHER, "--ambient-caps", "+bpf", "--", "true"))
    assert "Permission denied" in result.stderr


def test_doctor_finds_the_machine_live(learner: Learner) -> None:
    result = learner.labkit("doctor", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["live"]


def test_program_runs_and_its_cost_is_said_to_be_not_permitted(learner: Learner) -> None:
    script = """
import json
import labkit as lk
with lk.load("hello") as program:
    cost = program.cost()
    print(json.dumps([len(cost), program.cost_note]))
"""
    argv = (learner.python, "-I", "-S", learner.lab / "labkit/system/launch.py", learner.python, "-c", script)
    result = learner.run(*argv)
    assert result.returncode == 0, result.stderr
    rows, note = json.loads(result.stdout)
    assert rows == 0
    assert "CAP_SYS_ADMIN" in note


def test_notebook_runs_live_and_its_outcomes_belong_to_the_user(learner: Learner) -> None:
    result = learner.labkit("run", "notebooks/01_hello_world.ipynb", "--mode", "live")
    assert result.returncode == 0, result.stdout + result.stderr
    latest = learner.lab / "outcomes/latest"
    summary = json.loads((latest / "summary.json").read_text())
    assert summary["mode"] == "live"
    assert [notebook["status"] for notebook in summary["notebooks"]] == ["ok"]
    assert {path.owner() for path in (latest, *latest.rglob("*"))} == {NAME}
    assert "CAP_SYS_ADMIN" in "".join(page.read_text() for page in latest.rglob("*.html"))


SCENARIOS = "09_throttled_or_noisy"


def summary_of(learner: Learner) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((learner.lab / "outcomes/latest/summary.json").read_text())
    return found


#: Says in which mode a chapter with scenarios would run here, and, if live, makes such cgroups and joins one.
MODE = """
import os, labkit as lk
from labkit.cgroups import Group, Scope
lab = lk.chapter("09_throttled_or_noisy", needs=["own cgroups"])
print(lab.mode, lab.why)
if lab.mode == "live":
    with Scope(["service", Group("limited", weight=300, quota_us=20_000)], cpu=True) as scope:
        pid = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "1000")
        scope.add("limited", pid)
        joined = open(f"/proc/{pid}/cgroup").read().count(scope.root.name + "/limited")
        print(joined, len(list(scope.folder("service").iterdir())) > 0)
    os.waitpid(pid, 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    Path("/sys/fs/cgroup/cgroup.controllers").exists(), reason="here systemd may give the user a cgroup"
)
def test_a_chapter_whose_cgroups_cannot_be_made_is_replayed_and_says_why(learner: Learner) -> None:
    result = learner.labkit("run", f"notebooks/{SCENARIOS}.ipynb", "notebooks/01_hello_world.ipynb")
    assert result.returncode == 0, result.stdout + result.stderr
    found = {notebook["name"]: notebook["mode"] for notebook in summary_of(learner)["notebooks"]}
    assert found == {SCENARIOS: "replay", "01_hello_world": "live"}
    assert f"replayed, not measured here: {SCENARIOS}\n  because: own cgroups: user id" in result.stdout
    assert "Replayed, not measured here" in (learner.lab / "outcomes/latest/README.md").read_text()


@pytest.fixture
def given(learner: Learner) -> Iterator[list[Path]]:
    """A cgroup in each tree that matters, given to the user, as systemd or a container's runtime gives one."""
    tree = hierarchy()
    assert tree.unified is not None
    folders = [top / f"lab-test-{os.getpid()}" for top in (tree.unified, tree.controllers.get("cpu")) if top]
    control = tree.unified / "cgroup.subtree_control"
    before = control.read_text().split()
    if tree.mode == "v2" and "cpu" not in before:
        control.write_text("+cpu")
    for folder in folders:
        folder.mkdir()
        for path in (folder, *folder.glob("cgroup.*")):
            os.chown(path, learner.entry.pw_uid, learner.entry.pw_gid)
    try:
        yield folders
    finally:
        for folder in folders:
            assert remove_cgroup(str(folder))
        if tree.mode == "v2" and "cpu" not in before:
            disable_cpu(str(control))


def run_inside(learner: Learner, given: list[Path], command: str) -> subprocess.CompletedProcess[str]:
    """A command of the user's that begins in their cgroups."""
    script = (
        'for folder in "$@"; do echo $$ >"$folder/cgroup.procs"; done; read command; eval exec "$command"'
    )
    switch = (
        f"setpriv --reuid={learner.entry.pw_uid} --regid={learner.entry.pw_gid} --init-groups --reset-env"
    )
    return subprocess.run(
        ["sh", "-c", script, "sh", *map(str, given)], input=f"{switch} {command}\n", cwd=learner.lab,
        text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_chapter_with_scenarios_is_live_in_a_cgroup_of_the_users_and_else_a_replay(
    learner: Learner, given: list[Path]
) -> None:
    script = learner.lab / "mode.py"
    script.write_text(MODE)
    launcher = f".venv/bin/python -I -S labkit/system/launch.py .venv/bin/python {script.name}"
    inside = run_inside(learner, given, launcher)
    assert inside.returncode == 0, inside.stderr
    trees = 2 if "cpu" in hierarchy().controllers else 1
    assert inside.stdout.splitlines() == ["live ", f"{trees} True"]
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        outside = learner.run(*launcher.split())
        assert outside.stdout.startswith(
            f"replay own cgroups: user id {learner.entry.pw_uid} may neither write"
        )


@pytest.mark.slow
def test_in_a_cgroup_of_their_own_the_user_runs_scenarios_live_and_leaves_it_empty(
    learner: Learner, given: list[Path]
) -> None:
    run = f".venv/bin/python -m labkit.cli run notebooks/{SCENARIOS}.ipynb --mode live --timeout 250"
    result = run_inside(learner, given, run)
    assert result.returncode == 0, result.stdout + result.stderr
    (notebook,) = summary_of(learner)["notebooks"]
    assert (notebook["status"], notebook["mode"]) == ("ok", "live")
    assert notebook["findings"]
    left = [path.name for folder in given for path in folder.iterdir() if path.is_dir()]
    assert set(left) <= {HOME}


def test_kernel_of_the_environment_has_the_rights_and_can_be_interrupted_and_restarted(
    learner: Learner,
) -> None:
    script = """
import json, os, time
from jupyter_client import KernelManager

manager = KernelManager(kernel_name="python3", transport="ipc")
manager.start_kernel()
client = manager.client()
client.start_channels()

def ask(expression):
    reply = client.execute_interactive("", user_expressions={"x": expression}, silent=True, timeout=60)
    return reply["content"]["user_expressions"]["x"]["data"]["text/plain"]

def rights():
    client.wait_for_ready(timeout=60)
    caps = "next(l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff'))"
    return int(ask(caps).strip("'"), 16)

found = [rights()]
direct = int(ask("__import__('os').getppid()")) == os.getpid()
client.execute("while True: pass")
time.sleep(0.5)
manager.interrupt_kernel()
interrupted = client.get_shell_msg(timeout=60)["content"].get("ename") == "KeyboardInterrupt"
manager.restart_kernel(now=True)
found.append(rights())
manager.shutdown_kernel(now=True)
client.stop_channels()
print(json.dumps([found, direct, interrupted]))
"""
    result = learner.run(learner.python, "-W", "ignore", "-c", script)
    assert result.returncode == 0, result.stdout + result.stderr
    found, direct, interrupted = json.loads(result.stdout.splitlines()[-1])
    assert found == [1 << 38 | 1 << 39] * 2
    assert direct, "a process stayed between Jupyter and the kernel"
    assert interrupted

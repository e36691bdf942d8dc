"""Set-up and its removal: what is decided, remembered and undone. tests/live/test_user.py does it for real."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from labkit.errors import LabkitError
from labkit.kernel.privilege import privilege
from labkit.system import __main__ as system_main
from labkit.system import bcc_link, launch, setup
from labkit.system import command as command_module
from labkit.system import gcloud as gcloud_module
from labkit.system.access import file_capabilities
from labkit.system.command import steps
from labkit.system.gcloud import Gcloud
from labkit.system.kernelspec import wrap_kernelspec
from labkit.system.mounts import mount_options
from labkit.system.packages import Packages, parse_candidates, parse_simulation, wants
from labkit.system.step import Done, OutOfReach, SetupFailed, command, remove_files
from labkit.system.wish import PARTS, Wish

POLICY = """\
python3-bpfcc:
  Installed: (none)
  Candidate: 0.26.0+ds-1
  Version table:
     0.26.0+ds-1 500
linux-headers-6.18.44-none:
  Installed: (none)
  Candidate: (none)
kmod:
  Installed: 30
  Candidate: 30
"""


def labkit(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "labkit.cli", *arguments]
    return subprocess.run(argv, env=os.environ | changes, text=True, capture_output=True, check=False)


# --- what is decided ---------------------------------------------------------------------------------------


def test_only_packages_that_the_archive_has_are_candidates() -> None:
    assert parse_candidates(POLICY) == {"python3-bpfcc", "kmod"}


def test_names_of_a_simulated_installation_and_removal() -> None:
    text = "Inst kmod [29] (30 Debian [amd64])\nInst new:amd64 (1)\nConf kmod (30)\nPurg old [1]\nRemv gone [1]\n"
    assert parse_simulation(text, "Inst") == ["kmod", "new:amd64"]
    assert parse_simulation(text, "(?:Remv|Purg)") == ["old", "gone"]


def test_mount_table_with_escaped_blanks_and_covered_mounts() -> None:
    table = "a /x\\040y tracefs rw,gid=7 0 0\nb /over tracefs ro 0 0\nc /over tmpfs rw 0 0\n"
    assert mount_options(Path("/x y"), "tracefs", table=table) == "rw,gid=7"
    assert mount_options(Path("/over"), "tracefs", table=table) is None
    assert mount_options(Path("/proc"), "proc") is not None


def test_dry_run_changes_nothing_and_the_checks_take_less_than_a_second() -> None:
    before = Path("/proc/self/mounts").read_text()
    started = time.monotonic()
    result = labkit("setup", "--dry")
    assert time.monotonic() - started < 1.0
    assert result.returncode == 0, result.stderr
    assert Path("/proc/self/mounts").read_text() == before


def test_without_a_package_manager_the_packages_are_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_BCC", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    step = Packages()
    assert any("python3-bpfcc" in line for line in step.missing())
    with pytest.raises(OutOfReach, match="no apt-get") as caught:
        step.apply(Done())
    assert "bcc" in caught.value.remedy


def test_a_package_that_can_be_missed_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("labkit.system.packages._SBIN", "/nonexistent")
    monkeypatch.setenv("LABKIT_BCC", "/nonexistent")
    assert any("stress-ng" in line for line in Packages().missing())
    remaining = "\n".join(Packages(["stress-ng", "python3-bpfcc"]).missing())
    assert "stress-ng" not in remaining
    assert "python3-bpfcc" in remaining  # the lab cannot do without it


def test_failing_command_says_what_it_printed() -> None:
    with pytest.raises(SetupFailed, match=r"sh ended with 3: line one \| line two"):
        command(["sh", "-c", "echo line one; echo line two >&2; exit 3"])
    with pytest.raises(SetupFailed, match="No such file"):
        command(["/nonexistent/tool"])


# --- what is remembered ------------------------------------------------------------------------------------


def test_memory_survives_and_an_empty_one_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "labkit/setup.json"
    done = Done(packages=["a"], group=True, members=["eve"], tracefs_options="rw")
    done.mounted(Path("/sys/kernel/tracing"))
    done.save(path)
    assert Done.load(path) == done
    Done().save(path)
    assert not path.parent.exists()
    assert Done.load(path) == Done()


def test_mounts_of_an_earlier_boot_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "setup.json"
    path.write_text(json.dumps({"mounts": ["/sys/fs/bpf"], "boot": "another", "group": True}))
    assert Done.load(path) == Done(group=True)


def test_damaged_memory_is_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "setup.json"
    path.write_text('{"packages": [')
    with pytest.raises(SetupFailed, match="cannot be read"):
        Done.load(path)


def test_only_our_files_are_removed_and_folders_only_when_empty(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "lab", tmp_path / "lab/theirs"
    ours.mkdir()
    done = Done()
    for name in ("one", "two"):
        (ours / name).write_text("x")
    theirs.write_text("x")
    for path in (ours, ours / "one", ours / "two", tmp_path / "elsewhere"):
        done.made(path)
    remove_files(done, ours)
    assert [path.name for path in ours.iterdir()] == ["theirs"]
    assert done.files == [str(tmp_path / "elsewhere")]


# --- rights ------------------------------------------------------------------------------------------------


def test_file_capabilities_are_what_setcap_writes(tmp_path: Path) -> None:
    setcap = shutil.which("setcap", path="/usr/sbin:/sbin")
    if setcap is None or os.geteuid() != 0:
        # The same, as linux/capability.h lays it out: revision 2 | effective, permitted and inheritable, low and high.
        assert file_capabilities(38, 39).hex() == "010000020000000000000000c000000000000000"
        return
    target = tmp_path / "file"
    target.write_text("")
    subprocess.run([setcap, "cap_bpf,cap_perfmon+ep", str(target)], check=True)
    assert os.getxattr(target, "security.capability") == file_capabilities(38, 39)


def test_launch_runs_the_command_in_place_and_passes_its_exit_code() -> None:
    script = "import os, sys; print(os.getpid(), sys.argv[1]); sys.exit(5)"
    argv = [sys.executable, "-I", "-S", launch.__file__, sys.executable, "-c", script, "a b"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate()
    assert output.split(maxsplit=1) == [str(process.pid), "a b\n"]
    assert process.returncode == 5


def test_who_has_the_rights_is_not_launched_again() -> None:
    assert launch.has_rights() == ({"bpf", "perfmon"} <= privilege().effective)
    if launch.has_rights():
        assert launch.launched(["true"]) is None


def test_kernelspec_of_an_environment_starts_through_the_launcher_once(tmp_path: Path) -> None:
    path = tmp_path / "share/jupyter/kernels/python3/kernel.json"
    path.parent.mkdir(parents=True)
    spec = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
    }
    path.write_text(json.dumps(spec))
    assert wrap_kernelspec(tmp_path)
    first = path.read_text()
    argv = json.loads(first)["argv"]
    assert argv[:4] == [sys.executable, "-I", "-S", launch.__file__]
    assert argv[4:] == [sys.executable, *spec["argv"][1:]]
    assert wrap_kernelspec(tmp_path)
    assert path.read_text() == first
    assert not wrap_kernelspec(tmp_path / "no environment")


# --- where nothing can be done -----------------------------------------------------------------------------


def test_on_a_mac_it_says_why_in_one_line_and_the_lab_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert setup() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "replay" in line
    assert "lima/README.md" in line


@pytest.mark.parametrize(("answer", "code"), [("n", 3), ("no", 3), ("nonsense", 3)])
def test_at_a_terminal_it_asks_and_no_leaves_everything_as_it_is(answer: str, code: int) -> None:
    ours, theirs = os.openpty()
    argv = [sys.executable, "-m", "labkit.cli", "setup"]
    env = os.environ | {"LABKIT_BCC": "/nonexistent"}
    before = Path("/proc/self/mounts").read_text()
    with subprocess.Popen(argv, env=env, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.write(ours, f"{answer}\n".encode())
        output, _ = process.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)
    assert "install python3-bpfcc" in output
    assert "Go on? [Y/n]" in output
    assert "left as it is" in output
    assert process.returncode == code
    assert Path("/proc/self/mounts").read_text() == before


# --- bcc in an environment of one's own ----------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A Python environment without pip, as conda or uv make one."""
    venv.create(tmp_path / "env", with_pip=False)
    return tmp_path / "env"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package such as the distribution's, beside others that must not be seen."""
    folder = tmp_path / "dist-packages/bcc"
    folder.mkdir(parents=True)
    (folder / "libbcc.py").write_text("")
    (folder / "__init__.py").write_text("who = 'the system'")
    (folder.parent / "apt_pkg.py").write_text("")
    monkeypatch.setenv("LABKIT_BCC", str(folder))
    return folder


def imported(environment: Path, name: str) -> str:
    argv = [
        environment / "bin/python",
        "-I",
        "-c",
        f"import {name}; print(getattr({name}, 'who', 'another'))",
    ]
    return subprocess.run(argv, text=True, capture_output=True, check=False).stdout.strip()


def test_the_systems_bcc_and_nothing_else_becomes_importable_and_is_taken_back(
    environment: Path, package: Path
) -> None:
    assert imported(environment, "bcc") == ""
    assert str(package) in bcc_link.link(environment)
    assert imported(environment, "bcc") == "the system"
    assert imported(environment, "apt_pkg") == ""
    assert "from now on" not in bcc_link.link(environment)  # the second time there is nothing to do
    assert bcc_link.unlink(environment)
    assert imported(environment, "bcc") == ""
    assert list(environment.glob("lib/python3*/site-packages/labkit*")) == []
    assert not bcc_link.unlink(environment)


@pytest.mark.usefixtures("package")
def test_another_package_called_bcc_is_left_alone(environment: Path) -> None:
    (site,) = environment.glob("lib/python3*/site-packages")
    (site / "bcc").mkdir()
    (site / "bcc/__init__.py").write_text("")
    assert "another package" in bcc_link.link(environment)
    assert imported(environment, "bcc") == "another"


def test_where_there_is_no_bcc_nothing_is_linked(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_BCC", "/nonexistent")
    assert bcc_link.link(environment) == ""
    assert not bcc_link.unlink(environment)


# --- parts ---------------------------------------------------------------------------------------------------


def test_parts_are_chosen_by_name_and_are_then_needed() -> None:
    asked = Wish.parse("bpftool containers,")
    assert {want.part for want in wants(asked)} == {"bpftool", "containers"}
    assert all(want.needed for want in wants(asked))
    assert {want.part for want in wants()} == {"bcc", "headers", "kmod", "bpftool", "stress-ng"}
    assert {want.part for want in wants(Wish(image=True))} == {"bcc", "headers", "kmod"}


def test_a_misspelt_part_is_refused_with_the_list() -> None:
    with pytest.raises(LabkitError, match="bfptool") as caught:
        Wish.parse("bfptool")
    assert "bpftool" in caught.value.remedy


def test_a_wish_survives_the_way_through_sudo() -> None:
    asked = Wish.parse("bcc,gcloud", "6.1.0-9-amd64", image=True, gcloud_archive="https://g.example/apt")
    seen: list[Wish] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system_main, "apply", lambda _, wish: seen.append(wish) or 0)
        patch.setattr(system_main.os, "geteuid", lambda: 0)
        patch.setattr(sys, "argv", ["labkit.system", "apply", "--for-user", "root", *asked.arguments()])
        assert system_main.main() == 0
    assert seen == [asked]
    assert Wish().arguments() == []


def headers_of(asked: Wish) -> tuple[str, ...]:
    return next(want.packages for want in wants(asked) if want.part == "headers")


def test_headers_of_the_kernel_that_will_run_come_first_then_those_of_its_flavour() -> None:
    cloud = headers_of(Wish(kernel="6.12.9+deb13-cloud-amd64"))
    assert cloud[0] == "linux-headers-6.12.9+deb13-cloud-amd64"
    assert cloud[1].startswith("linux-headers-cloud-")
    assert not headers_of(Wish(kernel="6.12.9+deb13-amd64"))[1].startswith("linux-headers-cloud-")
    assert not any(
        platform.release() in name for name in headers_of(Wish(image=True))
    )  # an image runs anywhere


def test_an_image_gets_packages_and_no_mounts_and_no_rights() -> None:
    assert [step.name for step in steps("eve", asked=Wish(image=True))] == ["packages"]
    assert {"rights", "tracepoints"} < {step.name for step in steps("eve")}


def test_gcloud_is_set_up_only_where_it_was_asked_for_and_is_always_taken_back(tmp_path: Path) -> None:
    assert "gcloud" not in {step.name for step in steps("eve")}
    assert "gcloud" in {step.name for step in steps("eve", asked=Wish.parse("gcloud"))}
    ours = Done(files=["/etc/apt/sources.list.d/labkit-google-cloud.sources"])
    lines = [line for step in steps("", asked=Wish(parts=PARTS)) for line in step.owned(ours)]
    assert lines == ["remove /etc/apt/sources.list.d/labkit-google-cloud.sources"]


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """apt's folders are elsewhere, and apt only writes down what it is asked. The archive is ``tmp_path/archive``."""
    calls: list[list[str]] = []

    def note(argv: list[str], **_: object) -> str:
        calls.append(list(argv))
        if (tmp_path / "away").exists() and "update" in argv:
            raise SetupFailed("apt-get update failed", why="E: cannot connect")
        return ""

    monkeypatch.setattr(gcloud_module, "_KEY", tmp_path / "key.asc")
    monkeypatch.setattr(gcloud_module, "_SOURCE", tmp_path / "google.sources")
    monkeypatch.setattr(gcloud_module, "command", note)
    monkeypatch.setattr(gcloud_module, "install", lambda names, _: calls.append(["install", *names]))
    monkeypatch.setattr(
        gcloud_module.shutil, "which", lambda name: None if name == "gcloud" else f"/usr/bin/{name}"
    )
    monkeypatch.setattr(Done, "save", lambda *_: None)
    (tmp_path / "archive/doc").mkdir(parents=True)
    (tmp_path / "archive/doc/apt-key.gpg").write_text("the key")
    return calls


def test_gcloud_comes_from_the_archive_that_was_named(tmp_path: Path, google: list[list[str]]) -> None:
    done, address = Done(), f"file:{tmp_path}/archive"
    step = Gcloud(f"{address}/")
    step.apply(done)
    assert (tmp_path / "key.asc").read_text() == "the key"
    source = (tmp_path / "google.sources").read_text().splitlines()
    assert f"URIs: {address}" in source
    assert f"Signed-By: {tmp_path}/key.asc" in source
    assert google[-1] == ["install", "google-cloud-cli"]
    step.undo(done)
    assert done.files == []
    assert not (tmp_path / "google.sources").exists()


@pytest.mark.parametrize("archive", ["", "packages", "http://g.example/apt"])
def test_gcloud_without_an_archive_says_how_to_name_one(archive: str, google: list[list[str]]) -> None:
    with pytest.raises(OutOfReach) as caught:
        Gcloud(archive).apply(Done())
    assert "--gcloud-archive https://" in caught.value.remedy
    assert google == []


@pytest.mark.parametrize("away", ["the key", "the lists"])
def test_an_archive_that_does_not_answer_leaves_nothing_in_the_way_of_apt(
    away: str, tmp_path: Path, google: list[list[str]]
) -> None:
    done = Done()
    if away == "the key":
        (tmp_path / "archive/doc/apt-key.gpg").unlink()
    else:
        (tmp_path / "away").touch()
    with pytest.raises(OutOfReach):
        Gcloud(f"file:{tmp_path}/archive").apply(done)
    assert list(tmp_path.glob("google*")) == list(tmp_path.glob("key*")) == done.files == []


@pytest.mark.parametrize(
    ("prefix", "base", "conda", "own"),
    [("venv", "base", False, True), ("env", "env", True, True), ("usr", "usr", False, False)],
)
def test_conda_is_an_environment_of_ones_own_though_its_prefix_is_its_base(
    prefix: str, base: str, conda: bool, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernelspec of a conda environment is wrapped, so that who was given the rights measures live in JupyterLab."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / prefix))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / base))
    if conda:
        (tmp_path / prefix / "conda-meta").mkdir(parents=True)
    kernels = tmp_path / prefix / "share/jupyter/kernels/python3"
    kernels.mkdir(parents=True)
    argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernels / "kernel.json").write_text(json.dumps({"argv": argv}))
    assert wrap_kernelspec() == own
    assert (launch.__file__ in json.loads((kernels / "kernel.json").read_text())["argv"]) == own


def test_a_bpftool_that_does_not_work_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ubuntu's says `WARNING: bpftool not found for kernel ...` and ends with 2 until the kernel's own tools are there."""
    (want,) = wants(Wish.parse("bpftool"))
    tool = tmp_path / "bpftool"
    monkeypatch.setenv("PATH", str(tmp_path))
    for status, there in ((2, False), (0, True)):
        tool.write_text(f"#!/bin/sh\n[ $1 = version ] && exit {status}\n")
        tool.chmod(0o755)
        assert want.present() == there
    assert want.packages[-1] == "linux-tools-common"
    assert want.packages[-2] == f"linux-tools-{platform.release()}"


def test_what_was_asked_for_by_name_and_cannot_be_had_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unreachable(Packages):
        def missing(self) -> list[str]:
            return ["install bcc"]

        def apply(self, done: Done) -> None:
            raise OutOfReach("bcc cannot be installed", why="no archive", remedy="get on the network")

    monkeypatch.setattr(command_module, "steps", lambda *_, **__: [Unreachable()])
    monkeypatch.setattr(Done, "save", lambda *_: None)
    undecorated = command_module.apply.__wrapped__  # without the lock, which is root's
    assert undecorated(None) == 0  # the lab goes on, in replay
    assert "the lab runs in replay" in capsys.readouterr().out
    assert undecorated(None, Wish.parse("bcc")) == 3


def test_a_user_without_a_name_runs_in_replay_and_not_into_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers that run as a bare number have no entry in /etc/passwd."""
    monkeypatch.setattr(command_module.os, "geteuid", lambda: 2**31 - 5)
    assert command_module._who() is None

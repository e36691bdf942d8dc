"""A running guest: booted or restored, commands in it, files into it.

The first start boots, warms what tests need (page cache, labkit's merged headers) and saves the whole machine beside
the image; later starts restore that in about a second. Every start works on a throwaway disk.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from guest.agent import Agent
from guest.errors import AgentError, BootFailed, GuestError
from guest.host import run_tool, say
from guest.image import Image
from guest.qemu import Emulator, emulator_version, qemu_arguments
from guest.repo import pack

__all__ = ["ENVIRONMENT", "Machine", "TimedOut", "machine"]

BOOT_S = 180.0  # a boot takes 10 s on an idle machine of 2 cores; many times that is a dead guest
RESTORE_S = 30.0
SAVE_S = 180.0
_PROGRESS_S = 0.3

ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LABKIT_CACHE": "/var/cache/labkit",
    "LABKIT_OUTCOMES": "/var/tmp/outcomes",
    "PATH": "/opt/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONUNBUFFERED": "1",
    "TERM": "dumb",
}

# What a test run touches first. Failures do not matter here: the tests will tell.
_WARM_UP = """
import importlib
for name in ("bcc", "pandas", "pyarrow.parquet", "matplotlib.pyplot", "papermill", "ipykernel.kernelapp", "pytest"):
    importlib.import_module(name)
from labkit.kernel.headers import merged_tree
merged_tree()
"""


class TimedOut(GuestError):
    """A command in the guest took longer than its limit, and was stopped."""


class Machine:
    """A guest whose agent answers.

    :param image: what it runs.
    """

    def __init__(self, image: Image, emulator: Emulator, *, boot_s: float) -> None:
        self.image = image
        self.emulator = emulator
        self.agent = Agent(emulator.connect("agent"), emulator.check)
        self._runs = 0
        self.agent.wait(boot_s)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> tuple[int, str]:
        """Run a program in ``/lab``, in a cgroup of its own; returns its exit code and what it printed.

        :param on_text: called with what it prints, as it comes.
        :raises TimedOut: after ``timeout_s``; all processes of the command are killed.
        :raises GuestError: if the guest dies.
        """
        self._runs += 1
        unit = f"lab-run-{self._runs}"
        log = f"/run/{unit}.log"
        command = [
            "systemd-run",
            "--quiet",
            "--wait",
            "--collect",
            f"--unit={unit}",
            "--working-directory=/lab",
        ]
        command += [f"--property=StandardOutput=file:{log}", "--property=StandardError=inherit"]
        command += ["--property=Delegate=yes", "--property=TimeoutStopSec=2"]
        command += [f"--setenv={key}={value}" for key, value in {**ENVIRONMENT, **(env or {})}.items()]
        self.agent.write_file(log, b"")
        handle = self.agent.open(log, "rb")
        pid = self.agent.start([*command, "--", *argv])
        deadline = time.monotonic() + timeout_s
        text = ""
        try:
            while True:
                done = self.agent.poll(pid)
                while data := self.agent.read(handle):
                    piece = data.decode(errors="replace")
                    text += piece
                    if on_text is not None:
                        on_text(piece)
                if done is not None:
                    return done.code, text + done.err.decode(errors="replace")
                if time.monotonic() > deadline:
                    self.agent.run(["systemctl", "kill", "--signal=KILL", unit])
                    tail = "\n    ".join(text.splitlines()[-15:])
                    raise TimedOut(
                        f"`{shlex.join(argv)}` took longer than {timeout_s:.0f} s.", why=f"\n    {tail}"
                    )
                time.sleep(_PROGRESS_S)
        finally:
            if self.emulator.alive:
                self.agent.close(handle)

    def must(self, *argv: str, timeout_s: float = 60.0) -> str:
        """Run a small program by the agent itself and return its standard output.

        :raises AgentError: if it fails.
        """
        done = self.agent.run(argv, timeout_s=timeout_s)
        if done.code != 0:
            raise AgentError(
                f"`{shlex.join(argv)}` failed in the guest with {done.code}.", why=done.err.decode()
            )
        return done.out.decode()

    def set_clock(self) -> None:
        """Give the guest the host's time: a restored machine believes that it is still when it was saved."""
        self.must("date", "--utc", f"--set=@{time.time():.3f}")

    def ship(self, root: Path) -> None:
        """Put the lab's working tree at ``/lab``, in place of what is there."""
        self.agent.write_file("/run/lab.tar.gz", pack(root))
        self.must(
            "sh", "-c", "rm -rf /lab && mkdir /lab && tar -xzf /run/lab.tar.gz -C /lab && rm /run/lab.tar.gz"
        )

    def save(self, target: Path) -> None:
        """Stop the machine and write its memory to a file. It cannot be used afterwards: restore it instead."""
        qmp = self.emulator.qmp
        qmp("stop")
        qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        qmp("migrate", uri=f"exec:cat > {shlex.quote(str(target))}")
        deadline = time.monotonic() + SAVE_S
        while (status := qmp("query-migrate").get("status")) != "completed":
            if status == "failed" or time.monotonic() > deadline:
                raise GuestError(f"The machine's memory could not be saved ({status}).")
            time.sleep(0.1)
        qmp("quit")


def _snapshot_folder(image: Image) -> Path:
    """Named by all that a restore must share with the save: emulator, arguments, what was warmed."""
    nowhere = Path("/nowhere")
    arguments = qemu_arguments(
        image.arch, image, nowhere, nowhere, disk_format="qcow2", throwaway=True, restore=None
    )
    parts = [emulator_version(image.arch), repr(arguments), _WARM_UP]
    return image.folder / f"snapshot-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"


@contextmanager
def _emulator(emulator: Emulator, image: Image, *, boot_s: float) -> Iterator[Machine]:
    with emulator:
        yield Machine(image, emulator, boot_s=boot_s)


@contextmanager
def machine(image: Image, *, root: Path, fresh: bool = False) -> Iterator[Machine]:
    """A guest with the lab at ``/lab``; gone, with its disk, when the block ends.

    :param root: the lab's folder.
    :param fresh: boot instead of restoring the snapshot.
    :raises BootFailed: if it does not come up at the second try either.
    """
    for attempt in (1, 2):
        try:
            emulator, guest = _start(image, root, fresh=fresh)
            break
        except GuestError as error:
            if attempt == 2:
                raise BootFailed("The guest did not come up in two tries.", why=str(error)) from error
            say(f"the guest did not come up, trying once more ({error.what})")
    with emulator:
        yield guest


def _start(image: Image, root: Path, *, fresh: bool) -> tuple[Emulator, Machine]:
    started = time.monotonic()
    if fresh:
        emulator = Emulator(image)
        verb, boot_s = "booted", BOOT_S
    else:
        saved = _snapshot_folder(image)
        if not (saved / "memory").exists():
            _make_snapshot(image, root, saved)
            started = time.monotonic()
        emulator = Emulator(image, disk=saved / "disk.qcow2", disk_format="qcow2", restore=saved / "memory")
        verb, boot_s = "restored", RESTORE_S
    try:
        if not fresh:
            _resume(emulator)
        guest = Machine(image, emulator, boot_s=boot_s)
        guest.set_clock()
        guest.ship(root)
    except BaseException as error:
        words = emulator.last_words()
        emulator.close()
        if not fresh:  # perhaps the snapshot is at fault: the next try makes a new one
            shutil.rmtree(_snapshot_folder(image), ignore_errors=True)
        if isinstance(error, AgentError):
            raise BootFailed(error.what, why=words) from error
        raise
    say(f"{verb} Debian with Linux {image.kernel} in {time.monotonic() - started:.1f} s")
    return emulator, guest


def _resume(emulator: Emulator) -> None:
    """Let a restored machine run as soon as its memory is there."""
    deadline = time.monotonic() + RESTORE_S
    while emulator.qmp("query-status")["status"] == "inmigrate":
        emulator.check()
        if time.monotonic() > deadline:
            raise BootFailed("The snapshot was not restored in time.", why=emulator.last_words())
        time.sleep(0.05)
    emulator.qmp("cont")


def _make_snapshot(image: Image, root: Path, target: Path) -> None:
    """Boot, warm up, save memory and disk. One rename makes it valid."""
    started = time.monotonic()
    for stale in image.folder.glob("snapshot-*"):
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix="making-", dir=image.folder))
    try:
        disk = scratch / "disk.qcow2"
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.disk), str(disk)])
        say("booting (about 15 s)")
        with _emulator(
            Emulator(image, disk=disk, disk_format="qcow2", throwaway=False), image, boot_s=BOOT_S
        ) as guest:
            say(
                f"booted in {time.monotonic() - started:.0f} s; warming up, so that later runs start from here"
            )
            guest.set_clock()
            guest.ship(root)
            code, text = guest.run(["/opt/lab/bin/python", "-c", _WARM_UP], timeout_s=300)
            if code != 0:
                say(f"warming up was incomplete: {text.strip().splitlines()[-1:]}")
            guest.must("sh", "-c", "rm -rf /lab/* && sync && fstrim / || true")
            guest.save(scratch / "memory")
        os.rename(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    size = (target / "memory").stat().st_size / 1e6
    say(f"snapshot made in {time.monotonic() - started:.0f} s ({size:.0f} MB)")

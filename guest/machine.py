"""A running guest: commands in it, files into it, its memory saved."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from guest.agent import Agent
from guest.errors import AgentError, GuestError
from guest.image import Image
from guest.qemu import Emulator
from guest.root import VENV

__all__ = ["ENVIRONMENT", "Machine", "TimedOut"]

SAVE_S = 180.0
_PROGRESS_S = 0.3

ENVIRONMENT = {
    "HOME": "/root",
    "LABKIT_VENV": VENV,
    "LANG": "C.UTF-8",
    "LABKIT_CACHE": "/var/cache/labkit",
    "LABKIT_OUTCOMES": "/var/tmp/outcomes",
    "PATH": f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONUNBUFFERED": "1",
    "TERM": "dumb",
}


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
        silence: bool = False,
        env: Mapping[str, str] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> tuple[int, str]:
        """Run a program in ``/lab``, in a cgroup of its own; returns its exit code and what it printed.

        :param silence: the limit is for the time since it last printed anything, not for all of it.
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
        # env finds the program on the PATH that was set; systemd-run would look on the agent's own.
        pid = self.agent.start([*command, "--", "/usr/bin/env", *argv])
        deadline = time.monotonic() + timeout_s
        text = ""
        try:
            while True:
                done = self.agent.poll(pid)
                while data := self.agent.read(handle):
                    piece = data.decode(errors="replace")
                    text += piece
                    if silence:
                        deadline = time.monotonic() + timeout_s
                    if on_text is not None:
                        on_text(piece)
                if done is not None:
                    said = done.err.decode(
                        errors="replace"
                    )  # systemd-run's own words: the unit could not start
                    if said and on_text is not None:
                        on_text(said)
                    return done.code, text + said
                if time.monotonic() > deadline:
                    self.agent.run(["systemctl", "kill", "--signal=KILL", unit])
                    tail = "\n    ".join(text.splitlines()[-15:])
                    raise TimedOut(
                        f"`{shlex.join(argv)}` {'said nothing for' if silence else 'took longer than'} {timeout_s:.0f} s.",
                        why=f"\n    {tail}",
                    )
                time.sleep(_PROGRESS_S)
        finally:
            with contextlib.suppress(GuestError):
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

    def ship(self, files: bytes) -> None:
        """Put the lab's files at ``/lab``, in place of what is there.

        :param files: a compressed tar, as :func:`guest.repo.pack` makes it.
        """
        self.agent.write_file("/run/lab.tar.gz", files)
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

"""One emulator process: its command line, its life, its control socket (QMP).

The process is a child of :mod:`guest.janitor`, so that nothing is left when this one is killed.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from guest.arch import Arch
from guest.errors import GuestDied, GuestError
from guest.host import tool
from guest.image import Image

__all__ = ["Emulator", "Qmp", "emulator_version", "qemu_arguments"]

_KERNEL_LINE = "root=/dev/vda rw mitigations=off nokaslr audit=0 nowatchdog quiet panic=-1"
_QUIT_S = 20.0


def qemu_arguments(
    arch: Arch,
    image: Image,
    folder: Path,
    disk: Path,
    *,
    disk_format: str,
    throwaway: bool,
    restore: Path | None,
) -> list[str]:
    """QEMU's arguments.

    A snapshot can only be restored by the arguments it was made with (apart from ``-incoming`` and ``snapshot=on``).

    :param folder: for sockets and logs.
    :param disk: the root disk.
    :param throwaway: writes go to a nameless temporary file.
    :param restore: memory to start from instead of booting.
    """
    throw = "on" if throwaway else "off"
    arguments = ["-name", "labkit-guest", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]
    # Never KVM: it is not everywhere, and where it is nested without hardware help guests crash in it.
    arguments += ["-M", arch.board, "-accel", "tcg,thread=multi", "-cpu", arch.cpu, "-smp", "2", "-m", "2G"]
    arguments += ["-nic", "none"]
    arguments += ["-kernel", str(image.vmlinuz), "-initrd", str(image.initrd)]
    arguments += ["-append", f"console={arch.console} {_KERNEL_LINE} {arch.kernel_options}".strip()]
    arguments += ["-drive", f"file={disk},format={disk_format},if=none,id=root,cache=unsafe,snapshot={throw}"]
    arguments += ["-device", "virtio-blk-pci,drive=root"]
    arguments += ["-serial", f"file:{folder / 'console.log'}"]
    arguments += ["-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"]
    arguments += ["-device", "virtio-serial-pci"]
    arguments += ["-chardev", f"socket,id=agent,path={folder / 'agent'},server=on,wait=off"]
    arguments += ["-device", "virtserialport,chardev=agent,nr=1,name=org.qemu.guest_agent.0"]
    arguments += ["-chardev", f"socket,id=shell,path={folder / 'shell'},server=on,wait=off"]
    arguments += ["-device", "virtconsole,chardev=shell,nr=2"]
    if restore is not None:
        arguments += ["-incoming", f"exec:cat {shlex.quote(str(restore))}"]
    return arguments


def emulator_version(arch: Arch) -> str:
    """QEMU's first line of ``--version``: a snapshot of one version is not for another."""
    program = tool(arch.qemu) or arch.qemu
    return subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]


class Qmp:
    """QEMU's control protocol: a command, its answer; events are dropped."""

    def __init__(self, path: Path, *, timeout_s: float = 30.0) -> None:
        self._socket = _connect(path, timeout_s)
        self._socket.settimeout(timeout_s)
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._answer()  # the greeting
        self("qmp_capabilities")

    def _answer(self) -> dict[str, Any]:
        while line := self._lines.readline():
            message: dict[str, Any] = json.loads(line)
            if "event" not in message:
                return message
        raise GuestError("QEMU closed its control socket.")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run a command.

        :raises GuestError: if QEMU refuses it, is gone, or does not answer in time.
        """
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            answer = self._answer()
        except OSError as error:
            raise GuestError(f"QEMU does not answer `{command}`.", why=str(error)) from error
        if "error" in answer:
            raise GuestError(f"QEMU refuses `{command}`.", why=answer["error"].get("desc", ""))
        return answer.get("return")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def _connect(path: Path, timeout_s: float) -> socket.socket:
    """Connect to a socket that appears soon."""
    deadline = time.monotonic() + timeout_s
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(path))
            return client
        except OSError as error:
            client.close()
            if time.monotonic() > deadline:
                raise GuestError(f"QEMU did not open {path.name}.", why=str(error)) from error
            time.sleep(0.05)


class Emulator:
    """A running QEMU. Use as a context manager; leaving kills it and removes its folder.

    :param disk: the root disk; the image's own by default.
    :param restore: memory of a saved machine to start from (paused) instead of booting.
    :ivar restoring: whether it began so.
    """

    def __init__(
        self,
        image: Image,
        *,
        disk: Path | None = None,
        disk_format: str = "raw",
        throwaway: bool = True,
        restore: Path | None = None,
    ) -> None:
        self.restoring = restore is not None
        # Not under TMPDIR: a socket's path may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="labkit-guest-", dir="/tmp"))
        arguments = qemu_arguments(
            image.arch,
            image,
            self.folder,
            disk or image.disk,
            disk_format=disk_format,
            throwaway=throwaway,
            restore=restore,
        )
        janitor = Path(__file__).with_name("janitor.py")
        program = tool(image.arch.qemu) or image.arch.qemu
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(janitor), str(self.folder), program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the asker; the janitor sees the pipe close
        )
        self._qmp: Qmp | None = None

    def __enter__(self) -> Emulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def qmp(self) -> Qmp:
        """The control socket, connected at first use."""
        if self._qmp is None:
            self._qmp = Qmp(self.folder / "qmp")
        return self._qmp

    def connect(self, name: str) -> socket.socket:
        """A connection to one of QEMU's sockets: ``agent`` or ``shell``."""
        return _connect(self.folder / name, 30.0)

    @property
    def alive(self) -> bool:
        """Whether QEMU runs."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], 0)
        return not readable

    def check(self) -> None:
        """:raises GuestDied: if QEMU has ended, with the end of its console."""
        if not self.alive:
            raise GuestDied("The guest died.", why=self.last_words())

    def last_words(self) -> str:
        """The end of QEMU's messages and of the guest's console."""
        parts = []
        for name in ("qemu.log", "console.log"):
            try:
                text = (self.folder / name).read_text(errors="replace")
            except OSError:
                continue
            parts += [f"{name}: {line}" for line in text.splitlines()[-15:] if line.strip()]
        return "\n    ".join(["its last words:", *parts]) if parts else "it left no message"

    def close(self) -> None:
        """Kill QEMU and remove its folder. Harmless if done already."""
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_QUIT_S)
        except subprocess.TimeoutExpired:
            os.kill(self._process.pid, 9)  # QEMU follows: its death signal is set
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

"""A terminal in the guest: this terminal, byte for byte, against the guest's virtio console.

``exit`` or Ctrl-D leaves; Ctrl-] leaves at once, whatever runs. The guest and all that was done in it are gone then.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from guest.errors import HostCannot
from guest.machine import ENVIRONMENT, Machine

__all__ = ["shell"]

_TTY = "/dev/hvc0"
_LEAVE = b"\x1d"  # Ctrl-]
_CHECK_S = 0.5


def shell(guest: Machine) -> int:
    """Give this terminal to a login shell in the guest; returns the shell's exit code, or 0 after Ctrl-].

    :raises HostCannot: if standard input is no terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise HostCannot(
            "A shell needs a terminal.", remedy="For one command: python -m guest run -- COMMAND"
        )
    console = guest.emulator.connect("shell")
    command = ["systemd-run", "--quiet", "--wait", "--collect", "--unit=lab-shell"]
    command += [
        f"--property=TTYPath={_TTY}",
        "--property=StandardInput=tty-force",
        "--property=StandardOutput=tty",
    ]
    command += ["--property=StandardError=tty", "--property=Delegate=yes", "--working-directory=/lab"]
    environment = ENVIRONMENT | {"TERM": os.environ.get("TERM", "vt100")}
    command += [f"--setenv={key}={value}" for key, value in environment.items()]
    columns, rows = shutil.get_terminal_size()
    command += [f"--property=TTYColumns={columns}", f"--property=TTYRows={rows}"]
    print(
        "The lab is in /lab; `labkit` and `python` work. `exit` or Ctrl-] leaves; nothing is kept.",
        flush=True,
    )
    pid = guest.agent.start([*command, "bash", "-l"])
    with console, _raw(), _size_changes() as resized:
        return _relay(guest, console, pid, resized)


def _relay(guest: Machine, console: socket.socket, pid: int, resized: list[bool]) -> int:
    """Carry bytes both ways until the shell ends or the person leaves."""
    selector = selectors.DefaultSelector()
    selector.register(console, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    next_check = time.monotonic() + _CHECK_S
    while True:
        for key, _ in selector.select(_CHECK_S):
            if key.fileobj is console:
                data = console.recv(1 << 16)
                if not data:
                    guest.emulator.check()
                    return 1
                os.write(sys.stdout.fileno(), data)
                continue
            data = os.read(sys.stdin.fileno(), 1 << 12)
            if not data or _LEAVE in data:
                return 0
            console.sendall(data)
        if resized:
            resized.clear()
            columns, rows = shutil.get_terminal_size()
            guest.agent.run(["stty", "-F", _TTY, "cols", str(columns), "rows", str(rows)])
        if time.monotonic() >= next_check:
            done = guest.agent.poll(pid)
            if done is not None:
                return done.code
            next_check = time.monotonic() + _CHECK_S


@contextmanager
def _raw() -> Iterator[None]:
    """This terminal without echo and line editing: the guest's does both."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        print()


@contextmanager
def _size_changes() -> Iterator[list[bool]]:
    """A list that is not empty after the terminal's size has changed."""
    changed: list[bool] = []
    before = signal.signal(signal.SIGWINCH, lambda *_: changed.append(True))
    try:
        yield changed
    finally:
        signal.signal(signal.SIGWINCH, before)

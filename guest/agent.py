"""Commands inside the guest, by the protocol of qemu-guest-agent over a virtio-serial port.

Each request is one line of JSON and so is each answer. After a restore or a lost answer the line may hold old answers:
``guest-sync-delimited`` finds the present.
"""

from __future__ import annotations

import base64
import itertools
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guest.errors import AgentError

__all__ = ["Agent", "Done"]

_CHUNK = 1 << 20
_POLL_S = 0.1
_TRIES = 20  # half seconds
_NEWS_S = 0.5  # a dead emulator's sockets close a moment before its end is reported
_sequence = itertools.count(int(time.time()) % 1_000_000 * 1000)


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code (128 + signal if killed) and what it printed."""

    code: int
    out: bytes
    err: bytes


class Agent:
    """The agent, once it answers.

    :param channel: a connection to its port.
    :param check: raises if the guest is dead, so that nobody waits for it.
    """

    def __init__(self, channel: socket.socket, check: Callable[[], None]) -> None:
        self._channel = channel
        self._check = check
        self._buffer = b""

    def _receive(self, deadline: float, what: str, *, tries: int = 0) -> None:
        """Wait for more; at least ``tries`` half seconds, for the clock also runs while host and guest both stand still."""
        while time.monotonic() < deadline or tries > 0:
            tries -= 1
            self._channel.settimeout(0.5)
            try:
                data = self._channel.recv(1 << 16)
            except TimeoutError:
                self._check()
                continue
            except OSError as error:
                raise self._broken(what, str(error)) from error
            if not data:
                raise self._broken(what, "it was closed")
            self._buffer += data
            return
        raise AgentError(f"The guest's agent did not answer {what} in time.")

    def _send(self, request: Mapping[str, Any], timeout_s: float, prefix: bytes = b"") -> None:
        self._channel.settimeout(timeout_s)
        try:
            self._channel.sendall(prefix + json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._broken(str(request["execute"]), str(error)) from error

    def _broken(self, what: str, why: str) -> AgentError:
        time.sleep(_NEWS_S)
        self._check()
        return AgentError(f"The connection to the guest broke during {what}.", why=why)

    def wait(self, timeout_s: float) -> None:
        """Wait until the agent answers, and drop what it answered to others.

        :raises AgentError: if it does not in time. :raises GuestDied: if the guest dies meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            token = next(_sequence)
            request = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
            self._send(request, timeout_s, prefix=b"\xff")
            again = min(deadline, time.monotonic() + 1.0)
            while time.monotonic() < again:
                if self._synchronised(token):
                    return
                try:
                    self._receive(again, "guest-sync")
                except AgentError:
                    break
            if time.monotonic() >= deadline:
                raise AgentError(f"The guest's agent did not answer within {timeout_s:.0f} s.")

    def _synchronised(self, token: int) -> bool:
        # The answer is delimited by 0xff, which no JSON holds.
        while b"\xff" in self._buffer:
            _, _, rest = self._buffer.partition(b"\xff")
            line, newline, tail = rest.partition(b"\n")
            if not newline:
                return False
            self._buffer = tail
            if json.loads(line).get("return") == token:
                return True
        return False

    def call(self, command: str, *, timeout_s: float = 60.0, **arguments: Any) -> Any:
        """One command of the agent's protocol, such as ``guest-set-time``.

        :raises AgentError: if it is refused or not answered.
        """
        request = {
            "execute": command,
            "arguments": {key.replace("_", "-"): v for key, v in arguments.items()},
        }
        self._send(request, timeout_s)
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            self._receive(deadline, command, tries=_TRIES)
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise AgentError(f"The guest's agent refuses {command}.", why=answer["error"].get("desc", ""))
        return answer["return"]

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, capture: bool = True
    ) -> int:
        """Start a program; returns its process id in the guest."""
        answer = self.call(
            "guest-exec",
            path=argv[0],
            arg=list(argv[1:]),
            env=[f"{key}={value}" for key, value in (env or {}).items()],
            capture_output=capture,
        )
        return int(answer["pid"])

    def poll(self, pid: int) -> Done | None:
        """How a started program ended; None while it runs."""
        status = self.call("guest-exec-status", pid=pid)
        if not status["exited"]:
            return None
        code = status.get("exitcode", 128 + status.get("signal", 0))
        streams = (base64.b64decode(status.get(name, "")) for name in ("out-data", "err-data"))
        return Done(code, *streams)

    def run(
        self, argv: Sequence[str], *, timeout_s: float = 60.0, env: Mapping[str, str] | None = None
    ) -> Done:
        """Run a program to its end.

        :raises AgentError: if it takes longer than ``timeout_s``; it goes on in the guest.
        """
        pid = self.start(argv, env=env)
        deadline = time.monotonic() + timeout_s
        while (done := self.poll(pid)) is None:
            if time.monotonic() > deadline:
                raise AgentError(f"`{argv[0]}` still runs in the guest after {timeout_s:.0f} s.")
            time.sleep(_POLL_S)
        return done

    def open(self, path: str, mode: str) -> int:
        """Open a file in the guest; returns a handle for :meth:`read`, :meth:`write` and :meth:`close`."""
        return int(self.call("guest-file-open", path=path, mode=mode))

    def read(self, handle: int, *, limit: int = _CHUNK) -> bytes:
        """What the file holds beyond what was read; empty at its present end."""
        return base64.b64decode(self.call("guest-file-read", handle=handle, count=limit)["buf-b64"])

    def close(self, handle: int) -> None:
        """Close a file."""
        self.call("guest-file-close", handle=handle)

    def write_file(self, path: str, data: bytes) -> None:
        """Make a file in the guest with this content."""
        handle = self.open(path, "wb")
        try:
            for start in range(0, len(data), _CHUNK):
                text = base64.b64encode(data[start : start + _CHUNK]).decode()
                self.call("guest-file-write", handle=handle, buf_b64=text)
        finally:
            self.close(handle)

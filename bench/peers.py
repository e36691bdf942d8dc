"""The other tools: where they are, how they are installed, and how they are made to run here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import labkit
from labkit.errors import LabkitError
from labkit.kernel import bcc, headers

__all__ = ["PEERS", "BccPeer", "PeerFailed", "Tool", "install_missing", "running_tool", "versions"]

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_START_S = 60.0
_STOP_S = 20.0


class PeerFailed(LabkitError):
    """Another tool did not do what the comparison needs."""


@dataclass(frozen=True)
class Tool:
    """A tool of the distribution.

    :param package: what Debian and Ubuntu call the package that brings it.
    :param names: what the program may be called.
    """

    package: str
    names: tuple[str, ...]

    @property
    def path(self) -> str | None:
        """Where the tool is; None if it is not installed."""
        for name in self.names:
            found = shutil.which(name) or shutil.which(name, path=_SBIN)
            if found:
                return found
        return None


PEERS = {
    "runqlat-bpfcc": Tool("bpfcc-tools", ("runqlat-bpfcc", "runqlat")),
    "bpftrace": Tool("bpftrace", ("bpftrace",)),
    "runqlat.bt": Tool("bpftrace", ("runqlat.bt",)),
    "perf": Tool("linux-perf", ("perf",)),
}


def install_missing() -> list[str]:
    """Install what is missing, if this process is root and the system has apt; names of tools that are still missing."""
    packages = sorted({tool.package for tool in PEERS.values() if tool.path is None})
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"bench: installing {', '.join(packages)}", file=sys.stderr)
        options = ["-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
        for package in packages:  # one by one: what the archive lacks must not keep the others away
            done = subprocess.run(
                ["apt-get", "install", *options, package],
                env=quiet,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                print(f"bench: {package}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    return [name for name, tool in PEERS.items() if tool.path is None]


def versions() -> dict[str, str]:
    """Version of each peer, as it says itself; ``"not installed"`` where it is not."""
    found = {}
    try:
        found["bcc"] = bcc.locate().version
    except LabkitError:
        found["bcc"] = "not installed"
    for name in ("bpftrace", "perf"):
        path = PEERS[name].path
        if path is None:
            found[name] = "not installed"
            continue
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
        found[name] = said.split()[-1] if said else "unknown"
    return found


class BccPeer:
    """bcc in a process of its own, reading a map of ours. A context manager; see ``_bcc_peer.py``.

    :raises MissingBcc, MissingHeaders: if bcc cannot compile here.
    """

    def __init__(self, form: str, *, fd: int, entries: int = 0) -> None:
        package = bcc.locate().package
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "BCC_"))}
        env["BCC_KERNEL_SOURCE"] = str(headers.merged_tree())
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__; a pipe could fill and block
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(Path(__file__).with_name("_bcc_peer.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            pass_fds=[fd],
            text=True,
            env=env,
        )
        worker = Path(labkit.__file__).with_name("_bcc_worker.py")
        self._ask({"bcc": str(package), "worker": str(worker), "fd": fd, "entries": entries, "form": form})

    def _ask(self, order: dict[str, object]) -> dict[str, float]:
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._complaints.seek(0)
            complaint = self._complaints.read()
            raise PeerFailed(
                "bcc's process ended", why=complaint.strip().splitlines()[-1] if complaint else "no word"
            )
        answer: dict[str, float] = json.loads(line)
        return answer

    def seconds(self, do: str, *, expect: int) -> float:
        """Let bcc do it once; seconds it took, by its own clock.

        :raises PeerFailed: if it did not get as many entries or events as there are.
        """
        answer = self._ask({"do": do, "expect": expect})
        if answer["count"] != expect:
            raise PeerFailed(f"bcc's {do} got {answer['count']:,} of {expect:,}")
        return answer["seconds"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._complaints.close()


@contextlib.contextmanager
def running_tool(argv: Sequence[str], *, says: str) -> Iterator[subprocess.Popen[bytes]]:
    """A tracing tool while it runs; ended by Ctrl-C, as people end it.

    :param says: what it prints once it traces.
    :raises PeerFailed: if it ends before, or does not say so in time.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "BCC_"))}
    tree = str(headers.merged_tree())
    env |= {"BCC_KERNEL_SOURCE": tree, "BPFTRACE_KERNEL_SOURCE": tree, "BPFTRACE_KERNEL_BUILD": tree}
    env |= {"PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="bench-tool-") as room:
        output = Path(room) / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["stdbuf", "-oL", *argv],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=env,
            )
        try:
            _wait_for(process, output, says, argv[0])
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(process: subprocess.Popen[bytes], output: Path, says: str, name: str) -> None:
    deadline = time.monotonic() + _START_S
    while says not in (said := output.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise PeerFailed(f"{name} did not begin to trace", why=said.strip()[-300:])
        time.sleep(0.05)
    time.sleep(0.5)  # bpftrace says so before its last program is attached

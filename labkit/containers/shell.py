"""Running other people's commands: shown before they run, or only shown."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.errors import LabkitError

__all__ = ["CommandFailed", "MissingTool", "Shell"]

_SOURCES = {
    "kubectl": "https://kubernetes.io/docs/tasks/tools/ (with gcloud: gcloud components install kubectl)",
    "gcloud": "https://cloud.google.com/sdk/docs/install (./task setup installs it where it is asked for)",
    "docker": "https://docs.docker.com/engine/install/, or podman or buildah from your distribution",
}


class MissingTool(LabkitError):
    """A program that is needed is not installed."""


class CommandFailed(LabkitError):
    """A command ended with an error; what it said has been shown.

    :ivar status: its exit status.
    """

    def __init__(self, what: str, *, status: int, why: str = "", remedy: str = "") -> None:
        self.status = status
        super().__init__(what, why=why, remedy=remedy)


@dataclass(frozen=True)
class Shell:
    """Where commands run.

    :param dry: only say what would be run. Nothing is started, not even to look something up.
    """

    dry: bool = False

    def say(self, line: str) -> None:
        """A line about what is done, on standard error: answers alone go to standard output."""
        print(line, file=sys.stderr if not self.dry else sys.stdout, flush=True)

    def run(self, *argv: str, given: str | None = None, about: str = "") -> None:
        """Show a command, and run it.

        :param given: its standard input.
        :param about: what that is, in words, for a dry run.
        :raises MissingTool, CommandFailed: if it is not installed, or fails.
        """
        self.say(f"+ {shlex.join(argv)}{f'   # {about}' if about else ''}")
        if not self.dry:
            self._start(argv, given=given, capture=False)

    def read(self, *argv: str, unknown: str = "", given: str | None = None) -> str:
        """Run a command for what it prints.

        :param unknown: what stands for its output in a dry run.
        :raises MissingTool, CommandFailed: if it is not installed, or fails.
        """
        if self.dry:
            self.say(f"+ {shlex.join(argv)}{f'   # gives {unknown}' if unknown else ''}")
            return unknown
        return self._start(argv, given=given, capture=True).strip()

    @staticmethod
    def _start(argv: Sequence[str], *, given: str | None, capture: bool) -> str:
        need(argv[0])
        done = subprocess.run(
            argv,
            input=given,
            text=True,
            stdin=None if given is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.PIPE if capture else None,
            check=False,
        )
        if done.returncode != 0:
            said = " | ".join((done.stderr or "").strip().splitlines()[-3:])
            raise CommandFailed(
                f"`{shlex.join(argv[:4])}{' ...' if len(argv) > 4 else ''}` failed",
                status=done.returncode,
                why=said or f"it ended with {done.returncode}",
            )
        return done.stdout or ""


def need(tool: str) -> None:
    """Make sure that a program is installed.

    :raises MissingTool: with where to get it.
    """
    if shutil.which(tool) is None:
        raise MissingTool(f"{tool} is not installed", remedy=_SOURCES.get(tool, f"install {tool}"))

"""One piece of set-up, the memory of what set-up did, and running system commands."""

from __future__ import annotations

import json
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from labkit.errors import LabkitError

__all__ = ["Done", "OutOfReach", "SetupFailed", "Step", "command", "remove_files"]

STATE_FILE = Path("/var/lib/labkit/setup.json")


class SetupFailed(LabkitError):
    """A step of set-up or of its removal failed; the steps that do not depend on it went on."""


class OutOfReach(SetupFailed):
    """What a step needs cannot be had from here: no package manager that we know, or no archive that answers."""


@dataclass
class Done:
    """What set-up did on this machine, and nothing that was there before.

    :param packages: installed by us, dependencies included.
    :param given_up: packages the lab can do without and that no archive had, so that they are not asked for each time.
    :param mounts: mount points we mounted since the last boot.
    :param boot: the boot that ``mounts`` is about: a mount ends with it.
    :param group: True if we made the group.
    :param members: users we added to it.
    :param files: files and folders we made, in the order of making.
    :param tracefs_options: tracefs' mount options before we gave it to the group; None if we did not.
    """

    packages: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    boot: str = ""
    group: bool = False
    members: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    tracefs_options: str | None = None

    @classmethod
    def load(cls, path: Path = STATE_FILE) -> Done:
        """Read it; nothing was done where there is no such file.

        :raises SetupFailed: if the file is damaged. It is not guessed at: undoing too much is worse than nothing.
        """
        try:
            data = json.loads(path.read_text())
            done = cls(**{item.name: data[item.name] for item in fields(cls) if item.name in data})
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError) as error:
            raise SetupFailed(
                f"{path} cannot be read", why=str(error), remedy=f"look at it, and remove it: rm {path}"
            ) from error
        if done.boot != _boot_id():
            done.mounts, done.boot = [], ""
        return done

    def save(self, path: Path = STATE_FILE) -> None:
        """Write it, whole or not at all; an empty one removes the file."""
        if self == Done():  # nothing of ours is left
            path.unlink(missing_ok=True)
            if path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(asdict(self), indent=2) + "\n")
        scratch.replace(path)

    def mounted(self, point: Path) -> None:
        """Remember a mount as ours."""
        self.boot = _boot_id()
        self.mounts = sorted({*self.mounts, str(point)})

    def unmounted(self, point: Path) -> None:
        """Forget it; the last one takes the boot with it."""
        self.mounts = [mount for mount in self.mounts if mount != str(point)]
        self.boot = self.boot if self.mounts else ""

    def made(self, path: Path) -> None:
        """Remember a file or folder as ours."""
        if str(path) not in self.files:
            self.files.append(str(path))


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Step(ABC):
    """One piece of set-up.

    ``missing`` needs no root and is quick (all steps together: well under a second). ``apply`` and ``undo`` run as
    root and keep ``done`` true at every moment, so that a killed set-up can still be taken back.
    """

    name: str
    why: str

    @abstractmethod
    def missing(self) -> list[str]:
        """What ``apply`` would do, one line each, for people; empty if nothing."""

    @abstractmethod
    def apply(self, done: Done) -> None:
        """Mend what is missing.

        :raises SetupFailed: with the cause and the remedy.
        """

    @abstractmethod
    def owned(self, done: Done) -> list[str]:
        """What ``undo`` would take back, one line each, for people; empty if nothing."""

    @abstractmethod
    def undo(self, done: Done) -> None:
        """Take back what ``done`` remembers of this step.

        :raises SetupFailed: with the cause and the remedy.
        """


def _telling(output: str) -> str:
    """Errors in the way that apt and dpkg mark them, else the last lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E: ", "dpkg: error", "W: Failed"))]
    return " | ".join(errors[:1] or lines[-3:])[:300]


def command(argv: Sequence[str], *, env: Mapping[str, str] | None = None, what: str = "") -> str:
    """Run a system command and return its output.

    :param what: what it was to achieve, for the error message.
    :raises SetupFailed: with the most telling lines it printed, if it fails or does not exist.
    """
    # Debian's ordinary users have no sbin on their path, and tools must speak English to be understood.
    path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
    full = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", **(env or {})}
    what = what or f"`{' '.join(argv)}` failed"
    try:
        result = subprocess.run(
            argv, env=full, text=True, errors="replace", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    except OSError as error:
        raise SetupFailed(what, why=f"{argv[0]}: {error.strerror}") from error
    if result.returncode:
        raise SetupFailed(what, why=f"{argv[0]} ended with {result.returncode}: {_telling(result.stdout)}")
    return result.stdout


def remove_files(done: Done, below: Path) -> list[str]:
    """Remove the files and folders that are ours at or below a folder, the last made first; returns them."""
    ours = [path for path in done.files if Path(path).is_relative_to(below)]
    for path in reversed(ours):
        if Path(path).is_dir():
            if not any(Path(path).iterdir()):
                Path(path).rmdir()
        else:
            Path(path).unlink(missing_ok=True)
        done.files.remove(path)
    return ours

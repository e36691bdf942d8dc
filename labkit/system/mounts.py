"""The kernel's own file systems: tracefs, debugfs, bpffs."""

from __future__ import annotations

import re
from pathlib import Path

from labkit.system.step import Done, SetupFailed, Step, command

__all__ = ["Mount", "mount_options"]


def mount_options(point: Path, kind: str, *, table: str | None = None) -> str | None:
    """Options of a mounted file system, None if ``kind`` is not mounted at ``point``.

    :param table: text in the form of ``/proc/self/mounts``; the running system's own by default.

    >>> mount_options(Path("/a b"), "tracefs", table="tracefs /a\\\\040b tracefs rw,gid=7 0 0\\n")
    'rw,gid=7'
    """
    if table is None:
        table = Path("/proc/self/mounts").read_text(errors="replace")
    options = None
    for line in table.splitlines():
        _, where, what, how = line.split(" ")[:4]
        # proc(5): space, tab, newline and backslash are octal escapes.
        where = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), where)
        if where == str(point):
            options = how if what == kind else None  # the last mount on a point hides those before it
    return options


class Mount(Step):
    """One file system of the kernel, mounted where it belongs."""

    def __init__(self, kind: str, point: str, why: str) -> None:
        self.name = f"{kind} on {point}"
        self.kind = kind
        self.point = Path(point)
        self.why = why

    def missing(self) -> list[str]:
        known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
        if self.kind not in known or not self.point.is_dir():
            return []  # this kernel was built without it: nothing to mount, the doctor says what follows
        return [] if mount_options(self.point, self.kind) is not None else [f"mount {self.name}"]

    def apply(self, done: Done) -> None:
        try:
            command(["mount", "-t", self.kind, "-o", "nosuid,nodev,noexec", self.kind, str(self.point)])
        except SetupFailed as error:
            raise SetupFailed(
                f"{self.name} cannot be mounted",
                why=error.why,
                remedy="in a container, start it privileged, or with that folder of the host mounted into it",
            ) from error
        done.mounted(self.point)

    def owned(self, done: Done) -> list[str]:
        return [f"unmount {self.point}"] if str(self.point) in done.mounts else []

    def undo(self, done: Done) -> None:
        if mount_options(self.point, self.kind) is not None:
            command(["umount", str(self.point)], what=f"{self.point} cannot be unmounted")
        done.unmounted(self.point)

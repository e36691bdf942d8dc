"""Live measurement as an ordinary user: a group, a launcher with two capabilities, and tracefs for that group."""

from __future__ import annotations

import grp
import os
import shutil
import stat
import struct
from pathlib import Path

from labkit.system.launch import GROUP, LAUNCHER
from labkit.system.mounts import mount_options
from labkit.system.step import Done, SetupFailed, Step, command, remove_files

__all__ = ["Launcher", "TracefsForGroup", "file_capabilities"]

_LAUNCHER = Path(LAUNCHER)
_TRACEFS = Path("/sys/kernel/tracing")
_SYSTEMD_DROP_IN = Path("/etc/systemd/system/sys-kernel-tracing.mount.d/50-labkit.conf")


def file_capabilities(*bits: int) -> bytes:
    """The attribute ``security.capability`` for permitted and effective capabilities, as setcap(8) writes it.

    ``struct vfs_cap_data``, revision 2 (include/uapi/linux/capability.h).
    """
    mask = sum(1 << bit for bit in bits)
    revision_2_effective = 0x02000000 | 1
    return struct.pack("<5I", revision_2_effective, mask & 0xFFFFFFFF, 0, mask >> 32, 0)


_CAPABILITIES = file_capabilities(38, 39)  # CAP_PERFMON, CAP_BPF


def _group() -> grp.struct_group | None:
    try:
        return grp.getgrnam(GROUP)
    except KeyError:
        return None


class Launcher(Step):
    """A group, its member, and the launcher that only the group may execute."""

    name = "rights"

    def __init__(self, user: str) -> None:
        self.user = user
        self.why = f"{user} measures live without being root: CAP_BPF and CAP_PERFMON, and no more"

    def missing(self) -> list[str]:
        group = _group()
        lines = [] if group else [f"make the group {GROUP}"]
        if group is None or self.user not in group.gr_mem:
            lines.append(f"add {self.user} to the group {GROUP}")
        if group is None or not self._launcher_is_good(group.gr_gid):
            lines.append(
                f"make {_LAUNCHER}, a copy of setpriv that only {GROUP} may run, with cap_bpf,cap_perfmon+ep"
            )
        return lines

    def _launcher_is_good(self, gid: int) -> bool:
        try:
            status = _LAUNCHER.stat()
            capabilities = os.getxattr(_LAUNCHER, "security.capability")
        except OSError:
            return False
        rights = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), capabilities)
        return rights == (0, gid, 0o750, _CAPABILITIES)

    def apply(self, done: Done) -> None:
        if _group() is None:
            command(["groupadd", "--system", GROUP])
            done.group = True
            done.save()
        group = grp.getgrnam(GROUP)
        if self.user not in group.gr_mem:
            command(["gpasswd", "--add", self.user, GROUP])
            done.members = sorted({*done.members, self.user})
            done.save()
        if not self._launcher_is_good(group.gr_gid):
            self._make_launcher(group.gr_gid, done)

    def _make_launcher(self, gid: int, done: Done) -> None:
        source = shutil.which("setpriv", path="/usr/bin:/bin")
        if source is None:
            raise SetupFailed(
                "the launcher cannot be made", why="there is no setpriv", remedy="install util-linux"
            )
        folder = _LAUNCHER.parent
        if not folder.is_dir():
            folder.mkdir(parents=True, mode=0o755)
            done.made(folder)
        done.made(_LAUNCHER)
        done.save()
        scratch = _LAUNCHER.with_suffix(".new")
        scratch.unlink(missing_ok=True)
        # Closed to all until it is complete: at no moment may anybody else execute it.
        os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        shutil.copyfile(source, scratch)
        os.chown(scratch, 0, gid)
        scratch.chmod(0o750)
        try:
            os.setxattr(scratch, "security.capability", _CAPABILITIES)
        except OSError as error:
            scratch.unlink()
            raise SetupFailed(
                "the launcher cannot be given its capabilities",
                why=f"{folder}: {error.strerror}",
                remedy="run the lab as root here: this file system or container has no file capabilities",
            ) from error
        scratch.replace(_LAUNCHER)

    def owned(self, done: Done) -> list[str]:
        lines = [f"remove {path}" for path in done.files if path.startswith(str(_LAUNCHER.parent))]
        if done.group:
            return [*lines, f"remove the group {GROUP}"]
        return [*lines, *(f"take {user} out of the group {GROUP}" for user in done.members)]

    def undo(self, done: Done) -> None:
        remove_files(done, _LAUNCHER.parent)
        group = _group()
        for user in done.members:
            if group is not None and user in group.gr_mem:
                command(["gpasswd", "--delete", user, GROUP])
        done.members = []
        if done.group and group is not None:
            command(["groupdel", GROUP])
        done.group = False


class TracefsForGroup(Step):
    """tracefs readable by the group: without it classic tracepoints cannot be found by name."""

    name = "tracepoints"
    why = f"lets the group {GROUP} look tracepoints up, without a right to read every file"

    def missing(self) -> list[str]:
        options = mount_options(_TRACEFS, "tracefs")
        if options is None:
            # Mount comes first in the list of steps; a kernel without tracefs has nothing to give.
            present = "tracefs" in Path("/proc/filesystems").read_text() and _TRACEFS.is_dir()
            return [self._line()] if present else []
        group = _group()
        status = _TRACEFS.stat()
        mode = stat.S_IMODE(status.st_mode)
        good = mode & 0o005 == 0o005 or (group and status.st_gid == group.gr_gid and mode & 0o050 == 0o050)
        return [] if good else [self._line()]

    def _line(self) -> str:
        return f"remount {_TRACEFS} with gid={GROUP},mode=0750"

    def apply(self, done: Done) -> None:
        group = _group()
        before = mount_options(_TRACEFS, "tracefs")
        if group is None or before is None:
            raise SetupFailed(
                f"{_TRACEFS} cannot be given to the group",
                why="the group or the mount could not be made before",
            )
        if done.tracefs_options is None:
            done.tracefs_options = before
            done.save()
        new = f"gid={group.gr_gid},mode=0750"
        command(["mount", "-o", f"remount,{new}", str(_TRACEFS)])
        if Path("/run/systemd/system").is_dir():
            self._keep_at_boot(new, done)

    def _keep_at_boot(self, new: str, done: Done) -> None:
        for path in (_SYSTEMD_DROP_IN.parent, _SYSTEMD_DROP_IN):
            if not path.exists():
                done.made(path)
        done.save()
        _SYSTEMD_DROP_IN.parent.mkdir(parents=True, exist_ok=True)
        _SYSTEMD_DROP_IN.write_text(f"# labkit setup\n[Mount]\nOptions=nosuid,nodev,noexec,{new}\n")
        command(["systemctl", "daemon-reload"])

    def owned(self, done: Done) -> list[str]:
        return [f"remount {_TRACEFS} for root alone"] if done.tracefs_options is not None else []

    def undo(self, done: Done) -> None:
        options = dict(item.partition("=")[::2] for item in (done.tracefs_options or "").split(","))
        if mount_options(_TRACEFS, "tracefs") is not None and done.tracefs_options is not None:
            # The kernel shows only what differs from its defaults: root, and 0700.
            before = f"gid={options.get('gid', '0')},mode={options.get('mode', '0700')}"
            command(["mount", "-o", f"remount,{before}", str(_TRACEFS)])
        done.tracefs_options = None
        if remove_files(done, _SYSTEMD_DROP_IN.parent) and shutil.which("systemctl"):
            command(["systemctl", "daemon-reload"])

"""Which Debian, and which kernel, a guest runs."""

from __future__ import annotations

from dataclasses import dataclass

from guest.arch import Arch
from guest.errors import HostCannot

__all__ = ["DEFAULT", "RELEASES", "Release"]


@dataclass(frozen=True)
class Release:
    """One Debian with one kernel.

    :param name: what it is called on the command line and in docs/compatibility.md.
    :param suite: Debian's codename.
    :param backports: the kernel is the one of the suite's backports.
    """

    name: str
    suite: str
    backports: bool = False

    def kernel_package(self, arch: Arch) -> str:
        """The kernel of Debian's cloud images, which are also Lima's; backports must be asked for by name."""
        package = f"linux-image-cloud-{arch.debian}"
        return f"{package}/{self.suite}-backports" if self.backports else package

    def sources(self, mirror: str | None) -> list[str]:
        """Lines of apt sources for mmdebstrap; empty if its own choice will do.

        :raises HostCannot: if backports are wanted and this machine's apt names no mirror of Debian.
        """
        if mirror is None:
            if self.backports:
                raise HostCannot(
                    f"{self.name} needs Debian's backports",
                    why="this machine's apt names no mirror of Debian, and mmdebstrap's own choice is without backports",
                    remedy="run it on a Debian machine",
                )
            return []
        suites = [self.suite, *([f"{self.suite}-backports"] if self.backports else [])]
        return [f"deb {mirror} {suite} main" for suite in suites]


DEFAULT = Release("debian-13", "trixie")
RELEASES = {
    release.name: release
    for release in (
        DEFAULT,
        Release("debian-12", "bookworm"),
        Release("debian-13-backports", "trixie", backports=True),
    )
}

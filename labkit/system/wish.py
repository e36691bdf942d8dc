"""What set-up is asked for, beyond the usual on the running machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from labkit.errors import LabkitError

__all__ = ["IMAGE", "PARTS", "USUAL", "Part", "Wish"]

Part = Literal["bcc", "headers", "kmod", "bpftool", "stress-ng", "browser", "containers", "gcloud"]
PARTS: tuple[Part, ...] = (
    "bcc",
    "headers",
    "kmod",
    "bpftool",
    "stress-ng",
    "browser",
    "containers",
    "gcloud",
)
USUAL: tuple[Part, ...] = ("bcc", "headers", "kmod", "bpftool", "stress-ng")
IMAGE: tuple[Part, ...] = ("bcc", "headers", "kmod")


@dataclass(frozen=True)
class Wish:
    """What set-up is asked for.

    :param parts: only these; empty: the usual ones.
    :param kernel: the release whose headers are wanted; empty: the running kernel's.
    :param image: for the file system of a container image, which does not run: packages, but no mounts and no rights.
    :param gcloud_archive: where Google's apt archive is, for the part ``gcloud``.
    """

    parts: tuple[Part, ...] = ()
    kernel: str = ""
    image: bool = False
    gcloud_archive: str = ""

    @property
    def chosen(self) -> tuple[Part, ...]:
        """The parts in question."""
        return self.parts or (IMAGE if self.image else USUAL)

    @classmethod
    def parse(
        cls, parts: str = "", kernel: str = "", *, image: bool = False, gcloud_archive: str = ""
    ) -> Wish:
        """From the command line: parts as ``bcc,headers``.

        :raises LabkitError: if a part does not exist.
        """
        names = [name for name in parts.replace(" ", ",").split(",") if name]
        known = {str(part): part for part in PARTS}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise LabkitError(
                f"set-up knows no part {' and no part '.join(unknown)}",
                remedy=f"the parts are: {', '.join(PARTS)}",
            )
        return cls(tuple(part for part in PARTS if part in names), kernel, image, gcloud_archive)

    def arguments(self) -> list[str]:
        """The same, for a command line."""
        listed = ["--parts", ",".join(self.parts)] if self.parts else []
        listed += ["--kernel", self.kernel] if self.kernel else []
        listed += ["--gcloud-archive", self.gcloud_archive] if self.gcloud_archive else []
        return [*listed, "--image"] if self.image else listed

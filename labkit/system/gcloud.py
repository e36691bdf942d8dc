"""Google's command line, from Google's own archive: only where it was asked for, and where the archive was named.

apt has no default for that archive. Who asks for gcloud takes its address from Google's page, where it can be held
against what Google says today: ``--gcloud-archive URL`` of `labkit setup` and of lima/provision.sh, the parameter
``gcloud_archive`` of the Lima template.
"""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

from labkit.system.packages import install
from labkit.system.step import Done, OutOfReach, SetupFailed, Step, command, remove_files

__all__ = ["Gcloud"]

_PAGE = "https://cloud.google.com/sdk/docs/install#deb"
_KEY = Path("/usr/share/keyrings/labkit-google-cloud.asc")
_SOURCE = Path("/etc/apt/sources.list.d/labkit-google-cloud.sources")
_PACKAGE = "google-cloud-cli"


class Gcloud(Step):
    """``gcloud`` for the registry and for GKE. Debian has no package of it.

    :param archive: address of Google's apt archive, ``https://`` or a local copy by ``file:/``.
    """

    name = "gcloud"
    why = "signs in to Google's registry and clusters"

    def __init__(self, archive: str = "") -> None:
        self.archive = archive.rstrip("/")

    def missing(self) -> list[str]:
        return (
            [] if shutil.which("gcloud") else [f"add Google's archive to apt's sources, install {_PACKAGE}"]
        )

    def apply(self, done: Done) -> None:
        if not shutil.which("apt-get"):
            raise OutOfReach(
                "gcloud cannot be installed", why="this system has no apt-get",
                remedy="https://cloud.google.com/sdk/docs/install",
            )  # fmt: skip
        if not self.archive.startswith(("https://", "file:/")):
            raise OutOfReach(
                "gcloud cannot be installed",
                why=f"{self.archive!r} is no address of an archive"
                if self.archive
                else "no archive was named",
                remedy=f"--gcloud-archive https://... with the address at {_PAGE}",
            )
        try:
            with urllib.request.urlopen(f"{self.archive}/doc/apt-key.gpg", timeout=30) as answer:
                key = answer.read()
        except OSError as error:
            raise OutOfReach(
                "the key of Google's archive cannot be fetched", why=str(error), remedy="get on the network"
            ) from error
        done.made(_KEY)
        done.made(_SOURCE)
        done.save()
        _KEY.write_bytes(key)
        _SOURCE.write_text(
            f"Types: deb\nURIs: {self.archive}\nSuites: cloud-sdk\nComponents: main\nSigned-By: {_KEY}\n"
        )
        try:
            command(["apt-get", "-q", "update"])
            install([_PACKAGE], done)
        except SetupFailed as error:
            self.undo(done)  # an archive that does not answer would be in the way of every later update
            raise OutOfReach(
                f"{_PACKAGE} cannot be installed", why=error.why, remedy="get on the network"
            ) from error

    def owned(self, done: Done) -> list[str]:
        return [f"remove {path}" for path in (str(_SOURCE), str(_KEY)) if path in done.files]

    def undo(self, done: Done) -> None:
        for path in (_SOURCE, _KEY):
            remove_files(done, path)

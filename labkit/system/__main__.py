"""The part of set-up that needs root, for one call of sudo: ``python -m labkit.system apply --for-user NAME``."""

from __future__ import annotations

import argparse
import os
import sys

from labkit.errors import LabkitError
from labkit.system.command import apply, undo
from labkit.system.wish import Wish


def main() -> int:
    """Parse, check that we are root, do it."""
    parser = argparse.ArgumentParser(prog="python -m labkit.system", description=__doc__)
    parser.add_argument("action", choices=["apply", "undo"])
    parser.add_argument("--for-user", metavar="NAME", help="who shall measure live without being root")
    parser.add_argument("--parts", default="", help="only these, as bcc,headers")
    parser.add_argument("--kernel", default="", help="the release whose headers are wanted")
    parser.add_argument("--gcloud-archive", default="", help="where Google's apt archive is")
    parser.add_argument("--image", action="store_true", help="for a file system that does not run")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("only root can do this")
    try:
        if options.action == "undo":
            return undo()
        asked = Wish.parse(
            options.parts, options.kernel, image=options.image, gcloud_archive=options.gcloud_archive
        )
        return apply(None if options.for_user in (None, "root") else options.for_user, asked)
    except LabkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

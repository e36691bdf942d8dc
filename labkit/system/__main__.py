"""The part of set-up that needs root, for one call of sudo: ``python -m labkit.system apply --for-user NAME``."""

from __future__ import annotations

import argparse
import os
import sys

from labkit.errors import LabkitError
from labkit.system.command import apply, undo


def main() -> int:
    """Parse, check that we are root, do it."""
    parser = argparse.ArgumentParser(prog="python -m labkit.system", description=__doc__)
    parser.add_argument("action", choices=["apply", "undo"])
    parser.add_argument("--for-user", metavar="NAME", help="who shall measure live without being root")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("only root can do this")
    try:
        if options.action == "undo":
            return undo()
        return apply(None if options.for_user in (None, "root") else options.for_user)
    except LabkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

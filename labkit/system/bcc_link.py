"""The system's bcc, importable from an environment's own Python (conda, uv, venv), for who writes `from bcc import BPF`.

labkit itself needs no link: its compiler's process finds bcc by itself. An environment cannot install bcc (conda-forge has
no package of it, PyPI's is something else), and to show it all of dist-packages would mix two sets of libraries. So: a
folder with one link in it, and a ``.pth`` file that names the folder.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from labkit.errors import LabkitError
from labkit.kernel import bcc
from labkit.system.environment import own_environment

__all__ = ["link", "unlink"]

_NAME = "labkit-bcc"


def _site(prefix: Path | None) -> Path | None:
    """Where packages of this environment are; None for the system's own Python, which has bcc of itself."""
    if prefix is not None:
        return next(iter(sorted(prefix.glob("lib/python3*/site-packages"))), None)
    return Path(sysconfig.get_path("purelib")) if own_environment() else None


def link(prefix: Path | None = None) -> str:
    """Make the system's bcc importable here, if it is not; says in words how it stands, empty if there is nothing to say.

    Another package of that name in the environment is left alone.

    :param prefix: the environment; the running one by default.
    """
    try:
        found = bcc.locate()
    except LabkitError:
        return ""
    site = _site(prefix)
    if site is None:
        return ""
    own = site / _NAME / "bcc"
    if own.is_symlink() and own.resolve() == found.package.resolve() and (site / f"{_NAME}.pth").exists():
        return f"`import bcc` works in {site.parents[2]}: linked to {found.package}"
    if _foreign(site):
        return f"{site} holds another package that is called bcc: `import bcc` is that one, and labkit does not use it"
    try:
        own.parent.mkdir(exist_ok=True)
        own.unlink(missing_ok=True)
        own.symlink_to(found.package)
        (site / f"{_NAME}.pth").write_text(f"{own.parent}\n")
    except OSError as error:
        return f"`import bcc` does not work in {site.parents[2]}: it cannot be linked ({error.strerror})"
    return f"`import bcc` works in {site.parents[2]} from now on: linked to {found.package}"


def _foreign(site: Path) -> bool:
    return (site / "bcc").exists() or (site / "bcc.py").exists()


def unlink(prefix: Path | None = None) -> bool:
    """Take the link back; True if there was one."""
    site = _site(prefix)
    if site is None or not (site / f"{_NAME}.pth").exists():
        return False
    (site / f"{_NAME}.pth").unlink()
    (site / _NAME / "bcc").unlink(missing_ok=True)
    (site / _NAME).rmdir()
    return True

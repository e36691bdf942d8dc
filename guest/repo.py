"""What is shipped into the guest: the working tree as it is, without what git ignores."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from guest.errors import BuildFailed

__all__ = ["pack", "shipped_files"]


def shipped_files(root: Path) -> list[str]:
    """Paths of tracked files and of new ones that git would not ignore, as they are in the working tree.

    :raises BuildFailed: if git cannot list them.
    """
    command = ["git", "-C", str(root), "-c", f"safe.directory={root}"]
    command += ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True)
    if listed.returncode != 0:
        raise BuildFailed(
            "The lab's files cannot be listed.",
            why=listed.stderr.decode(errors="replace").strip(),
            remedy="The guest gets what git knows: run this in a clone of the repository.",
        )
    names = {name.decode() for name in listed.stdout.split(b"\0") if name}
    return sorted(name for name in names if (root / name).is_file())


def pack(root: Path) -> bytes:
    """The working tree as a compressed tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=3) as archive:
        for name in shipped_files(root):
            archive.add(root / name, arcname=name, recursive=False)
    return buffer.getvalue()

"""Kernel headers for the compiler: a merged copy in labkit's own cache.

bcc's helpers include a handful of uapi headers, so a tree must be there; offsets never come from it
(:mod:`labkit.kernel.btf` gives those), hence *any* tree of a similar age serves any kernel. Debian splits its headers
in two folders that refer to each other by make rules, which bcc cannot follow without ``/lib/modules``. A merged
copy of ``include`` and ``arch/ARCH/include`` works as ``BCC_KERNEL_SOURCE`` without root and without links.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import MissingHeaders
from labkit.paths import cache_dir

__all__ = ["HeaderSource", "find", "merged_tree"]

_ARCH = {"x86_64": "x86", "aarch64": "arm64"}
_DEBIAN_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
_LAYOUT_VERSION = "1"
_MARK = "labkit-source.txt"  # in a merged copy: what it was made from


@dataclass(frozen=True)
class HeaderSource:
    """Where headers were found.

    :param trees: folders to lay over each other, in this order.
    :param release: the release they are of (``UTS_RELEASE``), or ``"unknown"``.
    :param matches: True if that is the running kernel's.
    :param kind: ``"given"``, ``"modules"``, ``"usr-src"``, ``"kheaders"`` or ``"nearest"``.
    """

    trees: tuple[Path, ...]
    release: str
    matches: bool
    kind: str

    def describe(self) -> str:
        """One line for people."""
        fit = (
            "match the running kernel"
            if self.matches
            else f"are of {self.release}, not of the running kernel"
        )
        return f"{self.trees[-1]} ({fit})"


def _release_of(*trees: Path) -> str:
    for tree in trees:
        try:
            text = (tree / "include/generated/utsrelease.h").read_text()
        except OSError:
            continue
        match = re.search(r'UTS_RELEASE\s+"([^"]+)"', text)
        if match:
            return match.group(1)
    return "unknown"


def _complete(trees: tuple[Path, ...]) -> bool:
    """True if together they hold what bcc's helpers include."""
    arch = _ARCH.get(platform.machine(), platform.machine())
    needed = (
        "include/linux/kconfig.h",
        "include/uapi/linux/bpf.h",
        "include/generated/autoconf.h",
        f"arch/{arch}/include/asm/page.h",
    )
    return all(any((tree / name).is_file() for tree in trees) for name in needed)


def _with_common(tree: Path) -> tuple[Path, ...]:
    """A tree together with the half it leaves out: Debian's ``-common`` folder, or a ``source`` link's target."""
    # 6.1.0-44-cloud-amd64 -> 6.1.0-44-common, 6.12.107+deb13-cloud-amd64 -> 6.12.107+deb13-common; Ubuntu's common tree
    # has no suffix at all: 6.8.0-31-generic -> 6.8.0-31.
    whole = tree.resolve()
    words = whole.name.split("-")  # linux, headers, the version, and what else
    stems = ["-".join(words[:length]) for length in range(len(words) - 1, 2, -1)]
    candidates = [whole.parent / name for stem in stems for name in (f"{stem}-common", stem)]
    source = tree.parent / "source"
    if tree.name == "build" and source.exists():
        candidates.append(source)
    for common in candidates:
        if common.is_dir() and common.resolve() != tree.resolve():
            return (common, tree)
    return (tree,)


def _version_key(release: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", release)[:4])


def _candidates(root: Path) -> Iterator[tuple[str, Path]]:
    release = platform.release()
    given = os.environ.get("LABKIT_HEADERS")
    if given:
        yield "given", Path(given)
        return
    yield "modules", root / f"lib/modules/{release}/build"
    yield "usr-src", root / f"usr/src/linux-headers-{release}"
    yield "kheaders", root / "sys/kernel/kheaders.tar.xz"
    others = [p for p in (root / "usr/src").glob("linux-headers-*") if not p.name.endswith("-common")]
    running = _version_key(release)

    def distance(path: Path) -> tuple[int, ...]:
        other = _version_key(path.name)
        return tuple(abs(a - b) for a, b in zip(running, other, strict=False))

    for path in sorted(others, key=distance):
        yield "nearest", path


def find(root: Path = Path("/")) -> HeaderSource:
    """The best headers on this machine.

    Order: ``LABKIT_HEADERS``; ``/lib/modules/RELEASE/build``; ``/usr/src/linux-headers-RELEASE``; the kernel's own
    kheaders archive; the installed headers nearest in version.

    :raises MissingHeaders: if there are none, with the command that installs them.
    """
    running = platform.release()
    tried = []
    for kind, path in _candidates(root):
        tried.append(str(path))
        if kind == "kheaders":
            if path.is_file():
                return HeaderSource((path,), running, True, kind)
            continue
        if not path.is_dir():
            continue
        trees = _with_common(path)
        if not _complete(trees):
            continue
        release = _release_of(*reversed(trees))
        return HeaderSource(tuple(t.resolve() for t in trees), release, release == running, kind)
    arch = _DEBIAN_ARCH.get(platform.machine(), platform.machine())
    raise MissingHeaders(
        "no kernel headers for the compiler",
        why=f"looked at {', '.join(tried)}",
        remedy=f"./task setup (or: sudo apt-get install linux-headers-{arch}); "
        "any version serves, offsets come from BTF. LABKIT_HEADERS=FOLDER names a tree of your own",
    )


def merged_tree(source: HeaderSource | None = None) -> Path:
    """A merged copy of the headers in labkit's cache, fit for ``BCC_KERNEL_SOURCE``; made on first use (about 1 s).

    A tree that is such a copy already is taken as it is: images carry one, and their cache starts empty in every pod.

    :raises MissingHeaders: if there are no headers, or the copy cannot be written.
    """
    source = source or find()
    if len(source.trees) == 1 and (source.trees[0] / _MARK).is_file():
        return source.trees[0]
    stamp = "|".join([_LAYOUT_VERSION, *(f"{t}:{t.stat().st_mtime_ns}" for t in source.trees)])
    target = cache_dir() / "headers" / hashlib.sha256(stamp.encode()).hexdigest()[:16]
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
        try:
            _fill(source, scratch)
            (scratch / _MARK).write_text(source.describe() + "\n")
            scratch.chmod(0o755)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        if target.is_dir():  # another process was quicker
            return target
        raise MissingHeaders(
            "the merged copy of the kernel headers cannot be written",
            why=f"{error.strerror}: {error.filename or target}",
            remedy="free some space (60 MB), or set LABKIT_CACHE to a folder that can be written",
        ) from error
    return target


def _fill(source: HeaderSource, into: Path) -> None:
    if source.kind == "kheaders":
        with tarfile.open(source.trees[0]) as archive:
            # Filters came to Python in 3.11.4, and Debian 12 has 3.11.2; the archive is the kernel's own.
            safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(into, **safely)
        return
    arch = _ARCH.get(platform.machine(), platform.machine())
    for tree in source.trees:
        for part in ("include", f"arch/{arch}/include"):
            if (tree / part).is_dir():
                # Links are followed: Ubuntu's trees are links into a common one.
                shutil.copytree(tree / part, into / part, dirs_exist_ok=True, ignore_dangling_symlinks=True)

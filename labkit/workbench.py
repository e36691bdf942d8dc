"""JupyterLab for a learner: on loopback, with a token, in working copies of the notebooks that git ignores."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabkitError
from labkit.lessons import progress
from labkit.paths import notebooks_dir, work_dir
from labkit.system.kernelspec import wrap_kernelspec

__all__ = ["Copies", "copy_notebooks", "open_lab", "work_dir"]

_LEDGER = progress.COPIES
# The popup that asks whether to fetch news, and the request that asks for a newer JupyterLab.
_OVERRIDES = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}


@dataclass(frozen=True)
class Copies:
    """What :func:`copy_notebooks` did, by file name."""

    new: tuple[str, ...]
    renewed: tuple[str, ...]
    kept: tuple[str, ...]


def copy_notebooks(source: Path, target: Path) -> Copies:
    """Bring the notebooks of ``source`` into ``target``, without ever losing what a learner did there.

    A copy is renewed if it is as it was copied. One that was changed (run, answered, saved) is kept; ``kept`` names it
    if its chapter has changed since. A deleted copy is made anew.

    :raises LabkitError: if the folder cannot be written.
    """
    new, renewed, kept = [], [], []
    try:
        target.mkdir(parents=True, exist_ok=True)
        copied = _read_ledger(target)
        for path in sorted(source.glob("*.ipynb")):
            content = path.read_bytes()
            copy = target / path.name
            if not copy.exists():
                new.append(path.name)
            elif _digest(content) in (copied.get(path.name), _digest(copy.read_bytes())):
                copied[path.name] = _digest(content)
                continue  # the chapter is as it was when it was copied, or the copy is up to date
            elif _digest(copy.read_bytes()) == copied.get(path.name):
                renewed.append(path.name)
            else:
                kept.append(path.name)
                continue
            copy.write_bytes(content)
            copied[path.name] = _digest(content)
        (target / _LEDGER).write_text(json.dumps(copied, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise LabkitError(
            "the working copies of the notebooks cannot be made",
            why=f"{error.filename or target}: {error.strerror}",
            remedy="make that folder writable, or set LABKIT_WORK to one that is",
        ) from error
    return Copies(tuple(new), tuple(renewed), tuple(kept))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_ledger(target: Path) -> dict[str, str]:
    try:
        return {str(name): str(digest) for name, digest in json.loads((target / _LEDGER).read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}  # without it every differing copy counts as the learner's own


def _silence_news(prefix: Path) -> None:
    path = prefix / "share/jupyter/lab/settings/overrides.json"
    if sys.prefix == sys.base_prefix or path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_OVERRIDES, indent=1) + "\n")
    except OSError:
        return  # a popup more, nothing worse


def open_lab(arguments: Sequence[str] = ()) -> None:
    """Become JupyterLab, opened on the index. It prints its address, with the token, and ends with Ctrl-C.

    :param arguments: handed on to ``jupyter lab``.
    :raises LabkitError: if the working copies cannot be made, or JupyterLab is not installed.
    """
    target = work_dir()
    copies = copy_notebooks(notebooks_dir(), target)
    print(f"notebooks: your copies are in {target}", end="")
    print(f" ({len(copies.new)} new, {len(copies.renewed)} renewed)" if copies.new or copies.renewed else "")
    for name in copies.kept:
        print(f"  {name}: the chapter has changed; your changed copy is kept (move it away for the new one)")
    wrap_kernelspec()
    _silence_news(Path(sys.prefix))
    graphical = sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    own = [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={target.resolve()}",
        "--LabApp.default_url=/lab/tree/index.ipynb",
        "--log-level=WARN",
        *(["--ServerApp.allow_root=True"] if os.geteuid() == 0 else []),
        *([] if graphical and os.geteuid() != 0 else ["--no-browser"]),
    ]
    sys.stdout.flush()
    try:
        os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *own, *arguments])
    except OSError as error:
        raise LabkitError("JupyterLab cannot be started", why=str(error), remedy="./task setup") from error

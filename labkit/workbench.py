"""JupyterLab for a learner: on loopback, with a token, in working copies of the notebooks that git ignores."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq
from nbformat.sign import NotebookNotary

from labkit.errors import LabkitError
from labkit.glossary import for_learner
from labkit.lessons.progress import COPIES as _LEDGER
from labkit.lessons.progress import digest
from labkit.notebook_io import read_notebook
from labkit.paths import lab_root, notebooks_dir, work_dir
from labkit.system.environment import own_environment
from labkit.system.kernelspec import wrap_kernelspec

__all__ = ["Copies", "copy_notebooks", "open_lab", "work_dir"]

_OVERRIDES: dict[str, dict[str, object]] = {
    # The popup that asks whether to fetch news, and the request that asks for a newer JupyterLab.
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # The names of the chapters need the room.
    "@jupyterlab/filebrowser-extension:browser": {"showLastModifiedColumn": False},
    # Code is read in full, also in a narrow window.
    "@jupyterlab/notebook-extension:tracker": {"codeCellConfig": {"lineWrap": True}},
    # The glossary opens to be read, not to be edited.
    "@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"markdown": "Markdown Preview"}},
}
#: Pages to look things up, beside the notebooks. Not the learner's own: they are always those of the lab.
_REFERENCE = ("glossary.md", "functions.md")
_LINK = re.compile(r"\[([^\]]+)\]\(([^):#\s]+)(#[^)\s]*)?\)")


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
            content = for_learner(path.read_bytes())
            copy = target / path.name
            if not copy.exists():
                new.append(path.name)
            elif digest(content) in (copied.get(path.name), digest(copy.read_bytes())):
                copied[path.name] = digest(content)
                continue  # the chapter is as it was when it was copied, or the copy is up to date
            elif digest(copy.read_bytes()) == copied.get(path.name):
                renewed.append(path.name)
            else:
                kept.append(path.name)
                continue
            copy.write_bytes(content)
            copied[path.name] = digest(content)
        _write_reference(target)
        (target / _LEDGER).write_text(json.dumps(copied, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise LabkitError(
            "the working copies of the notebooks cannot be made",
            why=f"{error.filename or target}: {error.strerror}",
            remedy="make that folder writable, or set LABKIT_WORK to one that is",
        ) from error
    return Copies(tuple(new), tuple(renewed), tuple(kept))


def _write_reference(target: Path) -> None:
    """The reference pages, without links to documents that are not in the learner's folder."""

    def keep(match: re.Match[str]) -> str:
        return match[0] if match[2] in _REFERENCE else match[1]

    for name in _REFERENCE:
        document = lab_root() / "docs" / name
        if document.is_file():
            (target / name).write_text(
                _LINK.sub(keep, document.read_text(encoding="utf-8")), encoding="utf-8"
            )


def _read_ledger(target: Path) -> dict[str, str]:
    try:
        return {str(name): str(digest) for name, digest in json.loads((target / _LEDGER).read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}  # without it every differing copy counts as the learner's own


def _settle(prefix: Path) -> None:
    """Put our settings into the environment's overrides, beside whatever else is there."""
    path = prefix / "share/jupyter/lab/settings/overrides.json"
    if not own_environment():
        return
    try:
        before = json.loads(path.read_text()) if path.exists() else {}
        wanted = {
            **before,
            **{name: {**values, **before.get(name, {})} for name, values in _OVERRIDES.items()},
        }
        if wanted != before:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(wanted, indent=1) + "\n")
    except (OSError, ValueError, TypeError, AttributeError):
        return  # a popup more, nothing worse


def _trust(target: Path, names: Sequence[str]) -> None:
    """Sign the copies that we made, so that Jupyter does not warn of them."""
    notary = NotebookNotary()  # type: ignore[no-untyped-call]
    for name in names:
        notary.sign(read_notebook(target / name))  # type: ignore[no-untyped-call]
    notary.store.close()


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
    print("  open the address below (the one that begins with http) in a browser; Ctrl-C, twice, ends it")
    _trust(target, (*copies.new, *copies.renewed))
    wrap_kernelspec()
    _settle(Path(sys.prefix))
    graphical = sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    own = [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={target.resolve()}",
        "--LabApp.default_url=/lab/tree/index.ipynb",
        *("--log-level=WARN", "--LabApp.log_level=WARN"),
        "--LabApp.extension_manager=readonly",  # the other one asks PyPI when its panel is opened
        # No pings on loopback. With jupyter_server's defaults tornado warns that the time to answer is longer than that
        # between pings, and with less jupyter_server closes every connection that is not quicker.
        "--ServerApp.tornado_settings={'ws_ping_interval': 0}",
        # Else each kernel warns that others on this machine may listen to it.
        *(["--KernelManager.transport_encryption=auto"] if zmq.has("curve") else []),
        *(["--ServerApp.allow_root=True"] if os.geteuid() == 0 else []),
        *([] if graphical and os.geteuid() != 0 else ["--no-browser"]),
    ]
    sys.stdout.flush()
    try:
        os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *own, *arguments])
    except OSError as error:
        raise LabkitError("JupyterLab cannot be started", why=str(error), remedy="./task setup") from error

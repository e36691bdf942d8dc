"""What a run leaves behind: ``outcomes/latest/``.

==================  =================================================================================
``summary.json``    the run, its notebooks and findings, for programs; never half-written
``README.md``       the same for people, with figures
``figures/``        PNG files that README shows
``notebooks/``      the executed notebooks, saved after every cell
``pages/``          the same as HTML pages that load nothing from elsewhere
==================  =================================================================================

The run before becomes ``outcomes/previous/``, and README says what differs. Only one run at a time may write to
a folder. A disk that fills in the middle costs what did not fit, never what was there: files are replaced by
renaming, and a small reserve is set free so that summary and README can still be written.

``python -m labkit.outcomes example`` copies the small, readable part of the latest run to ``outcomes/example/``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import nbformat

from labkit import __version__, harvest
from labkit.capture import Capture
from labkit.errors import LabkitError, OutcomesError
from labkit.pages import index_page, notebook_page
from labkit.paths import captures_dir, outcomes_dir
from labkit.report import readme

__all__ = ["Outcomes", "atomic_write", "make_example", "read_summary"]

#: Kept back at the start and set free when the disk is full: room for summary and README of a long run.
RESERVE_BYTES = 512 * 1024

_REMEDIES = {
    errno.ENOSPC: "make room on that file system, or choose another folder with --outcomes",
    errno.EDQUOT: "your quota is used up: make room, or choose another folder with --outcomes",
    errno.EROFS: "it is mounted read-only: choose another folder with --outcomes",
    errno.EACCES: "choose a folder of yours with --outcomes, or mend its owner",
    errno.EPERM: "choose a folder of yours with --outcomes, or mend its owner",
}


def _outcomes_error(path: Path, error: OSError) -> OutcomesError:
    remedy = _REMEDIES.get(error.errno or 0, "choose another folder with --outcomes")
    return OutcomesError(f"cannot write {path}", why=error.strerror or str(error), remedy=remedy)


def atomic_write(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Replace ``path`` as a whole: a reader, or a crash, sees the old content or the new, never a part.

    :param durable: wait until it is on the disk.
    :raises OutcomesError: it cannot be written; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _outcomes_error(path, error) from None


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a run, or None where there is none that can be read."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and isinstance(summary.get("notebooks"), list) else None


class Outcomes:
    """The outcomes folder of one run; use as a context manager.

    :param folder: holds ``latest/`` and ``previous/``; the lab's ``outcomes/`` if None.
    :param environment: ``kernel``, ``machine`` and what else describes where the run takes place.
    :raises OutcomesError: the folder cannot be written, or another run is writing to it.
    """

    def __init__(self, folder: Path | None, *, environment: dict[str, Any], names: list[str]) -> None:
        self.folder = (folder or outcomes_dir()).absolute()
        self.latest = self.folder / "latest"
        self.reserve = self.folder / ".reserve"
        self.environment = environment
        self.names = names
        self.summary: dict[str, Any] = {}
        self.before: dict[str, Any] | None = None
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Outcomes:
        self._claim()
        try:
            self._rotate()
            self.before = read_summary(self.folder / "previous")
            self.summary = self._new_summary()
            self.write_summary()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _claim(self) -> None:
        """Make the folder, lock it, and prove that it can be written before the first notebook runs."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self.reserve.open("wb") as file:
                file.write(os.urandom(RESERVE_BYTES))  # not zeros: they may take no room
                file.flush()
                os.fsync(file.fileno())
        except BlockingIOError:
            self._close_lock()
            raise OutcomesError(
                f"another run is writing to {self.folder}",
                remedy="wait for it to end, or choose another folder with --outcomes",
            ) from None
        except OSError as error:
            self._release()
            raise _outcomes_error(self.folder, error) from None

    def _release(self) -> None:
        self.free_reserve()
        self._close_lock()

    def _close_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def free_reserve(self) -> None:
        """Give the reserve back to the file system."""
        try:
            self.reserve.unlink(missing_ok=True)
        except OSError:  # a read-only file system has none
            return

    def _rotate(self) -> None:
        """The latest run becomes the previous one, unless it found nothing: then it is no use to compare with."""
        previous = self.folder / "previous"
        last = read_summary(self.latest)
        try:
            if self.latest.exists():
                if last is not None and any(notebook.get("findings") for notebook in last["notebooks"]):
                    shutil.rmtree(previous, ignore_errors=True)
                    self.latest.rename(previous)
                else:
                    shutil.rmtree(self.latest)
            self.latest.mkdir()
        except OSError as error:
            raise _outcomes_error(self.latest, error) from None

    def _new_summary(self) -> dict[str, Any]:
        return {
            "mode": None,
            "status": "running",
            "kernel": self.environment["kernel"],
            "machine": self.environment["machine"],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "finished": None,
            "seconds": 0.0,
            "labkit": __version__,
            "environment": self.environment,
            "notebooks": [_not_run(name) for name in self.names],
        }

    def begin(self, name: str) -> None:
        """Enter that a notebook runs now; that is what a killed run leaves behind."""
        self.entry(name)["status"] = "running"
        self.write_summary()

    def entry(self, name: str) -> dict[str, Any]:
        """The summary's entry of a notebook."""
        found: dict[str, Any] = self.summary["notebooks"][self.names.index(name)]
        return found

    def notebook_path(self, name: str) -> Path:
        """Where the executed notebook is saved."""
        return self.latest / "notebooks" / f"{name}.ipynb"

    def save_notebook(self, name: str, notebook: Any) -> None:
        """Save an executed notebook, whole, in place of its last state."""
        content: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
        atomic_write(self.notebook_path(name), (content + "\n").encode())

    def save_what_fits(self, name: str, notebook: Any) -> None:
        """When the disk is full: the notebook without its pictures, in the room that the reserve leaves."""
        self.free_reserve()
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                output.get("data", {}).pop("image/png", None)
        try:
            self.save_notebook(name, notebook)
        except OutcomesError:
            return  # its findings are still in the summary

    def add(self, result: dict[str, Any], notebook: Any | None) -> None:
        """Enter a notebook's result, harvest it, and write its figures and its page.

        :param result: ``name``, ``status``, ``seconds``, ``problems``, ``parameters``.
        :raises OutcomesError: a file cannot be written; the summary then still has the findings.
        """
        entry = _not_run(result["name"]) | result
        index = self.names.index(result["name"])
        self.summary["notebooks"][index] = entry
        if notebook is None:
            self.write_summary()
            return
        entry["mode"] = harvest.mode(notebook)
        if why := harvest.why_replay(notebook):
            entry["why_replay"] = why
        if entry["mode"] == "replay" and (recorded := _recorded_on(result["name"])):
            entry["recorded_on"] = recorded
        entry["findings"] = harvest.findings(notebook)
        self.write_summary()  # the numbers first: they are small, and they are what matters
        entry["figures"] = self._write_figures(result["name"], notebook)
        self._write_page(entry, notebook)
        self.write_summary()

    def _write_figures(self, name: str, notebook: Any) -> list[dict[str, Any]]:
        entries = []
        results = [figure for figure in harvest.figures(notebook) if not figure.drawing]
        for count, figure in enumerate(results, start=1):
            file = f"figures/{name}-{count}.png"
            atomic_write(self.latest / file, figure.png)
            entries.append(
                {
                    "file": file,
                    "section": figure.section,
                    "title": figure.title,
                    "cell": figure.cell,
                    "position": figure.position,
                }
            )
        return entries

    def _write_page(self, entry: dict[str, Any], notebook: Any) -> None:
        html = notebook_page(notebook, entry=entry, kernel=self.summary["kernel"])
        atomic_write(self.latest / "pages" / f"{entry['name']}.html", html.encode())

    def finish(self, status: str, seconds: float) -> None:
        """Enter how the run ended and write summary, README and the index of the pages."""
        self.summary["status"] = status
        self.summary["seconds"] = round(seconds, 1)
        self.summary["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.free_reserve()
        self.write_summary()

    def write_summary(self) -> None:
        """Write ``summary.json`` and what is derived from it."""
        self.summary |= _modes(self.summary["notebooks"])
        content = json.dumps(self.summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        atomic_write(self.latest / "summary.json", content.encode(), durable=True)
        text = readme(self.summary, self.before)
        atomic_write(self.latest / "README.md", text.encode(), durable=True)
        if self.summary["finished"]:
            atomic_write(self.latest / "pages" / "index.html", index_page(text, self.latest).encode())


def _not_run(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "status": "not run",
        "seconds": 0.0,
        "mode": None,
        "parameters": {},
        "findings": [],
        "figures": [],
        "problems": [],
    }


def _modes(notebooks: list[dict[str, Any]]) -> dict[str, Any]:
    """``mode`` of the run: live only if every notebook that tells was; ``modes`` says how they differ."""
    by_mode: dict[str, list[str]] = {}
    for notebook in notebooks:
        if notebook["mode"] is not None:
            by_mode.setdefault(notebook["mode"], []).append(notebook["name"])
    if not by_mode:
        return {"mode": None, "modes": {}}
    return {"mode": "replay" if "replay" in by_mode else "live", "modes": by_mode}


def _recorded_on(name: str) -> str:
    """Kernel and machine that a chapter's capture is of; empty where that cannot be read."""
    try:
        about = Capture(captures_dir() / name).data["environment"]
        return f"Linux {about['kernel']}, {about['machine']}"
    except (LabkitError, OSError, KeyError, TypeError):
        return ""


def make_example(folder: Path | None = None) -> Path:
    """Copy summary, README and figures of the latest run to ``example/``, for the repository.

    What is big (pages, executed notebooks) stays behind, and README does not link to it.

    :raises OutcomesError: there is no latest run, or it is not one to show: something in it failed.
    """
    folder = (folder or outcomes_dir()).absolute()
    summary = read_summary(folder / "latest")
    if summary is None:
        raise OutcomesError(f"there is no run in {folder / 'latest'}", remedy="./task lab")
    if summary["status"] != "ok":
        raise OutcomesError("the latest run is no example", why=f"its status is {summary['status']}")
    example = folder / "example"
    figures = [figure["file"] for notebook in summary["notebooks"] for figure in notebook["figures"]]
    shutil.rmtree(example, ignore_errors=True)
    content = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(example / "summary.json", content.encode())
    atomic_write(example / "README.md", readme(summary, None, alone=True).encode())
    for file in figures:
        atomic_write(example / file, (folder / "latest" / file).read_bytes())
    return example


if __name__ == "__main__":
    if sys.argv[1:2] != ["example"]:
        sys.exit("usage: python -m labkit.outcomes example")
    print(make_example())

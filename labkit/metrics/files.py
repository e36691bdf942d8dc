"""Metrics and snapshots as files: for node_exporter's textfile collector, and for data frames later."""

from __future__ import annotations

import contextlib
import datetime
import re
from pathlib import Path

import pandas as pd

from labkit.capture import write_whole
from labkit.errors import MissingCapture, OutcomesError, ParameterError
from labkit.sched.state import SCHEMAS, Snapshot

__all__ = ["Parquet", "may_be_textfile", "read_snapshots", "write_textfile"]

_STAMP = "%Y%m%dT%H%M%S.%fZ"
#: Only what we write ourselves: other things in the same folder are others'.
_SCRATCH = re.compile(r"\.(?P<name>.+\.(?:prom|parquet))\.(?P<pid>\d+)")
_PART = re.compile(r"\d{8}T\d{6}\.\d{6}Z\.parquet")


def may_be_textfile(path: Path) -> None:
    """Find out before measuring whether node_exporter would read a file.

    :raises ParameterError: if it does not end in ``.prom``.
    """
    if path.suffix != ".prom":
        raise ParameterError(
            f"{path.name} would not be read by node_exporter", remedy="call it something that ends in .prom"
        )


def _remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove half-written files of processes that are no more (``kill -9``): :func:`~labkit.capture.write_whole` calls them
    ``.NAME.PID``."""
    try:
        found = [
            one
            for one in folder.iterdir()
            if (match := _SCRATCH.fullmatch(one.name)) is not None
            and (not name or match["name"] == name)
            and not Path("/proc", match["pid"]).exists()
        ]
        for one in found:
            one.unlink(missing_ok=True)
    except OSError:
        return  # no such folder, or not ours to tidy: writing will say so


def write_textfile(path: Path, text: bytes) -> None:
    """Replace a textfile at once: whoever reads it sees the old one or the new one, whole.

    :param path: ends in ``.prom``; node_exporter reads no others, so the half-written one, which does not, is not read.
    :raises ParameterError: if it ends otherwise.
    :raises OutcomesError: if it cannot be written.
    """
    may_be_textfile(path)
    _remove_leftovers(path.parent, path.name)

    def write(scratch: Path) -> None:
        scratch.write_bytes(text)
        scratch.chmod(0o644)  # node_exporter is another user

    write_whole(path, write)


class Parquet:
    """Keeps snapshots as Parquet, a folder per frame and a file per snapshot; the oldest are removed.

    :param keep: snapshots to keep.
    """

    def __init__(self, folder: Path, *, keep: int = 1000) -> None:
        if keep < 1:
            raise ParameterError(f"{keep} snapshots cannot be kept", remedy="at least 1")
        self.folder = folder
        self.keep = keep
        for name in (*SCHEMAS, "ledger"):
            _remove_leftovers(folder / name)

    def write(self, snapshot: Snapshot, *, now: datetime.datetime | None = None) -> None:
        """Write the frames of a snapshot; the columns ``taken`` (UTC) and ``seconds`` (since the load) come first.

        :raises OutcomesError: if they cannot be written; what was written before is whole.
        """
        taken = (now or datetime.datetime.now(datetime.UTC)).astimezone(datetime.UTC)
        for name in SCHEMAS:
            frame: pd.DataFrame = getattr(snapshot, name)
            frame = frame.copy(deep=False)
            frame.insert(0, "taken", pd.Timestamp(taken))
            frame.insert(1, "seconds", snapshot.seconds)
            self._write(name, f"{taken.strftime(_STAMP)}.parquet", frame)
        ledger = snapshot.ledger.frame()
        ledger.insert(0, "taken", pd.Timestamp(taken))
        self._write("ledger", f"{taken.strftime(_STAMP)}.parquet", ledger)

    def _write(self, name: str, file: str, frame: pd.DataFrame) -> None:
        folder = self.folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutcomesError(f"cannot make {folder}", why=error.strerror or str(error)) from error
        write_whole(folder / file, lambda path: frame.to_parquet(path, compression="zstd", index=False))
        try:
            old = sorted(part for part in folder.iterdir() if _PART.fullmatch(part.name))
            for part in old[: -self.keep]:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise OutcomesError(
                f"cannot remove old snapshots from {folder}",
                why=error.strerror or str(error),
                remedy="see to the rights on it; what was written is whole",
            ) from error


def read_snapshots(folder: Path, name: str) -> pd.DataFrame:
    """One frame of all snapshots that were kept, in order of time.

    :param name: ``cgroups``, ``cells``, ``histograms``, ``names`` or ``ledger``.
    :returns: the columns of :data:`labkit.sched.state.SCHEMAS`, after ``taken`` (datetime, UTC) and ``seconds`` (float64).
    :raises MissingCapture: if none were kept there.
    """
    parts = sorted(part for part in (folder / name).glob("*.parquet") if _PART.fullmatch(part.name))
    frames = []
    for part in parts:
        with contextlib.suppress(
            FileNotFoundError
        ):  # the exporter has just removed it, the oldest, for a new one
            frames.append(pd.read_parquet(part))
    if not frames:
        raise MissingCapture(f"no snapshots of {name} in {folder}", remedy="labkit serve --parquet FOLDER")
    return pd.concat(frames, ignore_index=True)

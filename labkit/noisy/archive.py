"""A recording of an answer: one file that holds what it was made of, so that it can be made again, anywhere.

The file is a zip archive with ``recording.json`` and one Parquet file per frame. It is written whole or not at all.
Names in it are the machine's own: whoever gets the file can read what runs there.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from labkit import __version__
from labkit.capture import write_whole
from labkit.errors import CaptureMismatch, LabkitError, MissingCapture, OutcomesError
from labkit.ledger import Ledger
from labkit.noisy import witnesses
from labkit.noisy.answer import Answer
from labkit.noisy.select import Selection
from labkit.noisy.witnesses import Evidence
from labkit.sched import state
from labkit.sched.state import Cost, Snapshot

__all__ = ["Recording", "is_recording", "load", "save"]

FORMAT = 1
_PROGRAM = "noisy_neighbor"
_HEAD = "recording.json"
_MAX_BYTES = 1 << 30  # of one unpacked member: a file from elsewhere shall not fill this machine's memory
_SNAPSHOT_FRAMES = ("cgroups", "cells", "histograms", "names")
_EVIDENCE_FRAMES = tuple(witnesses.SCHEMAS)
_OPTIONAL = ("stamps", "requests")  # recordings may be without


@dataclass(frozen=True)
class Recording:
    """What an answer is made of."""

    snapshot: Snapshot
    evidence: Evidence
    selection: Selection

    def answer(self, selection: Selection | None = None) -> Answer:
        """The answer that was given when it was recorded, or one to another question about the same time."""
        return Answer.from_snapshot(
            self.snapshot, evidence=self.evidence, selection=selection or self.selection
        )


def may_write(path: Path) -> None:
    """Find out before measuring whether a recording can be kept there.

    :raises OutcomesError: if not; nothing is ever overwritten.
    """
    if path.exists():
        raise OutcomesError(
            f"{path} exists", remedy="choose another name, or remove it: nothing is overwritten"
        )
    if not path.parent.is_dir():
        raise OutcomesError(f"there is no folder {path.parent}", remedy="make it, or choose another one")


def save(path: Path, recording: Recording) -> None:
    """Write a recording.

    :raises OutcomesError: if it cannot be written, or the file exists.
    """
    may_write(path)
    snapshot = recording.snapshot
    head = {
        "format": FORMAT,
        "program": _PROGRAM,
        "labkit": __version__,
        "taken_ns": snapshot.taken_ns,
        "seconds": snapshot.seconds,
        "kernel": snapshot.kernel,
        "ledger": snapshot.ledger.as_dict(),
        "cost": asdict(snapshot.cost),
        "rules": list(snapshot.rules),
        "selection": recording.selection.as_dict(),
    }

    def write(scratch: Path) -> None:
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as file:
            file.writestr(_HEAD, json.dumps(head, indent=1) + "\n")
            for name in _SNAPSHOT_FRAMES:
                file.writestr(f"{name}.parquet", _packed(getattr(snapshot, name)))
            for name in _EVIDENCE_FRAMES:
                file.writestr(f"{name}.parquet", _packed(getattr(recording.evidence, name)))

    write_whole(path, write)


def _packed(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, compression="zstd", index=False)
    return buffer.getvalue()


def is_recording(path: Path) -> bool:
    """Is it a file (and no folder, as captures of programs are)?"""
    return path.is_file()


def load(path: Path) -> Recording:
    """Read a recording; its mode is ``replay``.

    :raises MissingCapture: if there is no such file.
    :raises CaptureMismatch: if it is truncated or damaged, or of another program or format.
    """
    if not path.exists():
        raise MissingCapture(f"no recording at {path}", remedy="make one with `labkit noisy --record FILE`")
    try:
        with zipfile.ZipFile(path) as file:
            return _read(file, path)
    except LabkitError:
        raise
    except (OSError, zipfile.BadZipFile) as error:
        raise CaptureMismatch(
            f"{path} is no recording, or only a part of one",
            why=str(error),
            remedy="copy it again, whole; `labkit noisy --record FILE` makes a new one",
        ) from error
    except Exception as error:  # whatever a damaged file makes zip, JSON or Parquet readers say
        raise CaptureMismatch(
            f"{path} is damaged", why=f"{type(error).__name__}: {error}", remedy="copy it again, whole"
        ) from error


def _read(file: zipfile.ZipFile, path: Path) -> Recording:
    head = json.loads(_member(file, _HEAD, path))
    if not isinstance(head, dict) or head.get("program") != _PROGRAM:
        named = head.get("program") if isinstance(head, dict) else None
        raise CaptureMismatch(f"{path} is a recording of {named!r}", why=f"this command replays {_PROGRAM}")
    if head.get("format") != FORMAT:
        raise CaptureMismatch(
            f"{path} has format {head.get('format')!r}, made by labkit {head.get('labkit')!r}",
            why=f"labkit {__version__} reads format {FORMAT}",
            remedy="replay it with the labkit that made it, or record anew",
        )
    frames = {name: _frame(file, name, state.SCHEMAS[name], path) for name in _SNAPSHOT_FRAMES}
    there = set(file.namelist())
    others = {
        name: _frame(file, name, witnesses.SCHEMAS[name], path, witnesses.LATER.get(name, ()))
        for name in _EVIDENCE_FRAMES
        if name not in _OPTIONAL or f"{name}.parquet" in there
    }
    snapshot = Snapshot(
        taken_ns=int(head["taken_ns"]),
        seconds=float(head["seconds"]),
        mode="replay",
        kernel=str(head["kernel"]),
        ledger=Ledger.from_dict(head["ledger"], mode="replay"),
        cost=Cost(**head["cost"]),
        rules=tuple(head["rules"]),
        **frames,
    )
    return Recording(snapshot, Evidence(**others), Selection.from_dict(head["selection"]))


def _member(file: zipfile.ZipFile, name: str, path: Path) -> bytes:
    try:
        about = file.getinfo(name)
    except KeyError as error:
        raise CaptureMismatch(
            f"{path} is no recording of {_PROGRAM}", why=f"there is no {name} in it"
        ) from error
    if about.file_size > _MAX_BYTES:
        raise CaptureMismatch(f"{path} is too large", why=f"{name} holds {about.file_size:,} bytes")
    return file.read(name)


def _frame(
    file: zipfile.ZipFile, name: str, schema: dict[str, str], path: Path, later: Iterable[str] = ()
) -> pd.DataFrame:
    frame = pd.read_parquet(io.BytesIO(_member(file, f"{name}.parquet", path)))
    frame = frame.assign(**{column: -1 for column in later if column not in frame})
    if set(frame.columns) == set(schema):
        frame = frame[list(schema)]
    if list(frame.columns) != list(schema):
        raise CaptureMismatch(
            f"{path}: {name} has other columns", why=f"found {list(frame.columns)}, expected {list(schema)}"
        )
    return frame.astype(schema)

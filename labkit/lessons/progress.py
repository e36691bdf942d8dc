"""How far a learner has come: exercises solved, predictions made. Kept in the learner's own folder, nowhere else.

The file is ``.progress.json`` in :func:`labkit.paths.work_dir`, which git ignores. Runs without a reader write nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from labkit import text
from labkit.errors import LabkitError, ParameterError
from labkit.glossary import for_learner
from labkit.lessons import predictions
from labkit.paths import notebooks_dir, work_dir

__all__ = [
    "COPIES",
    "digest",
    "fingerprint",
    "judged",
    "keep_tries",
    "not_run",
    "predicted",
    "reset",
    "solved",
    "table",
    "tried",
    "tries",
]

_FILE = ".progress.json"
#: Which copies are as they were made: file name -> SHA-256 (see :mod:`labkit.workbench`).
COPIES = ".copies.json"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _read() -> dict[str, Any]:
    try:
        found = json.loads((work_dir() / _FILE).read_text())
        data = {"exercises": dict(found["exercises"]), "predictions": dict(found["predictions"])}
        return data | {"grades": dict(found.get("grades", {}))}
    except (OSError, ValueError, KeyError, TypeError):
        return {"exercises": {}, "predictions": {}, "grades": {}}  # none yet, or not readable: begin anew


def _write(data: Mapping[str, Any]) -> None:
    path = work_dir() / _FILE
    scratch = path.with_name(f"{_FILE}.{os.getpid()}")
    # A folder that cannot be written costs the learner a tick in a table; it must not cost the exercise.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(data, indent=1, sort_keys=True, default=str) + "\n")
        scratch.replace(path)


def tried(exercise: str) -> None:
    """Note a wrong answer."""
    _count(exercise, solved_now=False)


def solved(exercise: str) -> None:
    """Note a right answer; the first one's time stays."""
    _count(exercise, solved_now=True)


def not_run(exercise: str) -> None:
    """Note an answer that reads plausible and could not be run: neither wrong nor solved."""
    data = _read()
    entry = data["exercises"].setdefault(exercise, {"wrong": 0, "solved": None})
    if not entry["solved"]:
        entry["not_run"] = _now()
    _write(data)


def _count(exercise: str, *, solved_now: bool) -> None:
    data = _read()
    entry = data["exercises"].setdefault(exercise, {"wrong": 0, "solved": None})
    entry.pop("not_run", None)
    if solved_now:
        entry["solved"] = entry["solved"] or _now()
    elif not entry["solved"]:
        entry["wrong"] += 1
    _write(data)


def predicted(chapter: str, values: Mapping[str, Any], *, mine: bool = False) -> None:
    """Note a prediction; running the cell again with the same values adds nothing.

    :param mine: it is the learner's though it is what the chapter comes with.
    """
    data = _read()
    plain = {str(name): value.item() if hasattr(value, "item") else value for name, value in values.items()}
    made = data["predictions"].setdefault(chapter, [])
    if not made or made[-1]["values"] != plain or made[-1].get("mine", False) != mine:
        made.append({"at": _now(), "values": plain} | ({"mine": True} if mine else {}))
        _write(data)


def _foreseen(chapter: str, made: Any) -> bool:
    """True if one of the predictions that were kept is the learner's own; earlier releases kept the chapter's, too."""
    return any(one.get("mine") or predictions.own(chapter, one["values"]) for one in made)


def fingerprint(answer: object) -> str | None:
    """What tells an answer from another; None for one that cannot be told (a figure), which is then always a new one."""
    source = getattr(answer, "source", None)
    plain = source if isinstance(source, str) else answer
    if hasattr(plain, "to_csv"):  # a frame or a Series, whatever its length
        plain = plain.to_csv()
    elif hasattr(plain, "tolist"):  # numpy: an array or a scalar
        plain = plain.tolist()
    if isinstance(plain, (list, tuple)):
        parts = [fingerprint(one) for one in plain]
        return None if None in parts else _digest(parts)
    return _digest(plain) if plain is None or isinstance(plain, (str, bool, int, float)) else None


def _digest(plain: object) -> str:
    return hashlib.sha256(repr(plain).encode()).hexdigest()[:16]


def tries(chapter: str, case: str) -> dict[str, list[list[Any]]]:
    """The answers to a chapter's graded case that were kept: exercise -> [fingerprint, right or wrong] in order."""
    try:
        kept = _read()["grades"][chapter][case]
        return {str(one): [[known, bool(right)] for known, right in answers] for one, answers in kept.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def keep_tries(chapter: str, case: str, answers: Mapping[str, list[list[Any]]]) -> None:
    """Keep them, for the next time that the case is drawn."""
    data = _read()
    data["grades"].setdefault(chapter, {})[case] = dict(answers)
    _write(data)


def judged(predicted: pd.Series, measured: Mapping[str, Any]) -> pd.DataFrame:
    """A prediction beside the measurement; see :meth:`labkit.session.Chapter.compare`."""
    rows = [(predicted[name], measured[name]) for name in predicted.index]
    frame = pd.DataFrame(
        {
            "predicted": [_shown(guess) for guess, _ in rows],
            "measured": [_shown(value) for _, value in rows],
            "off by": [_off_by(guess, value) for guess, value in rows],
        },
        index=predicted.index,
    )
    return frame.astype("str")


def _shown(value: Any) -> str:
    if isinstance(value, (bool, str)) or not _is_number(value):
        return text.plain(value)
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:,.3g}"


def _off_by(guess: Any, value: Any) -> str:
    if isinstance(guess, str) and guess == predictions.NOT_PREDICTED:
        return ""
    if not (_is_number(guess) and _is_number(value)) or isinstance(guess, bool):
        return "right" if guess == value else "wrong"
    if guess == value:
        return "nothing"
    if guess <= 0 or value <= 0 or not math.isfinite(guess / value):
        return f"{float(guess) - float(value):+,.3g}"
    ratio = float(guess) / float(value)
    factor = max(ratio, 1 / ratio)
    if factor < 1.1:
        return f"{abs(ratio - 1):.1%}"
    shown = f"{factor:,.0f}" if factor >= 10 else f"{factor:.2g}"
    return f"{shown} times too {'high' if ratio > 1 else 'low'}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (hasattr(value, "dtype") and value.dtype.kind in "iuf")


def table() -> pd.DataFrame:
    """How far you are, chapter by chapter.

    :returns: columns ``chapter``, ``predicted`` ("yes" or empty), ``exercises`` ("2 of 3"), ``open`` (ids to be solved,
        with "(not run)" behind one whose answer could not be tried) and ``state`` ("done", "begun", or empty), all str.
    """
    from labkit.lessons import exercises  # which imports this module

    data = _read()
    rows = []
    for path in sorted(notebooks_dir().glob("[0-9][0-9]_*.ipynb")):
        ids = [one.id for one in exercises(path.stem[:2])]
        right = [one for one in ids if data["exercises"].get(one, {}).get("solved")]
        touched = [one for one in ids if one in data["exercises"]]
        foreseen = _foreseen(path.stem, data["predictions"].get(path.stem, ()))
        state = "done" if ids and len(right) == len(ids) else "begun" if touched or foreseen else ""
        left = ", ".join(_open(one, data["exercises"].get(one, {})) for one in ids if one not in right)
        rows.append((path.stem, "yes" if foreseen else "", f"{len(right)} of {len(ids)}", left, state))
    columns = ["chapter", "predicted", "exercises", "open", "state"]
    return pd.DataFrame(rows, columns=columns).astype("str")


def _open(exercise: str, entry: Mapping[str, Any]) -> str:
    return f"{exercise} (not run)" if entry.get("not_run") else exercise


def reset(chapter: str) -> Path:
    """Begin a chapter anew: a fresh working copy, and its progress forgotten. What you had is put aside, never deleted.

    :param chapter: ``"06"``, or the notebook's name.
    :returns: where the old copy lies now; the fresh copy's path if there was none.
    :raises ParameterError: if there is no such chapter.
    :raises LabkitError: if the folder cannot be written.
    """
    names = [path.stem for path in sorted(notebooks_dir().glob("[0-9][0-9]_*.ipynb"))]
    found = [name for name in names if chapter.removesuffix(".ipynb") in (name, name[:2])]
    if not found:
        raise ParameterError(f"there is no chapter {chapter!r}", remedy=f"chapters: {', '.join(names)}")
    copy = work_dir() / f"{found[0]}.ipynb"
    aside = copy.parent / "put-aside" / f"{copy.stem}-{_now().replace(':', '')[:17]}.ipynb"
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        if copy.exists():
            aside.parent.mkdir(exist_ok=True)
            aside = _free(aside)
            copy.replace(aside)
        copy.write_bytes(for_learner((notebooks_dir() / copy.name).read_bytes()))
        _note_copy(copy)
    except OSError as error:
        raise LabkitError(
            f"chapter {found[0]} cannot be reset",
            why=f"{error.filename or copy}: {error.strerror}",
            remedy="make that folder writable, or set LABKIT_WORK to one that is",
        ) from error
    data = _read()
    number = found[0][:2]
    data["exercises"] = {
        one: entry for one, entry in data["exercises"].items() if one.split(".")[0] != number
    }
    data["predictions"].pop(found[0], None)
    data["grades"].pop(found[0], None)
    _write(data)
    return aside if aside.exists() else copy


def digest(content: bytes) -> str:
    """SHA-256 of what a learner may have changed in a notebook: its cells with their outputs.

    JupyterLab writes the kernel's version into the metadata of a notebook that is merely opened: that is no change.
    """
    try:
        cells = [
            (cell["cell_type"], "".join(cell["source"]), cell.get("outputs", []))
            for cell in json.loads(content)["cells"]
        ]
    except (ValueError, KeyError, TypeError):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def _note_copy(copy: Path) -> None:
    """Let :func:`labkit.workbench.copy_notebooks` know the copy as unchanged, so that it is renewed with its chapter."""
    ledger = copy.parent / COPIES
    try:
        copied = dict(json.loads(ledger.read_text()))
    except (OSError, ValueError, TypeError):
        copied = {}
    copied[copy.name] = digest(copy.read_bytes())
    ledger.write_text(json.dumps(copied, indent=1, sort_keys=True) + "\n")


def _free(path: Path) -> Path:
    """The path, or the next that is free: two resets within a second lose nothing either."""
    candidate, count = path, 1
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.stem}-{count}{path.suffix}")
    return candidate

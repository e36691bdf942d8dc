"""Captures: what a live run measured, kept so that the same cells give the same frames without a kernel.

A capture is a folder: ``capture.json`` (environment snapshot, what was loaded with each program's hash, ledgers, results)
and one Parquet file per frame. It is written as the run goes, each file whole or not at all. Replay checks that the program
is still the one that was recorded. Captures are made to be shared: names of other people's programs are masked.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from labkit import text
from labkit.closing import Closing
from labkit.errors import CaptureMismatch, LabkitError, MissingCapture, OutcomesError
from labkit.kernel import environment, probe
from labkit.ledger import Ledger
from labkit.program import Program, load, program_hash
from labkit.spec import ProgramSpec, parse, read

__all__ = [
    "Capture",
    "Recorder",
    "ReplayedProgram",
    "masked",
    "record_command",
    "replay_command",
    "typed_parameters",
    "write_whole",
]

FORMAT = 1


def _frame_key(name: str, *, per_cpu: bool, explode: str | None) -> str:
    return name + (".per_cpu" if per_cpu else "") + (f".{explode}" if explode else "")


#: Command names that are kept in a recording: the lab's own, the kernel's threads, and what every machine has.
_COMMON = re.compile(
    r"lk-|labkit|python|pytest|papermill|jupyter|ipython|bash$|sh$|true$|sleep$|stress-ng|"
    r"kworker|ksoftirqd|rcu|migration|swapper|kthreadd|kswapd|kcompactd|khugepaged|kdamond|ksmd|watchdog|"
    r"systemd|dbus|cron|sshd|journald|udevd|irq/"
)


def masked(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame fit to be shared: in a column ``comm``, names of programs that are nobody else's business become ``other-N``.

    Different names stay different, so counts and groups are as they were measured.
    """
    if "comm" not in frame.columns:
        return frame
    names = [name for name in frame["comm"].unique() if name and not _COMMON.match(name)]
    return frame.assign(
        comm=frame["comm"].replace({name: f"other-{n}" for n, name in enumerate(names, 1)}).astype("str")
    )


def _file_name(*parts: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "__".join(parts)) + ".parquet"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file that appears under its name whole or not at all.

    :raises OutcomesError: if it cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(scratch)
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OutcomesError(
            f"cannot write {path}",
            why=error.strerror or str(error),
            remedy="make room, or choose another folder; what was written before is whole",
        ) from error


class Recorder:
    """Writes a capture into a folder, as things are measured.

    :param resume: keep what the capture there already holds.
    :raises OutcomesError: if it cannot be written.
    """

    data: dict[str, Any]

    def __init__(self, folder: Path, name: str, *, resume: bool = False) -> None:
        self.folder = folder
        if resume:
            self.data = Capture(folder).data
            return
        self.data = {
            "format": FORMAT,
            "name": name,
            "recorded": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "environment": environment(),
            "features": probe().as_dict()["features"],
            "loads": {},
            "truths": {},
            "readings": {},
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in [*folder.glob("*.parquet"), *folder.glob("*.noisy"), folder / "capture.json"]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise OutcomesError(f"cannot write {folder}", why=error.strerror or str(error)) from error
        self._save()

    def _save(self) -> None:
        text = json.dumps(self.data, indent=1, default=_plain) + "\n"
        write_whole(self.folder / "capture.json", lambda path: path.write_text(text))

    def frame(self, key: tuple[str, ...], frame: pd.DataFrame) -> str:
        """Write a frame; returns its file's name."""
        name = _file_name(*key)
        write_whole(
            self.folder / name, lambda path: masked(frame).to_parquet(path, compression="zstd", index=False)
        )
        return name

    def load(self, label: str, program: Program) -> None:
        """Note a program as loaded."""
        self.data["loads"][label] = {
            "program": program.spec.name,
            "hash": program_hash(program.spec),
            "own_source": program.spec.path is None,
            "params": program.params,
            "hooks": program.hooks.to_dict("records"),
            "description": program.describe(),
            "frames": {},
        }
        self._save()

    def load_frame(self, label: str, key: str, frame: pd.DataFrame) -> None:
        """Note a frame of a program."""
        self.data["loads"][label]["frames"][key] = self.frame((label, key), frame)
        self._save()

    def load_field(self, label: str, field: str, value: Any) -> None:
        """Note a program's ledger or cost."""
        self.data["loads"][label][field] = value
        self._save()

    def truth(self, label: str, truth: Any) -> None:
        """Note what a workload did."""
        self.data["truths"][label] = {
            "name": truth.name,
            "results": truth.results,
            "declared": truth.declared,
            "notes": list(truth.notes),
            "tasks": self.frame(("truth", label), truth.tasks),
            "cgroups": self.frame(("truth", label, "cgroups"), truth.cgroups),
        }
        self._save()

    def reading(self, label: str, value: Any) -> None:
        """Note any other reading: a frame, frames by name, or anything JSON holds."""
        if isinstance(value, pd.DataFrame):
            self.data["readings"][label] = {"frame": self.frame(("reading", label), value)}
        elif _are_frames(value):
            files = {name: self.frame(("reading", label, name), frame) for name, frame in value.items()}
            self.data["readings"][label] = {"frames": files}
        else:
            self.data["readings"][label] = {"value": value}
        self._save()


def _are_frames(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(frame, pd.DataFrame) for frame in value.values())
    )


def _plain(value: Any) -> Any:
    """numpy scalars in JSON."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be kept in a capture")


class Capture:
    """A recorded capture, for reading.

    :raises MissingCapture: if the folder holds none.
    :raises CaptureMismatch: if it is damaged or of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.data: dict[str, Any] = json.loads((folder / "capture.json").read_text())
        except FileNotFoundError as error:
            raise MissingCapture(
                f"no capture at {folder}",
                remedy="record one on a Linux machine with `labkit run --record`, or run live",
            ) from error
        except ValueError as error:
            raise CaptureMismatch(f"the capture at {folder} is damaged", why=str(error)) from error
        if self.data.get("format") != FORMAT:
            raise CaptureMismatch(
                f"the capture at {folder} has format {self.data.get('format')!r}",
                why=f"this labkit reads {FORMAT}",
            )

    def frame(self, file: str) -> pd.DataFrame:
        """Read one of its frames."""
        path = self.folder / Path(file).name
        try:
            return pd.read_parquet(path)
        except FileNotFoundError as error:
            raise CaptureMismatch(f"the capture lacks {file}", remedy="fetch or record it again") from error
        except (OSError, ValueError) as error:
            raise CaptureMismatch(
                f"{path} is damaged", why=str(error), remedy="fetch or record it again"
            ) from error

    def program(self, label: str, *, source: str | None = None) -> ReplayedProgram:
        """What was recorded of a program under that label; ``source`` if it was not loaded from its file."""
        return ReplayedProgram(self, label, source=source)

    def truth(self, label: str) -> Mapping[str, Any]:
        """What was recorded of a workload, with ``tasks`` and ``cgroups`` as frames (the latter None in old recordings)."""
        found = self._get("truths", label)
        cgroups = self.frame(found["cgroups"]) if "cgroups" in found else None
        return found | {"tasks": self.frame(found["tasks"]), "cgroups": cgroups}

    def reading(self, label: str) -> Any:
        """Any other reading."""
        found = self._get("readings", label)
        if "frames" in found:
            return {name: self.frame(file) for name, file in found["frames"].items()}
        return self.frame(found["frame"]) if "frame" in found else found["value"]

    def _get(self, kind: str, label: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.data[kind][label]
        except KeyError as error:
            raise MissingCapture(
                f"the capture {self.data.get('name')} holds nothing under {label!r}",
                why=f"it has: {', '.join(self.data.get(kind, {})) or 'nothing'}",
                remedy="a replay can only show what was recorded; run live to measure something new",
            ) from error
        return found


class ReplayedProgram(Closing):
    """A recorded program with the reading side of :class:`labkit.program.Program`.

    :raises CaptureMismatch: if the program's source is not the one that was recorded.
    """

    def __init__(self, capture: Capture, label: str, *, source: str | None = None) -> None:
        self._capture = capture
        self._data = capture._get("loads", label)
        self.label = f"{capture.data['name']}/{label}"
        name = self._data["program"]
        self.spec: ProgramSpec = read(name) if source is None else parse(source, name=name)
        self.params: dict[str, int] = self._data["params"]
        self.cached = True
        if program_hash(self.spec) != self._data["hash"]:
            raise CaptureMismatch(
                f"{name + '.c' if source is None else 'this source'} is not the program that {self.label} "
                "was recorded with",
                why=f"hash {program_hash(self.spec)}, recorded {self._data['hash']}",
                remedy="take back the change to the program; or run live, and record again with --record",
            )

    def close(self) -> None:
        """Nothing is held."""

    def stop(self) -> None:
        """Nothing runs."""

    def describe(self) -> str:
        """What was attached when it was recorded."""
        return str(self._data["description"])

    @property
    def hooks(self) -> pd.DataFrame:
        """As recorded; see :attr:`labkit.program.Program.hooks`."""
        return pd.DataFrame(self._data["hooks"], columns=["label", "hook", "passed_over"]).astype("str")

    def frame(self, name: str, *, per_cpu: bool = False, explode: str | None = None) -> pd.DataFrame:
        """As recorded; see :meth:`labkit.maps.Map.frame`."""
        key = _frame_key(name, per_cpu=per_cpu, explode=explode)
        if key not in self._data["frames"]:
            raise MissingCapture(
                f"{self.label} holds no frame {key!r}", why=f"it has: {', '.join(self._data['frames'])}"
            )
        return self._capture.frame(self._data["frames"][key])

    @property
    def ledger(self) -> Ledger:
        """As recorded, with mode ``replay``."""
        if "ledger" not in self._data:
            raise MissingCapture(f"{self.label} holds no ledger")
        return Ledger.from_dict(self._data["ledger"], mode="replay")

    def cost(self) -> pd.DataFrame:
        """As recorded; see :meth:`labkit.program.Program.cost`."""
        if "cost" not in self._data:
            raise MissingCapture(f"{self.label} holds no cost")
        return self._capture.frame(self._data["cost"])

    @property
    def cost_note(self) -> str:
        """As recorded."""
        return str(self._data.get("cost_note", ""))


class RecordedProgram(Program):
    """A live program whose readings are kept as they are made."""

    _recorder: Recorder
    _key: str

    @classmethod
    def of(cls, program: Program, recorder: Recorder, key: str) -> RecordedProgram:
        """Turn a loaded program into one that records; the old object is not to be used again."""
        program.__class__ = cls
        assert isinstance(program, cls)
        program._recorder, program._key = recorder, key
        recorder.load(key, program)
        return program

    def frame(self, name: str, *, per_cpu: bool = False, explode: str | None = None) -> pd.DataFrame:
        found = super().frame(name, per_cpu=per_cpu, explode=explode)
        if name != "ledger":
            self._recorder.load_frame(self._key, _frame_key(name, per_cpu=per_cpu, explode=explode), found)
        return found

    @property
    def ledger(self) -> Ledger:
        found = super().ledger
        self._recorder.load_field(self._key, "ledger", found.as_dict())
        return found

    def cost(self) -> pd.DataFrame:
        found = super().cost()
        self._recorder.load_field(self._key, "cost", self._recorder.frame((self._key, "cost"), found))
        self._recorder.load_field(self._key, "cost_note", self.cost_note)
        return found


def record_command(program: str, *, seconds: float, parameters: Mapping[str, str], out: Path) -> int:
    """`labkit record`: run a program for a while and keep its maps. Returns the exit code."""
    spec = read(program)
    if not seconds > 0:
        raise LabkitError("nothing to record", why=f"seconds is {seconds}", remedy="give a time above 0")
    if (out / "capture.json").exists():
        raise OutcomesError(
            f"{out} holds a recording already",
            remedy="choose another folder, or remove that one: nothing is overwritten",
        )
    # Loaded before the folder is touched: a request that cannot be met leaves nothing behind.
    with load(program, label=f"{out.name}/{program}", **typed_parameters(parameters)) as loaded:
        running = RecordedProgram.of(loaded, Recorder(out, out.name), program)
        print(running.describe(), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            print(f"recording for {seconds:g} s (Ctrl-C ends it early) ...", flush=True)
            time.sleep(seconds)
        running.stop()
        for name, table in spec.maps.items():
            if not table.internal:
                print(f"  {name}: {len(running.frame(name)):,} rows")
        if spec.ledger is not None:
            print(f"  ledger: {running.ledger.describe()}")
        running.cost()
    print(f"kept in {out}; look at it with: ./task replay -- {out}")
    return 0


def typed_parameters(texts: Mapping[str, str]) -> dict[str, Any]:
    """Parameters from the command line, as what they look like."""
    return {name: _typed(text) for name, text in texts.items()}


def _typed(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text, 0)
    except ValueError:
        return text


def replay_command(folder: Path) -> int:
    """`labkit replay`: show what a capture holds. Returns the exit code."""
    capture = Capture(folder)
    about = capture.data["environment"]
    print(f"replay of {capture.data['name']}, recorded {capture.data['recorded']}")
    print(f"  on Linux {about['kernel']}, {about['machine']}")
    if any(_has_masked(capture.frame(file)) for file in _frame_files(capture)):
        print("  names of other programs are masked: other-1, other-2, ..., different ones in each table")
    for label in capture.data["loads"]:
        program = capture.program(label)
        print(f"\n{program.describe()}")
        if "ledger" in program._data:
            print(f"  ledger: {program.ledger.describe()}")
        for key, file in program._data["frames"].items():
            frame = capture.frame(file)
            print(f"\n  {key}: {_excerpt(frame)}")
    if any("events" in load for load in capture.data["loads"].values()):
        from labkit.recordings import read_events  # which builds on this module

        recording = read_events(folder)
        print("\n" + recording.describe())
        for group in itertools.islice(recording, 1):
            for kind in recording.kinds:
                print(f"\n  {kind}: {_excerpt(group.frame(kind))}")
    return 0


def _frame_files(capture: Capture) -> list[str]:
    return [file for load in capture.data["loads"].values() for file in load["frames"].values()]


def _has_masked(frame: pd.DataFrame) -> bool:
    return "comm" in frame.columns and bool(frame["comm"].str.fullmatch(r"other-\d+").any())


#: A histogram of up to so many buckets is shown whole: the long waits stand at its end.
_MOST_BUCKETS = 64


def _excerpt(frame: pd.DataFrame, rows: int = 10) -> str:
    """How many rows there are, and the first of them for a terminal: the longest waits first, all of one histogram but its
    empty buckets, names without control characters, no padding."""
    every, unit = len(frame), "rows"
    if {"lo", "hi", "count"} <= set(frame.columns):
        frame = frame[frame["count"] > 0]
        if len(frame) <= _MOST_BUCKETS:
            rows = len(frame)
        unit = "buckets"
    if "wait_ns" in frame.columns:
        frame = frame.sort_values("wait_ns", ascending=False)
    shown = frame.head(rows).drop(columns="unused", errors="ignore")
    words = shown.select_dtypes("str").columns
    shown = shown.assign(**{name: shown[name].map(text.plain) for name in words})
    said = f"{every:,} {unit}" if len(shown) == every else f"{len(shown):,} of {every:,} {unit}"
    if unit == "buckets" and len(frame) < every:
        said += f", empty: {every - len(frame):,}"
    if shown.empty:
        return said
    table: str = shown.to_string(index=False)
    return f"{said}\n    " + table.replace("\n", "\n    ")

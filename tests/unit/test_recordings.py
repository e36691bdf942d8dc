"""Recordings of events as files: what is whole counts, what is torn or unknown is said, whatever the C types are."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labkit import events
from labkit.capture import Recorder, replay_command
from labkit.errors import CaptureMismatch, MissingCapture, MissingLedger, OutcomesError, ParameterError
from labkit.events import stream_events
from labkit.layout import layout_of
from labkit.ledger import Ledger
from labkit.program import program_hash
from labkit.recordings import read_events
from labkit.ring import Batch, EventType
from labkit.spec import read

KINDS = ["woken", "switched"]


def _part(folder: Path, kind: str, number: int, rows: int) -> Path:
    path = folder / "events" / kind / f"part-{number:06d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    first = number * 100
    table = pa.table(
        {"time_ns": np.arange(first, first + rows, dtype=np.uint64), "pid": np.full(rows, number)}
    )
    events._to_parquet(table, path)
    return path


def _book(seen: int, lost: int) -> dict[str, object]:
    return Ledger("t", "live", seen, seen - lost, {"ring_full": lost}).as_dict()


def _recording(folder: Path, ledgers: list[dict[str, object] | None], first_groups: list[int]) -> None:
    recorder = Recorder(folder, "test")
    for number, (ledger, first) in enumerate(zip(ledgers, first_groups, strict=True)):
        label = f"sched_events.{number}"
        about = {"ring": "events", "kinds": KINDS, "first_group": first, "began": "2026-01-01"}
        recorder.data["loads"][label] = {
            "program": "sched_events",
            "hash": program_hash(read("sched_events")),
            "params": {},
            "hooks": [],
            "description": "sched_events: as it was",
            "frames": {},
            "events": about,
        }
        if ledger:
            recorder.load_field(label, "ledger", ledger)
    recorder._save()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three whole groups of two runs, and a fourth that is not whole."""
    _recording(tmp_path, [_book(100, 40), _book(10, 0)], [0, 2])
    for number in range(3):
        for kind in KINDS:
            _part(tmp_path, kind, number, rows=10)
    _part(tmp_path, "woken", 3, rows=10)
    return tmp_path


def test_only_groups_of_which_every_kind_is_there_count(folder: Path) -> None:
    recording = read_events(folder)
    assert recording.groups == 3
    assert recording.count == 60
    assert [len(group) for group in recording] == [20, 20, 20]
    assert len(recording.frame("woken")) == 30


def test_groups_after_a_gap_do_not_count(folder: Path) -> None:
    (folder / "events" / "switched" / "part-000001.parquet").unlink()
    assert read_events(folder).groups == 1


def test_each_group_knows_its_run(folder: Path) -> None:
    assert [group.run for group in read_events(folder)] == [0, 0, 1]


def test_frames_have_the_types_and_the_order_of_what_was_recorded(folder: Path) -> None:
    frame = read_events(folder).frame("switched")
    assert frame["time_ns"].dtype == np.uint64
    assert frame["time_ns"].tolist() == [100 * group + i for group in range(3) for i in range(10)]


def test_only_what_is_asked_for_is_read(folder: Path) -> None:
    groups = list(read_events(folder).select({"woken": ["pid"]}))
    assert [group.tables["woken"].column_names for group in groups] == [["pid"]] * 3
    assert list(groups[0].tables) == ["woken"]
    with pytest.raises(MissingCapture, match="no events of kind 'waken'"):
        list(read_events(folder).select({"waken": None}))
    with pytest.raises(MissingCapture, match="no events of kind 'waken'"):
        read_events(folder).frame("waken")


def test_the_ledgers_of_all_runs_add_up(folder: Path) -> None:
    ledger = read_events(folder).ledger
    assert (ledger.seen, ledger.delivered, ledger.lost, ledger.mode) == (110, 70, 40, "replay")
    assert ledger.balanced


def test_a_run_without_a_ledger_is_said_and_not_made_up(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _recording_only_json(folder, [_book(100, 40), None])
    recording = read_events(folder)
    with pytest.raises(MissingLedger, match=r"sched_events\.1 was ended from outside"):
        _ = recording.ledger
    assert "ended without a ledger" in recording.describe()
    assert replay_command(folder) == 0
    assert "ended without a ledger" in capsys.readouterr().out


def _recording_only_json(folder: Path, ledgers: list[dict[str, object] | None]) -> None:
    data = json.loads((folder / "capture.json").read_text())
    for load, ledger in zip(data["loads"].values(), ledgers, strict=True):
        load.pop("ledger", None)
        if ledger:
            load["ledger"] = ledger
    (folder / "capture.json").write_text(json.dumps(data))


def test_replay_shows_the_first_events_of_each_kind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay_command(folder) == 0
    shown = capsys.readouterr().out
    assert "60 events in 3 groups" in shown
    assert "woken:" in shown
    assert "switched:" in shown


def test_a_damaged_part_is_named(folder: Path) -> None:
    part = folder / "events" / "woken" / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(CaptureMismatch, match=r"part-000001\.parquet is damaged"):
        list(read_events(folder))


def test_a_capture_of_maps_is_no_recording_of_events(tmp_path: Path) -> None:
    Recorder(tmp_path, "maps")
    with pytest.raises(MissingCapture, match="not of events"):
        read_events(tmp_path)
    with pytest.raises(MissingCapture, match="no capture"):
        read_events(tmp_path / "nothing")


def test_a_recording_of_nothing_has_a_ledger_and_no_groups(tmp_path: Path) -> None:
    _recording(tmp_path, [_book(0, 0)], [0])
    recording = read_events(tmp_path)
    assert (recording.groups, recording.count, list(recording)) == (0, 0, [])
    assert recording.ledger.balanced
    assert len(recording.frame("woken")) == 0


def test_text_and_arrays_become_columns_of_their_own(tmp_path: Path) -> None:
    desc = [
        "e",
        [["time_ns", "unsigned long long"], ["comm", "char", [8]], ["args", "unsigned int", [2]]],
        "struct",
    ]
    kind = EventType("called", layout_of(json.dumps(desc), size=24, name="called"))
    batch = Batch(
        kind,
        {
            "time_ns": np.array([5, 6], np.uint64),
            "comm": np.array([b"one", b"two\xff"], "S8"),
            "args": np.array([[1, 2], [3, 4]], np.uint32),
        },
    )
    table = events._table(kind, [batch, batch])
    frame = table.to_pandas()
    assert frame["comm"].tolist() == ["one", "two\ufffd"] * 2
    assert frame["args_1"].tolist() == [2, 4] * 2
    path = tmp_path / "called.parquet"
    events._to_parquet(table, path)
    pd.testing.assert_frame_equal(pq.read_table(path).to_pandas(), frame)
    empty = events._table(kind, [])
    assert empty.schema == table.schema
    assert empty.num_rows == 0


def test_times_that_are_not_sorted_survive_the_encoding(tmp_path: Path) -> None:
    times = np.random.default_rng(1).integers(0, 2**64 - 1, 10_000, dtype=np.uint64)
    events._to_parquet(pa.table({"time_ns": times}), tmp_path / "t.parquet")
    assert (pq.read_table(tmp_path / "t.parquet")["time_ns"].to_numpy() == times).all()


@pytest.mark.parametrize(
    "wrong",
    [{"seconds": 0}, {"latency_s": 0}, {"group_s": -1}, {"row_group_events": 0}, {"seconds": float("nan")}],
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        next(stream_events(None, "events", **({"seconds": 1} | wrong)))  # type: ignore[arg-type]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that is written ends on a full disk (``/dev/full`` is one)."""
    original = pq.write_table
    monkeypatch.setattr(
        pq, "write_table", lambda table, _path, **options: original(table, "/dev/full", **options)
    )


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_an_error_with_a_remedy_and_leaves_no_half_part(tmp_path: Path) -> None:
    from labkit.capture import write_whole

    table = pa.table({"time_ns": np.arange(100_000, dtype=np.uint64)})
    with pytest.raises(OutcomesError, match="cannot write"):
        write_whole(tmp_path / "part-000000.parquet", lambda path: events._to_parquet(table, path))
    assert list(tmp_path.iterdir()) == []

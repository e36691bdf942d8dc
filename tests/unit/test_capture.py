"""Captures that ship with the lab: whole, small, of the programs that are here, and the same frames each time."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from labkit import capture as captures
from labkit import session as chapters
from labkit.capture import Capture, Recorder, masked
from labkit.errors import CaptureMismatch, MissingCapture, ParameterError, UnsupportedKernel
from labkit.kernel import probe
from labkit.paths import captures_dir, notebooks_dir
from labkit.program import program_hash
from labkit.workloads import service_beside_hog

SHIPPED = sorted(p.parent for p in captures_dir().glob("*/capture.json"))


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a shipped capture that may be damaged."""
    folder = tmp_path / "06_run_queue_latency"
    shutil.copytree(captures_dir() / folder.name, folder)
    monkeypatch.setattr(chapters, "captures_dir", lambda: tmp_path)
    return folder


def test_every_chapter_has_a_capture_to_replay() -> None:
    names = {p.stem for p in notebooks_dir().glob("[0-9][0-9]_*.ipynb")}
    assert names <= {p.name for p in SHIPPED}
    assert "first" in {p.name for p in SHIPPED}


def test_captures_together_are_below_five_megabytes() -> None:
    assert sum(f.stat().st_size for f in captures_dir().rglob("*") if f.is_file()) < 5_000_000


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.name)
def test_a_shipped_capture_is_whole_and_of_the_programs_that_are_here(folder: Path) -> None:
    capture = Capture(folder)
    assert capture.data["environment"]["kernel"]
    for label, load in capture.data["loads"].items():
        for file in load["frames"].values():
            assert isinstance(capture.frame(file), pd.DataFrame)
        if load["own_source"]:  # the chapter's own C text; its replay (tests/notebooks) compares the two
            continue
        program = capture.program(
            label
        )  # raises CaptureMismatch if the program has changed: record the chapter again
        assert load["hash"] == program_hash(program.spec)
        if "ledger" in load:
            assert program.ledger.mode == "replay"
            assert program.ledger.balanced
    for label in capture.data["truths"]:
        assert len(capture.truth(label)["tasks"])
    for label in capture.data["readings"]:
        capture.reading(label)


def test_replay_gives_typed_frames_and_says_that_it_is_replay() -> None:
    lab = chapters.chapter("06_run_queue_latency", mode="replay")
    assert repr(lab).startswith("REPLAY")
    assert "REPLAY" in lab._repr_html_()
    with lab.load("runq_latency", label="two_hogs") as prog:
        waits = prog.frame("waits")
        assert prog.hooks["hook"].tolist()
    assert str(waits["wait_ns"].dtype) == "uint64"
    assert str(waits["comm"].dtype) == "str"
    truth = lab.run(service_beside_hog(seconds=1))
    assert set(truth.tasks["role"]) == {"service", "hog"}


def test_what_was_not_recorded_is_named() -> None:
    lab = chapters.chapter("06_run_queue_latency", mode="replay")
    with pytest.raises(MissingCapture, match="two_hogs"):
        lab.load("runq_latency", label="three_hogs")
    with pytest.raises(MissingCapture, match="no frame"):
        lab.load("runq_latency", label="two_hogs").frame("nothing")
    with pytest.raises(MissingCapture, match="no capture at"):
        chapters.chapter("99_nowhere", mode="replay")


def test_a_capture_of_another_version_of_the_program_is_refused(copy: Path) -> None:
    data = json.loads((copy / "capture.json").read_text())
    data["loads"]["two_hogs"]["hash"] = "0" * 16
    (copy / "capture.json").write_text(json.dumps(data))
    lab = chapters.chapter(copy.name, mode="replay")
    with pytest.raises(CaptureMismatch, match="not the program"):
        lab.load("runq_latency", label="two_hogs")


def test_names_of_other_peoples_programs_are_masked_and_stay_apart() -> None:
    frame = pd.DataFrame(
        {"comm": ["lk-hog", "secret-db", "kworker/0:1", "payroll", "secret-db"], "n": range(5)}
    )
    shown = masked(frame.astype({"comm": "str"}))
    assert shown["comm"].tolist() == ["lk-hog", "other-1", "kworker/0:1", "other-2", "other-1"]
    assert shown["comm"].dtype == "str"
    assert masked(frame[["n"]]).equals(frame[["n"]])


@pytest.mark.parametrize("file", sorted(captures_dir().rglob("*.parquet")), ids=lambda p: p.name)
def test_no_shipped_frame_names_a_foreign_program(file: Path) -> None:
    frame = pd.read_parquet(file)
    assert masked(frame).equals(frame) or set(frame["comm"]) == set(masked(frame)["comm"])


def test_a_capture_cut_short_is_refused(copy: Path) -> None:
    part = next(copy.glob("two_hogs__waits.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(CaptureMismatch, match="damaged"):
        chapters.chapter(copy.name, mode="replay").load("runq_latency", label="two_hogs").frame("waits")
    part.unlink()
    with pytest.raises(CaptureMismatch, match="lacks"):
        chapters.chapter(copy.name, mode="replay").load("runq_latency", label="two_hogs").frame("waits")


def test_live_is_refused_with_the_reason_where_it_is_impossible(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LABKIT_BTF", str(tmp_path / "none"))
    probe.cache_clear()
    try:
        with pytest.raises(UnsupportedKernel, match="BTF"):
            chapters.chapter("06_run_queue_latency", mode="live")
        assert "BTF" in repr(chapters.chapter("06_run_queue_latency", mode="auto"))
    finally:
        probe.cache_clear()


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ParameterError):
        chapters.chapter("06_run_queue_latency", mode="maybe")


def test_frames_by_name_come_back_by_name_also_those_without_rows(tmp_path: Path) -> None:
    frames = {
        "woken": pd.DataFrame({"pid": pd.Series([7, 8], dtype="uint32")}),
        "switched": pd.DataFrame({"pid": pd.Series([], dtype="uint32")}),
    }
    Recorder(tmp_path / "capture", "capture").reading("events", frames)
    again = Capture(tmp_path / "capture").reading("events")
    assert list(again) == list(frames)
    for name, frame in frames.items():
        pd.testing.assert_frame_equal(again[name], frame)


def test_the_shown_replay_says_what_it_leaves_out() -> None:
    waits = pd.DataFrame({"comm": [f"c{n}" for n in range(131)], "wait_ns": range(131), "unused": 0})
    shown = captures._excerpt(waits.astype({"comm": "str"}))
    assert shown.startswith("10 of 131 rows\n")
    assert "c130" in shown
    assert "c120" not in shown
    assert "unused" not in shown
    assert captures._excerpt(waits.head(3)).startswith("3 rows\n")

    buckets = pd.DataFrame({"lo": range(30), "hi": range(1, 31), "count": [0, *range(101, 130)]})
    shown = captures._excerpt(buckets)
    assert shown.startswith("29 of 30 buckets, empty: 1\n")
    assert "129" in shown  # the longest waits stand at the end
    assert captures._excerpt(buckets.head(1)) == "0 of 1 buckets, empty: 1"


def test_the_shown_replay_explains_masked_names(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy / "two_hogs__waits.parquet"
    frame = pd.read_parquet(file)
    explained = "names of other programs are masked"
    for name, said in (("kworker/0:1", False), ("somebody", True)):
        for other in copy.glob("*__waits.parquet"):
            pd.read_parquet(other).assign(comm="labkit").astype({"comm": "str"}).to_parquet(other)
        masked(frame.assign(comm=name).astype({"comm": "str"})).to_parquet(file)
        captures.replay_command(copy)
        assert (explained in capsys.readouterr().out) == said

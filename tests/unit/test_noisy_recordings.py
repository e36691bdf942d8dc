"""Recordings of `labkit noisy`: the same answer again, and a clear refusal of what is none."""

import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from answer_maker import recording
from click.testing import CliRunner

from labkit.cli import main
from labkit.errors import CaptureMismatch, MissingCapture, OutcomesError
from labkit.noisy import archive
from labkit.noisy.command import noisy_command
from labkit.noisy.select import Selection


def test_a_replay_gives_the_identical_answer(tmp_path: Path) -> None:
    kept = recording(Selection(globs=("/shop",)))
    archive.save(tmp_path / "night.noisy", kept)
    live, replayed = kept.answer().as_dict(), archive.load(tmp_path / "night.noisy").answer().as_dict()
    assert (live.pop("mode"), replayed.pop("mode")) == ("live", "replay")
    assert (live["ledger"].pop("mode"), replayed["ledger"].pop("mode")) == ("live", "replay")
    assert replayed == live


def test_labkit_replay_shows_a_recording_as_a_table_and_as_json(tmp_path: Path) -> None:
    file = tmp_path / "night.noisy"
    archive.save(file, recording())
    shown = CliRunner().invoke(main, ["replay", str(file)])
    assert shown.exit_code == 0
    assert "REPLAY on Linux 6.18.0-test" in shown.output
    as_json = CliRunner().invoke(main, ["replay", "--json", str(file)])
    assert json.loads(as_json.output)["cgroups"][0]["verdict"] == "noisy_neighbor"
    assert CliRunner().invoke(main, ["replay", "--json", str(tmp_path)]).exit_code == 2


def test_recordings_of_before_later_columns_and_frames_still_replay(tmp_path: Path) -> None:
    archive.save(tmp_path / "new", recording())
    with zipfile.ZipFile(tmp_path / "new") as file:
        oracles = pd.read_parquet(io.BytesIO(file.read("oracles.parquet"))).drop(columns="voluntary")
    packed = io.BytesIO()
    oracles.to_parquet(packed)
    change = {"oracles.parquet": packed.getvalue(), "requests.parquet": None, "stamps.parquet": None}
    old = archive.load(_rewritten(tmp_path / "new", tmp_path / "old", change)).answer().as_dict()
    new = archive.load(tmp_path / "new").answer().as_dict()
    assert old["cgroups"][0]["residual"].pop("voluntary_switches") is None
    assert new["cgroups"][0]["residual"].pop("voluntary_switches") is not None
    assert old["cgroups"][0] == new["cgroups"][0]


def test_letters_that_the_output_cannot_show_are_escaped_and_lose_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "name.noisy"
    one = recording()
    names = one.snapshot.names.assign(name="caf\u00e9-" + "x" * 80)
    archive.save(file, replace(one, snapshot=replace(one.snapshot, names=names)))
    found = subprocess.run(
        [sys.executable, "-m", "labkit.cli", "replay", str(file)],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert found.returncode == 0, found.stderr.decode()
    assert "caf\\xe9-x" in found.stdout.decode("ascii")


def test_an_answer_is_shown_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk may be full: what was measured for minutes is on the screen by then."""

    def full(path: Path, write: object) -> None:
        raise OutcomesError("cannot write", why="No space left on device")

    class Nothing:
        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> "Nothing":
            return self

        def __exit__(self, *_: object) -> None: ...

    for name in ("Directory", "Watch", "Stamps"):
        monkeypatch.setattr(f"labkit.noisy.command.{name}", Nothing)
    monkeypatch.setattr("labkit.noisy.command._Session.once", lambda *_, **__: recording())
    monkeypatch.setattr(archive, "write_whole", full)
    with pytest.raises(OutcomesError, match="cannot write"):
        noisy_command(seconds=1.0, as_json=True, record=tmp_path / "full.noisy")
    assert json.loads(capsys.readouterr().out)["cgroups"][0]["name"] == "shop/web"


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    archive.save(tmp_path / "a", recording())
    with pytest.raises(OutcomesError, match="exists"):
        archive.save(tmp_path / "a", recording())
    with pytest.raises(OutcomesError, match="no folder"):
        archive.save(tmp_path / "nowhere/a", recording())


def _rewritten(source: Path, target: Path, change: dict[str, bytes | None]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change.get(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def test_every_piece_of_a_truncated_recording_is_refused_clearly(tmp_path: Path) -> None:
    archive.save(tmp_path / "whole", recording())
    whole = (tmp_path / "whole").read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "part").write_bytes(whole[:size])
        with pytest.raises(CaptureMismatch):
            archive.load(tmp_path / "part")
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    (tmp_path / "flipped").write_bytes(flipped)
    with pytest.raises(CaptureMismatch):
        archive.load(tmp_path / "flipped")
    with pytest.raises(MissingCapture):
        archive.load(tmp_path / "absent")


def test_a_recording_of_another_program_format_or_shape_is_refused(tmp_path: Path) -> None:
    archive.save(tmp_path / "whole", recording())
    with zipfile.ZipFile(tmp_path / "whole") as file:
        head = json.loads(file.read("recording.json"))
    wrong: dict[str, tuple[dict[str, bytes | None], str]] = {
        "program": (
            {"recording.json": json.dumps(head | {"program": "runq_latency"}).encode()},
            "runq_latency",
        ),
        "format": ({"recording.json": json.dumps(head | {"format": 99}).encode()}, "format 99"),
        "list": ({"recording.json": b"[]"}, "recording of None"),
        "missing": ({"cells.parquet": None}, "no cells.parquet"),
        "no head": ({"recording.json": None}, "no recording.json"),
        "garbage": ({"cells.parquet": b"PAR1 nonsense"}, "damaged"),
        "head": ({"recording.json": b"{"}, "damaged"),
    }
    for name, (change, words) in wrong.items():
        file = _rewritten(tmp_path / "whole", tmp_path / name, change)
        with pytest.raises(CaptureMismatch, match=words):
            archive.load(file)
        assert CliRunner().invoke(main, ["replay", str(file)]).exit_code == 2

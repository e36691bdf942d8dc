"""Files of the exporter: the textfile for node_exporter, and snapshots in Parquet."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from snapshot_maker import crowd

from labkit.errors import MissingCapture, OutcomesError, ParameterError
from labkit.metrics import Exporter
from labkit.metrics.files import Parquet, read_snapshots, write_textfile
from labkit.metrics.serve import Files
from labkit.sched.state import SCHEMAS


def test_a_textfile_is_replaced_whole_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "labkit.prom"
    write_textfile(path, b"old 1\n")
    write_textfile(path, b"new 2\n")
    assert path.read_bytes() == b"new 2\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["labkit.prom"], "nothing half-written is left"


def test_a_textfile_that_cannot_be_written_says_so_and_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"\.prom"):
        write_textfile(tmp_path / "labkit.txt", b"")
    with pytest.raises(OutcomesError, match="cannot write"):
        write_textfile(tmp_path / "none" / "labkit.prom", b"")


def test_what_goes_to_node_exporter_has_none_of_its_own_names() -> None:
    exporter = Exporter(lambda: crowd(3))
    exporter.refresh()
    assert not {f.name for f in exporter.collect() if not f.name.startswith("labkit_")}
    assert b"process_cpu_seconds_total" in exporter.text()[0]


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f".labkit.prom.{ended.pid}").write_bytes(b"half")
    (tmp_path / f".other.prom.{ended.pid}").write_bytes(b"another's")
    (tmp_path / f".labkit.prom.{os.getpid()}").write_bytes(b"somebody is at it")
    write_textfile(tmp_path / "labkit.prom", b"new 2\n")
    kept = {p.name for p in tmp_path.iterdir()}
    assert kept == {"labkit.prom", f".other.prom.{ended.pid}"}
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f".20260101T000000.000000Z.parquet.{ended.pid}").write_bytes(b"half")
    (tmp_path / "cells" / "notes.txt").write_bytes(b"mine")
    Parquet(tmp_path)
    assert [p.name for p in (tmp_path / "cells").iterdir()] == ["notes.txt"]


def test_a_file_that_node_exporter_would_not_read_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(ParameterError, match=r"\.prom"):
        Files(textfile=Path("labkit.txt"))
    with pytest.raises(ParameterError, match="cannot be kept"):
        Files(parquet_keep=0)


def test_snapshots_are_read_while_the_oldest_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = Parquet(tmp_path, keep=2)
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    for step in (1, 2):
        parquet.write(crowd(4, step=step), now=start + datetime.timedelta(seconds=step))
    read = pd.read_parquet

    def late(path: Path, **options: object) -> pd.DataFrame:
        monkeypatch.setattr(pd, "read_parquet", read)
        parquet.write(crowd(4, step=3), now=start + datetime.timedelta(seconds=3))
        return read(path, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(pd, "read_parquet", late)
    assert read_snapshots(tmp_path, "cgroups")["seconds"].unique().tolist() == [30.0]


def test_a_folder_that_cannot_be_tidied_is_an_error_of_ours_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = Parquet(tmp_path, keep=1)

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted")

    parquet.write(crowd(3))
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutcomesError, match="cannot remove old snapshots"):
        parquet.write(crowd(3, step=2))


def test_snapshots_come_back_as_they_were_in_order_and_the_oldest_go(tmp_path: Path) -> None:
    parquet = Parquet(tmp_path, keep=2)
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    for step in (1, 2, 3):
        parquet.write(crowd(4, step=step), now=start + datetime.timedelta(seconds=step))
    for name, schema in SCHEMAS.items():
        frame = read_snapshots(tmp_path, name)
        assert frame["taken"].is_monotonic_increasing
        assert frame["seconds"].unique().tolist() == [30.0, 45.0]
        expected = pd.concat([getattr(crowd(4, step=s), name) for s in (2, 3)], ignore_index=True)
        pd.testing.assert_frame_equal(frame[list(schema)], expected)
    assert read_snapshots(tmp_path, "ledger")["count"].min() == 0
    with pytest.raises(MissingCapture):
        read_snapshots(tmp_path / "elsewhere", "cells")
    with pytest.raises(ParameterError):
        Parquet(tmp_path, keep=0)

"""Recordings of ring events on the running kernel: exact, in bounded groups, readable after kill -9, and true."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner

from labkit import cli, events, workloads
from labkit.errors import CaptureMismatch, MissingCapture, MissingLedger
from labkit.events import record_events, stream_events
from labkit.program import load
from labkit.recordings import read_events
from labkit.sched import compare
from labkit.sched.from_events import task_waits
from labkit.workloads import Truth, Workload, ping_pong

pytestmark = [pytest.mark.live, pytest.mark.needs("ring buffer")]


@contextlib.contextmanager
def _beside(workload: Workload, *, release: bool = True) -> Iterator[list[Truth]]:
    """The workload in another thread; its truth is there at the end."""
    truths: list[Truth] = []
    thread = threading.Thread(target=lambda: truths.append(workload.run()))
    thread.start()
    try:
        yield truths
    finally:
        thread.join()
        for truth in truths if release else []:
            truth.release()


def test_a_recording_holds_every_event_that_was_delivered(tmp_path: Path) -> None:
    with load("sched_events") as prog, _beside(ping_pong(3000)):
        recording = record_events(prog, "events", tmp_path, seconds=1, row_group_events=2000, latency_s=0.02)
    ledger = recording.ledger
    assert ledger.balanced
    assert ledger.mode == "replay"
    assert ledger.delivered == recording.count == recording.runs[0].received
    assert recording.groups > 2
    assert sum(len(group) for group in recording) == recording.count
    switched = recording.frame("switched")
    assert len(switched) + len(recording.frame("woken")) == ledger.delivered
    assert [str(t) for t in switched.dtypes] == [
        "uint64",
        "uint32",
        "uint8",
        "uint8",
        "uint16",
        "uint32",
        "uint32",
    ]
    # The datasets are plain Parquet: whoever reads a folder of it reads these.
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "events" / "switched"), switched)
    assert recording.capture.data["environment"]["kernel"] == os.uname().release


def test_with_a_slow_writer_produced_is_delivered_plus_lost_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = events._to_parquet

    def slow(table: pa.Table, path: Path) -> None:
        time.sleep(0.1)
        write(table, path)

    monkeypatch.setattr(events, "_to_parquet", slow)
    with load("sched_events", ring_pages=4) as prog, _beside(ping_pong(4000)):
        recording = record_events(
            prog, "events", tmp_path, seconds=1.5, row_group_events=100, latency_s=0.005
        )
    ledger = recording.ledger
    assert ledger.losses["ring_full"] > 0
    assert ledger.balanced
    assert ledger.delivered == recording.count
    lost = recording.frame("switched")["lost"]
    assert 0 < lost.max() <= ledger.losses["ring_full"]


def test_the_reader_is_not_woken_for_events() -> None:
    """Its own switches are counted: some for each turn of the clock, not one for each of thousands of events."""

    def sleeps() -> int:
        text = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text()
        return int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0])

    with load("sched_events") as prog, _beside(ping_pong(5000)):
        before = sleeps()
        got = sum(len(group) for group in stream_events(prog, "events", seconds=1, latency_s=0.1))
        woken = sleeps() - before
        assert got == prog.ledger.delivered
    assert got > 10_000
    assert woken < 200


def test_groups_are_bounded_in_size_and_age() -> None:
    with load("sched_events") as prog, _beside(ping_pong(3000)):
        groups = list(
            stream_events(prog, "events", seconds=1, latency_s=0.01, row_group_events=10**9, group_s=0.2)
        )
    assert 3 <= len(groups) <= 6
    assert all(isinstance(group.tables["woken"], pa.Table) for group in groups)


RECORD = """
import sys
from labkit.events import record_events
from labkit.program import load
with load("sched_events") as prog:
    print("recording", flush=True)
    record_events(prog, "events", sys.argv[1], seconds=60, row_group_events=500, latency_s=0.01, resume=True)
"""


def _killed_in_the_middle(folder: Path, groups: int) -> None:
    with subprocess.Popen([sys.executable, "-c", RECORD, str(folder)], stdout=subprocess.PIPE) as recorder:
        try:
            assert recorder.stdout is not None
            assert recorder.stdout.readline() == b"recording\n"
            with _beside(ping_pong(3000)):
                deadline = time.monotonic() + 20
                while time.monotonic() < deadline:
                    with contextlib.suppress(MissingCapture):  # not yet
                        if read_events(folder).groups >= groups:
                            break
                    time.sleep(0.01)
        finally:
            recorder.send_signal(signal.SIGKILL)


def test_after_kill_9_all_whole_groups_are_readable_and_nobody_invents_a_ledger(tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    _killed_in_the_middle(folder, 3)
    recording = read_events(folder)
    whole = recording.groups
    assert whole >= 3
    assert sum(len(group) for group in recording) == recording.count >= 1500
    with pytest.raises(MissingLedger, match="ended without a ledger"):
        _ = recording.ledger
    assert "not known" in recording.describe()
    assert task_waits(folder)["waits"].sum() > 0

    # A part of a group that was being written, as the kill may have left it.
    torn = folder / "events" / "woken" / f"part-{whole:06d}.parquet"
    torn.write_bytes(b"PAR1")
    assert read_events(folder).groups == whole

    with load("sched_events") as prog, _beside(ping_pong(500)):
        resumed = record_events(prog, "events", folder, seconds=0.5, resume=True)
    assert [run.first_group for run in resumed.runs] == [0, whole]
    assert resumed.groups > whole
    assert resumed.runs[0].ledger is None
    second = resumed.runs[1].ledger
    assert second is not None
    assert second.balanced
    assert second.delivered == sum(len(group) for group in resumed if group.run == 1)
    with pytest.raises(MissingLedger, match="sched_events was ended"):
        _ = resumed.ledger


def test_a_recording_of_another_program_is_not_gone_on_with(tmp_path: Path) -> None:
    with load("sched_events") as prog:
        record_events(prog, "events", tmp_path, seconds=0.1)
    source = Path(events.__file__).parent.parent / "bpf" / "sched_events.c"
    with load("sched_events", source=source.read_text() + "/* changed */\n") as prog:
        with pytest.raises(CaptureMismatch, match="not of this version"):
            record_events(prog, "events", tmp_path, seconds=0.1, resume=True)
        again = record_events(prog, "events", tmp_path, seconds=0.1)  # not resumed: overwritten
    assert len(again.runs) == 1
    assert again.ledger.delivered == again.count


def test_the_command_line_records_and_replays(tmp_path: Path) -> None:
    folder = tmp_path / "cli"
    runner = CliRunner()
    done = runner.invoke(
        cli.main, ["record", "sched_events", "--events", "-o", str(folder), "--seconds", "0.3"]
    )
    assert done.exit_code == 0, done.output
    shown = runner.invoke(cli.main, ["replay", str(folder)])
    assert shown.exit_code == 0, shown.output
    assert f"{read_events(folder).count:,} events in 1 groups" in shown.output
    assert "ledger: events: seen" in shown.output
    refused = runner.invoke(cli.main, ["record", "hello", "--events", "-o", str(folder)])
    assert refused.exit_code == 2
    assert "makes no events" in refused.output


# -- what the events say ---------------------------------------------------------------------------------------------

CONTENDED = [workloads.two_pinned_hogs(seconds=1), workloads.service_beside_hog(seconds=1)]


@pytest.mark.needs("schedstat")
@pytest.mark.parametrize("workload", CONTENDED, ids=lambda w: w.name)
def test_waits_from_events_are_run_delay_and_what_the_kernel_side_sums(
    workload: Workload, tmp_path: Path
) -> None:
    with load("runq_latency") as summing, load("sched_events") as prog:
        with _beside(workload, release=False) as truths:
            record_events(prog, "events", tmp_path, seconds=3, row_group_events=500, latency_s=0.05)
        with truths[0] as truth:
            inside, tasks = summing.frame("waits"), truth.tasks
    waits = task_waits(tmp_path)
    compared = compare(waits, tasks)
    both = tasks[["pid"]].merge(waits, on="pid").merge(inside, on="pid", suffixes=("", "_inside"))
    assert both["pid"].tolist() == compared["pid"].tolist() == tasks["pid"].tolist()
    # The kernel does not call raw tracepoint programs for every switch; runq_latency tells the waits that it missed from
    # the kernel's notes, events alone cannot. What was not seen is counted, and cannot be more than so long.
    assert (both["unmatched"] <= 0.05 * both["waits"]).all(), both.to_string()
    unknown_ns = both["unmatched"] * both["max_wait_ns"]
    assert (compared["residual_ns"].abs() <= compared["allowed_ns"] + unknown_ns).all(), compared.to_string()
    assert (compared["run_delay_ns"] > 50_000_000).all(), "the workload did not contend"
    missed = both["waits_inside"].astype("int64") - both["waits"]
    assert (missed >= -1).all(), both.to_string()
    assert (missed <= both["unmatched"] + 1).all(), both.to_string()
    for column in ("wait_ns", "preempted_wait_ns"):
        apart_ns = (both[column] - both[f"{column}_inside"].astype("int64")).abs()
        assert (apart_ns <= 12_000 * both["waits"] + unknown_ns).all(), both.to_string()
    assert (both["uncertain_waits"] == 0).all()
    assert 0 not in set(waits["pid"])

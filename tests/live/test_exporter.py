"""`labkit serve` as a process on the running kernel: its life, its death, what it writes, what it costs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import SERVE, Served, served

from bench.scrape import many_cgroups
from labkit import bpfsys
from labkit.errors import MissingCapture
from labkit.metrics import Exporter, Labels, Limits, Settings
from labkit.metrics.files import read_snapshots
from labkit.metrics.judge import judged
from labkit.metrics.labels import label_value
from labkit.noisy.plan import plan
from labkit.noisy.watch import Watch
from labkit.paths import bpf_dir
from labkit.workloads import scenario

pytestmark = [pytest.mark.live, pytest.mark.needs("cgroups")]


def loaded_by(pid: int) -> set[int]:
    """Ids of the programs that a process holds."""
    found = set()
    for fd in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            match = re.search(r"^prog_id:\s*(\d+)", fd.read_text(), re.MULTILINE)
            if match:
                found.add(int(match[1]))
    return found


def still_loaded(ids: set[int]) -> set[int]:
    """Which of them are in the kernel after the while in which it frees them: it waits for readers on every CPU."""
    deadline = time.monotonic() + 60
    while left := ids & {one.id for one in bpfsys.loaded_programs()}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def until(holds: Callable[[], object], what: str, *, seconds: float = 60) -> None:
    """Each wait has an end of its own."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


def test_sigterm_ends_it_cleanly_and_nothing_stays() -> None:
    with served() as exporter:
        ids = loaded_by(exporter.process.pid)
        assert ids & {one.id for one in bpfsys.loaded_programs()}
        assert exporter.get("/healthz") == "ok\n"
        assert exporter.get("/readyz") == "ready\n"
        exporter.process.send_signal(signal.SIGTERM)
        assert exporter.process.wait(timeout=60) == 0
    assert not still_loaded(ids)


def test_sigterm_before_anything_is_loaded_is_a_clean_end_too() -> None:
    """In the first second it imports; then it loads. Wherever it is, it ends with 0 and without a word of Python's."""
    process = subprocess.Popen(SERVE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        # from the moment on in which the handler is there, which is before the lab's heavy modules
        until(lambda: _catches_sigterm(process.pid), "its handler")
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.wait(timeout=60) == 0, said
    assert "Traceback" not in said


def _catches_sigterm(pid: int) -> bool:
    match = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match
    return bool(int(match[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_after_kill_9_nothing_stays_loaded_and_the_next_one_counts_from_zero() -> None:
    """That Prometheus takes it for a restart, and loses nothing, is in test_prometheus.py."""
    with served() as exporter:
        ids = loaded_by(exporter.process.pid)
        before = exporter.value("labkit_measured_seconds_total")
        until(lambda: exporter.value("labkit_measured_seconds_total") > before + 1, "a second to be measured")
        began = exporter.value("process_start_time_seconds")
        exporter.process.kill()
        exporter.process.wait()
    assert not still_loaded(ids)
    with served() as exporter:
        started = exporter.value("process_start_time_seconds")
        assert started > began
        assert 0 < exporter.value("labkit_measured_seconds_total") < time.time() - started


def test_a_program_that_cannot_be_loaded_is_a_clear_end(tmp_path: Path) -> None:
    """Without the sources of the programs there is nothing to load: exit code 2, what and why, and no traceback."""
    (tmp_path / "bpf").mkdir()
    done = subprocess.run(
        SERVE,
        env=os.environ | {"LABKIT_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "noisy_neighbor" in done.stderr
    assert "Traceback" not in done.stderr


def _refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, one message with what, why and what next, and nothing of Python's."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert "ready: " not in done.stderr


def test_a_program_that_the_verifier_refuses_is_a_clear_end(tmp_path: Path) -> None:
    for name in ("bpf", "captures"):
        (tmp_path / name).symlink_to(bpf_dir().parent / name)
    (tmp_path / "bpf").unlink()
    shutil.copytree(bpf_dir(), tmp_path / "bpf")
    program = tmp_path / "bpf" / "noisy_neighbor.c"
    text = program.read_text()
    # In the innermost of every switch: a pointer that may be null is read.
    broken = text.replace(
        "    book->calls++;\n", "    book->calls += *(u64 *)(unsigned long)cpu->calls;\n", 1
    )
    assert broken != text
    program.write_text(broken)
    environment = os.environ | {"LABKIT_ROOT": str(tmp_path)}
    done = subprocess.run(SERVE, env=environment, capture_output=True, text=True, timeout=120, check=False)
    _refused(done, "verifier refuses the program noisy_neighbor.c", "why:", "next:")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv takes the capabilities away")
def test_without_capabilities_it_is_a_clear_end() -> None:
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
    done = subprocess.run([*bare, *SERVE], capture_output=True, text=True, timeout=120, check=False)
    _refused(done, "next:")


def test_once_writes_what_was_asked_for(tmp_path: Path) -> None:
    prom, folder = tmp_path / "labkit.prom", tmp_path / "snapshots"
    once = [*SERVE, "--once", "--seconds", "0.5"]
    done = subprocess.run(once, capture_output=True, text=True, timeout=60, check=True)
    names = {family.name for family in text_string_to_metric_families(done.stdout)}
    assert {"labkit_runq_latency_seconds", "labkit_waits", "labkit_kernel_info"} <= names
    subprocess.run([*once, "--textfile", prom, "--parquet", folder], timeout=60, check=True)
    assert "labkit_waits_total" in prom.read_text()
    assert not re.search("^process_", prom.read_text(), re.MULTILINE), "node_exporter has them of itself"
    assert "labkit_exporter_resident_memory_bytes" in prom.read_text()
    assert read_snapshots(folder, "cgroups")["waits"].sum() > 0


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system of its own that is soon full."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "labkit-test", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _errors(exporter: Served, reason: str) -> float:
    match = re.search(rf'^labkit_errors_total{{reason="{reason}"}} (\S+)$', exporter.get(), re.MULTILINE)
    assert match
    return float(match[1])


def test_a_full_disk_and_a_missing_folder_are_counted_and_do_not_end_it(tmp_path: Path) -> None:
    full, late = tmp_path / "full", tmp_path / "there" / "labkit.prom"
    ballast = full / "ballast"
    arguments = ("--interval", "0.2", "--textfile", str(late), "--parquet", str(full / "kept"))
    with small_disk(full, 256):
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(4096))
        with served(*arguments, "--parquet-every", "0.2", "--parquet-keep", "2") as exporter:
            assert 'labkit_errors_total{reason="snapshot"} 0.0' in exporter.get(), "known reasons begin at 0"
            until(lambda: _errors(exporter, "textfile") >= 2, "a folder that is missing to be noticed twice")
            until(lambda: _errors(exporter, "parquet") >= 2, "a full disk to be noticed twice")
            assert exporter.get("/readyz") == "ready\n"
            late.parent.mkdir()
            ballast.unlink()
            until(late.exists, "the textfile")
            until(lambda: _kept(full / "kept") == 2, "two snapshots")
            first = read_snapshots(full / "kept", "ledger")["taken"].max()
            until(
                lambda: read_snapshots(full / "kept", "ledger")["taken"].min() > first,
                "new ones in the place of old ones",
            )
            assert _kept(full / "kept") <= 3, "one more while it is being written"
            assert not [one for one in full.rglob(".*") if one.suffix != f".{exporter.process.pid}"]
            assert exporter.get("/healthz") == "ok\n"


def _kept(folder: Path) -> int:
    try:
        return int(read_snapshots(folder, "cells")["taken"].nunique())
    except MissingCapture:
        return 0


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    with served() as exporter:
        port = int(exporter.url.rpartition(":")[2])
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening
        request = urllib.request.Request(exporter.url + "/metrics", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=10)


def test_a_cgroup_that_dies_leaves_a_tombstone_and_then_nothing() -> None:
    """Seen alive; then dead and still exposed, with what it had; then gone."""
    settings = Settings(Labels.parse("name=cgroup"), Limits(keep_s=1.5), min_interval_s=0)
    with Watch(rest_s=0.1) as watch:
        exporter = Exporter(watch.snapshot, settings=settings)
        waits = exporter.book.layout.column("waits")
        with scenario("quiet", seconds=0.5).run() as truth:
            (path,) = set(truth.tasks["cgroup"])
            exporter.refresh()
            (series,) = (s for s in exporter.book.series if s.key == (path,))
            assert series.alive
            assert series.values[waits] > 0
        states: list[bool | None] = []

        def gone() -> bool:
            exporter.refresh()
            found = [s for s in exporter.book.series if s.key == (path,)]
            states.append(found[0].alive if found else None)
            if found:
                assert f'labkit_waits_total{{name="{label_value(path)}"}}' in exporter.file_text().decode()
            return not found

        until(gone, "the series to be removed")
        assert states[-1] is None
        assert states.count(False) > 1, "it stood as a tombstone"
        assert True not in states[states.index(False) :], "and did not rise again"
        assert f'name="{label_value(path)}"' not in exporter.file_text().decode()


# -- cost ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_five_thousand_cgroups_expose_is_bounded() -> None:
    with Watch(chosen=plan(cgroups=4096)) as watch, many_cgroups(5000):
        exporter = Exporter(watch.snapshot, settings=Settings(min_interval_s=0), judge=judged)
        for _ in range(5):
            exporter.refresh()
            text, _ = exporter.text()
            assert len(exporter.book.series) == exporter.settings.limits.max_cgroups
            assert exporter.book.overflow_cgroups > 4000
            assert len(text) < 3 << 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_a_thousand_scrapes_of_five_thousand_cgroups() -> None:
    """Of the process that people run, over HTTP, by its own account; it judges meanwhile."""
    with many_cgroups(5000) as visit, served("--interval", "1") as exporter:
        for _ in range(2):  # what ran before it was loaded, it has not seen; a series is for who comes again
            visit()
            exporter.get()
        sizes = []
        for turn in range(1000):
            text = exporter.get()
            if turn % 50 == 49:
                match = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)
                assert match
                sizes.append(float(match[1]))
        overflow = re.search(r"^labkit_overflow_cgroups (\S+)$", text, re.MULTILINE)
        assert overflow
        assert float(overflow[1]) > 4000, "all of them are there"
        alive = re.search(r'^labkit_cgroup_series{state="alive"} (\S+)$', text, re.MULTILINE)
        assert alive
        assert float(alive[1]) > 150
        assert re.search(r"^labkit_scrapes_total 1001\.0$", text, re.MULTILINE)
        snapshots = re.search(r"^labkit_collects_total (\S+)$", text, re.MULTILINE)
        assert snapshots
        assert float(snapshots[1]) >= 10, "scrapes share a snapshot while it is young; some must be new"
        assert max(sizes[10:]) < 1.05 * max(sizes[:10]), sizes

"""`labkit serve` as a process on the running kernel: its life, its death, what it writes, what it costs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from labkit import bpfsys
from labkit.cgroups import Scope
from labkit.kernel.cgroup import hierarchy
from labkit.metrics import Exporter, Limits, Settings
from labkit.metrics.files import read_snapshots
from labkit.metrics.judge import judged
from labkit.noisy.plan import plan
from labkit.noisy.watch import Watch
from labkit.workloads import scenario

pytestmark = [pytest.mark.live, pytest.mark.needs("cgroups")]

SERVE = [sys.executable, "-m", "labkit.cli", "serve", "--kubernetes", "off", "--port", "0"]


class Served:
    """A process that serves, and where."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*SERVE, *arguments], stderr=subprocess.PIPE, text=True, env=os.environ | (env or {})
        )
        assert self.process.stderr is not None
        said = ""
        self.url = ""
        for line in self.process.stderr:
            said += line
            if match := re.search(r"ready: (http://\S+)/metrics", line):
                self.url = match[1]
                break
        assert self.url, said

    def get(self, path: str = "/metrics") -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            text: str = answer.read().decode()
        return text

    def value(self, sample: str) -> float:
        found = [
            one.value
            for family in text_string_to_metric_families(self.get())
            for one in family.samples
            if one.name == sample
        ]
        return float(found[0])

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[Served]:
    running = Served(*arguments)
    try:
        yield running
    finally:
        running.close()


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
    """Which of them are in the kernel after the short while in which it frees them."""
    for _ in range(100):
        left = ids & {one.id for one in bpfsys.loaded_programs()}
        if not left:
            break
        time.sleep(0.05)
    return left


def test_sigterm_ends_it_cleanly_and_nothing_stays() -> None:
    with served() as exporter:
        ids = loaded_by(exporter.process.pid)
        assert ids & {one.id for one in bpfsys.loaded_programs()}
        assert exporter.get("/healthz") == "ok\n"
        assert exporter.get("/readyz") == "ready\n"
        exporter.process.send_signal(signal.SIGTERM)
        assert exporter.process.wait(timeout=20) == 0
    assert not still_loaded(ids)


def test_after_kill_9_nothing_stays_loaded_and_the_next_one_counts_from_zero() -> None:
    with served() as exporter:
        ids = loaded_by(exporter.process.pid)
        time.sleep(1.5)
        before = exporter.value("labkit_events_seen_total")
        began = exporter.value("process_start_time_seconds")
        exporter.process.kill()
        exporter.process.wait()
    assert not still_loaded(ids)
    with served() as exporter:
        assert exporter.value("process_start_time_seconds") > began
        assert exporter.value("labkit_measured_seconds_total") < 5
        assert before > 0


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


def test_once_writes_what_was_asked_for(tmp_path: Path) -> None:
    prom, folder = tmp_path / "labkit.prom", tmp_path / "snapshots"
    once = [*SERVE, "--once", "--seconds", "0.5"]
    done = subprocess.run(once, capture_output=True, text=True, timeout=60, check=True)
    names = {family.name for family in text_string_to_metric_families(done.stdout)}
    assert {"labkit_runq_latency_seconds", "labkit_waits", "labkit_kernel_info"} <= names
    subprocess.run([*once, "--textfile", prom, "--parquet", folder], timeout=60, check=True)
    assert "labkit_waits_total" in prom.read_text()
    assert "process_" not in prom.read_text()
    assert read_snapshots(folder, "cgroups")["waits"].sum() > 0


def test_files_are_written_while_it_serves_and_a_full_disk_does_not_end_it(tmp_path: Path) -> None:
    prom = tmp_path / "there" / "labkit.prom"
    arguments = ("--interval", "0.2", "--textfile", str(prom), "--parquet", str(tmp_path / "kept"))
    with served(*arguments, "--parquet-every", "0.2", "--parquet-keep", "2") as exporter:
        deadline = time.monotonic() + 20
        while 'labkit_errors_total{reason="textfile"}' not in exporter.get():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        prom.parent.mkdir()
        while not prom.exists() or read_snapshots(tmp_path / "kept", "cgroups")["taken"].nunique() < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1)
        assert len(list((tmp_path / "kept" / "cells").iterdir())) <= 3
        assert exporter.get("/readyz") == "ready\n"


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
    settings = Settings(limits=Limits(keep_s=1.0), min_interval_s=0)
    with Watch(rest_s=0.1) as watch:
        exporter = Exporter(watch.snapshot, settings=settings)
        with scenario("quiet", seconds=0.5).run() as truth:
            (path,) = set(truth.tasks["cgroup"])
            exporter.refresh()
            key = ("", "", "", "service")
            assert [s.alive for s in exporter.book.series if s.key == key and s.members]
        names = exporter.refresh().names
        assert not names[names["cgroup"] == path]["alive"].any()
        deadline = time.monotonic() + 20
        ours = int(names[names["cgroup"] == path]["cgroup_id"].iloc[0])
        while any(ours in s.members for s in exporter.book.series):
            assert time.monotonic() < deadline
            exporter.refresh()
            time.sleep(0.2)


# -- cost ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def many_cgroups(count: int) -> Iterator[None]:
    """So many cgroups, in each of which a task has run."""
    names = [f"c{n}" for n in range(count)]
    with Scope(names) as scope:
        root = hierarchy().unified
        assert root is not None
        visitor = f"""
import os, time
for n in range({count}):
    with open("{scope.root}/c" + str(n) + "/cgroup.procs", "w") as file:
        file.write("0")
    time.sleep(0.0001)
"""
        subprocess.run([sys.executable, "-c", visitor], check=True, timeout=120)
        yield


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_five_thousand_cgroups_expose_is_bounded() -> None:
    with Watch(chosen=plan(cgroups=6000)) as watch, many_cgroups(5000):
        exporter = Exporter(watch.snapshot, settings=Settings(min_interval_s=0), judge=judged)
        for _ in range(5):
            text, _ = exporter.text()
            assert len(exporter.book.series) == exporter.settings.limits.max_cgroups
            assert exporter.book.overflow_cgroups > 4000
            assert len(text) < 3 << 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_is_flat_over_a_thousand_scrapes() -> None:
    with Watch(chosen=plan(cgroups=2000)) as watch, many_cgroups(1000):
        exporter = Exporter(watch.snapshot, settings=Settings(min_interval_s=0), judge=judged)
        sizes = []
        for turn in range(1000):
            exporter.text()
            if turn % 50 == 49:
                sizes.append(int(Path("/proc/self/statm").read_text().split()[1]))
        assert max(sizes[10:]) < 1.05 * max(sizes[:10]), sizes

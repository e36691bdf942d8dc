"""``labkit serve``: the exporter as a process, until SIGTERM; or once, to stdout or a file."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from labkit.errors import LabkitError, ParameterError
from labkit.metrics.exporter import Exporter, Settings, no_verdicts
from labkit.metrics.files import Parquet, may_be_textfile, write_textfile
from labkit.metrics.judge import Judge
from labkit.metrics.server import MetricsServer
from labkit.sched.state import Snapshot
from labkit.until import UntilAsked

__all__ = ["Files", "Options", "Source", "serve", "serve_once"]


class Source(Protocol):
    """Where snapshots come from: :class:`labkit.noisy.watch.Watch`, or anything else that can say."""

    def snapshot(self) -> Snapshot: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Files:
    """What is written beside being served.

    :param textfile: rewritten at each interval, for node_exporter.
    :param parquet: a folder of snapshots, one for each ``parquet_every_s``; the latest ``parquet_keep`` stay.
    """

    textfile: Path | None = None
    parquet: Path | None = None
    parquet_every_s: float = 60.0
    parquet_keep: int = 1000

    def __post_init__(self) -> None:
        if self.textfile is not None:
            may_be_textfile(self.textfile)  # before measuring, not after
        if self.parquet_keep < 1:
            raise ParameterError(f"{self.parquet_keep} snapshots cannot be kept", remedy="at least 1")


@dataclass(frozen=True)
class Options:
    """How ``labkit serve`` goes about it.

    :param interval_s: between snapshots while nobody scrapes: tombstones age, windows move on, files are written.
    """

    settings: Settings = field(default_factory=Settings)
    port: int = 9798
    address: str = "127.0.0.1"
    interval_s: float = 15.0
    files: Files = field(default_factory=Files)

    def __post_init__(self) -> None:
        if not self.interval_s > 0 or not self.files.parquet_every_s > 0:
            raise ParameterError("an interval must be longer than 0 s")
        if not 0 <= self.port < 65536:
            raise ParameterError(f"{self.port} is no port", remedy="0 (any) to 65535")


def serve(
    options: Options,
    load: Callable[[], Source],
    *,
    judge: Judge = no_verdicts,
    wire: Callable[[Source, Settings, Judge], Exporter] | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code, 0.

    The port is open before the program is loaded, so that ``/healthz`` and ``/readyz`` tell from the start. At the end it
    is closed, and scrapes under way are over, before the program is let go.

    :param load: loads the program.
    :param wire: makes the exporter, if more is to be said than the source's own snapshots.
    :raises LabkitError: if it cannot listen, or the program cannot be loaded.
    """
    for name in ("tornado.general", "tornado.application", "tornado.access"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # malformed requests are not worth a log line each
    with (
        UntilAsked(),
        contextlib.ExitStack() as sources,
        MetricsServer(options.port, options.address) as server,
    ):
        say(f"listening on {server.url}; loading the program ...")
        source = load()
        sources.callback(source.close)
        exporter = (wire or _plain)(source, options.settings, judge)
        exporter.refresh()
        server.exporter = exporter
        say(f"ready: {server.url}")
        _beat(options, exporter, server)
    say("stopped")
    return 0


def _plain(source: Source, settings: Settings, judge: Judge) -> Exporter:
    return Exporter(source.snapshot, settings=settings, judge=judge)


def _beat(options: Options, exporter: Exporter, server: MetricsServer) -> None:
    """Until the end: a snapshot at least every interval, and the files."""
    files = options.files
    parquet = Parquet(files.parquet, keep=files.parquet_keep) if files.parquet else None
    due = 0.0
    while True:
        wait = options.interval_s
        if parquet is not None:
            wait = min(wait, files.parquet_every_s)
        server.expect_beat(wait)
        try:
            snapshot = exporter.refresh()
            server.failing = ""
        except Exception as error:  # counted, told by /readyz, and tried again
            server.failing = f"no snapshot: {getattr(error, 'what', type(error).__name__)}"
        else:
            if files.textfile is not None:
                _guarded(exporter, "textfile", partial(_rewrite, files.textfile, exporter))
            if parquet is not None and time.monotonic() >= due:
                due = time.monotonic() + files.parquet_every_s
                _guarded(exporter, "parquet", partial(parquet.write, snapshot))
        threading.Event().wait(wait)


def _rewrite(path: Path, exporter: Exporter) -> None:
    write_textfile(path, exporter.file_text())


def _guarded(exporter: Exporter, what: str, work: Callable[[], object]) -> None:
    """A full disk, or a folder that is gone, is counted, and does not stop the exporter."""
    try:
        work()
    except (LabkitError, OSError) as error:
        exporter.failed(what)
        print(f"warning: {error}", file=sys.stderr, flush=True)


def serve_once(
    options: Options,
    load: Callable[[], Source],
    *,
    seconds: float,
    judge: Judge = no_verdicts,
    wire: Callable[[Source, Settings, Judge], Exporter] | None = None,
) -> int:
    """Measure for so long and write the exposition once: to stdout, or to the files that are named.

    :raises LabkitError: if the program cannot be loaded, or the files not be written.
    """
    if not seconds >= 0:
        raise ParameterError(f"{seconds:g} s cannot be measured")
    with UntilAsked(), contextlib.ExitStack() as stack:
        source = load()
        stack.callback(source.close)
        exporter = (wire or _plain)(source, options.settings, judge)
        exporter.begin()
        threading.Event().wait(seconds)
        snapshot = exporter.refresh()
        text = exporter.file_text()
        if options.files.textfile is not None:
            write_textfile(options.files.textfile, text)
        if options.files.parquet is not None:
            Parquet(options.files.parquet, keep=options.files.parquet_keep).write(snapshot)
        if options.files.textfile is None and options.files.parquet is None:
            sys.stdout.write(text.decode())
            sys.stdout.flush()
        return 0
    return 130

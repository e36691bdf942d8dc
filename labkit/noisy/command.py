"""`labkit noisy` and the replay of what it recorded."""

from __future__ import annotations

import contextlib
import io
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.live import Live

from labkit.errors import ParameterError
from labkit.names import Directory
from labkit.noisy import archive, stamps, witnesses
from labkit.noisy.answer import Answer
from labkit.noisy.archive import Recording
from labkit.noisy.screen import render
from labkit.noisy.select import Selection
from labkit.noisy.stamps import Stamps
from labkit.noisy.watch import Watch
from labkit.noisy.witnesses import Evidence, Reading
from labkit.sched.state import Snapshot, between

__all__ = ["noisy_command", "replay_command"]

DEFAULT_S = 5.0
#: The live table looks at the last so many seconds, and looks again so often, or as much less often as it takes to use no
#: more than this share of one CPU for it.
WINDOW_S, EVERY_S, CPU_SHARE = 10.0, 2.0, 0.008
#: So many tasks are asked for their counters at each look.
_MOST_TASKS = 40
#: The tables are tended so often; the second, if they fill up. And not more often than takes this share of one CPU.
_TEND_EVERY_S, _TEND_CROWDED_S = 1.0, 0.25
#: A terminal that got another size is noticed within this time.
_RESIZED_S = 0.25
_ROWS = 20


def noisy_command(
    *,
    seconds: float | None = None,
    as_json: bool = False,
    selection: Selection | None = None,
    record: Path | None = None,
) -> int:
    """Who slows whom down? Returns the exit code.

    Live in a terminal until Ctrl-C; one answer after ``seconds`` (5 if not given) with ``as_json``, with
    ``seconds``, or where the output is no terminal. Ctrl-C ends measuring early and still answers.

    :raises ParameterError: if ``seconds`` is no time.
    :raises NoSuchCgroup: if something was asked for that is not there.
    :raises OutcomesError: if the recording cannot be written; the answer has been shown by then.
    :raises LabkitError: where live measurement is impossible, with the reason.
    """
    _say_it_anyway()
    selection = selection or Selection()
    if seconds is not None and not (0 < seconds < math.inf):
        raise ParameterError("nothing to measure", why=f"seconds is {seconds}", remedy="give a time above 0")
    if record is not None:
        archive.may_write(record)
    console = Console(highlight=False)
    with Directory() as directory:
        named = _named(directory, selection)
        say = not as_json or sys.stderr.isatty()
        if say:  # on a busy machine the verifier takes some seconds, in which nothing else is to be seen
            print("loading ...", file=sys.stderr, flush=True)
        with Watch(directory=directory) as watch, Stamps(watch) as second:
            session = _Session(watch, selection, named, second)
            if seconds is None and not as_json and console.is_terminal:
                recording = session.table(console)
            else:
                recording = session.once(seconds or DEFAULT_S, say=say)
    _show(recording.answer(), console, as_json=as_json)
    if record is not None:
        archive.save(record, recording)
        print(f"kept in {record}; the same answer again: ./task replay -- {record}", file=sys.stderr)
    return 0


def replay_command(path: Path, *, as_json: bool = False) -> int:
    """The answer of a recording, made anew from what was measured then. Returns the exit code.

    :raises MissingCapture, CaptureMismatch: see :func:`labkit.noisy.archive.load`.
    """
    _say_it_anyway()
    _show(archive.load(path).answer(), Console(highlight=False), as_json=as_json)
    return 0


def _say_it_anyway() -> None:
    """Letters that the terminal's encoding lacks are written as escapes: no answer is lost to the name of a container."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _show(answer: Answer, console: Console, *, as_json: bool) -> None:
    if as_json:
        print(answer.as_json())
        return
    with console.capture() as shown:
        console.print(render(answer, console, rows=_ROWS))
    lines = shown.get().splitlines()
    print("\n".join(line if console.is_terminal else line.rstrip() for line in lines))


def _named(directory: Directory, selection: Selection) -> tuple[int, ...]:
    """Ids asked for by name; asked before anything is loaded, so that a misspelt name costs nobody a minute."""
    if selection.everything:
        return ()
    return tuple(selection.ids(directory.frame(directory.all())))


@dataclass
class _Session:
    """One measurement: a watch, and readings of the oracles beside its snapshots."""

    watch: Watch
    selection: Selection
    named: tuple[int, ...]
    second: Stamps
    window: deque[tuple[Snapshot, Reading]] = field(default_factory=deque)
    stamped: pd.DataFrame | None = None

    def once(self, seconds: float, *, say: bool) -> Recording:
        """Measure for so long."""
        first = self.watch.snapshot()
        before = self._read_all()
        with contextlib.suppress(KeyboardInterrupt):
            if say:
                print(f"measuring for {seconds:g} s (Ctrl-C answers early) ...", file=sys.stderr, flush=True)
            twice_s = min(stamps.SHARE * seconds, stamps.LONGEST_S)
            self._rest(seconds - twice_s)
            self.stamped = self.second.check(twice_s)
        last = self.watch.snapshot()
        return self._recording(first, last, before, self._read_all())

    def table(self, console: Console) -> Recording:
        """A table of the last seconds, until Ctrl-C; then the answer over all of them."""
        first, before = self.watch.snapshot(), self._read_all()
        self.window.append((first, before))
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            live.update(
                f"measuring; the first table comes in {EVERY_S:g} s ... (Ctrl-C ends it)", refresh=True
            )
            pause = EVERY_S
            page = _Page(console, live)
            while True:
                if self.stamped is None and len(self.window) == 2:  # once, after the first table
                    self.stamped = self.second.check(min(pause, stamps.LONGEST_S))
                    pause -= stamps.LONGEST_S
                self._rest(pause, page.fit)
                began = time.process_time()
                page.show(self._latest(page.rows))
                pause = max(EVERY_S, (time.process_time() - began) / CPU_SHARE)
        last = self.watch.snapshot()
        return self._recording(first, last, before, self._read_all())

    def _rest(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Sleep for so long, and keep names and tables in order meanwhile.

        :param meanwhile: called some times a second.
        """
        end, pause = time.monotonic() + seconds, _TEND_EVERY_S
        while (left := end - time.monotonic()) > 0:
            wake = time.monotonic() + min(pause, left)
            while (rest := wake - time.monotonic()) > 0:
                time.sleep(min(rest, _RESIZED_S))
                meanwhile()
            began = time.process_time()
            crowded = self.watch.tend()
            spent = time.process_time() - began
            pause = max(_TEND_CROWDED_S if crowded else _TEND_EVERY_S, spent / CPU_SHARE)

    def _latest(self, rows: int) -> Answer:
        """The answer about the window that ends now; only those that it shows are read beside it."""
        newest = self.watch.snapshot()
        while len(self.window) > 1 and newest.taken_ns - self.window[1][0].taken_ns >= WINDOW_S * 1e9:
            self.window.popleft()
        oldest, before = self.window[0]
        interval = between(oldest, newest)
        paths = self._paths(_worth_reading(interval, rows))
        reading = witnesses.read(self.watch.directory.tree, paths, most_tasks=_MOST_TASKS)
        self.window.append((newest, reading))
        return Answer.from_snapshot(
            self._with_named(interval),
            evidence=witnesses.evidence(before, reading),
            selection=self.selection,
            most=rows,
        )

    def _recording(self, first: Snapshot, last: Snapshot, before: Reading, after: Reading) -> Recording:
        interval = self._with_named(between(first, last))
        interval = self.second.told(interval)
        found = witnesses.evidence(before, after)
        if self.stamped is not None:
            found = replace(found, stamps=self.stamped)
        return Recording(interval, _of(interval, found), self.selection)

    def _with_named(self, interval: Snapshot) -> Snapshot:
        """Those asked for by name are known by name, also if they never ran."""
        if not self.named:
            return interval
        ids = {*interval.names["cgroup_id"].tolist(), *self.named}
        return replace(interval, names=self.watch.directory.frame(sorted(ids)))

    def _read_all(self) -> Reading:
        directory = self.watch.directory
        directory.names(self.watch.tables.ids())
        return witnesses.read(directory.tree, self._paths(list(directory.all())), everything=True)

    def _paths(self, ids: list[int]) -> dict[int, str]:
        directory = self.watch.directory
        names = directory.names(ids)
        return {i: name.cgroup for i, name in names.items() if name.cgroup and directory.alive(i)}


class _Page:
    """The live table on its screen: drawn anew when there is a new answer, and when the terminal gets another size."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live
        self._answer: Answer | None = None
        self._size = console.size

    @property
    def rows(self) -> int:
        """As many as can be shown."""
        return max(1, min(_ROWS, self._console.height))

    def show(self, answer: Answer) -> None:
        """Draw an answer."""
        self._answer, self._size = answer, self._console.size
        table = render(answer, self._console, rows=self.rows, live=True, height=self._size.height)
        self._live.update(table, refresh=True)

    def fit(self) -> None:
        """Draw the last one again if the size is another: the next answer may be some seconds off."""
        if self._answer is not None and self._console.size != self._size:
            self.show(self._answer)


def _of(interval: Snapshot, evidence: Evidence) -> Evidence:
    """Evidence on the cgroups that the interval knows: a recording holds no more than its answer needs."""
    seen = interval.names["cgroup_id"]
    frames = {name: getattr(evidence, name) for name in witnesses.SCHEMAS}
    return Evidence(
        **{
            name: frame[frame["cgroup_id"].isin(seen)].reset_index(drop=True)
            for name, frame in frames.items()
        }
    )


def _worth_reading(interval: Snapshot, rows: int) -> list[int]:
    """Who waited most, and whom they waited for most."""
    waited = interval.cgroups["wait_ns"].to_numpy()
    victims = interval.cgroups["cgroup_id"].to_numpy()[np.argsort(waited, kind="stable")[::-1][:rows]]
    cells = interval.cells
    victim, occupant, wait_ns = (cells[name].to_numpy() for name in ("victim_id", "occupant_id", "wait_ns"))
    ours = np.isin(victim, victims) & (occupant != 0)
    occupants, place = np.unique(occupant[ours], return_inverse=True)
    held = np.zeros(len(occupants), np.uint64)
    np.add.at(held, place, wait_ns[ours])
    most = occupants[np.argsort(held, kind="stable")[::-1][:rows]]
    return list(dict.fromkeys([*victims.tolist(), *most.tolist()]))

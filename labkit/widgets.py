"""Live figures: a histogram and a strip of who is on which CPU, with buttons that start, stop, and make work.

In JupyterLab, on a kernel that can be measured, they show what happens now. In replay, in a headless run, and in a saved
notebook they are still figures, drawn from what the chapter measured before::

    widgets.live_histogram(lab, still=service_latency, workloads=[workloads.service_beside_hog(seconds=5)])

While one is live, its drawing takes CPU time too, and the line below it says how much.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import io
import os
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from labkit import plots, text
from labkit.errors import LabkitError
from labkit.program import Program, load
from labkit.session import Chapter
from labkit.show import headless, in_notebook
from labkit.strip import held_ns, strip
from labkit.workloads import Workload

__all__ = ["LiveFigure", "live_cpus", "live_histogram"]

#: The map of programs that also add up waits per task.
_TASKS = "waits"
#: Nobody leaves a program attached by forgetting a tab: it stops by itself.
MOST_S = 120.0
_SIZE_IN, _DPI = (7.2, 3.2), 110


class Source(Protocol):
    """What a live figure shows."""

    program: str
    title: str

    def still(self, figure: Figure) -> None:
        """Draw what was measured before."""

    def begin(self, prog: Program) -> None:
        """The program is attached now."""

    def draw(self, figure: Figure, prog: Program, names: Mapping[int, str]) -> str:
        """Draw what it has seen, and say in words what is in the picture of those named.

        :param names: pid -> role of the processes of the workload that runs, or that ran last.
        """


class _Waits:
    """The histogram of a map, of the last few seconds."""

    def __init__(self, still: pd.DataFrame, program: str, table: str, title: str, window_s: float) -> None:
        self.program, self._table, self.title, self._window_s = program, table, title, window_s
        self._still = still
        self._seen: deque[_Look] = deque()

    def still(self, figure: Figure) -> None:
        plots.histogram(self._still, title=self.title, what="waits", ax=figure.subplots())

    def begin(self, prog: Program) -> None:
        self._seen = deque([self._look(prog)])

    def _look(self, prog: Program) -> _Look:
        tasks = prog.frame(_TASKS) if _TASKS in prog.maps else pd.DataFrame(columns=["pid", "wait_ns"])
        return _Look(time.monotonic(), prog.frame(self._table), tasks.groupby("pid")["wait_ns"].sum())

    def draw(self, figure: Figure, prog: Program, names: Mapping[int, str]) -> str:
        now = self._look(prog)
        while len(self._seen) > 1 and self._seen[0].at_s < now.at_s - self._window_s:
            self._seen.popleft()
        before = self._seen[0]
        self._seen.append(now)
        recent, seconds = _grown(before.table, now.table), now.at_s - before.at_s
        title = f"{self.title}: the last {seconds:.0f} s, {int(recent['count'].sum()):,} waits"
        ax = plots.histogram(recent, title=title, what="waits", ax=figure.subplots())
        # The same axis in each picture, so that what moves is the waits: 0.5 µs to 67 ms.
        ticks = np.arange(9, 27, 2)
        ax.set_xlim(9, 26)
        ax.set_xticks(ticks, [plots.duration(2.0**tick) for tick in ticks])
        waited = now.tasks.sub(before.tasks, fill_value=0)
        shares = {role: waited.get(pid, 0) / 1e9 / seconds for pid, role in names.items()}
        return ", ".join(
            f"{role} waited {100 * share:.0f} % of the time" for role, share in shares.items() if share
        )


@dataclass(frozen=True)
class _Look:
    """The histogram at a time, and how long each task has waited until then."""

    at_s: float
    table: pd.DataFrame
    tasks: pd.Series


def _grown(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """What came to a histogram between two looks."""
    keys = ["lo", "hi", "unit"]
    both = after.merge(before, on=keys, how="left", suffixes=("", "_before"))
    both["count"] = (both["count"] - both["count_before"].fillna(0)).clip(lower=0).astype("uint64")
    return both[[*keys, "count"]]


class _Cpus:
    """Who is on which CPU, from the events of the last moment."""

    program = "sched_events"

    def __init__(
        self, still: pd.DataFrame, names: Mapping[int, str] | pd.Series, title: str, window_ms: float
    ) -> None:
        self._still, self._names, self.title, self._window_ms = still, dict(names), title, window_ms
        self._recent: pd.DataFrame | None = None

    def still(self, figure: Figure) -> None:
        # Up to when the named ones were last seen: what came after is not what the figure is about.
        ours = self._still[self._still["prev_pid"].isin(list(self._names))]
        until = int(ours["time_ns"].max()) if len(ours) else None
        self._strip(figure, self._still, self._names, until_ns=until)

    def begin(self, prog: Program) -> None:
        self._recent = None

    def draw(self, figure: Figure, prog: Program, names: Mapping[int, str]) -> str:
        # By the events' own clock, and before they are read: none until then is missing.
        until_ns = time.monotonic_ns()
        batches = [batch.frame() for batch in prog.ring("events").read() if batch.kind.name == "switched"]
        held = [frame for frame in (self._recent, *batches) if frame is not None]
        events = pd.concat(held, ignore_index=True) if held else self._still.iloc[:0]
        begin_ns, lost = until_ns - int(self._window_ms * 1e6), prog.ledger.lost
        self._recent = _since(events, begin_ns)
        shown = {**names, os.getpid(): "this notebook"}
        cpus = sorted(os.sched_getaffinity(0))
        self._strip(figure, self._recent, shown, until_ns=until_ns, lost=lost, cpus=cpus)
        held = held_ns(self._recent, begin_ns, until_ns, lost=lost)
        shares = {role: held.get(pid, 0) / 1e6 / self._window_ms for pid, role in names.items()}
        return ", ".join(
            f"{role} had {100 * share:.0f} % of a CPU" for role, share in shares.items() if share
        )

    def _strip(self, figure: Figure, events: pd.DataFrame, names: Mapping[int, str], **more: Any) -> None:
        strip(events, names, title=self.title, window_ms=self._window_ms, ax=figure.subplots(), **more)


def _since(events: pd.DataFrame, time_ns: int) -> pd.DataFrame:
    """Switches from a time on, and of each CPU the last one before: it says who has it, for seconds perhaps."""
    old = events["time_ns"].to_numpy() < time_ns
    # By CPU and time: a ring holds the records of two CPUs in the order of their reservations.
    last = events[old].sort_values("time_ns", kind="stable").drop_duplicates("cpu", keep="last")
    return pd.concat([last, events[~old]], ignore_index=True)


#: The figures that are on the screen, by what they show: a cell that is run again gets a new one in the old one's place.
_SHOWN: dict[tuple[str, str], LiveFigure] = {}


class LiveFigure:
    """A figure that can be started and stopped; see :func:`live_histogram` and :func:`live_cpus`.

    :ivar live: whether it can be started here; a still figure otherwise.
    """

    def __init__(
        self, lab: Chapter, source: Source, workloads: Sequence[Workload], *, every_s: float
    ) -> None:
        self.live = lab.mode == "live" and not headless() and in_notebook()
        self._mode = lab.mode
        self._source, self._workloads, self._every_s = source, list(workloads), every_s
        self._watching: asyncio.Task[None] | None = None
        self._working: asyncio.Task[None] | None = None
        self._stop, self._away = asyncio.Event(), asyncio.Event()
        self._names: dict[int, str] = {}

    def still(self) -> bytes:
        """What was measured before, as a PNG."""
        return _png(self._source.still)

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        if not self.live:
            size = {"width": int(_SIZE_IN[0] * _DPI)}
            display(Image(self.still(), format="png", **size))  # type: ignore[no-untyped-call]
            return
        self._replace_the_one_before()
        display(self._panel())  # type: ignore[no-untyped-call]

    def _replace_the_one_before(self) -> None:
        key = (self._source.program, self._source.title)
        before = _SHOWN.get(key)
        if before is not None and before is not self:
            before.close()
        _SHOWN[key] = self

    def __repr__(self) -> str:
        return f"<LiveFigure of {self._source.program}, {'live' if self.live else 'still'}>"

    # --- what is on the screen ---

    def _panel(self) -> Any:
        import ipywidgets

        # As wide as it is meant to be where there is room; no bar to push it to and fro where there is not.
        fits = {"max_width": "100%", "height": "auto"}
        self._image = ipywidgets.Image(
            value=self.still(), format="png", width=int(_SIZE_IN[0] * _DPI), layout=fits
        )
        self._start = ipywidgets.Button(description="Start", icon="play", button_style="success")
        self._end = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self._start.on_click(lambda _: self.start())
        self._end.on_click(lambda _: self.stop())
        self._buttons = [self._work_button(workload) for workload in self._workloads]
        self._line = ipywidgets.HTML(value="Measured before. Start it to see this machine now.")
        self._work_line = ipywidgets.HTML()
        return ipywidgets.VBox(
            [
                ipywidgets.HBox([self._start, self._end, *self._buttons], layout={"flex_flow": "row wrap"}),
                self._image,
                self._line,
                self._work_line,
            ],
            layout={"overflow": "hidden"},
        )

    def _work_button(self, workload: Workload) -> Any:
        import ipywidgets

        label = workload.name.replace("_", " ")
        button = ipywidgets.Button(
            description=label, tooltip=workload.what, icon="bolt", layout={"width": f"{len(label) + 5}ch"}
        )
        button.on_click(lambda _: self.work(workload))
        return button

    def _say(self, words: str) -> None:
        self._line.value = text.html(words)

    def _tell(self, line: Any, error: Exception) -> None:
        """An error, whole: what is expected in words, anything else with its traceback, for whoever mends it."""
        if isinstance(error, LabkitError):
            line.value = _lines(error).replace("\n", "<br>")
            return
        what = text.html(f"It stopped by an error that is the lab's own: {type(error).__name__}: {error}")
        where = _lines("".join(traceback.format_exception(error)))
        line.value = f"{what}<details><summary>where</summary><pre>{where}</pre></details>"

    # --- what it does ---

    def start(self) -> None:
        """Load the program and draw, until :meth:`stop`, for two minutes at most."""
        if self._watching is None or self._watching.done():
            self._stop.clear()
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """Take the program out of the kernel; the last figure stays."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and end the workload that runs; another figure takes its place."""
        self.stop()
        self._away.set()

    def work(self, workload: Workload) -> None:
        """Let a workload run beside it, one at a time; starts the figure if need be."""
        self.start()
        if self._working is None or self._working.done():
            self._working = asyncio.get_running_loop().create_task(self._work(workload))

    async def _watch(self) -> None:
        self._start.disabled, self._end.disabled = True, False
        try:
            self._say("Loading the program ...")
            with await asyncio.to_thread(load, self._source.program, label="live figure") as prog:
                self._source.begin(prog)
                self._say(await self._draw_until_stopped(prog))
        except Exception as error:  # nobody awaits this task: what is not shown here is shown nowhere
            self._tell(self._line, error)
        finally:
            self._start.disabled, self._end.disabled = False, True

    async def _draw_until_stopped(self, prog: Program) -> str:
        end = time.monotonic() + MOST_S
        while time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._every_s)
            # Drawn here and not in a thread of its own: matplotlib is made for one thread, which is this one.
            began = time.thread_time()
            self._image.value, told = self._picture(prog)
            took = time.thread_time() - began
            if self._stop.is_set():
                return "Stopped."
            cost = f"Drawing takes {100 * took / (self._every_s + took):.0f} % of one CPU, and shows in it."
            self._say(f"Live. {told}. {cost}" if told else f"Live. {cost}")
        return f"Stopped after {MOST_S:.0f} s."

    def _picture(self, prog: Program) -> tuple[bytes, str]:
        told: list[str] = []
        png = _png(lambda figure: told.append(self._source.draw(figure, prog, self._names)))
        return png, told[0]

    async def _work(self, workload: Workload) -> None:
        for button in self._buttons:
            button.disabled = True
        label = workload.name.replace("_", " ")
        try:
            self._work_line.value = text.html(f"{label}: starting ...")
            with await asyncio.to_thread(workload.start) as running:
                self._names = {pid: role for role, pid in running.pids.items()}
                self._work_line.value = text.html(f"{label}: at work, as {', '.join(running.pids)}.")
                finishing = asyncio.create_task(asyncio.to_thread(running.finish))
                leaving = asyncio.create_task(self._away.wait())
                await asyncio.wait({finishing, leaving}, return_when=asyncio.FIRST_COMPLETED)
                leaving.cancel()
            # Its processes are gone. If that was before they were done, whoever waited for them says so, to nobody.
            await asyncio.wait({finishing})
            if not (finishing.exception() and self._away.is_set()):
                finishing.result()
            self._work_line.value = text.html(f"{label}: done.")
        except Exception as error:  # as above
            self._tell(self._work_line, error)
        finally:
            for button in self._buttons:
                button.disabled = False


def _lines(words: object) -> str:
    return html.escape(text.plain(words, lines=True))


def _png(draw: Any) -> bytes:
    """A figure of its own, not pyplot's, as a PNG of two pixels to one."""
    plots.use_style()
    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=2 * _DPI)
    return file.getvalue()


def live_histogram(
    lab: Chapter,
    *,
    still: pd.DataFrame,
    workloads: Sequence[Workload] = (),
    program: str = "runq_latency",
    table: str = "latency",
    title: str = "Waits for a CPU",
    every_s: float = 1.0,
    window_s: float = 3.0,
) -> LiveFigure:
    """A histogram of what comes in while one looks.

    :param lab: the chapter's session: live only where it is.
    :param still: the histogram to show where nothing can be live (columns ``lo``, ``hi``, ``unit``, ``count``).
    :param workloads: each becomes a button.
    :param table: the program's map that holds the histogram.
    :param every_s: how often it is drawn.
    :param window_s: it shows what came within so many seconds.
    """
    return LiveFigure(lab, _Waits(still, program, table, title, window_s), workloads, every_s=every_s)


def live_cpus(
    lab: Chapter,
    *,
    still: pd.DataFrame,
    names: Mapping[int, str] | pd.Series,
    workloads: Sequence[Workload] = (),
    title: str = "Who is on which CPU",
    every_s: float = 1.0,
    window_ms: float = 200.0,
) -> LiveFigure:
    """A lane per CPU, coloured by who holds it: the workload's processes, this notebook, all others, nobody.

    :param lab: the chapter's session: live only where it is.
    :param still: switches to show where nothing can be live (see :func:`labkit.strip.occupancy`).
    :param names: names of the pids in ``still``.
    :param workloads: each becomes a button.
    """
    return LiveFigure(lab, _Cpus(still, names, title, window_ms), workloads, every_s=every_s)

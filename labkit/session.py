"""A chapter's session: the same cells on a live kernel or on a capture, and it says which.

>>> lab = chapter("06_run_queue_latency", mode="auto")         # doctest: +SKIP
>>> with lab.load("runq_latency", label="hogs") as prog:       # doctest: +SKIP
...     truth = lab.run(two_pinned_hogs(seconds=2))
...     waits = prog.frame("waits")

Live, ``load``, ``run`` and ``read`` do what their names say; in replay they return what was recorded under the same label.
Labels, not the order of calls, tell readings apart: a cell may be run again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from labkit.capture import Capture, RecordedProgram, Recorder, ReplayedProgram
from labkit.errors import ParameterError, UnsupportedKernel
from labkit.kernel import environment, probe
from labkit.ledger import Ledger, Mode
from labkit.lessons import predictions, progress
from labkit.noisy import archive
from labkit.noisy.measure import Measured, measure
from labkit.paths import captures_dir
from labkit.program import Program, load
from labkit.show import headless, sharp_figures
from labkit.workloads import Truth, Workload

__all__ = ["Chapter", "chapter"]


class Chapter:
    """One chapter's session; see :func:`chapter`.

    :ivar mode: ``"live"`` or ``"replay"``.
    :ivar environment: the machine that the results are from.
    """

    def __init__(self, name: str, mode: Mode, *, why: str = "", capture: Capture | None = None) -> None:
        self.name = name
        self.mode: Mode = mode
        self.why = why
        self._capture = capture
        self._truths: list[Truth] = []
        record = mode == "live" and os.environ.get("LABKIT_RECORD") == "1"
        self._recorder = Recorder(captures_dir() / name, name) if record else None
        self.environment: Mapping[str, Any] = capture.data["environment"] if capture else environment()

    @property
    def features(self) -> pd.DataFrame:
        """What the kernel of the results can do.

        :returns: columns ``feature``, ``state``, ``detail``, ``consequence``, ``remedy`` (all str).
        """
        rows = self._capture.data["features"] if self._capture else probe().as_dict()["features"]
        frame = pd.DataFrame(rows).rename(columns={"name": "feature"})
        return frame[["feature", "state", "detail", "consequence", "remedy"]].astype("str")

    def load(
        self, program: str, /, *, label: str = "", hooks: Mapping[str, str] | None = None, **params: Any
    ) -> Program | ReplayedProgram:
        """Load a program (:func:`labkit.load`), or open its recording.

        :param label: what this reading is called in the capture; the program's name if empty.
        :param params: the program's own parameters, and ``source=`` (see :func:`labkit.load`).
        :raises ParameterError: for an unknown parameter or a wrong value, in replay too.
        :raises CaptureMismatch: in replay, if the source is not the one that was recorded.
        """
        key = label or program
        if self._capture is not None:
            source = params.get("source")
            recorded = self._capture.program(key, source=source if isinstance(source, str) else None)
            recorded.spec.constants({name: value for name, value in params.items() if name != "source"})
            return recorded
        self.release()
        loaded = load(program, hooks=hooks, label=f"{self.name}/{key}", **params)
        return loaded if self._recorder is None else RecordedProgram.of(loaded, self._recorder, key)

    def run(self, workload: Workload, *, label: str = "") -> Truth:
        """Run a workload, or say what it did when it was recorded. Its processes stay parked until the next call."""
        key = label or workload.name
        if self._capture is not None:
            data = self._capture.truth(key)
            facts = (data["name"], data["tasks"], data["results"], data["declared"], tuple(data["notes"]))
            return Truth(*facts, cgroups=data["cgroups"])
        self.release()
        truth = workload.run()
        self._truths.append(truth)
        if self._recorder is not None:
            self._recorder.truth(key, truth)
        return truth

    def read(self, label: str, take: Callable[[], Any]) -> Any:
        """Take any other reading (a frame, frames by name, or what JSON holds), or return the recorded one."""
        if self._capture is not None:
            return self._capture.reading(label)
        value = take()
        if self._recorder is not None:
            self._recorder.reading(label, value)
        return value

    def noisy(self, workload: Workload, *, label: str = "", events: bool = False) -> Measured:
        """Run a workload under the noisy-neighbour program, or say what was measured when it was recorded.

        Its processes stay parked until the next call.

        :param label: what this is called in the capture; the workload's name if empty.
        :param events: record the event stream beside it (:class:`labkit.noisy.measure.Measured`).
        """
        key = label or workload.name
        if self._capture is not None:
            return self._capture_of(key, events=events)
        self.release()
        measured = measure(workload, events=events)
        self._truths.append(measured.truth)
        if self._recorder is not None:
            kept = self._recorder.folder / f"{key}.noisy"
            kept.unlink(missing_ok=True)
            archive.save(kept, measured.recording)
            self._recorder.truth(key, measured.truth)
            if events:
                self._recorder.reading(f"{key} events", measured.events)
        return measured

    def _capture_of(self, key: str, *, events: bool) -> Measured:
        assert self._capture is not None
        truth = self.run(Workload(key, "", ()), label=key)
        recording = archive.load(self._capture.folder / f"{key}.noisy")
        return Measured(truth, recording, self._capture.reading(f"{key} events") if events else {})

    def predict(self, values: Mapping[str, Any], *, mine: bool = False) -> pd.Series:
        """Commit yourself before you measure: the prediction is kept in your own folder, with its time.

        The values that a chapter comes with are nobody's prediction: as long as all of them are as they were, nothing is
        kept, and neither is one that is ``...``. A run without a reader keeps nothing, and shows the chapter's values.
        :meth:`compare` puts it beside what was measured.

        :param mine: you think just what the chapter says: its values are your prediction.
        :returns: the values, as a Series named ``predicted``; "not predicted" where that is nobody's.
        """
        made = dict(values) if mine or headless() else predictions.own(self.name, values)
        made = {name: value for name, value in made.items() if value is not ...}
        if made and not headless():
            progress.predicted(self.name, made, mine=mine)
        shown = {name: made.get(name, predictions.NOT_PREDICTED) for name in values}
        return pd.Series(shown, name="predicted")

    def compare(self, predicted: pd.Series, measured: Mapping[str, Any]) -> pd.DataFrame:
        """A prediction beside what was measured.

        :param measured: the same names as the prediction has.
        :returns: columns ``predicted``, ``measured``, and ``off by`` (str: a factor for numbers, "right" or "wrong" for
            words, empty where nothing was predicted), one row per name.
        :raises ParameterError: if the names differ.
        """
        if set(predicted.index) != set(measured):
            raise ParameterError(
                "prediction and measurement are not of the same things",
                why=f"in one of them only: {sorted(set(predicted.index) ^ set(measured))}",
            )
        return progress.judged(predicted, measured)

    def no_capture(self, reason: str) -> Ledger:
        """A ledger for a finding that no capture produced (:meth:`labkit.ledger.Ledger.none`), in this session's mode."""
        return Ledger.none(reason, mode=self.mode)

    def release(self) -> None:
        """End the workloads that are parked."""
        while self._truths:
            self._truths.pop().release()

    def __repr__(self) -> str:
        kernel, machine = self.environment["kernel"], self.environment["machine"]
        if self.mode == "live":
            return f"LIVE on Linux {kernel}\n{machine}"
        assert self._capture is not None
        lines = [
            f"REPLAY of a capture recorded {self._capture.data['recorded'][:10]} on Linux {kernel}",
            str(machine),
            "Nothing is measured on this machine" + (f": {self.why}" if self.why else "."),
        ]
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_options: object) -> dict[str, object]:
        """For headless runs: which mode this is and why, also without a finding (labkit/harvest.py reads it)."""
        said = {"name": self.name, "mode": self.mode, **({"why": self.why} if self.why else {})}
        return {"application/vnd.labkit.chapter+json": said}

    def _repr_html_(self) -> str:
        import html

        first, *rest = [html.escape(line) for line in repr(self).splitlines()]
        word, _, tail = first.partition(" ")
        colour = "#1b7837" if self.mode == "live" else "#b35806"
        badge = (
            f'<b style="color:#fff;background:{colour};padding:0.1em 0.5em;border-radius:0.3em">{word}</b>'
        )
        return f"<p>{badge} {tail}<br>" + "<br>".join(rest) + "</p>"


def chapter(name: str, mode: str = "auto", needs: Sequence[str] = ()) -> Chapter:
    """Open a chapter's session.

    :param name: the notebook's name without ``.ipynb``; its captures lie under that name.
    :param mode: ``"live"``, ``"replay"``, or ``"auto"``: live where this kernel and this process can, else replay.
    :param needs: features (the names that `labkit doctor` lists) that this chapter cannot be live without, beyond what
        every chapter needs, such as ``["own cgroups"]``.
    :raises UnsupportedKernel: if live was asked for and is not possible, with the reason.
    :raises MissingCapture: if it is to be replayed and nothing was recorded.
    """
    if mode not in ("auto", "live", "replay"):
        raise ParameterError(f"mode is auto, live or replay, not {mode!r}")
    sharp_figures()
    why = ""
    if mode != "replay":
        why = probe().why_not_live(needs)
        if not why:
            return Chapter(name, "live")
        if mode == "live":
            raise UnsupportedKernel(
                "live measurement is not possible here", why=why, remedy="run with mode replay"
            )
    return Chapter(name, "replay", why=why, capture=Capture(captures_dir() / name))

"""A Prometheus of one's own: started on a folder of its own, asked by PromQL, gone with the block.

Used by the demo, the chapter and the tests. The binary is the machine's, or Debian's package unpacked into labkit's cache:
installed, the package would start a service on port 9090 that nobody asked for.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd
import yaml

from labkit.cgroups import janitor
from labkit.closing import Closing
from labkit.errors import LabkitError
from labkit.paths import cache_dir, lab_root

__all__ = [
    "Prometheus",
    "PrometheusError",
    "binaries",
    "console_queries",
    "consoles_dir",
    "quickened",
    "rules_file",
]

_START_S, _ANSWER_S = 60.0, 30.0
_DURATION = re.compile(r"\b(\d+)(ms|s|m|h|d)\b")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class PrometheusError(LabkitError):
    """Prometheus is not here, does not start, or does not understand."""


def rules_file() -> Path:
    """The recording and alerting rules that ship with the lab."""
    return lab_root() / "dashboards" / "rules.yml"


def consoles_dir() -> Path:
    """The page of graphs that ships with the lab, as a console template (``--web.console.templates``)."""
    return lab_root() / "dashboards" / "consoles"


def console_queries(*, name: str, window: str = "5s", page: str = "") -> dict[str, str]:
    """What our page of graphs draws (a label whose values are told apart, or the name of a line) -> its PromQL.

    :param name: value of the label ``name``.
    :param window: of its rates.
    :param page: its text; that of the file if empty.
    """
    text = page or (consoles_dir() / "labkit.html").read_text()
    panels = text.split('<script type="application/json" id="panels">', 1)[1].split("</script>", 1)[0]
    found: dict[str, str] = {}
    for panel in json.loads(panels):
        found |= panel.get("queries") or {panel["by"]: panel["expr"]}
    return {
        drawn: expression.replace("NAME", json.dumps(name)).replace("WINDOW", window)
        for drawn, expression in found.items()
    }


def binaries(*, fetch: bool = False) -> tuple[Path, Path]:
    """``prometheus`` and ``promtool``.

    :param fetch: get Debian's package into labkit's cache if this machine has none (12 s; needs apt and its archive).
    :raises PrometheusError: if they are not here.
    """
    found = _found()
    if found is None and fetch:
        _fetch(cache_dir() / "prometheus")
        found = _found()
    if found is None:
        raise PrometheusError(
            "there is no Prometheus on this machine",
            why="neither on the PATH nor in labkit's cache",
            remedy="`./task metrics-demo` fetches Debian's into the cache; or install the package prometheus",
        )
    return found


def _found() -> tuple[Path, Path] | None:
    own = cache_dir() / "prometheus" / "usr" / "bin"
    names = [shutil.which(name) or shutil.which(name, path=str(own)) for name in ("prometheus", "promtool")]
    return (Path(names[0]), Path(names[1])) if names[0] and names[1] else None


def _fetch(folder: Path) -> None:
    """Unpack the distribution's package; nothing is installed and no service starts."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise PrometheusError(
            "Prometheus cannot be fetched", why="this system has no apt", remedy="install it by its own means"
        )
    with tempfile.TemporaryDirectory(prefix="prometheus-", dir=folder.parent) as scratch:
        try:
            _download(scratch)
            (package,) = glob.glob(f"{scratch}/prometheus_*.deb")
            _run("dpkg-deb", "-x", package, f"{scratch}/unpacked", cwd=scratch)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1:]
            raise PrometheusError(
                "Prometheus cannot be fetched",
                why=" ".join(said),
                remedy="apt-get update, or get on the network",
            ) from error
        with contextlib.suppress(OSError):  # another process was first: the same package lies there now
            Path(scratch, "unpacked").rename(folder)


def _download(folder: str) -> None:
    try:
        _run("apt-get", "-q", "download", "prometheus", cwd=folder)
    except subprocess.CalledProcessError:
        if os.geteuid() != 0:
            raise
        _run("apt-get", "-q", "update", cwd=folder)  # on a new machine apt knows no packages yet
        _run("apt-get", "-q", "download", "prometheus", cwd=folder)


def _run(*argv: str, cwd: str) -> None:
    subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True, timeout=300)


def quickened(text: str, factor: float) -> str:
    """Rules or expressions whose durations are so many times shorter, so that they can be tried out in seconds.

    :param text: YAML of rules, or one expression.

    >>> quickened("rate(x_total[5m])", 60)
    'rate(x_total[5s])'
    """

    def shorter(match: re.Match[str]) -> str:
        seconds = float(match[1]) * _UNIT_S[match[2]] / factor
        return f"{max(1, math.ceil(seconds))}s"

    return _DURATION.sub(shorter, text)


class Prometheus(Closing):
    """A Prometheus that scrapes some targets; a context manager.

    :param targets: ``HOST:PORT``.
    :param every_s: between scrapes, and between evaluations of rules.
    :param rules: text of a rule file.
    :param honor_labels: whether namespace and pod stay those of the victims; else a label of the target's wins, and theirs
        is called ``exported_...``, as Google's managed Prometheus does with ``namespace``.
    :param labels: further labels of the targets, beside ``node``.
    :ivar url: of its web page and its API.

    >>> with Prometheus(["127.0.0.1:9798"]) as prometheus:              # doctest: +SKIP
    ...     prometheus.query("up")
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        every_s: float = 1.0,
        rules: str = "",
        port: int = 0,
        fetch: bool = False,
        honor_labels: bool = True,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._honor_labels = honor_labels
        self._labels = {"node": os.uname().nodename} | dict(labels or {})
        self._binary, _ = binaries(fetch=fetch)
        self._stack = contextlib.ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="labkit-prom-")))
        self._targets, self._every_s, self._rules = list(targets), every_s, rules
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End it and remove its folder. May be called twice."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with contextlib.suppress(OSError):
                janitor.release_pid(process.pid)
        self._stack.close()

    def _start(self) -> None:
        folder = self._folder
        every = f"{int(self._every_s * 1000)}ms"
        (folder / "rules.yml").write_text(self._rules or "groups: []\n")
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": [str(folder / "rules.yml")],
            "scrape_configs": [
                {
                    "job_name": "labkit",
                    "honor_labels": self._honor_labels,
                    "static_configs": [{"targets": self._targets, "labels": self._labels}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._binary,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--storage.tsdb.retention.time=1d",
                    f"--web.console.templates={consoles_dir()}",
                    f"--web.console.libraries={consoles_dir()}",  # there are none; without it, one is looked for here
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
            )
        janitor.watch_pid(self._process.pid)
        self.until(lambda: self._answers("/-/ready"), what="it to be ready", seconds=_START_S)

    def _answers(self, path: str) -> bool:
        if self._process is None or self._process.poll() is not None:
            tail = (self._folder / "log").read_text(errors="replace").splitlines()[-5:]
            raise PrometheusError("Prometheus has ended", why=" | ".join(tail))
        try:
            with urllib.request.urlopen(self.url + path, timeout=_ANSWER_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def until(self, holds: Callable[[], Any], *, what: str, seconds: float = 30.0) -> Any:
        """Wait for something to hold, and return it.

        :raises PrometheusError: if it does not in time.
        """
        deadline = time.monotonic() + seconds
        while not (found := holds()):
            if time.monotonic() > deadline:
                raise PrometheusError(f"waited {seconds:.0f} s for {what}")
            time.sleep(0.1)
        return found

    def get(self, path: str, **parameters: str) -> Any:
        """Ask its API; the ``data`` of the answer.

        :raises PrometheusError: if it refuses, with its reason.
        """
        address = f"{self.url}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=_ANSWER_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                said = json.loads(error.read() or b"{}").get("error", "")
            raise PrometheusError("Prometheus refuses the question", why=said) from error

    def query(self, expression: str, *, at_s: float | None = None) -> pd.DataFrame:
        """The value of an expression at one moment.

        :param at_s: Unix time; now if None.
        :returns: a row per series: its labels (str) and ``value`` (float64), NaN included.
        :raises PrometheusError: if the expression is wrong.
        """
        when = {} if at_s is None else {"time": repr(at_s)}
        data = self.get("/api/v1/query", query=expression, **when)
        if data["resultType"] == "scalar":
            return pd.DataFrame({"value": [float(data["result"][1])]})
        rows = [{**one["metric"], "value": float(one["value"][1])} for one in data["result"]]
        return pd.DataFrame(rows).astype({"value": "float64"} if rows else {})

    def query_range(
        self, expression: str, *, start_s: float, end_s: float, step_s: float = 1.0
    ) -> pd.DataFrame:
        """An expression over time.

        :returns: a row per series and moment: its labels (str), ``time`` (datetime, UTC) and ``value`` (float64).
        :raises PrometheusError: as :meth:`query`.
        """
        data = self.get(
            "/api/v1/query_range", query=expression, start=repr(start_s), end=repr(end_s), step=repr(step_s)
        )
        rows = [
            {**one["metric"], "time": pd.Timestamp(float(at), unit="s", tz="UTC"), "value": float(value)}
            for one in data["result"]
            for at, value in one["values"]
        ]
        return pd.DataFrame(rows)

    def console_url(self, name: str, *, minutes: float = 2, window: str = "5s") -> str:
        """Our own page of graphs on one cgroup; it needs nothing but this Prometheus' API, and refreshes itself.

        :param name: value of the label ``name``.
        :param minutes: how far back it looks.
        :param window: of its rates.
        """
        query = urllib.parse.urlencode({"name": name, "minutes": f"{minutes:g}", "window": window})
        return f"{self.url}/consoles/labkit.html?{query}"

    def graph_url(self, *expressions: str, minutes: float = 5) -> str:
        """Prometheus' own page that draws these expressions over the last minutes; empty if its web UI does not work.

        Debian's binary reads its UI from fixed paths: unpacked and not installed, the page would be an error.
        """
        panels = [
            {
                f"g{n}.expr": expression,
                f"g{n}.tab": "0",
                f"g{n}.range_input": f"{minutes:g}m",
                f"g{n}.stacked": "0",
            }
            for n, expression in enumerate(expressions)
        ]
        query = "&".join(urllib.parse.urlencode(panel) for panel in panels)
        return f"{self.url}/graph?{query}" if self._answers("/graph") else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

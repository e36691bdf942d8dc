"""``./task metrics-demo``: exporter, a real Prometheus and a noisy neighbour, in one command.

It prints the address of a page that draws who had the CPU while a service waited, and leaves the same as a figure in
``outcomes/metrics-demo/``. Exporter and Prometheus go on until Ctrl-C, and the neighbour comes again and again, so that
there is something to look at; ``--seconds`` ends them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path

import click
import pandas as pd

from labkit.errors import LabkitError
from labkit.metrics.exporter import Exporter, Settings
from labkit.metrics.figures import waits_over_time
from labkit.metrics.judge import judged
from labkit.metrics.labels import Labels
from labkit.metrics.prometheus import Prometheus, console_queries, quickened, rules_file
from labkit.metrics.series import Limits
from labkit.metrics.server import MetricsServer
from labkit.paths import outcomes_dir

__all__ = ["demo", "main"]

_BEFORE_S, _HOG_S, _AFTER_S = 5.0, 20.0, 4.0
#: Between two visits of the neighbour, once all is made and somebody looks on.
_PAUSE_S = 20.0


def demo(*, seconds: float | None, folder: Path) -> int:
    """Run it; returns the exit code.

    :param seconds: how long to stay after the figure is made; None: until Ctrl-C.
    :raises LabkitError: if live measurement is not possible here, or Prometheus is not to be had.
    """
    from labkit.noisy.watch import Watch
    from labkit.workloads import scenario

    settings = Settings(Labels.parse(), Limits(keep_s=60), window_s=10)
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Watch())
        server = stack.enter_context(MetricsServer(0))
        server.exporter = Exporter(watch.snapshot, settings=settings, judge=judged)
        stack.enter_context(server.exporter.beating())
        print(f"exporter    {server.url}", flush=True)
        rules = quickened(rules_file().read_text(), 60)
        prometheus = stack.enter_context(Prometheus([f"127.0.0.1:{server.port}"], rules=rules, fetch=True))
        print(f"Prometheus  {prometheus.url}  (every second; its rules look at seconds instead of minutes)")
        print(
            f"            {_BEFORE_S:.0f} s of quiet, then a service beside a hog for {_HOG_S:.0f} s ...",
            flush=True,
        )
        began = time.time()
        time.sleep(_BEFORE_S)
        with scenario("hog", seconds=_HOG_S).run():
            ended = time.time()
        time.sleep(_AFTER_S)
        path = _figure(prometheus, began, ended, folder)
        print(f"figure      {path}")
        for name in sorted(_fired(prometheus, began)):
            print(f"alert       {name} fired")
        if seconds is None or seconds > 0:
            _tell_graphs(prometheus)
        if seconds is None:
            print(f"\nThe neighbour comes again every {_PAUSE_S + _HOG_S:.0f} s. Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            _go_on(float("inf") if seconds is None else seconds)
    print("ended: exporter and Prometheus no longer answer; the figure stays", flush=True)
    return 0


def _tell_graphs(prometheus: Prometheus) -> None:
    print(f"graphs      {prometheus.console_url('service')}", flush=True)
    drawn = console_queries(name="service")
    if own := prometheus.graph_url(drawn["occupant"], drawn["cause"], minutes=2):
        print(f"            {own}  (Prometheus' own page)", flush=True)


def _go_on(seconds: float) -> None:
    """Pauses and visits of the neighbour, until so much time is over."""
    from labkit.workloads import scenario

    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        threading.Event().wait(min(_PAUSE_S, left))
        if ends - time.monotonic() > _HOG_S:
            with scenario("hog", seconds=_HOG_S).run():
                pass


def _fired(prometheus: Prometheus, began_s: float) -> set[str]:
    seconds = int(time.time() - began_s) + 1
    found = prometheus.query(f'max_over_time(ALERTS{{alertstate="firing", name="service"}}[{seconds}s])')
    return set(found["alertname"]) if len(found) else set()


def _figure(prometheus: Prometheus, began_s: float, ended_s: float, folder: Path) -> Path:
    graph = prometheus.query_range(
        console_queries(name="service")["occupant"], start_s=began_s, end_s=time.time(), step_s=0.5
    )
    if graph.empty:
        raise LabkitError(
            "Prometheus has no data on the service", remedy=f"look at {prometheus.url}/api/v1/targets"
        )
    graph["seconds"] = (graph["time"] - pd.Timestamp(began_s, unit="s", tz="UTC")).dt.total_seconds()
    quiet = pd.DataFrame({"seconds": [0.0, _BEFORE_S], "occupant": graph["occupant"].iloc[0], "value": 0.0})
    graph = pd.concat([quiet, graph])  # before there is a service, nobody waits
    path = folder / "who-had-the-cpu.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = waits_over_time(
        graph,
        by="occupant",
        title="Who had the CPU while the service waited, by Prometheus",
        marked=[(_BEFORE_S, "the hog begins"), (ended_s - began_s, "it ends")],
    )
    axes.figure.savefig(path)
    return path


@click.command()
@click.option(
    "--seconds", type=float, default=None, help="Stay so long after the figure (default: until Ctrl-C)."
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder of the figure.")
def main(seconds: float | None, out: Path | None) -> None:
    """Exporter, Prometheus and a noisy neighbour; prints the address of a page of graphs."""
    import matplotlib

    matplotlib.use("agg")
    try:
        sys.exit(demo(seconds=seconds, folder=out or outcomes_dir() / "metrics-demo"))
    except LabkitError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

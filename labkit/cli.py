"""The command line: thin commands, each hands over to the module that does the work.

Modules are imported inside the commands, so that ``labkit --help`` and ``labkit doctor`` start at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from labkit import __version__
from labkit.errors import LabkitError


class _Group(click.Group):
    """A group that shows the lab's own errors as text, not as tracebacks."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LabkitError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Learn Linux through eBPF, and find noisy neighbours for real."""


def _gain_rights(mode: str = "auto") -> None:
    """Start this very command anew with the capabilities that BPF needs, where set-up gave them to this user."""
    if mode == "replay":
        return
    from labkit.system.launch import gain_rights

    gain_rights([sys.executable, *sys.orig_argv[1:]])


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def doctor(as_json: bool) -> None:
    """What this machine can do, what follows, and how to mend it. Exit 0: live; 3: replay only."""
    _gain_rights()
    from labkit.doctor import report

    sys.exit(report(as_json=as_json))


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry", is_flag=True, help="Only say what would be done.")
@click.option("--quiet", is_flag=True, help="Say nothing when there is nothing to do.")
@click.option(
    "--parts", default="", metavar="LIST", help="Only these packages: bcc,headers,... (--parts help)."
)
@click.option(
    "--kernel", default="", metavar="RELEASE", help="Headers of this kernel, not of the running one."
)
@click.option("--image", is_flag=True, help="For a container image: packages, but no mounts and no rights.")
@click.option(
    "--gcloud-archive", default="", metavar="URL", help="Where Google's apt archive is (with --parts gcloud)."
)
def setup(
    yes: bool, dry: bool, quiet: bool, parts: str, kernel: str, image: bool, gcloud_archive: str
) -> None:
    """Name, then install, mount and grant what live measurement needs."""
    from labkit.system import setup as run_setup
    from labkit.system.wish import Wish

    asked = Wish.parse(parts, kernel, image=image, gcloud_archive=gcloud_archive)
    sys.exit(run_setup(assume_yes=yes, dry=dry, quiet=quiet, asked=asked))


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry", is_flag=True, help="Only say what would be done.")
def uninstall(yes: bool, dry: bool) -> None:
    """Take back what `setup` did on this machine."""
    from labkit.system import uninstall as run_uninstall

    sys.exit(run_uninstall(assume_yes=yes, dry=dry))


@main.command()
@click.option("--seconds", type=float, default=5.0, show_default=True, help="How long to measure.")
@click.option("--mode", type=click.Choice(["auto", "live", "replay"]), default="auto", show_default=True)
def first(seconds: float, mode: str) -> None:
    """One true finding about this machine's run queues."""
    _gain_rights(mode)
    from labkit.first import first_finding

    sys.exit(first_finding(seconds=seconds, mode=mode))


@main.command()
@click.argument("notebooks", nargs=-1, type=click.Path(path_type=Path))
@click.option("--mode", type=click.Choice(["auto", "live", "replay"]), default="auto", show_default=True)
@click.option("-p", "--parameter", "parameters", nargs=2, multiple=True, metavar="NAME VALUE")
@click.option(
    "--timeout", "timeout_s", type=float, default=300.0, show_default=True, help="Seconds per notebook."
)
@click.option(
    "--outcomes", type=click.Path(path_type=Path), default=None, help="Folder for findings and figures."
)
@click.option("--record", is_flag=True, help="Record captures for replay while running live.")
def run(
    notebooks: tuple[Path, ...],
    mode: str,
    parameters: tuple[tuple[str, str], ...],
    timeout_s: float,
    outcomes: Path | None,
    record: bool,
) -> None:
    """Run notebooks headless, in order, under the strict gate (all of them when none is named)."""
    _gain_rights(mode)
    from labkit.runner import run_command

    sys.exit(
        run_command(
            notebooks,
            mode=mode,
            parameters=dict(parameters),
            timeout_s=timeout_s,
            outcomes=outcomes,
            record=record,
        )
    )


@main.command()
@click.argument("program")
@click.option("--seconds", type=float, default=5.0, show_default=True)
@click.option("-p", "--parameter", "parameters", nargs=2, multiple=True, metavar="NAME VALUE")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the capture.")
@click.option("--events", is_flag=True, help="Keep every event of its ring buffer, instead of its maps.")
def record(
    program: str, seconds: float, parameters: tuple[tuple[str, str], ...], out: Path, events: bool
) -> None:
    """Run a program for a while and keep its maps, or its events, as a capture (Parquet)."""
    _gain_rights()
    from labkit import capture
    from labkit import events as event_streams

    command = event_streams.record_command if events else capture.record_command
    sys.exit(command(program, seconds=seconds, parameters=dict(parameters), out=out))


@main.command()
@click.argument("capture", type=click.Path(path_type=Path, exists=True))
@click.option("--json", "as_json", is_flag=True, help="Of a recording of `labkit noisy`: the answer as JSON.")
def replay(capture: Path, as_json: bool) -> None:
    """Show a capture: its environment, ledger and frames. Of a recording of `labkit noisy`: its answer, made anew."""
    if capture.is_file():
        from labkit.noisy.command import replay_command as replay_answer

        sys.exit(replay_answer(capture, as_json=as_json))
    if as_json:
        raise click.UsageError("--json is for recordings of `labkit noisy`, which are files")
    from labkit.capture import replay_command

    sys.exit(replay_command(capture))


@main.command()
@click.option(
    "--seconds", type=float, default=None, help="One answer about so many seconds, instead of a live table."
)
@click.option(
    "--json", "as_json", is_flag=True, help="One answer as JSON (after 5 s, if --seconds says nothing else)."
)
@click.option(
    "--cgroup", "globs", multiple=True, metavar="GLOB", help="Only cgroups of this path, or below it."
)
@click.option("--container", "containers", multiple=True, metavar="NAME", help="Only this container.")
@click.option("--pod", "pods", multiple=True, metavar="NS/NAME", help="Only this Kubernetes pod.")
@click.option(
    "--min-wait",
    "min_wait_ms",
    type=float,
    default=0.0,
    metavar="MS",
    help="Only those that waited so long, each second.",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Keep what the answer is made of.",
)
def noisy(
    seconds: float | None,
    as_json: bool,
    globs: tuple[str, ...],
    containers: tuple[str, ...],
    pods: tuple[str, ...],
    min_wait_ms: float,
    record: Path | None,
) -> None:
    """Who slows whom down on this machine: a live table of cgroups by how long they wait for a CPU, and why.

    In a pipe it measures for 5 s and prints once. Ctrl-C ends it. Exit 0: answered; 2: it could not be, with the reason.
    """
    _gain_rights()
    from labkit.noisy.command import noisy_command
    from labkit.noisy.select import Selection

    selection = Selection(globs, containers, pods, min_wait_ms)
    sys.exit(noisy_command(seconds=seconds, as_json=as_json, selection=selection, record=record))


@main.command()
@click.argument("name", required=False)
@click.option("--seconds", type=float, default=30.0, show_default=True, help="How long it works.")
@click.option("--cpu", type=int, default=None, help="Where (default: the last CPU).")
def workload(name: str | None, seconds: float, cpu: int | None) -> None:
    """Make contention whose culprit is known, to be watched from another terminal. Without NAME: what there is."""
    from labkit.workloads import command

    sys.exit(command.run_command(name, seconds=seconds, cpu=cpu) if name else command.list_command())


@main.command()
@click.option("--port", type=int, default=9798, show_default=True, help="0: any that is free.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 in a pod.")
@click.option(
    "--labels",
    default="namespace,pod,container,name",
    show_default=True,
    metavar="LABEL[=SOURCE],...",
    help="Also kind, owner, cgroup, and app=pod_label:KEY.",
)
@click.option(
    "--max-cgroups", type=int, default=200, show_default=True, help="The rest adds up in _overflow."
)
@click.option(
    "--top-occupants", type=int, default=5, show_default=True, help="Named per victim; the rest: _rest."
)
@click.option(
    "--keep", "keep_s", type=float, default=300.0, show_default=True, help="Seconds that the dead stay."
)
@click.option(
    "--window", "window_s", type=float, default=60.0, show_default=True, help="Seconds a verdict is about."
)
@click.option(
    "--buckets", "per_octave", type=int, default=1, show_default=True, help="Per octave: 1, 2, 4 or 8."
)
@click.option(
    "--interval", "interval_s", type=float, default=15.0, show_default=True, help="Between own snapshots."
)
@click.option(
    "--textfile", type=click.Path(path_type=Path), help="For node_exporter, rewritten each interval."
)
@click.option("--parquet", type=click.Path(path_type=Path), help="Folder for snapshots as data frames.")
@click.option("--parquet-every", "parquet_every_s", type=float, default=60.0, show_default=True)
@click.option("--parquet-keep", type=int, default=1000, show_default=True, help="Snapshots to keep.")
@click.option("--kubernetes", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@click.option("--once", is_flag=True, help="Measure for --seconds, write to stdout or the files, and end.")
@click.option("--seconds", type=float, default=5.0, show_default=True, help="With --once.")
def serve(
    port: int,
    address: str,
    labels: str,
    max_cgroups: int,
    top_occupants: int,
    keep_s: float,
    window_s: float,
    per_octave: int,
    interval_s: float,
    textfile: Path | None,
    parquet: Path | None,
    parquet_every_s: float,
    parquet_keep: int,
    kubernetes: str,
    once: bool,
    seconds: float,
) -> None:
    """Who slows whom down, as Prometheus metrics: on /metrics until SIGTERM, or once (docs/metrics.md)."""
    _gain_rights()
    from labkit.until import UntilAsked

    with UntilAsked():  # what follows takes a second to import: SIGTERM may come before it is there
        from labkit.metrics.command import serve_command
        from labkit.metrics.exporter import Settings
        from labkit.metrics.labels import Labels
        from labkit.metrics.series import Limits
        from labkit.metrics.serve import Files, Options
        from labkit.metrics.table import Layout

        settings = Settings(
            Labels.parse(labels), Limits(max_cgroups, top_occupants, keep_s), Layout(per_octave), window_s
        )
        files = Files(textfile, parquet, parquet_every_s, parquet_keep)
        options = Options(settings, port, address, interval_s, files)
        sys.exit(serve_command(options, kubernetes=kubernetes, once=once, seconds=seconds))
    sys.exit(130 if once else 0)


@main.command()
@click.argument("names", nargs=-1)
@click.option("--record", "record_anew", is_flag=True, help="Run and record them on this machine first.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Folder (default: outcomes/scenarios)."
)
def scenarios(names: tuple[str, ...], record_anew: bool, out: Path | None) -> None:
    """Truth and verdict side by side, for this lab and for others' rules; NAMES are scenarios (default: all)."""
    if record_anew:
        _gain_rights()
    from labkit.scenarios import scenarios_command

    sys.exit(scenarios_command(names=names, record_anew=record_anew, out=out))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def notebook(arguments: tuple[str, ...]) -> None:
    """JupyterLab on 127.0.0.1, in your own copies of the notebooks; ARGUMENTS go to `jupyter lab`."""
    from labkit.workbench import open_lab

    open_lab(arguments)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder to make it in (build/site).")
@click.option(
    "--outcomes", type=click.Path(path_type=Path), default=None, help="Where runs lie (default: outcomes/)."
)
def site(out: Path | None, outcomes: Path | None) -> None:
    """The last run's chapters as a static site, with search; executes nothing, loads nothing from elsewhere."""
    from labkit.site import site_command

    sys.exit(site_command(out, outcomes=outcomes))


if __name__ == "__main__":
    main()

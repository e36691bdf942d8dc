"""``python -m labkit.containers``: what Taskfile.yml calls for images and clusters. ``--dry`` only shows commands."""

from __future__ import annotations

import sys

import click

from labkit.containers.cluster import Cluster, PodName
from labkit.containers.images import TARGETS, Registry, authenticate, build, push
from labkit.containers.shell import CommandFailed, Shell
from labkit.errors import LabkitError

_DRY = click.option("--dry", is_flag=True, help="Only say what would be run.")


class _Group(click.Group):
    """Errors as text; the exit status of a failing command is ours."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LabkitError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.status if isinstance(error, CommandFailed) else 2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Images of the lab, and the lab on a cluster. Settings are variables: PROJECT, REGION, IMAGES, TAG, OVERLAY ..."""


@main.command(name="build-push")
@click.option("--target", "targets", type=click.Choice(TARGETS), multiple=True, help="Only these.")
@_DRY
def build_push(targets: tuple[str, ...], dry: bool) -> None:
    """Build the images and push them, if a registry is named."""
    shell, registry = Shell(dry), Registry.of()
    build(shell, registry, targets or TARGETS)
    push(shell, registry, targets or TARGETS)


@main.command()
@click.option(
    "--token-stdin", is_flag=True, help="The access token comes on standard input: no gcloud is needed."
)
@_DRY
def auth(token_stdin: bool, dry: bool) -> None:
    """Let the builder push to Google's Artifact Registry."""
    token = sys.stdin.read().strip() if token_stdin and not dry else ""
    authenticate(Shell(dry), Registry.of(), token="TOKEN" if token_stdin and dry else token)


def _on_cluster(name: str, method: str) -> None:
    @main.command(name=name, help=getattr(Cluster, method).__doc__)
    @_DRY
    def command(dry: bool) -> None:
        getattr(Cluster(Shell(dry)), method)()


for _name in ("deploy", "deploy-bpftool", "deploy-monitoring", "deploy-ballast", "deploy-stressor"):
    _on_cluster(_name, _name.replace("-", "_"))
for _name in ("undeploy", "lab", "notebook"):
    _on_cluster(_name, _name)


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--pod", required=True, help="namespace/name")
@click.option("--seconds", type=float, default=30.0, show_default=True)
@_DRY
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def noisy(pod: str, seconds: float, dry: bool, arguments: tuple[str, ...]) -> None:
    """Who slows this pod down: `labkit noisy` in the exporter on the pod's node. ARGUMENTS go to it."""
    Cluster(Shell(dry)).noisy(PodName.parse(pod), seconds, *arguments)


if __name__ == "__main__":
    main()

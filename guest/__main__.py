"""``python -m guest``: the guest from the command line."""

from __future__ import annotations

import shlex
import sys

import click

from guest.errors import GuestDied, GuestError, HostCannot
from guest.host import say
from guest.image import Image, ensure_image, remove_images
from guest.machine import Machine, TimedOut
from guest.release import DEFAULT, RELEASES
from guest.root import VENV
from guest.start import machine
from labkit.paths import lab_root

# EX_TEMPFAIL of sysexits.h: told apart from 1, a failing test.
INFRASTRUCTURE = 75

TEST_S = 900.0


class _Group(click.Group):
    """Shows what is wrong with the guest as text, under an exit code of its own."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except GuestError as error:
            click.echo(f"guest: infrastructure, not a failing test: {error}", err=True)
            sys.exit(INFRASTRUCTURE)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A throwaway Debian guest with kprobes, under QEMU."""


_release = click.option(
    "--release",
    "release",
    type=click.Choice(sorted(RELEASES)),
    default=DEFAULT.name,
    show_default=True,
    help="Which Debian.",
)


def _stream(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _run(guest: Machine, argv: list[str], timeout_s: float) -> int:
    code, _ = guest.run(argv, timeout_s=timeout_s, env={"PYTEST_TIMEOUT": "300"}, on_text=_stream)
    return code


@main.command(context_settings={"ignore_unknown_options": True})
@_release
@click.option("--fresh", is_flag=True, help="Boot instead of restoring the snapshot.")
@click.option("--timeout", "timeout_s", default=TEST_S, show_default=True, help="Seconds for the tests.")
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
def test(release: str, fresh: bool, timeout_s: float, pytest_arguments: tuple[str, ...]) -> None:
    """Run the tests marked `guest` in it; arguments go to pytest.

    Where no guest can be had (no Linux, no QEMU and no right to install it) the tests are skipped with the reason.
    """
    try:
        image = ensure_image(RELEASES[release])
    except HostCannot as error:
        click.echo(f"guest: the tests in the guest kernel are skipped here: {error}", err=True)
        return
    command = [f"{VENV}/bin/python", "-m", "pytest", "-m", "guest", "-p", "no:cacheprovider"]
    if not any(argument.startswith("tests/") for argument in pytest_arguments):
        command.append("tests/guest")
    command += pytest_arguments
    try:
        code = _test(image, command, timeout_s, fresh=fresh)
    except GuestDied as error:
        # Software emulation dies by itself now and then; twice in a row it is the tests' doing.
        say(f"the tests once more from the start: {error}")
        try:
            code = _test(image, command, timeout_s, fresh=fresh)
        except GuestDied as second:
            click.echo(f"guest: the tests end the guest: {second}", err=True)
            code = 1
    sys.exit(code)


def _test(image: Image, command: list[str], timeout_s: float, *, fresh: bool) -> int:
    with machine(image, root=lab_root(), fresh=fresh) as guest:
        try:
            return _run(guest, command, timeout_s)
        except TimedOut as error:
            click.echo(f"guest: {error}", err=True)
            return 1


@main.command()
@_release
@click.option("--fresh", is_flag=True, help="Boot instead of restoring the snapshot.")
def shell(release: str, fresh: bool) -> None:
    """A shell in it. `exit` or Ctrl-] leaves, and nothing is kept."""
    from guest.shell import shell as run_shell

    with machine(ensure_image(RELEASES[release]), root=lab_root(), fresh=fresh) as guest:
        code = run_shell(guest)
    sys.exit(code)


@main.command(context_settings={"ignore_unknown_options": True})
@_release
@click.option("--fresh", is_flag=True, help="Boot instead of restoring the snapshot.")
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds for the command.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(release: str, fresh: bool, timeout_s: float, command: tuple[str, ...]) -> None:
    """Run one command in it, in /lab; its exit code comes through."""
    with machine(ensure_image(RELEASES[release]), root=lab_root(), fresh=fresh) as guest:
        code = _run(guest, list(command), timeout_s)
    if code:
        say(f"`{shlex.join(command)}` ended with {code}")
    sys.exit(code)


@main.command()
@_release
def build(release: str) -> None:
    """Build its image and snapshot now, so that the first test need not."""
    with machine(ensure_image(RELEASES[release]), root=lab_root()) as guest:
        say(f"ready: {guest.image.folder}")


@main.command()
def clean() -> None:
    """Delete its images from labkit's cache."""
    for path in remove_images():
        say(f"removed {path}")


if __name__ == "__main__":
    main()

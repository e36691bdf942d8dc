"""``python -m guest``: the guest from the command line."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
from typing import Any

import click

from guest.errors import GuestDied, GuestError, HostCannot
from guest.host import say
from guest.image import Image, ensure_image, remove_images
from guest.machine import Machine, TimedOut
from guest.release import DEFAULT, RELEASES, Release
from guest.root import VENV
from guest.start import machine
from labkit.paths import lab_root

# EX_TEMPFAIL of sysexits.h: told apart from 1, a failing test.
INFRASTRUCTURE = 75

# Without a word for so long: longer than one test may take, so that its own limit speaks first.
TEST_S = 900.0
TEST_LIMIT_S = 600
# What is asked of every kernel: it loads, it counts, its types are read right.
_MATRIX = [
    "tests/guest/test_survey.py",
    "tests/guest/test_layouts.py",
    "tests/guest/test_hooks.py",
    "tests/guest/test_cgroups.py",
    "tests/guest/test_rejects_here.py",
]


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


_PYTEST = [f"{VENV}/bin/python", "-m", "pytest", "-p", "no:cacheprovider"]


def _stream(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _run(guest: Machine, argv: list[str], timeout_s: float, *, silence: bool = False) -> int:
    env = {"PYTEST_TIMEOUT": str(TEST_LIMIT_S)}
    code, _ = guest.run(argv, timeout_s=timeout_s, silence=silence, env=env, on_text=_stream)
    return code


@main.command(context_settings={"ignore_unknown_options": True})
@_release
@click.option("--fresh", is_flag=True, help="Boot instead of restoring the snapshot.")
@click.option(
    "--timeout", "timeout_s", default=TEST_S, show_default=True, help="Seconds without a word from the tests."
)
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
def test(release: str, fresh: bool, timeout_s: float, pytest_arguments: tuple[str, ...]) -> None:
    """Run the tests marked `guest` in it; arguments go to pytest.

    Where no guest can be had (no Linux, no QEMU and no right to install it) the tests are skipped with the reason.
    """
    try:
        image = ensure_image(RELEASES[release])
    except HostCannot as error:
        _skipped("the tests in the guest kernel are", error)
        return
    command = [*_PYTEST, "-m", "guest and not slow"]
    if not any(argument.startswith("tests/") for argument in pytest_arguments):
        command.append("tests/guest")
    command += pytest_arguments
    sys.exit(_retried(image, command, timeout_s, fresh=fresh))


def _skipped(what: str, error: HostCannot) -> None:
    """Say it. In CI, and where live tests are forced, what does not run is no success, as with any live test.

    :raises SystemExit: there.
    """
    click.echo(f"guest: {what} skipped here: {error}", err=True)
    if os.environ.get("CI") or os.environ.get("LABKIT_FORCE_LIVE"):
        click.echo("guest: and that is a failure here (CI or LABKIT_FORCE_LIVE is set)", err=True)
        sys.exit(INFRASTRUCTURE)


def _retried(image: Image, command: list[str], timeout_s: float, *, fresh: bool) -> int:
    """The exit code of a command of tests; once more from the start where the guest dies, or falls silent."""
    try:
        return _test(image, command, timeout_s, fresh=fresh)
    except (GuestDied, TimedOut) as error:
        # Software emulation dies or stands still by itself now and then; twice in a row it is the tests' doing.
        say(f"the tests once more from the start: {error}")
    try:
        return _test(image, command, timeout_s, fresh=fresh)
    except (GuestDied, TimedOut) as second:
        click.echo(f"guest: twice now, so the tests do it: {second}", err=True)
        return 1


def _test(image: Image, command: list[str], timeout_s: float, *, fresh: bool) -> int:
    with machine(image, root=lab_root(), fresh=fresh) as guest:
        return _run(guest, command, timeout_s, silence=True)


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
@click.option(
    "--timeout", "timeout_s", default=TEST_S, show_default=True, help="Seconds without a word from the tests."
)
def matrix(timeout_s: float) -> None:
    """Load and compare every program on the further kernels (`test -m guest` does it on the first)."""
    failed = []
    skipped: HostCannot | None = None
    for release in RELEASES.values():
        if release == DEFAULT:
            continue
        try:
            image = ensure_image(release)
        except HostCannot as error:
            say(f"{release.name} cannot be had here: {error}")
            skipped = error
            continue
        say(f"load and compare on {release.name}, Linux {image.kernel}")
        if _retried(image, [*_PYTEST, "-m", "guest", *_MATRIX], timeout_s, fresh=True):
            failed.append(release.name)
    if failed:
        say(f"failed on {', '.join(failed)}")
        sys.exit(1)
    if skipped is not None:
        _skipped("some of the kernel matrix is", skipped)


HERE = "here"
SURVEY_S = 2400.0  # some seventy compilations and thirteen comparisons, under emulation


@main.command()
@click.option("--timeout", "timeout_s", default=SURVEY_S, show_default=True, help="Seconds for each guest.")
@click.option(
    "--only",
    type=click.Choice([HERE, *RELEASES, "nothing"]),
    multiple=True,
    help="Survey only these (`here`: this machine), and keep what is written of the others.",
)
@click.option(
    "--changed",
    "only_changed",
    is_flag=True,
    help="Survey only programs that have changed since the last one.",
)
def compatibility(timeout_s: float, only: tuple[str, ...], only_changed: bool) -> None:
    """Survey this machine and every guest, and write docs/compatibility.md."""
    from guest.compatibility import changed, document, load, merged, save

    places = {HERE: "a machine", **{name: f"guest `{name}`" for name in RELEASES}}
    known = {found["machine"]["where"]: found for found in load()}
    for name in only or places:
        older = known.get(places.get(name, "")) if only_changed else None
        names = None if older is None else changed(older)
        if name not in places or names == []:
            continue
        release = RELEASES.get(name)
        found = _placed(_surveyed(release, names, timeout_s), places[name])
        same = older is not None and names and older["machine"]["kernel"] == found["machine"]["kernel"]
        if older is not None and names and not same:
            found = _placed(_surveyed(release, None, timeout_s), places[name])  # another kernel by now
        known[places[name]] = merged(older, found) if older is not None and same else found
    surveys = sorted(
        known.values(), key=lambda found: [int(n) for n in re.findall(r"\d+", found["machine"]["kernel"])[:2]]
    )
    save(surveys)
    say(f"wrote {document()}")


def _surveyed(release: Release | None, names: list[str] | None, timeout_s: float) -> dict[str, Any]:
    """A survey of a guest, or of this machine; of these programs only."""
    what = "" if names is None else f" ({', '.join(names)})"
    if release is None:
        from guest.survey import survey

        say(f"survey of this machine, Linux {platform.release()}{what}")
        return survey(names)
    image = ensure_image(release)
    say(f"survey of {release.name}, Linux {image.kernel}{what}")
    with machine(image, root=lab_root(), fresh=True) as guest:
        command = [f"{VENV}/bin/python", "-m", "guest.survey", *(names or [])]
        code, text = guest.run(command, timeout_s=timeout_s)
    if code:
        raise GuestError(f"The survey of {release.name} failed with {code}.", why=text[-2000:])
    found: dict[str, Any] = json.loads(text[text.index("{") :])
    return found


def _placed(found: dict[str, Any], where: str) -> dict[str, Any]:
    found["machine"]["where"] = where
    return found


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

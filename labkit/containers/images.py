"""Images: built from the Dockerfile by the builder that is here, named for a registry, pushed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from labkit import __version__
from labkit.containers.shell import MissingTool, Shell
from labkit.errors import ParameterError
from labkit.paths import lab_root

__all__ = ["BUILDERS", "TARGETS", "Registry", "authenticate", "build", "push"]

TARGETS = ("exporter", "lab", "tools")
BUILDERS = ("docker", "podman", "buildah")  # the first that is installed; BUILDER chooses


@dataclass(frozen=True)
class Registry:
    """Where images are kept, and under which tag.

    :param prefix: what stands before ``labkit-exporter``: ``localhost``, or ``REGION-docker.pkg.dev/PROJECT/REPOSITORY``.
    """

    prefix: str
    tag: str = __version__

    @classmethod
    def of(cls, settings: Mapping[str, str] | None = None) -> Registry:
        """From settings (by default the environment): ``IMAGES``, or ``PROJECT``, ``REGION`` and ``REPOSITORY``; ``TAG``.

        :raises ParameterError: if a name cannot be one.
        """
        given = os.environ if settings is None else settings
        project = given.get("PROJECT", "")
        region = given.get("REGION") or "europe-west1"
        prefix = given.get("IMAGES", "").rstrip("/") or (
            f"{region}-docker.pkg.dev/{project}/{given.get('REPOSITORY') or 'labkit'}"
            if project
            else "localhost"
        )
        tag = given.get("TAG") or __version__
        if not re.fullmatch(r"[\w.:-]+(/[\w.:-]+)*", prefix):
            raise ParameterError(f"no registry can be called {prefix!r}", remedy="IMAGES=host/folder")
        if not re.fullmatch(r"\w[\w.-]{0,127}", tag) or tag == "latest":
            raise ParameterError(
                f"{tag!r} is no tag to deploy",
                why="`latest` says nothing about what runs",
                remedy=f"TAG={__version__}",
            )
        return cls(prefix, tag)

    @property
    def host(self) -> str:
        """The registry's host name."""
        return self.prefix.split("/")[0]

    @property
    def local(self) -> bool:
        """True if images stay on this machine."""
        return self.host == "localhost"

    def image(self, target: str) -> str:
        """Name of a target's image, with its tag."""
        return f"{self.prefix}/labkit-{target}:{self.tag}"


def _builder(shell: Shell) -> str:
    chosen = os.environ.get("BUILDER", "")
    if chosen and chosen not in BUILDERS:
        raise ParameterError(f"BUILDER={chosen}", remedy=f"one of {', '.join(BUILDERS)}")
    found = [name for name in ([chosen] if chosen else BUILDERS) if shutil.which(name)]
    if found:
        return found[0]
    if shell.dry:
        return chosen or BUILDERS[0]
    raise MissingTool(
        "nothing here builds images",
        why=f"{chosen} is not installed" if chosen else f"none of {', '.join(BUILDERS)} is installed",
        remedy="./task setup -- --parts containers (Debian, Ubuntu), or ./task lima-build-push",
    )


def build(shell: Shell, registry: Registry, targets: tuple[str, ...] = TARGETS) -> None:
    """Build images. ``BUILD_ARGS`` in the environment is handed to the builder: proxies, certificates, platforms.

    :raises MissingTool, CommandFailed: as :class:`~labkit.containers.shell.Shell` says.
    """
    builder = _builder(shell)
    extra = shlex.split(os.environ.get("BUILD_ARGS", ""))
    # Docker's format: OCI's knows no health checks. buildah and podman keep layers only if told so.
    form = [] if builder == "docker" else ["--format", "docker", "--layers"]
    for target in targets:
        shell.run(
            *(
                builder,
                "build",
                *form,
                "--target",
                target,
                "--tag",
                registry.image(target),
                *extra,
                str(lab_root()),
            )
        )


def push(shell: Shell, registry: Registry, targets: tuple[str, ...] = TARGETS) -> None:
    """Push what :func:`build` built. A registry called localhost is this machine's own store: nothing to do."""
    if registry.local:
        shell.say(
            "images stay here: PROJECT=... (and REGION, REPOSITORY), or IMAGES=host/folder, names a registry"
        )
        return
    for target in targets:
        shell.run(_builder(shell), "push", registry.image(target))


def authenticate(shell: Shell, registry: Registry, *, token: str = "") -> None:
    """Let the builder push to Google's Artifact Registry, by gcloud's own login.

    With docker this only tells it to ask gcloud from now on; whether somebody is logged in there shows at the push.

    :param token: an access token from elsewhere (a machine with gcloud), instead of asking gcloud here.
    :raises ParameterError: for another registry, which has a login of its own.
    """
    if not registry.host.endswith("-docker.pkg.dev"):
        raise ParameterError(
            f"{registry.host} is not Google's Artifact Registry",
            remedy=f"PROJECT=... REGION=..., or log in yourself: {_builder(shell)} login {registry.host}",
        )
    builder = _builder(shell)
    if builder == "docker" and not token:
        shell.run("gcloud", "auth", "configure-docker", registry.host, "--quiet")
        return
    # podman and buildah do not call gcloud's credential helper; a token lasts an hour.
    token = token or shell.read("gcloud", "auth", "print-access-token", unknown="TOKEN")
    shell.run(
        *(builder, "login", "--username", "oauth2accesstoken", "--password-stdin", registry.host),
        given=token,
        about="the token goes in on standard input",
    )

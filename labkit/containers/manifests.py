"""The manifests under k8s/: rendered by kubectl's own kustomize, with the images of one's registry put in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from labkit.containers.images import TARGETS, Registry
from labkit.containers.shell import Shell
from labkit.errors import LabkitError, ParameterError
from labkit.paths import lab_root

__all__ = ["OVERLAYS", "Rendering", "apply", "documents", "k8s_dir"]

OVERLAYS = ("gke", "kind")


def k8s_dir() -> Path:
    """Manifests, one file per purpose; ``base`` and ``overlays`` for the exporter."""
    return lab_root() / "k8s"


@dataclass(frozen=True)
class Rendering:
    """What is to be applied.

    :param resources: files or overlays, relative to ``k8s/``.
    :param components: kustomize components, relative to ``k8s/``.
    :param images: names in the manifests -> ``NAME:TAG`` instead.
    :param patches: kustomize patches (``{"target": ..., "patch": ...}``).
    """

    resources: tuple[str, ...]
    components: tuple[str, ...] = ()
    images: dict[str, str] = field(default_factory=dict)
    patches: tuple[dict[str, Any], ...] = ()

    @classmethod
    def with_images(
        cls,
        registry: Registry,
        *resources: str,
        components: Sequence[str] = (),
        patches: Sequence[dict[str, Any]] = (),
    ) -> Rendering:
        """The lab's images as they are called in a registry."""
        images = {f"labkit-{target}": registry.image(target) for target in TARGETS}
        return cls(resources, tuple(components), images, tuple(patches))

    def kustomization(self) -> dict[str, Any]:
        """The kustomization.yaml that says all this; it stands beside a copy of ``k8s/``."""
        images = []
        for name, wanted in self.images.items():
            new_name, _, tag = wanted.rpartition(":")
            images.append({"name": name, "newName": new_name, "newTag": tag})
        return {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"k8s/{name}" for name in self.resources],
            "components": [f"k8s/{name}" for name in self.components],
            "images": images + self._overlay_images(),
            "patches": list(self.patches),
        }

    def _overlay_images(self) -> list[dict[str, str]]:
        """An overlay has renamed images already; its names are replaced too."""
        found = []
        for resource in self.resources:
            path = k8s_dir() / resource / "kustomization.yaml"
            if path.is_file():
                for image in yaml.safe_load(path.read_text()).get("images", []):
                    new_name, _, tag = self.images[image["name"]].rpartition(":")
                    found.append({"name": image["newName"], "newName": new_name, "newTag": tag})
        return found

    def text(self, shell: Shell) -> str:
        """All documents as YAML.

        :raises MissingTool, CommandFailed: of kubectl.
        """
        # A copy: kustomize takes files from its own folder only, and the folder of a base must not hold its overlays'.
        with tempfile.TemporaryDirectory(prefix="labkit-k8s-") as room:
            shutil.copytree(k8s_dir(), Path(room) / "k8s")
            (Path(room) / "kustomization.yaml").write_text(yaml.safe_dump(self.kustomization()))
            return shell.read("kubectl", "kustomize", room)

    def describe(self) -> str:
        """One line for people."""
        names = " ".join(f"k8s/{name}" for name in (*self.resources, *self.components))
        texts = [path for name in self.resources for path in _files(k8s_dir() / name)]
        used = "".join(path.read_text() for path in texts)
        wanted = [image for name, image in self.images.items() if f"image: {name}:" in used]
        return f"{names}{' with ' if wanted else ''}{', '.join(wanted)}"


def _files(resource: Path) -> list[Path]:
    """A manifest, or those of an overlay's base."""
    return sorted((k8s_dir() / "base").glob("*.yaml")) if resource.is_dir() else [resource]


def apply(shell: Shell, rendering: Rendering) -> None:
    """``kubectl apply`` of a rendering.

    :raises LabkitError: if a file is not there.
    """
    for name in rendering.resources:
        if not (k8s_dir() / name).exists():
            raise LabkitError(f"there is no k8s/{name}")
    text = "" if shell.dry else rendering.text(shell)
    shell.run("kubectl", "apply", "-f", "-", given=text, about=rendering.describe())


def overlay(name: str) -> str:
    """The overlay's path under ``k8s/``.

    :raises ParameterError: if there is none of that name.
    """
    if name not in OVERLAYS:
        raise ParameterError(f"there is no overlay {name!r}", remedy=f"OVERLAY={' or '.join(OVERLAYS)}")
    return f"overlays/{name}"


def documents(text: str) -> list[dict[str, Any]]:
    """The documents of a YAML text, empty ones left out."""
    return [document for document in yaml.safe_load_all(text) if document]

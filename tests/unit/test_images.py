"""Images: what they are called, where they are kept, what they are made from and what they hold."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from labkit import __version__
from labkit.containers import images, slim
from labkit.containers.images import Registry
from labkit.errors import ParameterError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        ({}, "localhost"),
        ({"PROJECT": "p"}, "europe-west1-docker.pkg.dev/p/labkit"),
        ({"PROJECT": "p", "REGION": "us-east1", "REPOSITORY": "r"}, "us-east1-docker.pkg.dev/p/r"),
        ({"IMAGES": "ghcr.io/me/", "PROJECT": "p"}, "ghcr.io/me"),
    ],
)
def test_where_images_are_kept(settings: dict[str, str], prefix: str) -> None:
    assert Registry.of(settings).image("lab") == f"{prefix}/labkit-lab:{__version__}"


@pytest.mark.parametrize(
    "settings", [{"TAG": "latest"}, {"TAG": "a b"}, {"IMAGES": "a b"}, {"PROJECT": "p;q"}, {"TAG": "-x"}]
)
def test_names_that_no_registry_takes_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ParameterError):
        Registry.of(settings)


def test_what_the_exporter_keeps_is_closed_under_requirements() -> None:
    needs = {"a": ["b>=1", 'c; sys_platform == "nothing"'], "b": ["d[x]"], "d": ['e; extra == "x"'], "f": []}
    assert slim.closure(["A"], requires=needs.__getitem__) == {"a", "b", "d"}
    assert slim.closure(["a", "f"], leave={"a"}, requires=needs.__getitem__) == {"a", "f"}


def test_the_lab_itself_is_among_what_the_exporter_keeps() -> None:
    assert importlib.metadata.metadata("noisy-neighbour-lab")["Name"] in slim.KEPT


def test_every_image_is_made_from_one_base_by_the_provisioning_script() -> None:
    text = (ROOT / "Dockerfile").read_text()
    lines = [line.split() for line in text.splitlines() if line.startswith("FROM ")]
    made = {line[3]: line[1] for line in lines}
    assert {name for name in made.values() if name not in made} == {"debian:13-slim"}
    assert set(images.TARGETS) <= set(made)
    assert "apt-get" not in text
    assert text.count("lima/provision.sh --image") >= len(images.TARGETS)


@pytest.mark.parametrize("target", images.TARGETS)
def test_every_image_has_a_health_check(target: str) -> None:
    text = (ROOT / "Dockerfile").read_text()
    stage = text.split(f" AS {target}\n")[1].split("\nFROM ")[0]
    assert "\nHEALTHCHECK " in stage
    assert ("\nUSER 65532:65532\n" in stage) == (target != "lab")


def test_what_the_exporter_imports_is_in_its_image() -> None:
    entries = [
        "labkit.cli",
        "labkit.doctor",
        "labkit.metrics.command",
        "labkit.metrics.files",
        "labkit.noisy.command",
    ]
    code = (
        "import sys, importlib; before = set(sys.modules)\n"
        f"for name in {entries!r}: importlib.import_module(name)\n"
        "print(*set(sys.modules) - before)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    homes = importlib.metadata.packages_distributions()
    used = {
        str(canonicalize_name(home))
        for name in loaded.split()
        if "." not in name
        for home in homes.get(name, [])
    }
    assert used <= slim.closure(slim.KEPT, leave={"noisy-neighbour-lab"})

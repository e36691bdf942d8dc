"""environment.yml (conda) and pyproject.toml (pip) ask for the same things."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
# Where conda-forge splits a project, the part without the extras that PyPI's wheel does not carry either.
CONDA_NAMES = {
    "matplotlib": "matplotlib-base",
    "nbconvert": "nbconvert-core",
    "prometheus-client": "prometheus_client",
}


def conda() -> dict[str, str]:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return dict(entry.split(" ", 1) for entry in listed if isinstance(entry, str) and entry != "pip")


def test_conda_environment_has_the_dependencies_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"python": project["requires-python"]}
    for text in project["dependencies"]:
        requirement = Requirement(text)
        wanted[CONDA_NAMES.get(requirement.name, requirement.name)] = str(requirement.specifier)
    assert conda() == wanted


def test_conda_environment_installs_labkit_itself() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {"pip": ["--editable ."]} in listed


def test_lock_pins_every_dependency_with_hashes_and_without_addresses() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    entries = [entry for entry in lock.replace("\\\n", " ").splitlines() if entry.strip()]
    assert all("--hash=sha256:" in entry for entry in entries)
    pinned = {
        Requirement(entry.split("--hash")[0].strip()).name.lower().replace("_", "-") for entry in entries
    }
    everything = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {Requirement(text).name.lower().replace("_", "-") for text in everything} <= pinned

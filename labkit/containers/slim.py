"""Take out of an image's environment what the exporter never imports: ``python -m labkit.containers.slim VENV``.

What stays is :data:`KEPT` and all that these need, by the packages' own metadata; versions are those of the lock.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["KEPT", "closure", "slim"]

KEPT = (
    "numpy",
    "pandas",
    "pyarrow",
    "click",
    "rich",
    "pyyaml",
    "prometheus-client",
    "tornado",
    "httpx",
    "noisy-neighbour-lab",
)
# Of pyarrow, which is half of all, the lab uses tables and Parquet on local disks.
_ARROW = (
    "include",
    "tests",
    "src",
    "*.pxd",
    "*.pyx",
    *(
        "libarrow_flight*",
        "libarrow_python_flight*",
        "_flight*",
        "libarrow_s3*",
        "_s3fs*",
        "_gcsfs*",
        "_azurefs*",
    ),
)
_UNUSED = ("**/tests", "**/test", "**/*.a", "**/*.pyi")
_STILL = "import click, httpx, numpy, pandas, prometheus_client, pyarrow.dataset, pyarrow.parquet, rich, tornado, yaml"

Requires = Callable[[str], Iterable[str]]


def _installed_requires(name: str) -> Iterable[str]:
    return importlib.metadata.requires(name) or []


def closure(
    names: Iterable[str], *, leave: Iterable[str] = (), requires: Requires = _installed_requires
) -> set[str]:
    """Names and all that they need here, by canonical name.

    :param leave: packages whose own requirements are not followed.
    """
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = str(canonicalize_name(todo.pop()))
        if name in found:
            continue
        found.add(name)
        if name in leave:
            continue
        wanted = (Requirement(line) for line in requires(name))
        todo += [need.name for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def slim(venv: Path) -> list[str]:
    """Uninstall all but the closure of :data:`KEPT` from an environment; returns what went."""
    # The lab itself stays without all that it needs for notebooks.
    kept = closure(KEPT, leave={"noisy-neighbour-lab"})
    installed = {
        str(canonicalize_name(d.metadata["Name"])) for d in importlib.metadata.distributions(path=_site(venv))
    }
    gone = sorted(installed - kept)
    pip = [str(venv / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "uninstall", "--yes", "--root-user-action", "ignore", *gone], check=True
    )  # pip goes as well
    for site in map(Path, _site(venv)):
        for pattern in (*(f"pyarrow/{name}" for name in _ARROW), *_UNUSED):
            for path in list(site.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (venv / "install.log").unlink(missing_ok=True)
    subprocess.run([str(venv / "bin/python"), "-c", _STILL], check=True)
    return gone


def _site(venv: Path) -> list[str]:
    return [str(path) for path in (venv / "lib").glob("python3*/site-packages")]


if __name__ == "__main__":
    removed = slim(Path(sys.argv[1]))
    print(f"slim: {len(removed)} packages removed: {', '.join(removed)}")

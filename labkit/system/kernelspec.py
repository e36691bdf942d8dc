"""The environment's own Jupyter kernelspec, made to start kernels through :mod:`labkit.system.launch`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from labkit.system.environment import own_environment

__all__ = ["wrap_kernelspec"]


def wrap_kernelspec(prefix: Path | None = None) -> bool:
    """Put the launcher before the command of ``share/jupyter/kernels/python3/kernel.json``, as ipykernel installed it.

    Whether a kernel can and must go through the launcher is decided when it starts, not here: the same file serves
    root, a user of the group, and a user without any rights.

    :param prefix: the environment; the running one by default (a venv, uv's, conda's). A system-wide Python is left alone.
    :returns: True if the kernelspec starts kernels so now; False if there is none that we may change (kernels then
        start as ever, and the doctor says what they may do).
    """
    if prefix is None and not own_environment():
        return False
    path = (prefix or Path(sys.prefix)) / "share/jupyter/kernels/python3/kernel.json"
    try:
        spec = json.loads(path.read_text())
        before = list(spec["argv"])
        tail = before[before.index("-m") :]
        launch = Path(__file__).with_name("launch.py")
        spec["argv"] = [sys.executable, "-I", "-S", str(launch), sys.executable, *tail]
        if spec["argv"] != before:
            scratch = path.with_suffix(".new")
            scratch.write_text(json.dumps(spec, indent=1) + "\n")
            scratch.replace(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True

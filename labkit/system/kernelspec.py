"""The environment's own Jupyter kernelspec, which starts kernels through :mod:`labkit.system.launch`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["KernelSpec"]


class KernelSpec:
    """``share/jupyter/kernels/python3/kernel.json`` of the environment that runs this.

    Whether a kernel can and must go through the launcher is decided when it starts, not here: the same file
    serves root, a user of the group, and a user without any rights.
    """

    def __init__(self, prefix: Path | None = None) -> None:
        self.path = (prefix or Path(sys.prefix)) / "share/jupyter/kernels/python3/kernel.json"

    def content(self) -> dict[str, Any]:
        """The kernelspec, as Jupyter reads it."""
        launch = Path(__file__).with_name("launch.py")
        return {
            "argv": [
                *(sys.executable, "-I", "-S", str(launch)),
                *(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
            ],
            "display_name": "Python 3 (labkit)",
            "language": "python",
            "metadata": {"debugger": True},
        }

    def write_if_needed(self) -> None:
        """Write it where this environment is an environment that we can write to; otherwise leave things alone."""
        if sys.prefix == sys.base_prefix and self.path.is_relative_to(sys.prefix):
            return  # a system-wide Python: its kernels are not ours to change
        text = json.dumps(self.content(), indent=1) + "\n"
        try:
            if not self.path.is_file() or self.path.read_text() != text:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(text)
        except OSError:
            return  # read-only environment: kernels then start plainly, and the doctor says what they may do

"""Whether the running Python is of an environment of one's own (venv, uv, conda), which the lab may change."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["own_environment"]


def own_environment() -> bool:
    """True for venv's and uv's, whose prefix is not the base's, and for conda's, where it is; False for the system's."""
    return sys.prefix != sys.base_prefix or (Path(sys.prefix) / "conda-meta").is_dir()

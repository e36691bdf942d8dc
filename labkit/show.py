"""Showing one object once: rich in a notebook, as text everywhere else."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["Shown", "headless", "in_notebook", "sharp_figures", "show_bundle"]


def headless() -> bool:
    """True in a run without a reader (``labkit run`` sets ``LABKIT_HEADLESS=1`` for its kernels)."""
    return os.environ.get("LABKIT_HEADLESS", "") == "1"


def _shell() -> Any:
    # IPython is not imported for this: where it runs, it is loaded.
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def show_bundle(bundle: dict[str, Any]) -> None:
    """Display a MIME bundle, or print its ``text/plain`` where no IPython runs."""
    if _shell() is None:
        print(bundle["text/plain"], flush=True)
        return
    from IPython.display import display

    display(bundle, raw=True)  # type: ignore[no-untyped-call]


def in_notebook() -> bool:
    """True in a Jupyter kernel, where what is displayed can be seen (and not in a plain IPython)."""
    return hasattr(_shell(), "kernel")


def sharp_figures() -> None:
    """From now on the notebook's figures have two pixels for each of the page's; outside a notebook nothing happens."""
    if not in_notebook():
        return
    shell = _shell()
    from matplotlib_inline.config import InlineBackend

    InlineBackend.instance(parent=shell).figure_formats = {"retina"}


class Shown:
    """Mix-in: :meth:`show` displays at once; as the last expression of that cell it is not shown twice."""

    def bundle(self) -> dict[str, Any]:
        """The MIME bundle; must have ``text/plain``."""
        raise NotImplementedError

    def show(self) -> None:
        """Display now."""
        shell = _shell()
        # object.__setattr__: the classes that mix this in are frozen dataclasses.
        object.__setattr__(self, "_shown_at", getattr(shell, "execution_count", None))
        show_bundle(self.bundle())

    def _ipython_display_(self) -> None:
        shell = _shell()
        if getattr(self, "_shown_at", None) != getattr(shell, "execution_count", None):
            show_bundle(self.bundle())

"""The index of labkit's public functions: tables in ``docs/functions.md``, made from docstrings.

``python -m labkit.functions`` brings them up to date. What stands between ``<!-- functions: MODULE NAME ... -->`` and
``<!-- end -->`` is made anew: the names of the module's ``__all__`` (or those that are listed) with the first sentence
of each docstring. Between ``<!-- methods: MODULE CLASS CALLED NAME ... -->`` and ``<!-- end -->`` stand the public methods
and properties of a class (or those that are listed), as they are written for an object that is called so. The text and the
examples around the tables are written by hand, and tests run the examples.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
from dataclasses import dataclass
from typing import Any

from labkit.paths import lab_root

__all__ = ["Entry", "entries", "methods", "updated"]

_TABLE = re.compile(
    r"(?P<begin><!-- (?P<what>functions|methods): (?P<module>[\w.]+)(?P<names>[^>]*?) -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Entry:
    """One line of a table: what to write, and what it is for."""

    name: str
    call: str
    what: str


def entries(module: str, names: tuple[str, ...] = ()) -> list[Entry]:
    """The public functions and classes of a module, by its ``__all__``; constants and modules are left out.

    >>> [entry.call for entry in entries("labkit.histogram", ("quantile",))]
    ['histogram.quantile(histogram, q)']
    """
    home = importlib.import_module(module)
    found = []
    for name in names or tuple(home.__all__):
        thing = getattr(home, name)
        if callable(thing) and not isinstance(thing, types.ModuleType):
            found.append(Entry(name, _call(module, name, thing), _first_sentence(thing)))
    return found


def methods(module: str, cls: str, called: str, names: tuple[str, ...] = ()) -> list[Entry]:
    """The public methods and properties of a class, in the order of the source.

    >>> [entry.call for entry in methods("labkit.program", "Program", "prog", ("frame", "ledger"))]
    ['prog.frame(name, per_cpu=..., explode=...)', 'prog.ledger']
    """
    home = getattr(importlib.import_module(module), cls)
    public = [name for name in vars(home) if not name.startswith("_")]
    found = []
    for name in names or tuple(public):
        thing = inspect.getattr_static(home, name)
        if isinstance(thing, property):
            found.append(Entry(name, f"{called}.{name}", _first_sentence(thing)))
        elif callable(thing):
            found.append(
                Entry(name, f"{called}.{name}({_parameters(thing, bound=True)})", _first_sentence(thing))
            )
    return found


def _call(module: str, name: str, thing: Any) -> str:
    short = "lk" if module == "labkit" else module.removeprefix("labkit.")
    if inspect.isclass(thing):
        return f"{short}.{name}"
    return f"{short}.{name}({_parameters(thing)})"


def _parameters(thing: Any, *, bound: bool = False) -> str:
    """``a, b=..., **more``; of a method without the object itself."""
    parameters = []
    for parameter in list(inspect.signature(thing).parameters.values())[bound:]:
        star = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        default = "" if parameter.default is parameter.empty else "=..."
        parameters.append(f"{star}{parameter.name}{default}")
    return ", ".join(parameters)


def _first_sentence(thing: Any) -> str:
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.?!])\s+(?=[A-Z])", paragraph)[0]
    # Markup of docstrings to that of Markdown: ``code``, :func:`~package.name`.
    sentence = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", sentence).replace("``", "`")
    return sentence.replace("|", "\\|")


def updated(markdown: str) -> str:
    """``markdown`` with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        names = match["names"].split()
        if match["what"] == "methods":
            listed = methods(match["module"], names[0], names[1], tuple(names[2:]))
        else:
            listed = entries(match["module"], tuple(names))
        rows = [f"| `{entry.call}` | {entry.what} |" for entry in listed]
        return "\n".join(
            [match["begin"].rstrip(), "", "| call | what it does |", "| --- | --- |", *rows, "", match["end"]]
        )

    return _TABLE.sub(table, markdown)


if __name__ == "__main__":
    path = lab_root() / "docs" / "functions.md"
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(path)

"""Whose prediction it is: a chapter's cell comes with numbers to be replaced, and those are not the learner's."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

from labkit.paths import notebooks_dir

__all__ = ["NOT_PREDICTED", "given_by", "own"]

#: What stands in place of a prediction that nobody made.
NOT_PREDICTED = "not predicted"


def given_by(chapter: str) -> dict[str, Any]:
    """What ``lab.predict({...})`` holds in the chapter as it is shipped; empty if that cannot be told."""
    try:
        cells = json.loads((notebooks_dir() / f"{chapter}.ipynb").read_text())["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    for cell in cells:
        source = "".join(cell.get("source", ()))
        if cell.get("cell_type") == "code" and "lab.predict(" in source:
            return _literal(source)
    return {}


def _literal(source: str) -> dict[str, Any]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return {}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "predict"
        ):
            try:
                found = ast.literal_eval(node.args[0])
            except (IndexError, ValueError):
                return {}
            return dict(found) if isinstance(found, dict) else {}
    return {}


def own(chapter: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a prediction that is the learner's: none of it while all of it is as the chapter gives it.

    Whoever changes one of the values has looked at the others. One that is still ``...`` is never a prediction.
    """
    if dict(values) == given_by(chapter):
        return {}
    return {name: value for name, value in values.items() if not isinstance(value, EllipsisType)}

"""Notebooks before they run: which there are, their parameters, the solutions put into their exercises."""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import nbformat
from papermill.inspection import inspect_notebook

from labkit.errors import NotebookFailed, ParameterError
from labkit.paths import notebooks_dir

__all__ = [
    "chapters",
    "declared_parameters",
    "exercise_id",
    "put_in_solutions",
    "read_notebook",
    "read_solutions",
    "tags",
    "typed_parameters",
]

MODES = ("auto", "live", "replay")

_SECTION = re.compile(r"^# %%\s*exercise:(?P<id>\S+)\s*$")
_TRUTHS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_CONTAINERS = {"list": list, "dict": dict, "tuple": tuple}


def chapters(folder: Path | None = None) -> list[Path]:
    """The chapters, ``NN_name.ipynb``, in order."""
    return sorted((folder or notebooks_dir()).glob("[0-9][0-9]_*.ipynb"))


def tags(cell: Mapping[str, Any]) -> list[str]:
    """A cell's tags."""
    return list(cell.get("metadata", {}).get("tags", []))


def exercise_id(cell: Mapping[str, Any]) -> str | None:
    """``"06.2"`` for a cell tagged ``exercise:06.2``."""
    for tag in tags(cell):
        if tag.startswith("exercise:"):
            return tag.removeprefix("exercise:")
    return None


def read_notebook(path: Path) -> Any:
    """The notebook as an nbformat node.

    :raises NotebookFailed: there is none, or it is not a notebook.
    """
    try:
        return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise NotebookFailed(f"{path} cannot be read", why=error.strerror or str(error)) from None
    except Exception as error:  # nbformat raises whatever its JSON and schema validators raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotebookFailed(f"{path} is not a notebook", why=first) from None


# --- parameters ---


def declared_parameters(notebook: Any) -> dict[str, tuple[str, Any]]:
    """Name -> (type name, default) of the ``parameters`` cell; the type by its annotation or its default."""
    declared = {}
    for name, parameter in inspect_notebook(notebook).items():
        default = _literal(parameter["default"])
        kind = parameter["inferred_type_name"]
        if kind in (None, "None", ""):
            kind = type(default).__name__ if default is not None else "any"
        declared[name] = (kind, default)
    return declared


def typed_parameters(
    notebooks: Mapping[str, Any], given: Mapping[str, Any], *, mode: str = "auto"
) -> dict[str, dict[str, Any]]:
    """For each notebook what it declares among ``given``, converted to the declared types.

    :param notebooks: name -> notebook.
    :param given: parameter -> value; text (from a command line) is read by the declared type.
    :param mode: the run's mode, handed to every notebook that declares ``mode``.
    :raises ParameterError: no notebook declares one of them, or a value does not fit its type.
    """
    declared = {name: declared_parameters(notebook) for name, notebook in notebooks.items()}
    known = {parameter for parameters in declared.values() for parameter in parameters}
    for parameter in given:
        if parameter not in known:
            raise _unknown(parameter, sorted(known), list(notebooks))
    result: dict[str, dict[str, Any]] = {}
    for name, parameters in declared.items():
        values: dict[str, Any] = {"mode": mode} if "mode" in parameters else {}
        values |= {key: value for key, value in given.items() if key in parameters}
        result[name] = {key: _convert(key, value, *parameters[key]) for key, value in values.items()}
    return result


def _unknown(parameter: str, known: Sequence[str], notebooks: Sequence[str]) -> ParameterError:
    nearest = difflib.get_close_matches(parameter, known, n=1, cutoff=0.5)
    where = notebooks[0] if len(notebooks) == 1 else f"any of the {len(notebooks)} notebooks"
    return ParameterError(
        f"unknown parameter {parameter!r}",
        why=f"it is not in the cell tagged `parameters` of {where}",
        remedy=f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(known) or 'none'}",
    )


def _convert(name: str, value: Any, kind: str, default: Any) -> Any:
    try:
        converted = _by_type(value, kind)
    except (ValueError, SyntaxError, TypeError):
        raise ParameterError(
            f"parameter {name} = {value!r} is no {kind}",
            why=f"the notebook declares it as {kind} (its default is {default!r})",
            remedy=f"for example: -p {name} {default}",
        ) from None
    if name == "mode" and converted not in MODES:
        raise ParameterError(f"mode {value!r} is unknown", remedy=f"one of {', '.join(MODES)}")
    return converted


def _by_type(value: Any, kind: str) -> Any:
    if kind == "bool":
        if str(value).lower() not in _TRUTHS:
            _bad()
        return _TRUTHS[str(value).lower()]
    if kind == "int":
        return _bad() if isinstance(value, (bool, float)) else int(value)
    if kind == "float":
        number = _bad() if isinstance(value, bool) else float(value)
        return number if math.isfinite(number) else _bad()
    if kind == "str":
        return value if isinstance(value, str) else _bad()
    read = _literal(value) if isinstance(value, str) else value
    return read if isinstance(read, _CONTAINERS.get(kind, object)) else _bad()


def _bad() -> NoReturn:
    raise ValueError


def _literal(source: Any) -> Any:
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return source


# --- exercises ---


def read_solutions(path: Path) -> dict[str, str]:
    """Exercise id -> source, from a file of ``# %% exercise:NN.k`` sections; what precedes the first is a header.

    :raises NotebookFailed: an exercise has two sections.
    """
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        heading = _SECTION.match(line)
        if heading is None:
            current.append(line)
            continue
        if heading["id"] in sections:
            raise NotebookFailed(f"{path.name} has two solutions of exercise {heading['id']}")
        current = sections[heading["id"]] = []
    return {key: "\n".join(lines).strip("\n") for key, lines in sections.items()}


def put_in_solutions(notebook: Any, solutions: Mapping[str, str], *, name: str) -> int:
    """Replace the source of every exercise cell by its solution; how many there were.

    :raises NotebookFailed: an exercise has no solution, or a solution no exercise.
    """
    cells = {exercise: cell for cell in notebook.cells if (exercise := exercise_id(cell)) is not None}
    missing = sorted(cells.keys() - solutions.keys())
    stale = sorted(solutions.keys() - cells.keys())
    if missing or stale:
        raise NotebookFailed(
            f"exercises and solutions of {name} differ",
            why="; ".join(
                f"{what}: {', '.join(ids)}"
                for what, ids in (("without solution", missing), ("without exercise", stale))
                if ids
            ),
            remedy=f"mend notebooks/solutions/{name}.py",
        )
    for exercise, cell in cells.items():
        remark = f"# A solution of exercise {exercise}, put in by the headless run."
        cell.source = f"{remark}\n{solutions[exercise]}"
    return len(cells)


def solutions_of(notebook_path: Path) -> dict[str, str]:
    """The solutions beside a notebook (``solutions/NAME.py``), else those of the lab's chapter of that name."""
    for folder in (notebook_path.parent, notebooks_dir()):
        path = folder / "solutions" / f"{notebook_path.stem}.py"
        if path.is_file():
            return read_solutions(path)
    return {}

"""From C types to numpy: bcc's description of a map's key or value becomes columns.

bcc describes types in JSON (``bpf_table_key_desc``): ``"unsigned int"``, or
``["name", [[member, type], [member, type, [dims]], ...], "struct" | "struct_packed" | "union"]`` with padding spelt out as
members ``__pad_N``. Everything here is worked out once per map; reading entries is views and copies of whole columns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labkit.errors import MapError

__all__ = ["Column", "Layout", "layout_of"]

_SCALARS = {
    "_Bool": "?",
    "bool": "?",
    "char": "i1",
    "signed char": "i1",
    "unsigned char": "u1",
    "short": "i2",
    "unsigned short": "u2",
    "int": "i4",
    "unsigned int": "u4",
    "long": "i8",
    "unsigned long": "u8",
    "long long": "i8",
    "unsigned long long": "u8",
    "float": "f4",
    "double": "f8",
}


@dataclass(frozen=True)
class Column:
    """One column: its place in the record, its dtype, and how many elements it has (1 for a scalar)."""

    name: str
    offset: int
    dtype: np.dtype[Any]
    count: int = 1
    text: bool = False


@dataclass(frozen=True)
class Layout:
    """The columns of a record of ``size`` bytes."""

    size: int
    columns: tuple[Column, ...]

    def arrays(self, raw: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of records.

        :param raw: shape (..., stride) of uint8 with ``stride >= size``, C-contiguous.
        :returns: name -> array of shape (...,) or (..., count).
        """
        stride = raw.shape[-1]
        record = np.dtype(
            {
                "names": [c.name for c in self.columns],
                "formats": [c.dtype if c.count == 1 else (c.dtype, (c.count,)) for c in self.columns],
                "offsets": [c.offset for c in self.columns],
                "itemsize": stride,
            }
        )
        records = raw.reshape(-1).view(record).reshape(raw.shape[:-1])
        return {c.name: np.ascontiguousarray(records[c.name]) for c in self.columns}

    def series(self, column: Column, values: np.ndarray) -> dict[str, pd.Series]:
        """A column as pandas Series: text decoded, arrays spread as ``name_0`` ... ``name_{n-1}``."""
        if column.text:
            return {column.name: _text(values)}
        if column.count == 1:
            return {column.name: pd.Series(values)}
        return {f"{column.name}_{i}": pd.Series(values[:, i].copy()) for i in range(column.count)}


def _text(values: np.ndarray) -> pd.Series:
    """Char arrays as text, cut at the first NUL; bytes that are not UTF-8 become U+FFFD. Decodes each distinct one once."""
    width = values.dtype.itemsize
    if not len(values):
        return pd.Series([], dtype="str")
    octets = values.view(np.uint8).reshape(len(values), width)
    octets = octets * np.logical_and.accumulate(octets != 0, axis=1)
    distinct, codes = np.unique(octets.view(f"S{width}").reshape(-1), return_inverse=True)
    words = pd.array([word.decode("utf-8", "replace") for word in distinct], dtype="str")
    return pd.Series(words.take(codes.reshape(-1)))


def _align(offset: int, size: int) -> int:
    return (offset + size - 1) // size * size


def _scalar(text: str) -> np.dtype[Any]:
    try:
        return np.dtype(_SCALARS[text])
    except KeyError:
        pass
    if text.endswith("*"):
        return np.dtype("u8")
    raise MapError(
        f"C type {text!r} has no column form", remedy="use integers, char arrays, or structs of them"
    )


def _walk(desc: Any, name: str, offset: int) -> tuple[list[Column], int, int]:
    """Columns of a type at an offset, its size and its alignment."""
    if isinstance(desc, str):
        dtype = _scalar(desc)
        return [Column(name, offset, dtype)], dtype.itemsize, dtype.itemsize
    if isinstance(desc, list) and len(desc) == 3 and desc[2] == "enum":
        return [Column(name, offset, np.dtype("u4"))], 4, 4
    if not (isinstance(desc, list) and len(desc) >= 2 and isinstance(desc[1], list)):
        raise MapError(f"cannot understand the C type {desc!r}")
    form = desc[2] if len(desc) > 2 else "struct"
    columns: list[Column] = []
    position, widest, alignment = 0, 0, 1
    for member in desc[1]:
        label, kind = member[0], member[1]
        dims = member[2] if len(member) > 2 and isinstance(member[2], list) else []
        if len(member) > 2 and isinstance(member[2], int):
            raise MapError(f"{label} is a bit field", remedy="use whole integers in maps")
        full = f"{name}_{label}" if name and label else (label or name)
        inner, size, align = _member(kind, full, dims, 0)
        start = 0 if form == "union" else position if form == "struct_packed" else _align(position, align)
        if not label.startswith("__pad_"):
            columns += [Column(c.name, offset + start + c.offset, c.dtype, c.count, c.text) for c in inner]
        position = start + size
        widest, alignment = max(widest, size), max(alignment, align)
    size = widest if form == "union" else position
    return columns, size if form == "struct_packed" else _align(size, alignment), alignment


def _member(kind: Any, name: str, dims: list[int], offset: int) -> tuple[list[Column], int, int]:
    if not dims:
        return _walk(kind, name, offset)
    count = int(np.prod(dims))
    if not isinstance(kind, str):  # an array of structs: one group of columns per element
        columns: list[Column] = []
        step = 0
        for index in range(count):
            inner, step, align = _walk(kind, f"{name}_{index}", offset + index * step)
            columns += inner
        return columns, step * count, align
    if kind == "char":
        return [Column(name, offset, np.dtype(f"S{count}"), 1, True)], count, 1
    dtype = _scalar(kind)
    return [Column(name, offset, dtype, count)], dtype.itemsize * count, dtype.itemsize


def layout_of(desc: str, *, size: int, name: str) -> Layout:
    """The layout that bcc's JSON describes.

    :param name: column name if the type is a scalar.
    :raises MapError: if the sizes disagree or a type has no column form.
    """
    columns, computed, _ = _walk(json.loads(desc), "", 0)
    columns = [c if c.name else Column(name, c.offset, c.dtype, c.count, c.text) for c in columns]
    if computed != size:
        raise MapError(
            f"the C type of {name} is {size} bytes", why=f"its description adds up to {computed}: {desc}"
        )
    if len({c.name for c in columns}) != len(columns):
        raise MapError(
            f"two members of {name} have the same column name", why=", ".join(c.name for c in columns)
        )
    return Layout(size, tuple(columns))

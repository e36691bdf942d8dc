"""C types to columns, against what a C compiler lays out (ctypes)."""

import ctypes
import json

import numpy as np
import pytest

from labkit.errors import MapError
from labkit.layout import layout_of

BCC = '["lk_v", [["pid","unsigned int"], ["comm","char", [16]], ["__pad_2","char",[4]], \
["h","unsigned long long", [4]], ["in",["", [["a","unsigned char"], ["__pad_1","char",[3]], \
["b","unsigned int"] ], "struct_packed"]] ], "struct_packed"]'


class Inner(ctypes.Structure):
    _fields_ = (("a", ctypes.c_ubyte), ("b", ctypes.c_uint))


class Value(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("comm", ctypes.c_char * 16),
        ("h", ctypes.c_ulonglong * 4),
        ("inner", Inner),
    )


def test_offsets_are_those_of_the_c_compiler() -> None:
    layout = layout_of(BCC, size=ctypes.sizeof(Value), name="value")
    found = {c.name: c.offset for c in layout.columns}
    assert found == {
        "pid": Value.pid.offset,
        "comm": Value.comm.offset,
        "h": Value.h.offset,
        "in_a": Value.inner.offset + Inner.a.offset,
        "in_b": Value.inner.offset + Inner.b.offset,
    }


def test_values_come_back_as_they_were_written() -> None:
    written = [
        Value(i, b"task %d" % i, (ctypes.c_ulonglong * 4)(*range(i, i + 4)), Inner(i, i * 7))
        for i in range(5)
    ]
    raw = np.frombuffer(b"".join(bytes(v) for v in written), np.uint8).reshape(5, -1)
    layout = layout_of(BCC, size=ctypes.sizeof(Value), name="value")
    data = layout.arrays(raw)
    assert data["pid"].tolist() == [0, 1, 2, 3, 4]
    assert data["h"].tolist() == [list(range(i, i + 4)) for i in range(5)]
    assert data["in_b"].tolist() == [0, 7, 14, 21, 28]
    comm = next(c for c in layout.columns if c.name == "comm")
    assert layout.series(comm, data["comm"])["comm"].tolist() == [f"task {i}" for i in range(5)]


def test_text_ends_at_the_first_nul_and_survives_bytes_that_are_not_utf8() -> None:
    layout = layout_of('["t", [["comm","char",[8]]], "struct"]', size=8, name="value")
    raw = np.frombuffer(b"ab\0junk\0" + b"\xff\xfe\0\0\0\0\0\0" + b"12345678", np.uint8).reshape(3, 8)
    series = layout.series(layout.columns[0], layout.arrays(raw)["comm"])["comm"]
    assert series.tolist() == ["ab", "\ufffd\ufffd", "12345678"]
    assert series.dtype == "str"


def test_a_scalar_takes_the_name_it_is_given() -> None:
    layout = layout_of('"unsigned long long"', size=8, name="calls")
    assert [(c.name, c.dtype) for c in layout.columns] == [("calls", np.dtype("u8"))]


def test_a_union_lies_at_one_place() -> None:
    layout = layout_of('["u", [["a","unsigned int"],["b","unsigned long long"]], "union"]', size=8, name="v")
    assert [c.offset for c in layout.columns] == [0, 0]


def test_a_size_that_disagrees_is_refused() -> None:
    with pytest.raises(MapError, match="adds up to"):
        layout_of('["t", [["a","unsigned int"]], "struct"]', size=8, name="v")


@pytest.mark.parametrize("desc", ["struct unknown", ["t", [["f", "unsigned int", 3]], "struct"]])
def test_types_without_a_column_form_are_refused(desc: object) -> None:
    with pytest.raises(MapError):
        layout_of(json.dumps(desc), size=4, name="v")

"""Maps in the kernel to DataFrames: every kind, empty and full, and a million entries at once."""

import json

import numpy as np
import pytest

from labkit import bpfsys, maps
from labkit.bpfsys import MapType
from labkit.compiler import MapDef
from labkit.maps import Map
from labkit.spec import MapSpec

pytestmark = pytest.mark.live

VALUE = json.dumps(
    [
        "v",
        [
            ["n", "unsigned long long"],
            ["top", "unsigned int"],
            ["small", "unsigned short", [2]],
            ["comm", "char", [8]],
        ],
        "struct",
    ]
)


def _map(kind: MapType, *, entries: int = 64, value: tuple[str, int] = (VALUE, 24), **spec: object) -> Map:
    array = kind in (MapType.ARRAY, MapType.PERCPU_ARRAY)
    key = ('"unsigned int"', 4) if array else ('"unsigned long long"', 8)
    definition = MapDef("t", kind, key[1], value[1], entries, 0, key[0], value[0])
    table = Map(definition, MapSpec(holds="test", **spec))  # type: ignore[arg-type]
    table.create()
    return table


def _record(n: int, top: int, small: tuple[int, int], comm: bytes) -> np.ndarray:
    dtype = np.dtype([("n", "u8"), ("top", "u4"), ("small", "u2", 2), ("comm", "S8")])
    return np.frombuffer(np.array([(n, top, small, comm)], dtype).tobytes(), np.uint8)


def _put(table: Map, key: int, *values: np.ndarray) -> None:
    width = table.definition.key_size
    stacked = np.concatenate([np.pad(v, (0, -len(v) % 8)) for v in values]) if table.per_cpu else values[0]
    bpfsys.map_update(table.fd, np.frombuffer(key.to_bytes(width, "little"), np.uint8).copy(), stacked.copy())


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH])
@pytest.mark.parametrize("batch", [True, False])
def test_hash_kinds(kind: MapType, batch: bool) -> None:
    table = _map(kind, key="who")
    table._batch = batch
    for i in range(5):
        _put(table, i, _record(2**63 + i, i, (i, i + 1), b"task-%d" % i))
    frame = table.frame().sort_values("who", ignore_index=True)
    assert frame["who"].tolist() == [0, 1, 2, 3, 4]
    assert frame["n"].tolist() == [2**63 + i for i in range(5)]
    assert frame["small_1"].tolist() == [1, 2, 3, 4, 5]
    assert frame["comm"].tolist() == [f"task-{i}" for i in range(5)]
    assert [str(t) for t in frame.dtypes] == ["uint64", "uint64", "uint32", "uint16", "uint16", "str"]
    table.close()


@pytest.mark.parametrize("kind", [MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH, MapType.PERCPU_ARRAY])
@pytest.mark.parametrize("batch", [True, False])
def test_per_cpu_kinds_are_summed_or_spread(kind: MapType, batch: bool) -> None:
    cpus = bpfsys.possible_cpus()
    table = _map(kind, entries=3, combine={"top": "max"})
    table._batch = batch
    for key in range(3):
        _put(table, key, *[_record(10 * key + cpu, cpu, (1, 2), b"x" if cpu else b"") for cpu in range(cpus)])
    joined = table.frame().sort_values("key", ignore_index=True)
    assert joined["n"].tolist() == [sum(10 * k + c for c in range(cpus)) for k in range(3)]
    assert joined["top"].tolist() == [cpus - 1] * 3
    assert joined["small_0"].tolist() == [cpus] * 3
    spread = table.frame(per_cpu=True)
    assert len(spread) == 3 * cpus
    assert spread.columns[:2].tolist() == ["key", "cpu"]
    assert spread.set_index(["key", "cpu"]).loc[(2, cpus - 1), "n"] == 20 + cpus - 1
    table.close()


def test_a_hash_bucket_that_holds_more_than_was_asked_for_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maps, "_CHUNK_BYTES", 1)  # one entry at a time: ENOSPC wherever two share a bucket
    table = _map(MapType.HASH, entries=256, key="who")
    for i in range(256):
        _put(table, i, _record(i, i, (0, 0), b""))
    assert sorted(table.frame()["who"]) == list(range(256))
    table.close()


def test_sums_of_small_counters_do_not_wrap() -> None:
    table = _map(MapType.PERCPU_ARRAY, entries=1, value=('"unsigned int"', 4))
    cpus = bpfsys.possible_cpus()
    _put(table, 0, *[np.frombuffer(np.uint32(2**32 - 1).tobytes(), np.uint8)] * cpus)
    assert table.frame()["value"].tolist() == [cpus * (2**32 - 1)]
    table.close()


@pytest.mark.parametrize("size", [1, 4, 12])
def test_per_cpu_values_are_rounded_up_to_eight_bytes(size: int) -> None:
    desc = json.dumps(["v", [["a", "unsigned char", [size]]], "struct"])
    table = _map(MapType.PERCPU_ARRAY, entries=2, value=(desc, size))
    cpus = bpfsys.possible_cpus()
    _put(table, 1, *[np.full(size, cpu + 1, np.uint8) for cpu in range(cpus)])
    spread = table.frame(per_cpu=True).set_index(["key", "cpu"])
    for cpu in range(cpus):
        assert (spread.loc[(1, cpu)] == cpu + 1).all()
    table.close()


def test_an_empty_map_is_an_empty_frame_with_the_dtypes_of_a_full_one() -> None:
    empty, full = _map(MapType.HASH), _map(MapType.HASH)
    _put(full, 1, _record(1, 1, (1, 1), b"x"))
    assert len(empty.frame()) == 0
    assert (empty.frame().dtypes == full.frame().dtypes).all()
    empty.close()
    full.close()


def test_a_histogram_map_becomes_buckets() -> None:
    table = _map(
        MapType.PERCPU_ARRAY,
        entries=65,
        value=('"unsigned long long"', 8),
        histogram={"slots": "log2", "unit": "ns"},
    )
    cpus = bpfsys.possible_cpus()
    for slot, count in ((0, 1), (1, 2), (11, 3)):
        _put(table, slot, *[np.frombuffer(np.uint64(count).tobytes(), np.uint8)] * cpus)
    frame = table.frame()
    filled = frame[frame["count"] > 0]
    assert filled[["lo", "hi", "count"]].values.tolist() == [
        [0, 1, cpus],
        [1, 2, 2 * cpus],
        [1024, 2048, 3 * cpus],
    ]
    assert table.frame(per_cpu=True)["count"].sum() == 6 * cpus
    table.close()


def test_an_array_in_a_value_explodes_into_buckets() -> None:
    desc = json.dumps(["v", [["n", "unsigned int"], ["hist", "unsigned int", [4]]], "struct"])
    table = _map(MapType.HASH, value=(desc, 20), arrays={"hist": {"slots": "log2", "unit": "ns"}})
    _put(table, 9, np.frombuffer(np.array([7, 1, 2, 3, 4], np.uint32).tobytes(), np.uint8))
    frame = table.frame(explode="hist")
    assert frame["key"].tolist() == [9] * 4
    assert list(zip(frame["lo"], frame["hi"], frame["count"], strict=True)) == [
        (0, 1, 1),
        (1, 2, 2),
        (2, 4, 3),
        (4, 8, 4),
    ]
    table.close()


def test_a_full_map_and_one_in_a_single_bucket_are_read_whole() -> None:
    for entries in (1, 2, 3, 1000):
        table = _map(MapType.HASH, entries=entries, value=('"unsigned long long"', 8))
        for i in range(entries):
            _put(table, i, np.frombuffer(np.uint64(i).tobytes(), np.uint8))
        frame = table.frame()
        assert sorted(frame["key"]) == list(range(entries))
        table.close()


def test_a_million_entries_arrive_whole_without_python_per_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = 1_000_000
    table = _map(MapType.HASH, entries=entries, value=('"unsigned long long"', 8))
    keys = np.arange(entries, dtype=np.uint64)
    _update_batch(table.fd, keys, keys * 3)
    calls = 0
    original = bpfsys.map_lookup_batch

    def counted(*args: object) -> tuple[int, bool]:
        nonlocal calls
        calls += 1
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(bpfsys, "map_lookup_batch", counted)
    frame = table.frame()
    assert calls < 50
    assert len(frame) == entries
    assert frame["key"].sum() == keys.sum()
    assert (frame["value"] == frame["key"] * 3).all()
    table.close()


def _update_batch(fd: int, keys: np.ndarray, values: np.ndarray) -> None:
    import struct

    attr = struct.pack("=QQQQIIQQ", 0, 0, keys.ctypes.data, values.ctypes.data, len(keys), fd, 0, 0)
    bpfsys.bpf(26, attr)  # BPF_MAP_UPDATE_BATCH

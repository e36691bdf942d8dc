"""Maps read while they change: nothing twice, nothing missing, and snapshots that start anew without losing an update."""

import contextlib
import json
import platform
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest

from labkit import bpfsys, maps
from labkit.bpfsys import MapType
from labkit.compiler import MapDef
from labkit.errors import MapError
from labkit.maps import Map
from labkit.paths import bpf_dir
from labkit.program import load
from labkit.spec import MapSpec
from labkit.workloads import Worker, Workload

pytestmark = pytest.mark.live

CALLS = 300_000
GETPPID = {"x86_64": 110, "aarch64": 173}.get(platform.machine(), -1)


def _callers(count: int) -> Workload:
    """Two processes that make exactly so many getppid() calls each, as fast as they can."""
    workers = tuple(Worker(f"caller_{n}", "calls", options={"count": count}) for n in range(2))
    return Workload("callers", "two processes make system calls", workers, {"getppid_calls": count})


def _while_running(work: Callable[[], object]) -> Iterator[int]:
    """Turns, as long as the work goes on in another thread."""
    thread = threading.Thread(target=work)
    thread.start()
    turn = 0
    while thread.is_alive():
        yield turn
        turn += 1
    thread.join()


def test_the_sum_of_all_snapshots_is_the_ledger_exactly_at_a_high_rate() -> None:
    snapshots, truths = [], []
    with load("syscall_rates") as prog:
        for _ in _while_running(lambda: truths.append(_callers(CALLS).run())):
            snapshots.append(prog.swap("calls"))
        prog.stop()
        snapshots += [prog.swap("calls"), prog.swap("calls")]
        assert len(prog.frame("calls")) == 0
        ledger = prog.ledger
    with truths[0] as truth:
        pids = set(truth.tasks["pid"])
    assert len(snapshots) > 3
    every = pd.concat(snapshots)
    assert ledger.balanced
    assert ledger.delivered == every["value"].sum()
    assert ledger.seen > 2 * CALLS
    mine = every[every["tgid"].isin(pids) & (every["nr"] == GETPPID)].groupby("tgid")["value"].sum()
    assert mine.tolist() == [CALLS, CALLS]
    spread = [int(s.loc[s["tgid"].isin(pids) & (s["nr"] == GETPPID), "value"].sum()) for s in snapshots]
    assert sum(count > 0 for count in spread) > 1, "the calls all fell into one snapshot: nothing was tested"


def test_a_swap_waits_for_programs_that_have_chosen_a_map_and_not_yet_written() -> None:
    """With a pause of a millisecond between the two, a swap that did not wait would empty the map under their hands."""
    source = (bpf_dir() / "syscall_rates.c").read_text()
    choice = "    if (*turn)\n"
    assert choice in source
    pause = """
        u32 chosen = *turn;
        if (nr == LK_NR_getppid)
            for (int i = 0; i < 40000; i++)
                none += bpf_ktime_get_ns() >> 63;
    """
    slow = source.replace(choice, pause + "    if (chosen)\n")
    snapshots = []
    with load("syscall_rates", source=slow) as prog:
        for _ in _while_running(lambda: _callers(300).run().release()):
            snapshots.append(prog.swap("calls"))
        prog.stop()
        snapshots += [prog.swap("calls"), prog.swap("calls")]
        ledger = prog.ledger
    assert len(snapshots) > 3
    assert ledger.balanced
    assert sum(int(s["value"].sum()) for s in snapshots) == ledger.delivered


def test_a_snapshot_makes_room_in_a_full_map_and_what_did_not_fit_is_counted() -> None:
    snapshots = []
    with load("syscall_rates", entries=2) as prog:
        for _ in _while_running(lambda: _callers(50_000).run().release()):
            snapshots.append(prog.swap("calls"))
        prog.stop()
        snapshots += [prog.swap("calls"), prog.swap("calls")]
        ledger = prog.ledger
    assert ledger.losses["map_full"] > 0
    assert ledger.balanced
    assert sum(len(s) for s in snapshots) > 2
    assert all(len(s) <= 2 for s in snapshots)
    assert sum(int(s["value"].sum()) for s in snapshots) == ledger.delivered


def test_between_swaps_a_frame_shows_what_came_since() -> None:
    with load("syscall_rates") as prog:
        with _callers(100).run():
            pass
        prog.stop()
        assert len(prog.frame("calls")) > 0
        before = prog.frame("calls").sort_values(["tgid", "nr"], ignore_index=True)
        taken = prog.swap("calls").sort_values(["tgid", "nr"], ignore_index=True)
        pd.testing.assert_frame_equal(before, taken)
        assert len(prog.frame("calls")) == 0


def test_a_map_that_is_kept_once_cannot_be_swapped() -> None:
    with load("hello") as prog, pytest.raises(MapError, match="cannot be swapped"):
        prog.swap("hello")


# -- maps by themselves ------------------------------------------------------------------------------------------


def _map(kind: MapType, entries: int) -> Map:
    array = kind in (MapType.ARRAY, MapType.PERCPU_ARRAY)
    key = ('"unsigned int"', 4) if array else ('"unsigned long long"', 8)
    table = Map(
        MapDef("t", kind, key[1], 8, entries, 0, key[0], json.dumps("unsigned long long")),
        MapSpec(holds="test"),
    )
    table.create()
    return table


def _put(table: Map, key: int, value: int) -> None:
    cpus = bpfsys.possible_cpus() if table.per_cpu else 1
    name = np.frombuffer(key.to_bytes(table.definition.key_size, "little"), np.uint8).copy()
    bpfsys.map_update(table.fd, name, np.full(cpus, value, np.uint64))


def _churn(table: Map, stop: threading.Event, low: int, high: int) -> None:
    """Insert and delete keys low..high, over and over."""
    keys = [np.array([k], np.uint64) for k in range(low, high)]
    value = np.ones(bpfsys.possible_cpus() if table.per_cpu else 1, np.uint64)
    while not stop.is_set():
        for key in keys:
            with contextlib.suppress(OSError):  # it may be full
                bpfsys.map_update(table.fd, key, value)
        for key in keys:
            bpfsys.map_delete(table.fd, key)


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.PERCPU_HASH])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("entries", [400, 1000], ids=["full", "roomy"])
def test_entries_that_stay_are_read_once_each_while_others_come_and_go(
    kind: MapType, batch: bool, entries: int
) -> None:
    table = _map(kind, entries)
    table._batch = batch
    for key in range(300):
        _put(table, key, key + 7)
    stop = threading.Event()
    others = threading.Thread(target=_churn, args=(table, stop, 1000, 1200))
    others.start()
    try:
        cpus = bpfsys.possible_cpus() if table.per_cpu else 1
        sizes = set()
        for _ in range(30):
            frame = table.frame()
            assert not frame["key"].duplicated().any()
            stay = frame[frame["key"] < 1000].set_index("key")["value"].sort_index()
            assert stay.index.tolist() == list(range(300))
            assert stay.tolist() == [cpus * (key + 7) for key in range(300)]
            sizes.add(len(frame))
    finally:
        stop.set()
        others.join()
        table.close()
    assert len(sizes) > 1, "nothing changed meanwhile"


def test_a_bucket_that_is_larger_than_the_buffer_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one entry, a bucket of two gives ENOSPC; nothing is read twice or left out for it."""
    monkeypatch.setattr(maps, "_CHUNK_BYTES", 1)
    refused = 0
    original = bpfsys.map_lookup_batch

    def counted(*args: object) -> tuple[int, bool]:
        nonlocal refused
        try:
            return original(*args)  # type: ignore[arg-type]
        except OSError:
            refused += 1
            raise

    monkeypatch.setattr(bpfsys, "map_lookup_batch", counted)
    table = _map(MapType.HASH, 500)
    for key in range(500):
        _put(table, key, key)
    assert sorted(table.frame()["key"]) == list(range(500))
    assert refused > 0
    table.close()


def test_a_map_that_changes_too_fast_to_be_read_one_by_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key we stand on is deleted each time, so the kernel starts over for ever."""
    table = _map(MapType.HASH, 8)
    table._batch = False
    for key in range(8):
        _put(table, key, 1)
    original = bpfsys.map_next_key

    def hasty(fd: int, key: np.ndarray | None, following: np.ndarray) -> bool:
        if key is not None:
            bpfsys.map_delete(fd, key)
        found = original(fd, key, following)
        if key is not None:
            bpfsys.map_update(fd, key, np.ones(1, np.uint64))
        return found

    monkeypatch.setattr(bpfsys, "map_next_key", hasty)
    with pytest.raises(MapError, match="faster than it can be read"):
        table.frame()
    table.close()


@pytest.mark.parametrize(
    "kind", [MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH, MapType.ARRAY, MapType.PERCPU_ARRAY]
)
@pytest.mark.parametrize("batch", [True, False])
def test_a_cleared_map_is_empty_and_can_be_filled_again(kind: MapType, batch: bool) -> None:
    table = _map(kind, 64)
    table._batch = batch
    for key in range(64):
        _put(table, key, 5)
    table.clear()
    assert table.frame()["value"].sum() == 0
    assert len(table.frame()) == (64 if "ARRAY" in kind.name else 0)
    table.clear()
    _put(table, 3, 1)
    assert table.frame()["value"].max() >= 1
    table.close()

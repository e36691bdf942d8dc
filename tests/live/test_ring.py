"""The ring buffer on the running kernel: exact accounting, at rest and under overload."""

import threading
import time

import numpy as np
import pytest

from labkit.errors import MapError
from labkit.program import Program, load
from labkit.ring import drain
from labkit.workloads import ping_pong

pytestmark = [pytest.mark.live, pytest.mark.needs("ring buffer")]


def _rest(prog: Program) -> int:
    """Read what is left after the program has stopped; returns how many events there were."""
    prog.stop()
    count, ring = 0, prog.ring("events")
    while batches := ring.read():
        count += sum(len(batch) for batch in batches)
    assert ring.backlog_bytes == 0
    return count


def test_every_event_that_was_produced_is_delivered() -> None:
    with load("sched_events") as prog:
        got = 0
        with ping_pong(rounds=500).run():
            got += sum(len(batch) for batch in drain(prog.ring("events"), seconds=0.2))
        got += _rest(prog)
        ledger = prog.ledger
    assert ledger.balanced
    assert ledger.lost == 0
    assert got == ledger.delivered > 1000


def test_under_overload_produced_is_delivered_plus_lost_exactly() -> None:
    with load("sched_events", ring_pages=1) as prog:
        with ping_pong(rounds=2000).run():
            pass
        got = _rest(prog)
        ledger = prog.ledger
    assert ledger.losses["ring_full"] > 0
    assert ledger.balanced
    assert got == ledger.delivered


def test_events_survive_many_turns_of_a_small_ring() -> None:
    """32 KiB hold some thousand records; reading often, several times that pass through whole and in order."""
    with load("sched_events", ring_pages=8) as prog:
        ring, times, got = prog.ring("events"), [], 0
        workload = ping_pong(rounds=3000)
        runner = threading.Thread(target=lambda: workload.run().release())
        runner.start()
        while runner.is_alive():
            for batch in ring.read():
                got += len(batch)
                if batch.kind.name == "switched":
                    times.append(batch.columns["time_ns"])
            time.sleep(0.001)
        runner.join()
        got += _rest(prog)
        ledger = prog.ledger
    assert got == ledger.delivered
    assert got * 24 > 3 * 32768
    # Order is that of reservation. The clock is read after it, so two CPUs may contradict it by a moment.
    back_ns = -np.diff(np.concatenate(times).astype(np.int64)).min()
    assert back_ns < 5_000_000


def test_events_have_the_types_of_the_c_structs_and_known_contents() -> None:
    with load("sched_events") as prog:
        truth = ping_pong(rounds=200).run()
        pids = set(truth.tasks["pid"])
        prog.stop()
        frames = {batch.kind.name: batch.frame() for batch in prog.ring("events").read()}
        truth.release()
    switched = frames["switched"]
    assert [str(t) for t in switched.dtypes] == [
        "uint64",
        "uint32",
        "uint8",
        "uint8",
        "uint16",
        "uint32",
        "uint32",
    ]
    for pid in pids:
        ins, outs = (switched["next_pid"] == pid).sum(), (switched["prev_pid"] == pid).sum()
        assert ins >= 200
        assert abs(int(ins) - int(outs)) <= 1 + 3
    assert set(switched["kind"]) == {2}
    assert set(frames["woken"]["kind"]) == {1}


def test_a_map_that_is_no_ring_is_refused() -> None:
    with load("hello") as prog, pytest.raises(MapError, match="no ring buffer"):
        prog.ring("hello")

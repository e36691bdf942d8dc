"""The bench runs: the smallest comparisons, tiny sizes, beside the real bcc. No timing is asserted."""

import pytest

from bench.kernel import FilledRing, filled_map
from bench.maps import compare_maps
from bench.peers import BccPeer, PeerFailed
from labkit.bpfsys import MapType

pytestmark = [pytest.mark.live, pytest.mark.needs("ring buffer")]


def test_labkit_and_bcc_read_the_very_same_maps() -> None:
    rows = compare_maps(quick=True, rounds=1)
    assert {row.peer_name for row in rows} == {
        "bcc items()",
        "bcc items_lookup_batch()",
        "one raw batch system call",
    }
    assert all(row.ratio and row.ratio > 0 for row in rows)


@pytest.mark.parametrize("mixed", [False, True])
def test_labkit_and_bcc_drain_the_very_same_ring_in_turns(mixed: bool) -> None:
    with FilledRing(pages=16, mixed=mixed) as filled, BccPeer("ring", fd=filled.fd) as peer:
        for _ in range(3):
            count = filled.fill()
            assert count > 1000
            assert sum(len(batch) for batch in filled.ring.read()) == count
            assert peer.seconds("ring", expect=filled.fill()) > 0
            assert filled.ring.backlog_bytes == 0


def test_a_peer_that_gets_fewer_entries_than_there_are_is_not_timed() -> None:
    table = filled_map(MapType.HASH, 100)
    try:
        with BccPeer("hash", fd=table.fd, entries=100) as peer, pytest.raises(PeerFailed, match="100 of 101"):
            peer.seconds("items", expect=101)
    finally:
        table.close()

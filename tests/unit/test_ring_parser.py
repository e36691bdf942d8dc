"""The ring parser against a byte-level model of kernel/bpf/ringbuf.c, and on damaged memory."""

import struct
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labkit.errors import RingCorrupt
from labkit.ring import BUSY, DISCARD, scan

PAGE_WORDS = 512
FIRST_PAGE = 7


@dataclass
class Record:
    """One record of the model."""

    data: bytes
    busy: bool = False
    discarded: bool = False


def _pages(count: int, begin: int = 0) -> np.ndarray:
    return (np.arange(begin, begin + count) // PAGE_WORDS + FIRST_PAGE).astype(np.uint64)


def _write(records: list[Record], begin: int = 0) -> np.ndarray:
    """What the kernel would leave in memory, as __bpf_ringbuf_reserve and bpf_ringbuf_commit write it."""
    image = b""
    for record in records:
        page = (begin + len(image) // 8) // PAGE_WORDS + FIRST_PAGE
        length = len(record.data) | (BUSY if record.busy else 0) | (DISCARD if record.discarded else 0)
        image += struct.pack("=II", length, page) + record.data
        image += b"\0" * (-len(image) % 8)
    return np.frombuffer(image, np.uint64).copy()


def _model(records: list[Record]) -> tuple[list[bytes], int]:
    """What a consumer must get, record by record, and how many words it may give back."""
    got, used = [], 0
    for record in records:
        if record.busy:
            break
        used += 1 + (len(record.data) + 7) // 8
        if not record.discarded:
            got.append(record.data)
    return got, used


def _read(words: np.ndarray, lengths: list[int], begin: int = 0) -> tuple[list[bytes], int]:
    allowed = np.array(sorted(set(lengths)), np.uint64)
    starts, sizes, used = scan(words, _pages(len(words), begin), allowed)
    data = words.tobytes()
    return [
        data[8 * (s + 1) : 8 * (s + 1) + int(n)] for s, n in zip(starts.tolist(), sizes, strict=True)
    ], used


LENGTHS = [8, 24, 36, 40]


@st.composite
def _records(draw: st.DrawFn) -> list[Record]:
    runs = draw(st.lists(st.tuples(st.sampled_from(LENGTHS), st.integers(1, 90)), max_size=12))
    records = []
    for size, count in runs:
        filler = draw(st.sampled_from([b"\0", b"\xff", struct.pack("=II", size, FIRST_PAGE), b"x"]))
        for _ in range(count):
            data = (filler * size)[:size]
            records.append(Record(data, discarded=draw(st.integers(0, 40)) == 0))
    if records and draw(st.booleans()):
        records[draw(st.integers(0, len(records) - 1))].busy = True
    return records


@settings(max_examples=150, deadline=None)
@given(_records(), st.sampled_from([0, 8, 500, 511, 512, 3000]))
@example([Record(b"a" * 24)] * 200, 0)
@example([Record(struct.pack("=IIQQ", 24, FIRST_PAGE, 0, 0)), Record(b"b" * 8)] * 60, 0)
def test_it_reads_what_the_model_reads(records: list[Record], begin: int) -> None:
    words = _write(records, begin)
    assert _read(words, LENGTHS, begin) == _model(records)


def test_data_that_looks_like_headers_is_stepped_over() -> None:
    """Each word of each record's data is a perfect header of its own place."""
    bait = struct.pack("=II", 8, FIRST_PAGE)
    records = [Record(bait * (1 + i % 3)) for i in range(100)]
    assert _read(_write(records), [8, 16, 24]) == _model(records)


def test_nothing_is_read_behind_a_record_that_is_being_written() -> None:
    records = [Record(b"a" * 8), Record(b"b" * 8, busy=True), Record(b"c" * 8)]
    assert _read(_write(records), [8]) == ([b"a" * 8], 2)


def test_discarded_records_are_given_back_and_not_delivered() -> None:
    records = [Record(b"a" * 24, discarded=i % 3 == 0) for i in range(300)]
    assert _read(_write(records), [24]) == _model(records)


def test_an_empty_ring_gives_nothing() -> None:
    assert _read(np.empty(0, np.uint64), [8]) == ([], 0)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=0, max_size=4096))
def test_any_memory_at_all_is_read_or_refused(data: bytes) -> None:
    words = np.frombuffer(data + b"\0" * (-len(data) % 8), np.uint64)
    try:
        got, used = _read(words, LENGTHS)
    except RingCorrupt:
        return
    assert used <= len(words)
    assert all(len(d) in LENGTHS for d in got)


@settings(max_examples=200, deadline=None)
@given(_records(), st.data())
def test_a_damaged_word_is_noticed_or_does_not_matter(records: list[Record], data: st.DataObject) -> None:
    words = _write(records)
    if not len(words):
        return
    words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.integers(0, 2**64 - 1))
    try:
        got, used = _read(words, LENGTHS)
    except RingCorrupt:
        return
    assert used <= len(words)
    assert all(len(d) in LENGTHS for d in got)


def test_a_length_that_no_event_has_is_refused() -> None:
    with pytest.raises(RingCorrupt, match="has 16 bytes"):
        _read(_write([Record(b"a" * 16)]), [8])


def test_a_record_past_the_end_is_refused() -> None:
    with pytest.raises(RingCorrupt):
        _read(_write([Record(b"a" * 24)])[:-1], [24])

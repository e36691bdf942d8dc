"""BPF ring buffers to columns, in bulk: no Python per event, and no system call per event.

The kernel's ring buffer (``kernel/bpf/ringbuf.c``, ``Documentation/bpf/ringbuf.rst``) is memory that producer and consumer
share: a page with the consumer's position, a page with the producer's, and the data, mapped twice in a row so that no
record is ever split. Each record is an 8-byte header (length with a busy and a discard bit; its own place in pages) and its
data, rounded up to 8 bytes. :class:`Ring` reads what is there, hands it out as columns, and gives the space back.

**Finding the records.** Each header gives the length to the next, which is a chain. Records of one size are checked by
comparing all headers at that stride with the first: if all are equal, the chain is proven by induction. Mixed sizes are
found by what a header must look like (its second half must name the page it lies on, its length must be one that the
program declares), and then the chain is proven on these candidates at once; look-alikes inside data fall out there.

**Memory ordering.** The producer publishes a record by writing its header without the busy bit, with release semantics
(``xchg``). The consumer must see data no older than the header it acts on, and must have read the data before it gives the
space back. x86 keeps loads in order, and stores after loads. arm64 does not, so :func:`_fence` goes between: taking and
releasing a lock twice is an acquire, a release, an acquire (``ldaxr``/``stlxr``), and a release followed by an acquire
orders everything before it against everything after it. Positions are aligned 8-byte loads and stores, which are single.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labkit.errors import RingCorrupt
from labkit.layout import Layout

__all__ = ["BUSY", "DISCARD", "Batch", "EventType", "Ring", "drain", "scan"]

BUSY, DISCARD = 1 << 31, 1 << 30
_LENGTH = DISCARD - 1
_WORD = 8
#: Shorter runs of one size than this are not worth a comparison of their own: all the rest is scanned at once.
_SHORT_RUN = 64


@dataclass(frozen=True)
class EventType:
    """One kind of event in a ring.

    :param name: what its frame is called.
    :param layout: its members (:mod:`labkit.layout`); its size is the record's.
    :param tag: the value of the tag member that marks it, or None if it is the only kind.
    """

    name: str
    layout: Layout
    tag: int | None = None


@dataclass(frozen=True)
class Batch:
    """Events of one kind: columns of equal length, in the order in which they were reserved."""

    kind: EventType
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def frame(self) -> pd.DataFrame:
        """As a DataFrame: dtypes from the C types, char arrays as text."""
        data: dict[str, pd.Series] = {}
        for column in self.kind.layout.columns:
            data.update(self.kind.layout.series(column, self.columns[column.name]))
        return pd.DataFrame(data)


_LOCK = threading.Lock()


def _fence() -> None:
    """Order all memory accesses before against all after; see the module's text."""
    for _ in range(2):
        _LOCK.acquire()
        _LOCK.release()


def scan(words: np.ndarray, pages: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Find the committed records in a stretch of ring memory.

    :param words: uint64, from a record's header to the producer's position.
    :param pages: uint64, for each word the page number that a header there must carry; the word itself where unknown.
    :param lengths: the record lengths that can occur, in bytes, sorted.
    :returns: index of each record's header (discarded ones left out), each one's length, and how many words may be
        given back.
    :raises RingCorrupt: if the chain of headers is broken.
    """
    starts: list[np.ndarray] = []
    at, end = 0, len(words)
    while at < end:
        header = int(words[at]) & 0xFFFFFFFF
        if header & BUSY:
            break
        stride = _stride(header, lengths, at)
        run = _run(words, at, end, stride, header)
        if run < _SHORT_RUN and at + run * stride < end:
            rest, at = _scan_mixed(words, pages, lengths, at)
            starts.append(rest)
            break
        if not header & DISCARD:
            starts.append(np.arange(at, at + run * stride, stride))
        at += run * stride
    if at > end:
        raise RingCorrupt(f"a record reaches {at - end} words past the producer's position")
    found = np.concatenate(starts) if starts else np.empty(0, np.int64)
    return found, words[found] & np.uint64(_LENGTH), at


def _stride(header: int, lengths: np.ndarray, at: int) -> int:
    length = header & _LENGTH
    if not header & DISCARD and length not in lengths:
        raise RingCorrupt(f"the record at word {at} has {length} bytes; known: {lengths.tolist()}")
    return 1 + (length + _WORD - 1) // _WORD


def _run(words: np.ndarray, at: int, end: int, stride: int, header: int) -> int:
    """How many records in a row have this header's lower half."""
    same = (words[at:end:stride] & np.uint64(0xFFFFFFFF)) == np.uint64(header)
    return int(same.argmin()) if not same.all() else len(same)


def _scan_mixed(
    words: np.ndarray, pages: np.ndarray, lengths: np.ndarray, first: int
) -> tuple[np.ndarray, int]:
    """Records of different sizes from ``first`` on; returns header indices and where to go on."""
    low = words[first:] & np.uint64(0xFFFFFFFF)
    length = low & np.uint64(_LENGTH)
    looks = (words[first:] >> np.uint64(32)) == pages[first:]
    looks &= np.isin(length, lengths) | ((low & np.uint64(DISCARD | BUSY)) != 0)
    candidates = np.flatnonzero(looks)
    strides = 1 + ((length[candidates] + np.uint64(_WORD - 1)) // np.uint64(_WORD)).astype(np.int64)
    total = len(words) - first
    keep = _prove(candidates, strides, total, first)
    candidates, strides = candidates[keep], strides[keep]
    flags = low[candidates]
    busy = np.flatnonzero(flags & np.uint64(BUSY))
    stop = int(busy[0]) if busy.size else len(candidates)
    consumed = int(candidates[stop]) if busy.size else total
    taken = candidates[:stop]
    return first + taken[(flags[:stop] & np.uint64(DISCARD)) == 0], first + consumed


def _prove(candidates: np.ndarray, strides: np.ndarray, total: int, first: int) -> np.ndarray:
    """Indices of those candidates that the chain from the first one reaches.

    Where each candidate's stride leads to the next candidate, the chain is proven there in one comparison; a look-alike
    inside data breaks it, and is stepped over.
    """
    if not candidates.size or candidates[0] != 0:
        raise RingCorrupt(f"no record header at word {first}")
    follows = candidates[:-1] + strides[:-1] == candidates[1:]
    if follows.all():
        return _whole(np.arange(len(candidates)), candidates, strides, total, first)
    breaks = np.flatnonzero(~follows)
    parts: list[np.ndarray] = []
    at = 0
    while True:
        step = int(np.searchsorted(breaks, at))
        last = int(breaks[step]) if step < len(breaks) else len(candidates) - 1
        parts.append(np.arange(at, last + 1))
        goal = int(candidates[last] + strides[last])
        if goal >= total:
            break
        at = int(np.searchsorted(candidates, goal))
        if at >= len(candidates) or candidates[at] != goal:
            raise RingCorrupt(f"no record header at word {first + goal}, where one must be")
    return _whole(np.concatenate(parts), candidates, strides, total, first)


def _whole(
    chain: np.ndarray, candidates: np.ndarray, strides: np.ndarray, total: int, first: int
) -> np.ndarray:
    goal = int(candidates[chain[-1]] + strides[chain[-1]])
    if goal != total:
        raise RingCorrupt(
            f"the chain of records ends at word {first + goal}, the producer's position is {first + total}"
        )
    return chain


class Ring:
    """A consumer of one ring buffer. The only one: positions are shared.

    :param fd: the map's file descriptor.
    :param size: its size in bytes (a power of two, at least a page).
    :param kinds: the kinds of event it carries; more than one need tags.
    :param tag: place of the tag in each record: byte offset and dtype.

    >>> for batch in ring.read():                           # doctest: +SKIP
    ...     batch.frame()
    """

    def __init__(
        self, fd: int, size: int, kinds: list[EventType], tag: tuple[int, np.dtype[Any]] | None = None
    ) -> None:
        page = mmap.PAGESIZE
        self.size, self.kinds, self._tag = size, kinds, tag
        self._consumer_page = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._shared = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = ctypes.c_uint64.from_buffer(self._consumer_page)
        self._producer = np.frombuffer(self._shared, np.uint64, 1)
        self._words = np.frombuffer(self._shared, np.uint64, 2 * size // _WORD, page)
        self._lengths = np.array(sorted({k.layout.size for k in kinds}), dtype=np.uint64)
        self._page_words = page // _WORD
        self._first_page = -1
        self.received = 0

    def close(self) -> None:
        """Let go of the memory. Arrays handed out before stay valid: they are copies."""
        del self._consumer, self._producer, self._words
        self._consumer_page.close()
        self._shared.close()

    @property
    def backlog_bytes(self) -> int:
        """Bytes written and not yet read."""
        return int(self._producer[0]) - int(self._consumer.value)

    def read(self, limit_bytes: int = 16 << 20) -> list[Batch]:
        """All committed events (up to about ``limit_bytes``), by kind; gives their space back.

        :raises RingCorrupt: if the memory is not a chain of records.
        """
        consumed, produced = int(self._consumer.value), int(self._producer[0])
        _fence()  # the position before the headers
        available = min(produced - consumed, self.size)
        if available <= 0:
            return []
        begin = (consumed & (self.size - 1)) // _WORD
        words = self._words[begin : begin + available // _WORD]
        if available > limit_bytes:
            starts, lengths, used = self._scan_part(words, begin, limit_bytes // _WORD)
        else:
            starts, lengths, used = scan(words, self._expected_pages(begin, len(words)), self._lengths)
        _fence()  # the headers before the data
        batches = self._collect(words, starts, lengths)
        _fence()  # the data before the space is given back
        self._consumer.value = consumed + used * _WORD
        self.received += len(starts)
        return batches

    def _scan_part(self, words: np.ndarray, begin: int, most: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Scan the whole stretch and take the records that begin in its first part: only a chain tells where one ends."""
        starts, lengths, used = scan(words, self._expected_pages(begin, len(words)), self._lengths)
        taken = int(np.searchsorted(starts, most))
        if taken >= len(starts):
            return starts, lengths, used
        return starts[:taken], lengths[:taken], int(starts[taken])

    def _expected_pages(self, begin: int, count: int) -> np.ndarray:
        """The page number each header must carry: that of its place, counted from the kernel's own struct."""
        if self._first_page < 0:  # the first record ever lies on the first data page
            self._first_page = int(self._words[begin]) >> 32
            self._first_page -= begin // self._page_words
        places = np.arange(begin, begin + count) % (self.size // _WORD)
        return (places // self._page_words + self._first_page).astype(np.uint64)

    def _collect(self, words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> list[Batch]:
        if not len(starts):
            return []
        if len(self.kinds) == 1:
            return [self._batch(self.kinds[0], words, starts)]
        tags = self._tags(words, starts)
        batches = []
        for kind in self.kinds:
            mine = starts[(tags == kind.tag) & (lengths == kind.layout.size)]
            if len(mine):
                batches.append(self._batch(kind, words, mine))
        unknown = len(starts) - sum(len(b) for b in batches)
        if unknown:
            raise RingCorrupt(f"{unknown} records carry no known tag of their length")
        return batches

    def _tags(self, words: np.ndarray, starts: np.ndarray) -> np.ndarray:
        assert self._tag is not None
        offset, dtype = self._tag
        word = words[starts + 1 + offset // _WORD]
        shift = np.uint64(8 * (offset % _WORD))
        mask = np.uint64((1 << (8 * dtype.itemsize)) - 1)
        tags: np.ndarray = (word >> shift) & mask
        return tags

    def _batch(self, kind: EventType, words: np.ndarray, starts: np.ndarray) -> Batch:
        stride = 1 + (kind.layout.size + _WORD - 1) // _WORD
        side_by_side = int(starts[-1]) - int(starts[0]) == stride * (len(starts) - 1)
        if side_by_side:  # columns come straight out of the ring, one strided copy each
            first = int(starts[0])
            raw = words[first : first + stride * len(starts)].reshape(-1, stride).view(np.uint8)[:, _WORD:]
        else:
            raw = np.take(words, starts[:, None] + np.arange(1, stride)).view(np.uint8)
        return Batch(kind, _columns(kind.layout, raw))


def _columns(layout: Layout, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Columns out of rows of bytes, which may lie apart; each is a copy of its own."""
    found: dict[str, np.ndarray] = {}
    for column in layout.columns:
        end = column.offset + column.dtype.itemsize * column.count
        values = raw[:, column.offset : end].view(column.dtype)
        found[column.name] = np.ascontiguousarray(values if column.count > 1 else values[:, 0])
    return found


def drain(ring: Ring, *, seconds: float, latency_s: float = 0.1) -> Iterator[Batch]:
    """Events as they come, for a time: wakes every ``latency_s`` and reads all there is.

    The producer does not wake us (``BPF_RB_NO_WAKEUP``): a wakeup per event would be a context switch per event, which a
    recorder of context switches would record. Latency is bounded by the parameter, memory by the ring's size.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield from ring.read()
        time.sleep(min(latency_s, max(deadline - time.monotonic(), 0)))
    yield from ring.read()

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

import contextlib
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
#: Shorter runs of one size than this are not worth a comparison of their own: a whole window is scanned instead.
_SHORT_RUN = 64
#: Words scanned at once where sizes differ: 256 KiB, so that the second and third look find them in a CPU's cache.
_WINDOW = 1 << 15


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
        """As a DataFrame: dtypes from the C types, char arrays as text. Numbers share their memory with ``columns``."""
        data: dict[str, pd.Series | np.ndarray] = {}
        for column in self.kind.layout.columns:
            if column.text or column.count > 1:
                data.update(self.kind.layout.series(column, self.columns[column.name]))
            else:
                data[column.name] = self.columns[column.name]
        return pd.DataFrame(data, copy=False)  # the columns are copies of the ring's memory already


_LOCK = threading.Lock()


def _fence() -> None:
    """Order all memory accesses before against all after; see the module's text."""
    for _ in range(2):
        _LOCK.acquire()
        _LOCK.release()


def scan(
    words: np.ndarray, pages: np.ndarray | _Pages, lengths: np.ndarray, most: int | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Find the committed records in a stretch of ring memory.

    :param words: uint64, from a record's header to the producer's position.
    :param pages: for each word the page number that a header there must carry; slices of it are asked for.
    :param lengths: the record lengths that can occur, in bytes, sorted.
    :param most: only records that begin before this word; None is all of them.
    :returns: index of each record's header (discarded ones left out), each one's length, and how many words may be
        given back.
    :raises RingCorrupt: if the chain of headers is broken.
    """
    halves = words.view(np.uint32)  # little-endian, as all that labkit runs on: length first, then the page
    lows, highs = halves[0::2], halves[1::2]
    starts: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    at, end = 0, len(words)
    goal = end if most is None else min(most, end)
    while at < goal:
        header = int(lows[at])
        if header & BUSY:
            break
        stride = _stride(header, lengths, at)
        run = _run(lows, at, goal, stride, header)
        if run < _SHORT_RUN and at + run * stride < goal:
            window = min(at + _WINDOW, goal)
            found, size, at, stopped = _scan_mixed(lows, highs, pages, lengths, at, window)
            starts.append(found)
            sizes.append(size)
            if stopped:
                break
            continue
        if not header & DISCARD:
            starts.append(np.arange(at, at + run * stride, stride))
            sizes.append(np.full(run, header & _LENGTH, np.uint32))
        at += run * stride
    if at > end:
        raise RingCorrupt(f"a record reaches {at - end} words past the producer's position")
    return _joined(starts, np.int64), _joined(sizes, np.uint32), at


def _joined(parts: list[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _stride(header: int, lengths: np.ndarray, at: int) -> int:
    length = header & _LENGTH
    if not header & DISCARD and length not in lengths:
        raise RingCorrupt(f"the record at word {at} has {length} bytes; known: {lengths.tolist()}")
    return 1 + (length + _WORD - 1) // _WORD


def _run(lows: np.ndarray, at: int, goal: int, stride: int, header: int) -> int:
    """How many records in a row have this header's lower half. Looks at few first: most runs are short or very long."""
    for end in (min(goal, at + _SHORT_RUN * stride), goal):
        same = lows[at:end:stride] == header
        if not same.all():
            return int(same.argmin())
    return len(same)


def _scan_mixed(
    lows: np.ndarray,
    highs: np.ndarray,
    pages: np.ndarray | _Pages,
    lengths: np.ndarray,
    first: int,
    stop: int,
) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """Records of different sizes that begin in ``first`` to ``stop``, a stretch that fits a CPU's cache.

    :returns: header indices, lengths, where to go on, and True if a record that is being written stops us there.
    """
    candidates = np.flatnonzero(highs[first:stop] == pages[first:stop])
    # Read once: a busy record may be committed while we look, and must not be taken for both.
    header = lows[first:stop][candidates]
    length = header & _LENGTH
    looks = (header & (DISCARD | BUSY)) != 0
    for known in lengths:
        looks |= length == known
    candidates, header, length = candidates[looks], header[looks], length[looks]
    strides = 1 + (length.astype(np.int64) + (_WORD - 1)) // _WORD
    keep = _prove(candidates, strides, stop - first, len(lows) - first, first)
    candidates, header, length = candidates[keep], header[keep], length[keep]
    busy = np.flatnonzero(header & BUSY)
    if busy.size:
        stopped = int(busy[0])
        following = int(candidates[stopped])
        candidates, header, length = candidates[:stopped], header[:stopped], length[:stopped]
    else:
        following = int(candidates[-1] + strides[keep[-1]])
    taken = (header & DISCARD) == 0
    return first + candidates[taken], length[taken], first + following, bool(busy.size)


def _prove(candidates: np.ndarray, strides: np.ndarray, total: int, limit: int, first: int) -> np.ndarray:
    """Indices of those candidates that the chain from the first one reaches, up to word ``total``.

    Where each candidate's stride leads to the next candidate, the chain is proven there in one comparison; a look-alike
    inside data breaks it, and is stepped over. The last record may reach past ``total``, but not past ``limit``.
    """
    if not candidates.size or candidates[0] != 0:
        raise RingCorrupt(f"no record header at word {first}")
    breaks = np.flatnonzero(candidates[:-1] + strides[:-1] != candidates[1:])
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
    if goal > limit:
        raise RingCorrupt(
            f"the chain of records ends at word {first + goal}, the producer's position is {first + limit}"
        )
    return _joined(parts, np.int64)


class _Pages:
    """The page number that a header must carry at each word of a stretch, worked out for the slices that are asked for.

    :param begin: where in the ring the stretch begins, in words.
    :param first: number of the ring's first data page, counted from the kernel's own struct.
    :param count: pages in the ring, after which numbers begin anew.
    """

    def __init__(self, begin: int, first: int, count: int, page_words: int) -> None:
        self._begin, self._first, self._count, self._words = begin, first, count, page_words

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop = self._begin + part.start, self._begin + part.stop
        low, high = start // self._words, -(-stop // self._words)
        numbers = (np.arange(low, high) % self._count + self._first).astype(np.uint32)
        skipped = start - low * self._words
        pages: np.ndarray = np.repeat(numbers, self._words)[skipped : skipped + stop - start]
        return pages


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
        for memory in (self._consumer_page, self._shared):
            # While an error is on its way, its traceback still looks into the memory; it goes with the last view.
            with contextlib.suppress(BufferError):
                memory.close()

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
        most = max(limit_bytes // _WORD, 1)
        starts, lengths, used = scan(words, self._expected_pages(begin), self._lengths, most)
        _fence()  # the headers before the data
        batches = self._collect(words, starts, lengths)
        _fence()  # the data before the space is given back
        self._consumer.value = consumed + used * _WORD
        self.received += len(starts)
        return batches

    def _expected_pages(self, begin: int) -> _Pages:
        if self._first_page < 0:  # the first record ever lies on the first data page
            self._first_page = int(self._words[begin]) >> 32
            self._first_page -= begin // self._page_words
        return _Pages(begin, self._first_page, self.size // _WORD // self._page_words, self._page_words)

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
        tags: np.ndarray = _at_each_word(words, offset, dtype)[starts]
        return tags

    def _batch(self, kind: EventType, words: np.ndarray, starts: np.ndarray) -> Batch:
        stride = 1 + (kind.layout.size + _WORD - 1) // _WORD
        first, last = int(starts[0]), int(starts[-1])
        if last - first == stride * (len(starts) - 1):  # side by side: one strided copy for each column
            where: slice | np.ndarray = slice(first, last + 1, stride)
        else:
            where = starts
        columns = {}
        for column in kind.layout.columns:
            values = _at_each_word(words, column.offset, column.dtype, column.count)
            # Always a copy, also where a view would be contiguous already (one event): the kernel writes on there.
            columns[column.name] = (
                np.array(values[where], order="C") if where is not starts else values[where]
            )
        return Batch(kind, columns)


def _at_each_word(words: np.ndarray, offset: int, dtype: np.dtype[Any], count: int = 1) -> np.ndarray:
    """What a member at that offset would be in a record whose header is at word 0, 1, 2, ...: a view, nothing is read."""
    skipped = _WORD + offset  # the header comes first
    size = dtype.itemsize * count
    return np.ndarray(
        shape=(max((words.nbytes - skipped - size) // _WORD + 1, 0), count)[: 1 + (count > 1)],
        dtype=dtype,
        buffer=words,
        offset=min(skipped, words.nbytes),
        strides=(_WORD, dtype.itemsize)[: 1 + (count > 1)],
    )


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

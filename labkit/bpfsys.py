"""The kernel's own interface: ``bpf(2)`` and ``perf_event_open(2)``, thinly.

Only what labkit uses, with the numbers of ``include/uapi/linux/bpf.h`` and ``perf_event.h``; both are stable user
API. Every function raises :class:`OSError` as the kernel gives it; the callers turn it into typed errors with a
remedy. File descriptors are close-on-exec (the kernel sets that for BPF objects), so no child keeps a program alive.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from enum import IntEnum

import numpy as np

__all__ = [
    "F_MMAPABLE",
    "RETURN_0",
    "AttachType",
    "MapType",
    "ProgInfo",
    "ProgType",
    "bpf",
    "cpu_list",
    "enable_stats",
    "loaded_programs",
    "map_create",
    "map_delete",
    "map_delete_batch",
    "map_lookup",
    "map_lookup_batch",
    "map_next_key",
    "map_update",
    "map_update_batch",
    "possible_cpu_list",
    "possible_cpus",
    "prog_info",
    "prog_load",
    "raw_tracepoint_open",
    "wait_for_programs",
]

#: The smallest program: mov64 r0, 0; exit. For asking the kernel what it lets in.
RETURN_0 = bytes.fromhex("b7000000000000009500000000000000")

#: Flag of an array map: its values can be mapped into memory (since 5.5).
F_MMAPABLE = 1 << 10

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYS = {
    "x86_64": {"bpf": 321, "perf_event_open": 298},
    "aarch64": {"bpf": 280, "perf_event_open": 241},
}


class MapType(IntEnum):
    """``enum bpf_map_type``: the kinds labkit reads."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    ARRAY_OF_MAPS = 12
    QUEUE = 22
    RINGBUF = 27


class ProgType(IntEnum):
    """``enum bpf_prog_type``: the kinds labkit loads."""

    KPROBE = 2
    TRACEPOINT = 5
    RAW_TRACEPOINT = 17
    TRACING = 26


class AttachType(IntEnum):
    """``enum bpf_attach_type``: the kinds labkit uses."""

    NONE = 0
    TRACE_RAW_TP = 23
    TRACE_FENTRY = 24


class _Cmd(IntEnum):
    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    PROG_GET_NEXT_ID = 11
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    RAW_TRACEPOINT_OPEN = 17
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    ENABLE_STATS = 32


def syscall(name: str, *args: object) -> int:
    numbers = _SYS.get(platform.machine())
    if numbers is None:
        raise OSError(errno.ENOSYS, f"no system call numbers for {platform.machine()}")
    result: int = _LIBC.syscall(numbers[name], *args)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def bpf(cmd: int, attr: bytes) -> tuple[int, bytes]:
    """Call ``bpf(2)``; returns its result and the attribute block as the kernel left it."""
    block = ctypes.create_string_buffer(attr.ljust(144, b"\0"), max(len(attr), 144))
    result = syscall("bpf", ctypes.c_int(cmd), block, ctypes.c_uint(len(attr)))
    return result, block.raw


def _address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def _name(text: str) -> bytes:
    """Object names: at most 15 bytes of ``[A-Za-z0-9_.]`` (``bpf_obj_name_cpy``)."""
    return "".join(c if c.isalnum() or c in "_." else "_" for c in text).encode("ascii", "replace")[:15]


def map_create(
    kind: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    flags: int = 0,
    inner_fd: int = 0,
    name: str = "",
) -> int:
    """Create a map; returns its file descriptor. ``inner_fd``: for a map of maps, one like those it will hold."""
    attr = struct.pack(
        "=IIIIIII16s", kind, key_size, value_size, max_entries, flags, inner_fd, 0, _name(name)
    )
    return bpf(_Cmd.MAP_CREATE, attr)[0]


def _element(fd: int, key: np.ndarray | None, other: np.ndarray, flags: int = 0) -> bytes:
    return struct.pack("=IxxxxQQQ", fd, 0 if key is None else _address(key), _address(other), flags)


def map_lookup(fd: int, key: np.ndarray, value: np.ndarray) -> bool:
    """Read one entry into ``value``; False if the key is not there."""
    try:
        bpf(_Cmd.MAP_LOOKUP_ELEM, _element(fd, key, value))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def map_update(fd: int, key: np.ndarray | None, value: np.ndarray, flags: int = 0) -> None:
    """Write one entry."""
    bpf(_Cmd.MAP_UPDATE_ELEM, _element(fd, key, value, flags))


def map_delete(fd: int, key: np.ndarray) -> bool:
    """Delete one entry; False if the key is not there."""
    try:
        bpf(_Cmd.MAP_DELETE_ELEM, struct.pack("=IxxxxQQQ", fd, _address(key), 0, 0))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def map_pop(fd: int, value: np.ndarray) -> bool:
    """Take the first entry out of a queue, into ``value``; False if it is empty."""
    try:
        bpf(_Cmd.MAP_LOOKUP_AND_DELETE_ELEM, _element(fd, None, value))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def map_next_key(fd: int, key: np.ndarray | None, following: np.ndarray) -> bool:
    """Write the key after ``key`` (the first one for None) into ``following``; False at the end."""
    try:
        bpf(_Cmd.MAP_GET_NEXT_KEY, _element(fd, key, following))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def _batch(cmd: int, fd: int, keys: np.ndarray, values: np.ndarray | None, count: int) -> None:
    attr = struct.pack(
        "=QQQQIIQQ", 0, 0, _address(keys), 0 if values is None else _address(values), count, fd, 0, 0
    )
    bpf(cmd, attr)


def map_update_batch(fd: int, keys: np.ndarray, values: np.ndarray, count: int) -> None:
    """Write ``count`` entries (5.6 and later for hashes, 5.13 for per-CPU arrays)."""
    _batch(_Cmd.MAP_UPDATE_BATCH, fd, keys, values, count)


def map_delete_batch(fd: int, keys: np.ndarray, count: int) -> None:
    """Delete ``count`` entries (hashes, 5.6 and later).

    :raises OSError: ENOENT at the first key that is not there; those before it are deleted.
    """
    _batch(_Cmd.MAP_DELETE_BATCH, fd, keys, None, count)


def wait_for_programs() -> None:
    """Return when every BPF program that was running has ended, so that none acts on what a map held before.

    The kernel promises that to whoever changes a map of maps (``maybe_wait_bpf_programs``, commit 1ae80cf31938, 4.20).
    Sleepable programs are not waited for; labkit loads none.
    """
    inner = map_create(MapType.ARRAY, 4, 4, 1, name="lk_wait_inner")
    try:
        outer = map_create(MapType.ARRAY_OF_MAPS, 4, 4, 1, inner_fd=inner, name="lk_wait")
        try:
            map_update(outer, np.zeros(1, np.uint32), np.array([inner], np.uint32))
        finally:
            os.close(outer)
    finally:
        os.close(inner)


def map_lookup_batch(
    fd: int,
    position: np.ndarray | None,
    following: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    count: int,
) -> tuple[int, bool]:
    """Read up to ``count`` entries into ``keys`` and ``values`` (5.6 and later for hashes, 5.13 for per-CPU arrays).

    :param position: opaque position from the last call, None to start.
    :param following: where the kernel writes the next position (at least 8 bytes and a key long).
    :returns: entries read, and True if the map is exhausted.
    :raises OSError: ENOSPC if one hash bucket holds more than ``count`` entries: ask for more.
    """
    attr = struct.pack(
        "=QQQQIIQQ",
        0 if position is None else _address(position),
        _address(following),
        _address(keys),
        _address(values),
        count,
        fd,
        0,
        0,
    )
    block = ctypes.create_string_buffer(attr, len(attr))
    try:
        syscall("bpf", ctypes.c_int(_Cmd.MAP_LOOKUP_BATCH), block, ctypes.c_uint(len(attr)))
    except OSError as error:
        if error.errno == errno.ENOENT:  # the end; what was read before it counts
            return struct.unpack_from("=I", block.raw, 32)[0], True
        raise
    return struct.unpack_from("=I", block.raw, 32)[0], False


_LOAD_ATTEMPTS = 5


def prog_load(
    kind: int,
    instructions: bytes,
    *,
    name: str,
    license: str = "GPL",
    attach_type: int = 0,
    attach_btf_id: int = 0,
    log: ctypes.Array[ctypes.c_char] | None = None,
    log_level: int = 0,
    kernel_version: int = 0,
) -> int:
    """Load a program; returns its file descriptor.

    The verifier gives up with EAGAIN when a signal arrives (``kernel/bpf/verifier.c``); it is asked again, as libbpf does.

    :param log: a buffer that the verifier writes its log to, when ``log_level`` is 1 or more.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    text = ctypes.create_string_buffer(license.encode())
    attr = struct.pack(
        "=IIQQIIQII16sIIIIQIIQII",
        kind,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(text),
        log_level,
        0 if log is None else len(log),
        0 if log is None else ctypes.addressof(log),
        kernel_version,
        0,  # prog_flags
        _name(name),
        0,  # prog_ifindex
        attach_type,
        0,  # prog_btf_fd
        0,  # func_info_rec_size
        0,  # func_info
        0,  # func_info_cnt
        0,  # line_info_rec_size
        0,  # line_info
        0,  # line_info_cnt
        attach_btf_id,
    )
    for attempt in range(_LOAD_ATTEMPTS):
        try:
            return bpf(_Cmd.PROG_LOAD, attr)[0]
        except BlockingIOError:
            if attempt + 1 == _LOAD_ATTEMPTS:
                raise
    raise AssertionError("not reached")


def raw_tracepoint_open(prog_fd: int, name: str | None) -> int:
    """Attach to a raw tracepoint (``name``), or attach a tracing program (None); closing the result detaches."""
    text = ctypes.create_string_buffer(name.encode()) if name else None
    return bpf(
        _Cmd.RAW_TRACEPOINT_OPEN, struct.pack("=QIxxxx", ctypes.addressof(text) if text else 0, prog_fd)
    )[0]


class ProgInfo:
    """What the kernel says of a loaded program.

    ``recursion_misses``: how often the kernel left it out, because it ran on that CPU already (0 before 5.12).
    ``run_time_ns`` and ``run_count`` stand still unless statistics are enabled (:func:`enable_stats`).
    """

    def __init__(self, block: bytes) -> None:
        self.kind, self.id = struct.unpack_from("=II", block, 0)
        self.name = block[64:80].split(b"\0", 1)[0].decode("ascii", "replace")
        self.run_time_ns, self.run_count, self.recursion_misses = struct.unpack_from("=QQQ", block, 192)


def prog_info(fd: int) -> ProgInfo:
    """``struct bpf_prog_info`` of a program (5.1 and later for the statistics)."""
    info = ctypes.create_string_buffer(256)
    bpf(_Cmd.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
    return ProgInfo(info.raw)


def loaded_programs() -> list[ProgInfo]:
    """Every BPF program in the kernel. Needs CAP_SYS_ADMIN (listing ids)."""
    found: list[ProgInfo] = []
    last = 0
    while True:
        try:
            _, block = bpf(_Cmd.PROG_GET_NEXT_ID, struct.pack("=III", last, 0, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return found
            raise
        last = struct.unpack_from("=I", block, 4)[0]
        try:
            fd = bpf(_Cmd.PROG_GET_FD_BY_ID, struct.pack("=III", last, 0, 0))[0]
        except OSError:  # it went away between the two calls
            continue
        try:
            found.append(prog_info(fd))
        finally:
            os.close(fd)


def enable_stats() -> int:
    """Let the kernel count run time and runs of BPF programs while the result stays open.

    Needs CAP_SYS_ADMIN (5.8 and later). Unlike the sysctl ``kernel.bpf_stats_enabled`` it ends by itself when this
    process does, however it ends.
    """
    return bpf(_Cmd.ENABLE_STATS, struct.pack("=I", 0))[0]


def cpu_list(text: str) -> list[int]:
    """CPU numbers of a list in the kernel's form.

    >>> cpu_list("0-2,8")
    [0, 1, 2, 8]
    """
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def possible_cpu_list() -> list[int]:
    """Numbers of all *possible* CPUs, which may have gaps: a per-CPU map holds one value for each, online or not."""
    with open("/sys/devices/system/cpu/possible") as file:
        return cpu_list(file.read())


def possible_cpus() -> int:
    """How many values a per-CPU map holds for each key."""
    return len(possible_cpu_list())

"""``perf_event_open(2)``, thinly: how programs are attached to classic tracepoints and kprobes."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from labkit.bpfsys import syscall

__all__ = ["open_perf_kprobe", "open_perf_tracepoint"]

_PERF_TYPE_TRACEPOINT = 2
_PERF_IOC_ENABLE = 0x2400
_PERF_IOC_SET_BPF = 0x40042408
_PERF_FLAG_FD_CLOEXEC = 8


def _first_online_cpu() -> int:
    """CPU 0 may be offline where it can be unplugged (arm64)."""
    with open("/sys/devices/system/cpu/online") as file:
        return int(file.read().split(",")[0].split("-")[0])


def _perf_open(attr: bytes, prog_fd: int) -> int:
    block = ctypes.create_string_buffer(attr, len(attr))
    # One event on one CPU is enough: a program on a trace event runs on whichever CPU the event fires.
    fd = syscall(
        "perf_event_open",
        block,
        ctypes.c_int(-1),
        ctypes.c_int(_first_online_cpu()),
        ctypes.c_int(-1),
        ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC),
    )
    try:
        fcntl.ioctl(fd, _PERF_IOC_SET_BPF, prog_fd)
        fcntl.ioctl(fd, _PERF_IOC_ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def _perf_attr(kind: int, config: int, config1: int = 0) -> bytes:
    """``struct perf_event_attr``, 112 bytes (PERF_ATTR_SIZE_VER5): type, size, config, ..., config1 at 56."""
    attr = bytearray(112)
    struct.pack_into("=IIQQ", attr, 0, kind, len(attr), config, 1)
    struct.pack_into("=Q", attr, 56, config1)
    return bytes(attr)


def open_perf_tracepoint(event_id: int, prog_fd: int) -> int:
    """Attach a program to the classic tracepoint of that id (``events/CATEGORY/NAME/id`` in tracefs)."""
    return _perf_open(_perf_attr(_PERF_TYPE_TRACEPOINT, event_id), prog_fd)


def open_perf_kprobe(pmu_type: int, function: str, prog_fd: int, *, returns: bool = False) -> int:
    """Attach a program to the entry of a kernel function (``/sys/bus/event_source/devices/kprobe/type``).

    :param returns: to its return instead: bit 0 of config, by ``format/retprobe`` beside that file.
    """
    text = ctypes.create_string_buffer(function.encode())
    return _perf_open(_perf_attr(pmu_type, int(returns), ctypes.addressof(text)), prog_fd)

"""A counter of the learner's own, on its way to Prometheus: exercise 10.5.

A process writes and reads blocks of known sizes, in bursts. After each burst the learner's table is put into words as an
exporter does it, and what that says is held against the kernel's own account of the same process.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pandas as pd
from prometheus_client.core import CounterMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from labkit.errors import WorkloadFailed
from labkit.lessons.c_model import DryProgram
from labkit.lessons.c_model.kernel import SYSCALLS
from labkit.lessons.feedback import Feedback, right, wrong
from labkit.lessons.programs import rehearse, try_program
from labkit.metrics.text import write

__all__ = [
    "BURSTS",
    "Writer",
    "exposed",
    "judge_scrapes",
    "race",
    "reading",
    "samples",
    "try_live",
    "try_without_a_kernel",
]

_PROGRAM = "syscall_counts"
#: The largest block that one call writes (MAX_RW_COUNT, include/linux/fs.h).
_LARGEST = 0x7FFFF000
#: Sizes of the blocks, in bytes, burst by burst: together more than 32 bits hold, the last one smaller than those before.
BURSTS: tuple[tuple[int, ...], ...] = ((97, 1009), (65_537, *[_LARGEST] * 3), (13,))
_WRITER = f"""
import mmap, os, socket, sys
link = socket.socket(fileno=int(sys.argv[1]))
sink, zero = os.open("/dev/null", os.O_WRONLY), os.open("/dev/zero", os.O_RDONLY)
# Gigabytes that take neither memory nor time: nobody looks at what goes to /dev/null.
block = memoryview(mmap.mmap(-1, {_LARGEST}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ))
while True:
    link.send(b".")  # by sendto(): this is no write()
    for size in map(int, link.recv(4096).split()):
        os.write(sink, block[:size])
        os.read(zero, min(2 * size, 1 << 16))
"""


class Writer:
    """A process that writes blocks when it is told to; a context manager.

    :ivar written: bytes of the bursts so far.
    """

    def __init__(self) -> None:
        self._link, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WRITER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
        self._link.settimeout(60)
        self.pid, self.written = self._process.pid, 0
        self._wait()
        self._began = self._account()

    def write(self, sizes: Sequence[int]) -> None:
        """A block of each size, and a read after each; returns when all is done."""
        self._link.send(" ".join(map(str, sizes)).encode())
        self._wait()
        self.written += sum(sizes)

    @property
    def account(self) -> int | None:
        """The kernel's word for it: ``wchar`` of ``/proc/PID/io``, since the beginning; None if it keeps no account."""
        now = self._account()
        return None if now is None or self._began is None else now - self._began

    def _account(self) -> int | None:
        try:
            text = Path(f"/proc/{self.pid}/io").read_text()
        except OSError:  # built without CONFIG_TASK_IO_ACCOUNTING, or not ours to read
            return None
        return int(text.split("wchar:")[1].split()[0])

    def _wait(self) -> None:
        if not self._link.recv(1):
            raise WorkloadFailed("the process that writes has ended early")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._link.close()


def exposed(counts: pd.DataFrame) -> str:
    """The table ``counts`` as an exporter puts it: a counter for ``calls``, and for ``bytes`` if there is such a column.

    :param counts: columns ``nr``, ``calls``, ``comm``, and perhaps ``bytes``. ``tgid`` is no label, for each new process
        would be a new series: processes of one name add up.
    """
    text = {"calls": "System calls.", "bytes": "Bytes that system calls were asked to write."}
    families = []
    for column in (one for one in text if one in counts):
        family = CounterMetricFamily(f"lab_syscall_{column}", text[column], labels=["comm", "nr"])
        for (comm, nr), total in counts.groupby(["comm", "nr"])[column].sum().items():
            family.add_metric([str(comm), str(nr)], int(total))
        families.append(family)
    return write(families).decode()


def samples(exposition: str) -> pd.DataFrame:
    """An exposition as a frame.

    :returns: ``sample`` (str), one column per label (str, empty where there is none), ``value`` (float64).
    """
    rows = [
        {"sample": sample.name, **sample.labels, "value": float(sample.value)}
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    ]
    frame = pd.DataFrame(rows)
    words = [column for column in frame.columns if column != "value"]
    return frame.assign(**{column: frame[column].fillna("").astype("str") for column in words})


def reading(source: str) -> str:
    """What seems to be missing by the looks of an answer; empty if nothing."""
    member = re.search(r"\b([us]\d+|int|long|unsigned \w+)\s+bytes\s*;", source)
    if member is None:
        return "`struct lk_calls` has no member `u64 bytes`."
    if member[1] != "u64":
        return f"A {member[1]} is full after some gigabytes, and begins anew: a counter is a u64."
    return "" if re.search(r"(->|\.)\s*bytes\b", source) else "Nothing adds to `entry->bytes`."


def race(source: str) -> str:
    """In words, if an answer adds in a way that loses some when two CPUs do so at once: no run shows that for sure."""
    if not re.search(r"(->|\.)\s*bytes\s*(\+=|\+\+|=[^;=]*\bbytes\s*\+)", source):
        return ""
    return (
        "It counts right here, with one thread. Two threads of a process on two CPUs read the same sum, and each writes "
        "back its own: one is lost. How does the program add to `calls`?"
    )


def judge_scrapes(
    scrapes: Sequence[tuple[pd.DataFrame, int]], *, nr: str, by: str = "what was written"
) -> Feedback:
    """Whether what was scraped is the counter that was asked for.

    :param scrapes: for each, in order: the samples, and the bytes that were written up to then.
    :param nr: number of write() here.
    :param by: whose word that is.
    """
    name = "lab_syscall_bytes_total"
    values = [scraped.loc[scraped["sample"] == name].set_index("nr")["value"] for scraped, _ in scrapes]
    told = [float(one.get(nr, 0.0)) for one in values]
    truth = [float(bytes_) for _, bytes_ in scrapes]
    course = " then ".join(f"{one:,.0f}" for one in told)
    if any(later < sooner for sooner, later in pairwise(told)):
        return wrong(
            f"Scraped, it says {course}: a counter never goes back. Is the new size put in the place of the sum?"
        )
    others = sum(float(one.drop(nr, errors="ignore").sum()) for one in values[-1:])
    if others:
        return wrong(
            f"{others:,.0f} bytes stand with other calls than write(): what is their third argument?"
        )
    if not any(told):
        return wrong("The metric is there, and stays 0 whatever is written.")
    if told[-1] == sum(len(burst) for burst in BURSTS):
        return wrong(f"It says {course}: those are the calls. How much did each ask for?")
    if told != truth and told == [one % 2**32 for one in truth]:
        return wrong(
            f"Scraped, it says {course}: after 4 GiB it began anew, as 32 bits do. To Prometheus that is a restart."
        )
    if told != truth:
        expected = " then ".join(f"{one:,.0f}" for one in truth)
        return wrong(f"Scraped, it says {course}; written were {expected} bytes.")
    return right(f"`{name}` says {course}: byte for byte {by}.")


def try_without_a_kernel(source: str) -> Feedback:
    """The same bursts in replay: an answer is run in a model, and scraped after each."""
    scrapes: list[tuple[pd.DataFrame, int]] = []

    def script(program: DryProgram) -> None:
        scrapes.clear()
        kernel, written = program.kernel(), 0
        writer = kernel.task(4000, "writer", kernel.root)
        for burst in BURSTS:
            for size in burst:
                kernel.run_by(writer, size % 2)
                program.syscall(kernel, SYSCALLS["write"], 1, 0x7F00_0000_0000, size)
                program.syscall(kernel, SYSCALLS["read"], 0, 0x7F00_0000_0000, 2 * size)
                kernel.tick(1_000)
            written += sum(burst)
            scrapes.append((samples(exposed(program.frame("counts"))), written))

    def judge(_: DryProgram) -> Feedback:
        return judge_scrapes(scrapes, nr=str(SYSCALLS["write"]))

    return rehearse(_PROGRAM, source, script, judge)


def try_live(source: str, *, nr: str) -> Feedback:
    """Load an answer, let a process write, scrape it after each burst, and hold it against ``/proc/PID/io``."""
    with Writer() as writer:

        def judge(program: Any) -> Feedback:
            scrapes = []
            for burst in BURSTS:
                writer.write(burst)
                account = writer.account
                scrapes.append(
                    (
                        samples(exposed(program.frame("counts"))),
                        writer.written if account is None else account,
                    )
                )
            own = "what was written" if writer.account is None else "what /proc/PID/io says"
            return judge_scrapes(scrapes, nr=nr, by=own)

        return try_program(_PROGRAM, source, judge, tgid=writer.pid)

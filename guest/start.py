"""Starts guests: boots the first, restores the others.

The first start boots, warms what tests need (page cache, labkit's merged headers) and saves the whole machine beside
the image; later starts restore that in about two seconds. Every start works on a throwaway disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guest.errors import BootFailed, GuestDied, GuestError
from guest.host import locked, run_tool, say
from guest.image import Image
from guest.machine import Machine
from guest.qemu import Emulator, emulator_version, qemu_arguments
from guest.repo import pack
from guest.root import VENV

__all__ = ["machine"]

BOOT_S = 180.0  # a boot takes 10 s on an idle host of 2 cores; many times that is a dead guest
RESTORE_S = 30.0
WARM_UP_S = 300.0

# What a test run touches first.
_WARM_UP = """
import importlib
for name in ("pandas", "pyarrow.parquet", "matplotlib.pyplot", "papermill", "ipykernel.kernelapp", "pytest"):
    importlib.import_module(name)
from labkit.program import load
load("hello").close()
"""


@contextmanager
def machine(image: Image, *, root: Path, fresh: bool = False) -> Iterator[Machine]:
    """A guest with the lab at ``/lab``; gone, with its disk, when the block ends.

    :param root: the lab's folder.
    :param fresh: boot instead of restoring the snapshot.
    :raises BootFailed: if it does not come up at the second try either.
    """
    files = pack(root)
    start = _boot if fresh else _restore
    try:
        guest = start(image, files)
    except GuestError as error:
        say(f"the guest did not come up, trying once more: {error}")
        try:
            guest = start(image, files)
        except GuestError as second:
            raise BootFailed("The guest did not come up in two tries.", why=str(second)) from second
    with guest.emulator:
        yield guest


def _boot(image: Image, files: bytes) -> Machine:
    started = time.monotonic()
    guest = _come_up(Emulator(image), image, files, seconds=BOOT_S)
    say(f"booted Debian with Linux {image.kernel} in {time.monotonic() - started:.1f} s")
    return guest


def _restore(image: Image, files: bytes) -> Machine:
    saved = _snapshot_folder(image)
    with locked(image.folder / "snapshot.lock", "snapshot"):
        if not (saved / "memory").exists():
            _make_snapshot(image, files, saved)
    started = time.monotonic()
    emulator = Emulator(image, disk=saved / "disk.qcow2", disk_format="qcow2", restore=saved / "memory")
    try:
        guest = _come_up(emulator, image, files, seconds=RESTORE_S)
    except GuestError:
        shutil.rmtree(saved, ignore_errors=True)  # perhaps it is at fault: the next try makes a new one
        raise
    say(f"restored Debian with Linux {image.kernel} in {time.monotonic() - started:.1f} s")
    return guest


def _come_up(emulator: Emulator, image: Image, files: bytes, *, seconds: float) -> Machine:
    """Wait for the agent, set the clock, put the lab in place. Kills the emulator if that fails."""
    try:
        if emulator.restoring:
            _resume(emulator)
        guest = Machine(image, emulator, boot_s=seconds)
        guest.set_clock()
        guest.ship(files)
    except BaseException as error:
        words = emulator.last_words()
        emulator.close()
        if isinstance(error, GuestError) and not isinstance(error, (BootFailed, GuestDied)):
            raise BootFailed(error.what, why=f"{error.why}; {words}" if error.why else words) from error
        raise
    return guest


def _resume(emulator: Emulator) -> None:
    """Let a restored machine run as soon as its memory is there."""
    deadline = time.monotonic() + RESTORE_S
    while emulator.qmp("query-status")["status"] == "inmigrate":
        emulator.check()
        if time.monotonic() > deadline:
            raise BootFailed("The snapshot was not restored in time.", why=emulator.last_words())
        time.sleep(0.05)
    emulator.qmp("cont")


def _snapshot_folder(image: Image) -> Path:
    """Named by all that a restore must share with the save: emulator, arguments, what was warmed."""
    nowhere = Path("/nowhere")
    arguments = qemu_arguments(
        image.arch, image, nowhere, nowhere, disk_format="qcow2", throwaway=True, restore=None
    )
    parts = [emulator_version(image.arch), repr(arguments), _WARM_UP]
    return image.folder / f"snapshot-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"


def _make_snapshot(image: Image, files: bytes, target: Path) -> None:
    """Boot, warm up, save memory and disk. One rename makes it valid."""
    started = time.monotonic()
    for stale in (*image.folder.glob("snapshot-*/"), *image.folder.glob("making-*/")):
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix="making-", dir=image.folder))
    try:
        disk = scratch / "disk.qcow2"
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.disk), str(disk)])
        say("booting (about 15 s)")
        emulator = Emulator(image, disk=disk, disk_format="qcow2", throwaway=False)
        guest = _come_up(emulator, image, files, seconds=BOOT_S)
        with emulator:
            booted = time.monotonic() - started
            say(f"booted in {booted:.0f} s; warming up (about 40 s), so that later runs start from here")
            code, text = guest.run([f"{VENV}/bin/python", "-c", _WARM_UP], timeout_s=WARM_UP_S)
            if code != 0:  # a fault of the lab's, perhaps; the tests will tell
                say(f"warming up was incomplete: {''.join(text.strip().splitlines()[-1:])}")
            # The compiler's pages and the merged headers are to stay, what it made is not: tests compile.
            guest.must("sh", "-c", "rm -rf /lab /var/cache/labkit/programs && mkdir /lab && sync")
            guest.save(scratch / "memory")
        os.rename(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    size = (target / "memory").stat().st_size / 1e6
    say(f"snapshot made in {time.monotonic() - started:.0f} s ({size:.0f} MB)")

"""Loading a program is tried again when a signal interrupts the verifier, and not for ever."""

import pytest

from labkit import bpfsys


@pytest.mark.parametrize(("interruptions", "loads"), [(0, True), (4, True), (5, False)])
def test_a_load_that_a_signal_interrupted_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, interruptions: int, loads: bool
) -> None:
    calls: list[int] = []

    def interrupted(command: int, attr: bytes) -> tuple[int, bytes]:
        calls.append(command)
        if len(calls) <= interruptions:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return 42, attr

    monkeypatch.setattr(bpfsys, "bpf", interrupted)
    if loads:
        assert bpfsys.prog_load(1, b"\0" * 16, name="lk_test") == 42
        assert len(calls) == interruptions + 1
        return
    with pytest.raises(BlockingIOError):
        bpfsys.prog_load(1, b"\0" * 16, name="lk_test")

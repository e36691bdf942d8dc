"""Every program on every hook it names, on whatever kernel this guest runs: one row of docs/compatibility.md.

What is refused is in test_rejects_here.py. Each test has minutes of its own: compiling is slow under emulation.
"""

from __future__ import annotations

import pytest

from guest.survey import comparisons, hooks

pytestmark = [pytest.mark.guest, pytest.mark.slow]


def test_a_debian_kernel_has_every_hook_and_takes_every_program() -> None:
    found = hooks()
    assert [row for row in found if row["result"] != "works"] == []
    assert len({row["program"] for row in found}) >= 7


def test_what_is_counted_agrees_with_the_kernels_own_accounts() -> None:
    assert [row for row in comparisons() if row["result"] != "agrees"] == []

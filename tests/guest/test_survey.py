"""Every program on every hook it names, on whatever kernel this guest runs: one row of docs/compatibility.md."""

from __future__ import annotations

from typing import Any

import pytest

from guest.survey import survey

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return survey()


def test_a_debian_kernel_has_every_hook_and_takes_every_program(found: dict[str, Any]) -> None:
    assert [row for row in found["hooks"] if row["result"] != "works"] == []
    assert len({row["program"] for row in found["hooks"]}) >= 7


def test_what_is_refused_is_refused_as_described_and_let_in_when_mended(found: dict[str, Any]) -> None:
    assert [row for row in found["rejects"] if row["result"] == "differs" or row["mended"] != "let in"] == []
    assert len(found["rejects"]) >= 14


def test_what_is_counted_agrees_with_the_kernels_own_accounts(found: dict[str, Any]) -> None:
    assert [row for row in found["comparisons"] if row["result"] != "agrees"] == []

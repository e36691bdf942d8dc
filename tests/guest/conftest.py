"""These tests run inside the guest, where ``./task guest-test`` puts them. Elsewhere they skip: the guest may be broken
by a test, a person's machine may not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

IN_GUEST = Path("/etc/labkit-guest").exists()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if not IN_GUEST and item.get_closest_marker("guest") is not None:
        pytest.skip("runs inside the guest kernel: ./task guest-test")

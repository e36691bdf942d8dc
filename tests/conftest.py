"""When a live test may skip: only if this machine cannot run it, and then with the reason and the way to force it.

A test marked ``live`` skips where live measurement is impossible, or where something named by ``needs`` is missing (a
feature as in `./task doctor`, ``root``, ``chromium``, or ``v1 cpu`` for cgroup v1's cpu controller). Any other skip of a
live test is a hole in the net: in CI (``CI`` is set) it is a failure. ``LABKIT_FORCE_LIVE=1`` makes every skip of a live
test a failure, also where the machine is the cause.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator

import pytest

_FORCE = "LABKIT_FORCE_LIVE"


def _obstacle(item: pytest.Item) -> str:
    """Why this machine cannot run a live test, with the remedy; empty if it can."""
    from labkit.kernel import probe  # not at the top: unit tests shall not pay for it, nor break by it
    from labkit.kernel.cgroup import hierarchy

    report = probe()
    if not report.live:
        return report.why_not_live()
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            if name == "root":
                if os.geteuid() != 0:
                    return "needs root: sudo ./task test"
                continue
            if name == "chromium":
                if not shutil.which("chromium"):
                    return "needs Chromium: labkit setup --parts browser"
                continue
            if name == "v1 cpu":
                if "cpu" not in hierarchy().controllers:
                    return "needs cgroup v1's cpu controller: this machine has it in cgroup v2"
                continue
            feature = report[name]
            if feature.state != "yes":
                return f"needs {name}: {feature.detail}"
    return ""


@pytest.fixture(autouse=True, scope="session")
def _a_learners_folder(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Answers and predictions that tests give are nobody's progress."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_WORK", str(tmp_path_factory.mktemp("work") / "my"))
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("live") is None:
        return
    obstacle = _obstacle(item)
    if not obstacle:
        return
    if os.environ.get(_FORCE):
        pytest.fail(f"{_FORCE} is set, and this machine cannot run the test: {obstacle}", pytrace=False)
    pytest.skip(f"{obstacle} ({_FORCE}=1 fails instead)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    strict = os.environ.get("CI") or os.environ.get(_FORCE)
    if strict and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("live"):
        obstacle = _obstacle(item)
        if not obstacle:
            report.outcome = "failed"
            report.longrepr = f"a live test skipped on a machine that can run it: {call.excinfo}"
    return report

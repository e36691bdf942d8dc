"""What cleans up must never reach further than what it was asked to clean."""

import subprocess
import sys
from pathlib import Path

REMOVE = "import sys; from labkit._janitor import remove_cgroup; print(remove_cgroup(sys.argv[1]))"


def test_processes_of_another_pid_namespace_are_left_alone(tmp_path: Path) -> None:
    """They read as 0 in cgroup.procs, and kill(0, ...) is one's own process group."""
    (tmp_path / "cgroup.procs").write_text("0\n")
    done = subprocess.run(
        [sys.executable, "-c", REMOVE, str(tmp_path)],
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "False\n")

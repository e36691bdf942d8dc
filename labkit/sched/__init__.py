"""What the scheduler's numbers mean: pure functions from frames to frames."""

from labkit.sched.waits import allowed_ns, compare

__all__ = ["allowed_ns", "compare"]

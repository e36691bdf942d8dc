"""How far two of the kernel's own accounts of one thing may be apart, and why. One place, so that tests do not disagree."""

MS = 1_000_000


def switches_agree(residual: int, oracle: int) -> bool:
    """Switches, counted by the program and by ``/proc``: the tasks' first and last switches may be in one of them only, and
    where the program was not called for one (``unseen``) it does not know why the task left."""
    return abs(residual) <= 3 + 0.02 * oracle


def throttling_agrees(task_ns: int, wall_ns: int, period_ns: int) -> bool:
    """One task's throttled wait, and ``cpu.stat`` of its group: a throttled group whose task rests stays throttled
    to the end of the period, which nobody waits for. Else the two stop their clocks at moments of their own."""
    apart = MS + 0.01 * wall_ns
    return wall_ns - period_ns - apart <= task_ns <= wall_ns + apart

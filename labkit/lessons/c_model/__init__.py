"""A learner's C, run without a kernel: on recorded or made-up events, with the frames and the ledger of a real run.

A program in the lab's dialect is preprocessed (:mod:`.source`), parsed by pycparser, compiled to Python functions
(:mod:`.code`, :mod:`.expressions`, :mod:`.calls`) and run on a :mod:`.machine` with objects of a small :mod:`.kernel`.
What comes of it is a :class:`.program.DryProgram`, which the checks of the exercises read as they read a real one.

It is a model, not a verifier: it refuses what it sees a program do (follow NULL, leave an object, keep a record), for
each event that it is fed. What it does not know, it does not judge: :class:`.errors.NotRun`.
"""

from labkit.lessons.c_model.errors import NotC, NotRun, Refused
from labkit.lessons.c_model.kernel import Cgroup, Kernel, Task
from labkit.lessons.c_model.program import DryProgram, Script, run

__all__ = ["Cgroup", "DryProgram", "Kernel", "NotC", "NotRun", "Refused", "Script", "Task", "run"]

"""What can become of a program that is run without a kernel, other than a result."""

from __future__ import annotations

from labkit.errors import LabkitError

__all__ = ["NotC", "NotRun", "Refused"]


class NotRun(LabkitError):
    """The model does not know something that the program uses: nothing follows from that about the program."""


class NotC(LabkitError):
    """The text is not C, or names what is not there: no compiler takes it."""


class Refused(LabkitError):
    """The program did what the verifier lets no program do: used NULL, left an object's bounds, kept a record."""

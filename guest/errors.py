"""What can go wrong with the guest itself. None of it says anything about the code under test."""

from __future__ import annotations

from labkit.errors import LabkitError

__all__ = ["AgentError", "BootFailed", "BuildFailed", "GuestDied", "GuestError", "HostCannot"]


class GuestError(LabkitError):
    """Base: the guest could not be built, started or talked to. Infrastructure, not a failing test."""


class HostCannot(GuestError):
    """This machine cannot run the guest (no Linux, no QEMU and no right to install it, no Debian mirror)."""


class BuildFailed(GuestError):
    """The image could not be built. The text holds the end of the failing tool's log."""


class BootFailed(GuestError):
    """The guest did not come up. The text holds the end of its console."""


class GuestDied(GuestError):
    """The guest was up, and is no more. The text holds the end of its console."""


class AgentError(GuestError):
    """The agent inside the guest does not answer, or refuses a command."""

"""What the lab asks of the system: packages, mounts, rights. ``setup`` does it, ``uninstall`` takes it back.

Each piece is a :class:`~labkit.system.step.Step`, which says what is missing, mends it, and undoes exactly what it did
(``/var/lib/labkit/setup.json`` remembers). ``launch`` runs a command with the few capabilities that BPF needs.
"""

from labkit.system.command import setup, uninstall

__all__ = ["setup", "uninstall"]

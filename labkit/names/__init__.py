"""Whose control group is it: from ids to paths to the names of units, containers and pods."""

from labkit.names.containers import Known, States
from labkit.names.directory import Directory, Enricher
from labkit.names.paths import UNKNOWN, Name, from_path

__all__ = ["UNKNOWN", "Directory", "Enricher", "Known", "Name", "States", "from_path"]

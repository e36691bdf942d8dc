"""What the running kernel is and can do: features, types, headers, cgroups, privileges, hooks."""

from labkit.kernel.probe import Feature, Report, environment, probe

__all__ = ["Feature", "Report", "environment", "probe"]

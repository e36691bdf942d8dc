"""Metrics for one's own system: what the noisy-neighbour program counts, in the form that Prometheus reads.

>>> from labkit import metrics
>>> print(metrics.exposition(watch.snapshot()))            # doctest: +SKIP
"""

from labkit.metrics.exporter import Exporter, Settings, exposition
from labkit.metrics.families import Judgement
from labkit.metrics.labels import Labels
from labkit.metrics.series import Limits

__all__ = ["Exporter", "Judgement", "Labels", "Limits", "Settings", "exposition"]

"""Writing families as text, a few times faster than prometheus_client does it, and byte for byte the same.

The client library escapes and checks each label of each sample anew, which is two thirds of a scrape of a node with some
hundred cgroups. Here a label is written once and remembered. A test holds the result equal to the library's, in both
formats, hostile names included; what is not needed (timestamps, exemplars, native histograms) is not here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

__all__ = ["CONTENT_TYPE_OPENMETRICS", "CONTENT_TYPE_PLAIN_0_0_4", "float_text", "wants_openmetrics", "write"]

_MAX_ACCEPT = 1024


def wants_openmetrics(accept: str) -> bool:
    """Whether an ``Accept`` header names OpenMetrics, in a version that this is (or in none)."""
    for part in accept[:_MAX_ACCEPT].split(","):
        kind, *parameters = (item.strip() for item in part.split(";"))
        if kind == "application/openmetrics-text":
            version = dict(p.partition("=")[::2] for p in parameters).get("version", "1.0.0")
            if version in ("1.0.0", "0.0.1"):
                return True
    return False


def float_text(value: float) -> str:
    """A number in the way of Go, as the client library writes it."""
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def write(families: Iterable[Metric], *, openmetrics: bool = False) -> bytes:
    """All families as text: OpenMetrics 1.0.0, or Prometheus' own 0.0.4."""
    lines: list[str] = []
    for family in families:
        name, kind = family.name, family.type
        if not openmetrics and kind in ("counter", "info"):
            name, kind = (f"{name}_total", kind) if kind == "counter" else (f"{name}_info", "gauge")
        lines.append(f"# HELP {name} {_help(family.documentation, openmetrics)}\n# TYPE {name} {kind}\n")
        lines += [_line(sample) for sample in family.samples]
    if openmetrics:
        lines.append("# EOF\n")
    return "".join(lines).encode()


def _line(sample: Sample) -> str:
    number = float_text(sample.value)
    if not sample.labels:
        return f"{sample.name} {number}\n"
    labels = ",".join([_label(item) for item in sorted(sample.labels.items())])
    return f"{sample.name}{{{labels}}} {number}\n"


@lru_cache(maxsize=65536)
def _label(item: tuple[str, str]) -> str:
    return f'{item[0]}="{_escaped(item[1])}"'


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _help(text: str, openmetrics: bool) -> str:
    return _escaped(text) if openmetrics else text.replace("\\", r"\\").replace("\n", r"\n")

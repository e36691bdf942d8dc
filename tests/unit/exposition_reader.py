"""What an exposition says, sample by sample."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def value(text: str, sample: str, /, **labels: str) -> float:
    found = [
        number
        for (name, pairs), number in samples(text).items()
        if name == sample and set(labels.items()) <= pairs
    ]
    assert len(found) == 1, (sample, labels, found)
    return found[0]

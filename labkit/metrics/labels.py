"""Which labels a series carries, and how names from the kernel become label values.

Names are hostile input: a cgroup may be called anything that is no slash, up to 255 bytes, and a pod label anything its
owner likes. A label value here is printable, at most :data:`MAX_VALUE` characters, and never one of the words that the
exporter itself uses (:data:`REST`, :data:`OVERFLOW`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from labkit.errors import ParameterError
from labkit.text import plain

__all__ = ["DEFAULT", "MAX_VALUE", "OVERFLOW", "REST", "Labels", "label_value", "occupant_label"]

#: The occupants of a victim that have no series of their own, together.
REST = "_rest"
#: The cgroups that have no series of their own, together: the value of each of their labels.
OVERFLOW = "_overflow"
MAX_VALUE = 128
DEFAULT = "namespace,pod,container,name"

#: What a label can be taken from: columns of the frame ``names``.
SOURCES = ("namespace", "pod", "container", "name", "kind", "owner", "cgroup")
#: Label names that the metrics themselves use.
_OWN = {"cause", "occupant", "occupant_class", "verdict", "le", "reason", "quantile"}
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_POD_LABEL = "pod_label:"


@lru_cache(maxsize=65536)
def label_value(text: str) -> str:
    """``text`` as a label value: visible, bounded, and none of the exporter's own words.

    A value that is cut ends in a hash of the whole, so that two long names stay two.

    >>> label_value("web"), label_value("_rest"), label_value("a\\x1b[31m")
    ('web', '\\\\x5frest', 'a\\\\x1b[31m')
    """
    shown = plain(text)
    if shown in (REST, OVERFLOW):
        return "\\x5f" + shown[1:]
    if len(shown) <= MAX_VALUE:
        return shown
    mark = hashlib.blake2s(shown.encode(), digest_size=4).hexdigest()
    return f"{shown[: MAX_VALUE - 10]}..{mark}"


def occupant_label(namespace: str, pod: str, container: str, name: str) -> str:
    """One value for the other side: ``namespace/pod/container`` of a container in a pod, else its name."""
    parts = [part for part in (namespace, pod, container) if part]
    return label_value("/".join(parts) if pod else name)


@dataclass(frozen=True)
class Labels:
    """The labels that tell a victim's series from another's.

    :param names: label names, in order.
    :param sources: for each, the column of the frame ``names`` that it is taken from.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]

    @classmethod
    def parse(cls, text: str = DEFAULT) -> Labels:
        """From ``LABEL[=SOURCE],...``, such as ``namespace,pod,app=pod_label:app.kubernetes.io/name``.

        ``SOURCE`` is a column of the frame ``names`` (:data:`SOURCES`), or ``pod_label:KEY`` for a label of the
        Kubernetes pod; it is the label's own name if left out.

        :raises ParameterError: if a name is no label name or used twice, or a source does not exist.
        """
        names: list[str] = []
        sources: list[str] = []
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, _, source = (part.strip() for part in item.partition("="))
            source = source or name
            _check(name, source, names)
            names.append(name)
            sources.append(source)
        if not names:
            raise ParameterError("no labels are left", remedy=f"the default is {DEFAULT}")
        return cls(tuple(names), tuple(sources))

    @property
    def pod_labels(self) -> tuple[str, ...]:
        """Keys of the pod labels that are asked for."""
        return tuple(s.removeprefix(_POD_LABEL) for s in self.sources if s.startswith(_POD_LABEL))

    @property
    def overflow(self) -> tuple[str, ...]:
        """The values of the overflow series."""
        return (OVERFLOW,) * len(self.names)

    def of(self, names: pd.DataFrame, ids: np.ndarray) -> list[tuple[str, ...]]:
        """Label values for each id; a cgroup without a name is ``unknown`` in the label ``name``.

        :param names: the frame of a snapshot, perhaps with further columns ``pod_label:KEY``.
        """
        aligned = names.drop_duplicates("cgroup_id", keep="last").set_index("cgroup_id").reindex(ids)
        columns = []
        for source in self.sources:
            missing = "unknown" if source in ("name", "cgroup", "kind", "owner") else ""
            if source in aligned.columns:
                values = aligned[source].astype("object").where(aligned[source].notna(), missing).tolist()
            else:
                values = [missing] * len(ids)
            columns.append([label_value(str(value)) for value in values])
        return list(zip(*columns, strict=True))


def _check(name: str, source: str, taken: Sequence[str]) -> None:
    if not _LABEL_NAME.fullmatch(name) or name.startswith("__"):
        raise ParameterError(
            f"{plain(name)!r} is no label name",
            why="letters, digits and underscores, no digit first, no two underscores first",
            remedy="give it one: app=pod_label:app.kubernetes.io/name" if source != name else "",
        )
    if name in _OWN:
        raise ParameterError(f"the metrics use the label {name} themselves", remedy="choose another name")
    if name in taken:
        raise ParameterError(f"the label {name} is named twice")
    known = source in SOURCES or (source.startswith(_POD_LABEL) and len(source) > len(_POD_LABEL))
    if not known:
        raise ParameterError(
            f"there is nothing called {plain(source)!r} to take the label {name} from",
            why=f"there are {', '.join(SOURCES)}, and pod_label:KEY",
        )

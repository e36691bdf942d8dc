"""Which cgroups an answer is about: by path, by container, by pod, by how long they waited."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from labkit import text
from labkit.errors import NoSuchCgroup, ParameterError

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """What was asked for; empty parts ask for everything, and a cgroup that meets one of them is in.

    :param globs: paths of cgroups, with ``*``, ``?`` and ``[...]``; one without them also covers what lies below it.
    :param containers: names of containers, or their ids (12 characters and more).
    :param pods: ``NAMESPACE/NAME``.
    :param min_wait_ms: leave out who waited less than this many ms in each second.
    """

    globs: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    min_wait_ms: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_wait_ms < float("inf"):
            raise ParameterError(
                f"a shortest wait of {self.min_wait_ms} ms per second makes no sense", remedy="give 0 or more"
            )
        for pod in self.pods:
            if pod.count("/") != 1 or pod.startswith("/") or pod.endswith("/"):
                raise ParameterError(
                    f"{text.plain(pod)!r} is no pod", remedy="name it as NAMESPACE/NAME, such as shop/web-0"
                )

    @property
    def everything(self) -> bool:
        """True if no cgroup was named."""
        return not (self.globs or self.containers or self.pods)

    def ids(self, names: pd.DataFrame) -> list[int]:
        """Ids of the cgroups asked for.

        :param names: ``cgroup_id``, ``cgroup``, ``name``, ``namespace``, ``pod``, ``container``.
        :raises NoSuchCgroup: if one part of the request meets none of them; it says what comes near.
        """
        if self.everything:
            return [int(cgroup_id) for cgroup_id in names["cgroup_id"]]
        columns = ("cgroup_id", "cgroup", "container", "namespace", "pod")
        rows = list(zip(*(names[column].tolist() for column in columns), strict=True))
        found: dict[int, None] = {}
        for glob in self.globs:
            _take(
                found,
                [row[0] for row in rows if _covers(glob, row[1])],
                "cgroup",
                glob,
                [row[1] for row in rows],
            )
        for name in self.containers:
            hits = [row[0] for row in rows if row[2] == name or _is_id(name, row[1])]
            _take(found, hits, "container", name, [row[2] for row in rows])
        for pod in self.pods:
            called = [f"{row[3]}/{row[4]}" if row[4] else "" for row in rows]
            hits = [row[0] for row, known in zip(rows, called, strict=True) if known == pod]
            _take(found, hits, "pod", pod, called)
        return list(found)

    def as_dict(self) -> dict[str, Any]:
        """For a recording; ``Selection(**dict)`` is its inverse, with lists for tuples."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Selection:
        """The inverse of :meth:`as_dict`."""
        return cls(
            tuple(data["globs"]), tuple(data["containers"]), tuple(data["pods"]), float(data["min_wait_ms"])
        )


def _covers(glob: str, path: str) -> bool:
    if not path:
        return False
    wanted = "/" + glob.strip("/")
    plain = not any(char in glob for char in "*?[")
    return (path == wanted or (plain and path.startswith(wanted + "/"))) or (
        not plain and fnmatchcase(path, wanted)
    )


def _is_id(name: str, path: str) -> bool:
    return len(name) >= 12 and all(char in "0123456789abcdef" for char in name) and name in path


def _take(found: dict[int, None], hits: list[int], kind: str, asked: str, there_are: Iterable[str]) -> None:
    if hits:
        found.update(dict.fromkeys(int(cgroup_id) for cgroup_id in hits))
        return
    candidates = sorted({name for name in there_are if name})
    near = difflib.get_close_matches(asked, candidates, n=3, cutoff=0.4)
    if any(char in asked for char in "*?["):
        why = f"none of {len(candidates)} {kind}s fits the pattern"
    else:
        why = f"there are {len(candidates)} {kind}s that have a name"
    shown = ", ".join(text.plain(name) for name in near)
    remedy = f"did you mean: {shown}" if near else "without it, `labkit noisy` shows all there are"
    raise NoSuchCgroup(f"no {kind} {text.plain(asked)!r}", why=why, remedy=remedy, nearest=near)

"""Programs that are refused, as data: the program, what stays true of its refusal on every kernel, and why.

``bpf/rejects/NAME.c`` is a program like any other, and ``NAME.yaml`` beside it says:

- ``title``, ``why``: for people;
- ``stage``: who refuses it, the ``verifier`` or the ``compiler``;
- ``says``: a regular expression that is found in the log on every kernel from 5.15 on, and ``at``: the line of C that is
  named (left out where compilers differ);
- ``may_be_let_in``: why some kernels do let it in, if so;
- ``mend``: text -> text, which makes it a program that is let in, and ``mended``: what the change does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from labkit.errors import CompileError, LabkitError, ParameterError, SpecError, VerifierRejected
from labkit.lessons.programs import Written
from labkit.paths import bpf_dir

__all__ = ["Judgement", "Reject", "explain", "judge_all", "reject", "rejects"]

_PROSE = ("why", "may_be_let_in")


@dataclass(frozen=True)
class Judgement:
    """What became of a program: who refused it (``verifier``, ``compiler``, nobody: empty), its words, the line or 0."""

    refused_by: str
    says: str = ""
    line: int = 0
    log: str = ""


@dataclass(frozen=True, eq=False)
class Reject:
    """One lesson; see the module's text for its fields."""

    name: str
    title: str
    stage: str
    says: str
    why: str
    mended: str
    mend: Mapping[str, str]
    source: str
    at: str = ""
    may_be_let_in: str = ""

    @property
    def code(self) -> str:
        """The C text without its header comment."""
        return self.source.split("*/", 1)[1].split('#include "lk.h"', 1)[1].strip("\n")

    @property
    def mended_program(self) -> Written:
        """The program that is let in.

        :raises SpecError: if a text that is to be replaced is not there exactly once.
        """
        changed = self.source
        for old, new in self.mend.items():
            if changed.count(old) != 1:
                raise SpecError(f"reject {self.name}: {old!r} is there {changed.count(old)} times")
            changed = changed.replace(old, new)
        return Written(self.name, changed, self.source)

    def judge(self) -> Judgement:
        """Try to load it. What cannot be tried here at all (no bcc, no rights) raises as :func:`labkit.load` does."""
        return judge(Written(self.name, self.source, self.source))

    def fits(self, judgement: Judgement, *, line: bool = True) -> bool:
        """True if that is the refusal that is described here.

        :param line: the line of C must be the one, too; it is known only after another compilation.
        """
        if not judgement.refused_by:
            return bool(self.may_be_let_in)
        if judgement.refused_by != self.stage or not re.search(self.says, judgement.log):
            return False
        return not line or not self.at or self.source.splitlines()[judgement.line - 1].strip() == self.at


def judge(program: Written) -> Judgement:
    """Try to load a program, and say who refuses it with which words."""
    try:
        program.load().close()
    except VerifierRejected as error:
        return Judgement("verifier", error.why.split("; ")[0], error.line or 0, error.log)
    except CompileError as error:
        return Judgement("compiler", error.why, error.line or 0, error.log)
    return Judgement("")


@functools.lru_cache(maxsize=1)
def rejects() -> tuple[Reject, ...]:
    """All lessons, in the order of the index ``bpf/rejects/order.yaml``.

    :raises SpecError: if the data are not as they should be.
    """
    folder = bpf_dir() / "rejects"
    try:
        names = yaml.safe_load((folder / "order.yaml").read_text())
        return tuple(
            Reject(name=name, source=(folder / f"{name}.c").read_text(), **_facts(folder / f"{name}.yaml"))
            for name in names
        )
    except (OSError, TypeError, yaml.YAMLError) as error:
        raise SpecError(f"the lessons in {folder} cannot be read", why=str(error)) from error


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = yaml.safe_load(path.read_text())
    return {key: " ".join(value.split()) if key in _PROSE else value for key, value in facts.items()}


def reject(name: str) -> Reject:
    """One lesson by name.

    :raises ParameterError: if there is none of that name.
    """
    found = {one.name: one for one in rejects()}
    if name not in found:
        raise ParameterError(f"there is no refused program {name!r}", remedy=f"there are: {', '.join(found)}")
    return found[name]


def judge_all() -> pd.DataFrame:
    """Try them all on this kernel.

    :returns: columns ``name``, ``refused_by``, ``says``, ``line`` (of C, as text), ``as_described`` (bool), ``log``.
    """
    rows = []
    for one in rejects():
        told = one.judge()
        line = one.source.splitlines()[told.line - 1].strip() if told.line else ""
        rows.append((one.name, told.refused_by, told.says, line, one.fits(told), told.log))
    return pd.DataFrame(rows, columns=["name", "refused_by", "says", "line", "as_described", "log"])


def explain(log: str) -> Reject | None:
    """The lesson whose words are in a verifier's log, or None; of several, the one that finds the most of them."""
    try:
        known = [one for one in rejects() if one.stage == "verifier"]
    except LabkitError:
        return None
    found = {one: match.group() for one in known if (match := re.search(one.says, log))}
    return max(found, key=lambda one: len(found[one]), default=None)

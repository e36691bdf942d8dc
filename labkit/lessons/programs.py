"""C that a learner writes in a notebook: shown as a difference, loaded, and judged by what it counts."""

from __future__ import annotations

import difflib
import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from labkit import spec, text
from labkit.errors import CompileError, LabkitError, VerifierRejected
from labkit.lessons.feedback import Feedback, not_run, wrong
from labkit.program import Program, load

if TYPE_CHECKING:
    from labkit.lessons.c_model import DryProgram, Script

__all__ = ["Written", "explained", "rehearse", "source_of", "try_program", "write_program"]

_NOT_A_PROGRAM = (
    "The whole C program is asked for: lk.write_program(NAME, change={old: new}), or the C source as text."
)


@dataclass(frozen=True)
class Written:
    """A program written in a notebook; made by :func:`write_program`. Shown as what it changes.

    :ivar name: the program it began as, ``bpf/NAME.c``.
    :ivar source: the C text, header comment included.
    :ivar original: what it began as.
    :ivar problems: changes that could not be made, in words; they are left out of ``source``.
    """

    name: str
    source: str
    original: str
    problems: tuple[str, ...] = ()

    @property
    def difference(self) -> list[str]:
        """Lines of a unified diff from the original, without its heading."""
        ours, theirs = self.original.splitlines(), self.source.splitlines()
        return list(difflib.unified_diff(ours, theirs, lineterm="", n=2))[2:]

    def load(self, **parameters: Any) -> Program:
        """Load it, as :func:`labkit.load` does with a program of the lab; a context manager.

        :raises CompileError, VerifierRejected: with the log and the line, and what :func:`labkit.load` raises.
        """
        return load(self.name, source=self.source, **parameters)

    def __str__(self) -> str:
        lines = [f"! {problem}" for problem in self.problems]
        lines += self.difference or [f"{self.name}: as it was"]
        return "\n".join(text.plain(line) for line in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        told = "".join(
            f'<div style="color:#d32f2f">{html.escape(problem)}</div>' for problem in self.problems
        )
        if not self.difference:
            return f"{told}<div>{html.escape(self.name)}: as it was, nothing is changed.</div>"
        look = {"+": "background:#2e7d3233", "-": "background:#b71c1c33", "@": "opacity:.6"}
        rows = "".join(
            f'<div style="{look.get(line[:1], "")};white-space:pre-wrap">{html.escape(text.plain(line)) or " "}</div>'
            for line in self.difference
        )
        return f'{told}<div style="font-family:monospace;font-size:90%">{rows}</div>'


def write_program(
    name: str, source: str | None = None, *, change: Mapping[str, str] | None = None
) -> Written:
    """Write a program of your own: one of the lab's with changes, or a whole C source.

    Nothing is loaded by it; ``lk.check`` loads it, and so does ``.load()``, for experiments of your own::

        mine = lk.write_program("hello", change={"u64 zero = 0,": "u64 zero = 100,"})
        with mine.load() as prog:
            ...

    :param name: the lab's program that it begins as (``bpf/NAME.c``).
    :param source: the C text to begin with; the file's if None.
    :param change: text -> what to put in its place. Each text must be there exactly once; one that is not is told of,
        with the nearest line, when the result is shown.
    :raises UnknownProgram: if no source is given and the lab has no such program.
    """
    original = spec.read(name).source if source is None else source
    changed, problems = original, []
    for old, new in (change or {}).items():
        found = changed.count(old)
        if found == 1:
            changed = changed.replace(old, new)
        else:
            problems.append(_misfit(old, found, changed))
    return Written(name, changed, original, tuple(problems))


def _misfit(old: str, found: int, source: str) -> str:
    first = next((line.strip() for line in old.splitlines() if line.strip()), "")
    if found:
        return f"{first!r} is there {found} times: give more of its surroundings, so that it is there once."
    lines = {line.strip(): number for number, line in enumerate(source.splitlines(), 1) if line.strip()}
    near = difflib.get_close_matches(first, lines, 1, 0.5)
    where = f" The nearest is line {lines[near[0]]}: {near[0]!r}" if near else ""
    return f"{first!r} is not in the program.{where}"


def source_of(answer: object, *, contains: str, original: str | None = None) -> str | Feedback:
    """The C text of an answer, or what is wrong with it as an answer.

    :param contains: what every sensible answer contains, such as a function's name.
    :param original: the text that was to be changed.
    """
    if isinstance(answer, Written):
        if answer.problems:
            return wrong(f"A change could not be made: {' '.join(answer.problems)}")
        answer = answer.source
    if not isinstance(answer, str) or contains not in answer:
        return wrong(_NOT_A_PROGRAM)
    if original is not None and answer.strip() == original.strip():
        return wrong("This is the program as it was: nothing was replaced.")
    return answer


def try_program(
    name: str,
    source: str,
    judge: Callable[[Program], Feedback],
    *,
    hooks: Mapping[str, str] | None = None,
    **parameters: Any,
) -> Feedback:
    """Load an answer, let ``judge`` use it, and say in words why it does not load, if it does not."""
    try:
        with load(name, source=source, hooks=hooks, **parameters) as program:
            return judge(program)
    except VerifierRejected as error:
        return wrong(f"It compiles, but the verifier refuses the program: {error.why}.{_lesson(error.log)}")
    except CompileError as error:
        return wrong(f"It does not compile: {_clang(error, source)}")
    except LabkitError as error:
        return wrong(f"The program does not load: {error.what}. {error.why}")


def rehearse(
    name: str, source: str, script: Script, judge: Callable[[DryProgram], Feedback], **parameters: Any
) -> Feedback:
    """Where no kernel can be asked: run an answer in a model (:mod:`labkit.lessons.c_model`), and judge what it counted.

    :param script: what happens to it: recorded events, or made-up ones whose truth ``judge`` knows.
    :returns: what ``judge`` says; why the program cannot be loaded, in words; or that it could not be run here.
    """
    from labkit.lessons import c_model

    try:
        feedback = judge(c_model.run(name, source, script, **parameters))
    except c_model.NotRun as error:
        return not_run(
            f"It may be right, but it was not run: {error.what}. On a live kernel it can be tried."
        )
    except c_model.Refused as error:
        return wrong(f"The verifier refuses such a program: {error.what}.")
    except c_model.NotC as error:
        return wrong(f"It does not compile: {error.what}.")
    except LabkitError as error:
        return wrong(f"The program does not load: {error.what}. {error.why}")
    if not feedback.passed:
        return feedback
    said = f"{feedback.message} It was run without a kernel, on events whose truth is known."
    return replace(feedback, message=said.strip())


def explained(feedback: Feedback, reading: str) -> Feedback:
    """A failure in the words of what the source looks like, where that says more; looks alone fail nobody.

    :param reading: what is missing by the looks of it; empty if nothing is.
    """
    return wrong(reading) if reading and feedback.ran and not feedback.passed else feedback


def _lesson(log: str) -> str:
    from labkit.lessons.rejects import explain  # which builds on this module

    known = explain(log)
    return f" Chapter 05 has such a one, `{known.name}`: {known.title.lower()}." if known else ""


def _clang(error: CompileError, source: str) -> str:
    lines = source.splitlines()
    if error.line is None or not 1 <= error.line <= len(lines):
        return error.why
    return f"{error.why}: `{lines[error.line - 1].strip()}`"

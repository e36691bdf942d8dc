"""Feedback on an answer, and the comparisons that most checks need."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from labkit import text
from labkit.errors import ParameterError
from labkit.show import Shown

__all__ = [
    "Feedback",
    "expect_choice",
    "expect_number",
    "expect_text",
    "is_number",
    "not_run",
    "right",
    "wrong",
]


@dataclass(frozen=True)
class Feedback(Shown):
    """What is said about an answer.

    :param passed: it is right.
    :param message: why, or what it mistook.
    :param hint: the next step for someone whose answer is wrong.
    :param answered: False while the answer is still ``...``.
    :param ran: False if it is a program that could not be run here: neither right nor wrong, and not solved.
    """

    passed: bool
    message: str
    hint: str = ""
    answered: bool = True
    question: str = ""
    ran: bool = True

    def with_hint(self, hint: str, *, question: str = "") -> Feedback:
        """The same with a hint; one that the check gave itself is kept before it."""
        return replace(self, hint=f"{self.hint} {hint}".strip(), question=question)

    @property
    def verdict(self) -> str:
        """``Right``, ``Not yet``, ``Not run`` or ``Not answered yet``."""
        if self.passed:
            return "Right"
        if not self.ran:
            return "Not run"
        return "Not yet" if self.answered else "Not answered yet"

    def __str__(self) -> str:
        lines = [f"{self.verdict}." if not self.answered else f"{self.verdict}. {text.plain(self.message)}"]
        if not self.passed and self.question:
            lines.append(f"  question: {text.plain(self.question)}")
        if self.hint:
            lines.append(f"  {text.plain(self.hint)}")
        return "\n".join(lines)

    __repr__ = __str__

    def bundle(self) -> dict[str, Any]:
        """HTML for people, text for terminals."""
        colour = "#2e7d32" if self.passed else "#8a6d00" if self.answered and self.ran else "#666"
        said = _marked(self.message) if self.answered else ""
        rest = "".join(
            f'<div style="opacity:.8">{_marked(line)}</div>'
            for line in (self.question if not self.passed else "", self.hint)
            if line
        )
        html = (
            f'<div style="border-left:4px solid {colour};padding:.3em .8em;margin:.5em 0">'
            f'<b style="color:#fff;background:{colour};padding:.05em .45em;border-radius:.3em">{self.verdict}</b> '
            f"{said}{rest}</div>"
        )
        return {"text/html": html, "text/plain": str(self)}


def _marked(words: str) -> str:
    """HTML of a message: what stands between backquotes is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text.html(words))


def right(message: str = "") -> Feedback:
    """The answer is right; ``message`` says what follows from it."""
    return Feedback(passed=True, message=message)


def wrong(message: str, *, hint: str = "") -> Feedback:
    """The answer is wrong; ``message`` names what it mistook, without giving the answer away."""
    return Feedback(passed=False, message=message, hint=hint)


def not_run(message: str) -> Feedback:
    """The answer may be right, and nobody has seen it run: it does not count as solved, and costs no hint."""
    return Feedback(passed=False, message=message, ran=False)


def is_number(answer: Any) -> bool:
    """Whether a check can reckon with it: one number of Python's or numpy's, such as a sum of a column; no bool."""
    return isinstance(answer, Real) and not isinstance(answer, bool)


def expect_number(answer: Any, truth: float, *, unit: str = "", within: float | str = 0) -> Feedback:
    """Compare a number.

    :param within: how far off is still right: a number in ``unit``, or a share of the truth such as ``"10 %"``.

    A thousandfold (or other power of ten) of the truth is told apart: it is nearly always a mistaken unit.
    """
    if isinstance(answer, bool) or not _is_real(answer):
        return wrong(f"A number{_in(unit)} is asked for; this is {_kind(answer)}.")
    value = float(answer)
    if not math.isfinite(value):
        return wrong(f"A finite number{_in(unit)} is asked for; this is {value}.")
    allowed = _allowed(within, truth)
    if abs(value - truth) <= allowed:
        return right(
            f"{text.quantity(value, unit)}." if not allowed else f"The value is {text.quantity(truth, unit)}."
        )
    if truth and value:
        scale = math.log10(abs(value / truth))
        if round(scale) and abs(value / 10 ** round(scale) - truth) <= max(allowed, 1e-9 * abs(truth)):
            return wrong(f"The digits are right, the size is not: check the unit{_asked(unit)}.")
        if abs(-value - truth) <= allowed:
            return wrong("The sign is wrong: which is subtracted from which?")
    return wrong(f"{text.quantity(value, unit)} is too {'large' if value > truth else 'small'}.")


def expect_choice(
    answer: Any,
    truth: str,
    options: Iterable[str],
    why_wrong: dict[str, str] | None = None,
    *,
    why_right: str = "",
) -> Feedback:
    """Compare one of several options, by name, without regard to case.

    :param why_wrong: option -> what someone who chose it mistook.
    :param why_right: what follows from the right one.
    """
    names = {option.casefold(): option for option in options}
    if truth.casefold() not in names:
        raise ParameterError(f"the right answer {truth!r} is not among the options")
    chosen = names.get(str(answer).strip().casefold()) if isinstance(answer, str) else None
    if chosen is None:
        return wrong(f"One of {', '.join(map(repr, names.values()))} is asked for; this is {_kind(answer)}.")
    if chosen.casefold() == truth.casefold():
        return right(why_right)
    return wrong((why_wrong or {}).get(chosen, f"It is not {chosen!r}."))


def expect_text(answer: Any, *accepted: str) -> Feedback:
    """Compare a short text with those accepted, without regard to case and outer blanks."""
    if not isinstance(answer, str):
        return wrong(f"Text is asked for; this is {_kind(answer)}.")
    if answer.strip().casefold() in {one.strip().casefold() for one in accepted}:
        return right()
    return wrong(f"It is not {answer.strip()!r}.")


def _is_real(answer: Any) -> bool:
    try:
        float(answer)
    except (TypeError, ValueError):
        return False
    return not isinstance(answer, (str, bytes)) and getattr(answer, "ndim", 0) == 0


def _allowed(within: float | str, truth: float) -> float:
    if not isinstance(within, str):
        return float(within)
    return float(within.strip().removesuffix("%")) / 100 * abs(truth)


def _kind(answer: Any) -> str:
    if answer is None:
        return "None"
    kind = type(answer).__name__
    return f"{kind} {answer!r}" if isinstance(answer, (str, int, float)) else f"a {kind}"


def _in(unit: str) -> str:
    return f" in {unit}" if unit else ""


def _asked(unit: str) -> str:
    return f" (the answer is in {unit})" if unit else ""

"""Findings: a number with its unit, how it was measured, what it was held against and what was lost.

A finding is *trusted* if it agrees with its oracle within the tolerance, its ledger balances, and no
material share (more than 1 %) of the events was lost. One that is not trusted is never shown as a fact:
what is shown then are the reasons, and the value only as "what was read".

>>> from labkit.ledger import Ledger
>>> ledger = Ledger(capture="02_maps/getpid", mode="live", seen=23, delivered=23)
>>> exact = Oracle("the workload", 23)
>>> _ = finding(
...     "calls", 23, unit="calls", how="counted at sys_enter", ledger=ledger, oracle=exact
... )  # doctest: +ELLIPSIS
calls = 23 calls ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from labkit import text
from labkit.errors import MissingLedger, ParameterError
from labkit.ledger import Ledger, Mode
from labkit.show import Shown

__all__ = ["MATERIAL_LOSS", "MIME_TYPE", "Finding", "Oracle", "Value", "finding"]

MIME_TYPE = "application/vnd.labkit.finding+json"

#: A finding is not trusted if more than this share of the known events did not reach the result.
MATERIAL_LOSS = 0.01

Value = float | int | str | bool


@dataclass(frozen=True)
class Oracle:
    """An independent source of the same quantity, in the finding's unit.

    :param name: where the value comes from, such as ``"run_delay in /proc/PID/schedstat"``.
    """

    name: str
    value: Value

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _scalar(self.value, f"oracle {self.name!r}"))


@dataclass(frozen=True)
class Finding(Shown):
    """One result. Made by :func:`finding`, which says what the parameters mean."""

    name: str
    value: Value
    unit: str
    how: str
    ledger: Ledger
    oracle: Oracle | None = None
    tolerance: float | str | None = None
    note: str = ""
    headline: bool = False

    @property
    def mode(self) -> Mode:
        """``live`` or ``replay``: that of the ledger."""
        return self.ledger.mode

    @property
    def residual(self) -> float | None:
        """Value minus oracle, in the finding's unit; None without an oracle or for text."""
        if self.oracle is None or not (_is_number(self.value) and _is_number(self.oracle.value)):
            return None
        difference: float = self.value - self.oracle.value  # type: ignore[operator]
        return difference

    @property
    def residual_relative(self) -> float | None:
        """The residual as a share of the oracle's value; None where that is zero or there is no residual."""
        if self.residual is None or self.oracle is None or not self.oracle.value:
            return None
        return self.residual / abs(self.oracle.value)  # type: ignore[arg-type]

    @property
    def allowed(self) -> float | None:
        """The largest residual that still agrees, in the finding's unit. Without a tolerance: zero, exact."""
        if self.oracle is None or not _is_number(self.oracle.value):
            return None
        if self.tolerance is None:
            return 0.0
        if isinstance(self.tolerance, str):
            return _share(self.tolerance) * abs(self.oracle.value)  # type: ignore[arg-type]
        return self.tolerance

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the finding is not trusted; empty if it is."""
        found = []
        if isinstance(self.value, float) and not math.isfinite(self.value):
            found.append(f"the value is {self.value}, not a number")
        found += self._disagreement()
        if self.ledger.capture != "none" and not self.ledger.seen:
            found.append("the capture saw nothing")
        if not self.ledger.balanced:
            found.append(f"the ledger does not balance: {self.ledger.describe()}")
        if self.ledger.lost_share > MATERIAL_LOSS:
            found.append(
                f"{text.percent(self.ledger.lost_share)} of the events did not reach the result "
                f"(material above {text.percent(MATERIAL_LOSS)})"
            )
        return tuple(found)

    def _disagreement(self) -> list[str]:
        if self.oracle is None:
            return []
        residual, allowed = self.residual, self.allowed
        if residual is None or allowed is None:
            agree = self.value == self.oracle.value
            return [] if agree else [f"{self.oracle.name} says {self.oracle.value!r}"]
        if abs(residual) <= allowed:  # False for NaN, as it must be
            return []
        limit = f"more than {text.quantity(allowed, self.unit)}" if allowed else "and must be exact"
        return [f"it is {text.quantity(residual, self.unit, sign=True)} off {self.oracle.name}, {limit}"]

    @property
    def trusted(self) -> bool:
        """True if nothing speaks against the value."""
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, and ``residual``, ``residual_relative``, ``allowed``, ``trusted``,
        ``reasons``, ``mode``, ``losses`` (the ledger in words) and ``lost_share``. What is not finite
        becomes null.
        """
        oracle = None
        if self.oracle is not None:
            oracle = {"name": self.oracle.name, "value": _finite(self.oracle.value)}
        return {
            "name": self.name,
            "value": _finite(self.value),
            "unit": self.unit,
            "how": self.how,
            "oracle": oracle,
            "residual": _finite(self.residual),
            "residual_relative": _finite(self.residual_relative),
            "tolerance": self.tolerance,
            "allowed": _finite(self.allowed),
            "trusted": self.trusted,
            "reasons": list(self.reasons),
            "mode": self.mode,
            "ledger": self.ledger.as_dict(),
            "losses": self.ledger.describe(),
            "lost_share": self.ledger.lost_share,
            "note": self.note,
            "headline": self.headline,
        }

    def __str__(self) -> str:
        name, value = text.plain(self.name), text.quantity(self.value, self.unit)
        if self.trusted:
            lines = [f"{name} = {value}  ({self.mode})"]
        else:
            lines = [f"{name}: NO TRUSTED VALUE  ({self.mode})"]
            lines += [f"  because    {text.plain(reason)}" for reason in self.reasons]
            lines.append(f"  what was read  {value}")
        lines.append(f"  measured   {text.plain(self.how)}")
        lines.append(f"  oracle     {self._oracle_text()}")
        lines.append(f"  losses     {text.plain(self.ledger.describe())}")
        if self.note:
            lines.append(f"  note       {text.plain(self.note)}")
        return "\n".join(lines)

    __repr__ = __str__

    def _oracle_text(self) -> str:
        if self.oracle is None:
            return "none"
        shown = f"{text.plain(self.oracle.name)}: {text.quantity(self.oracle.value, self.unit)}"
        if self.residual is None:
            return shown
        relative = text.percent(self.residual_relative, sign=True)
        shown += f"; residual {text.quantity(self.residual, self.unit, sign=True)}"
        return shown + (f" ({relative})" if relative else "")

    def bundle(self) -> dict[str, Any]:
        """``application/vnd.labkit.finding+json`` for the runner, HTML for people, text for terminals."""
        return {MIME_TYPE: self.as_dict(), "text/html": self._repr_html_(), "text/plain": str(self)}

    def _repr_html_(self) -> str:
        value = text.html(text.quantity(self.value, self.unit))
        if self.trusted:
            head, colour = f"<b>{text.html(self.name)} = {value}</b>", "#2e7d32"
            rows = []
        else:
            head, colour = f"<b>{text.html(self.name)}: no trusted value</b>", "#b71c1c"
            rows = [("because", reason) for reason in self.reasons]
            rows.append(("what was read", text.quantity(self.value, self.unit)))
        rows.append(("measured", self.how))
        rows.append(("oracle", self._oracle_text()))
        rows.append(("losses", self.ledger.describe()))
        if self.note:
            rows.append(("note", self.note))
        cells = "".join(
            f'<tr><td style="text-align:left;opacity:.7;padding:0 1em 0 0">{label}</td>'
            f'<td style="text-align:left;padding:0">{text.html(content)}</td></tr>'
            for label, content in rows
        )
        return (
            f'<div class="labkit-finding" style="border-left:4px solid {colour};'
            'padding:.3em .8em;margin:.5em 0">'
            f'{head} <span style="opacity:.7">({self.mode})</span>'
            f'<table style="border:0;margin:0">{cells}</table></div>'
        )


def finding(
    name: str,
    value: Any,
    *,
    unit: str,
    how: str,
    ledger: Ledger,
    oracle: Oracle | None = None,
    tolerance: float | str | None = None,
    note: str = "",
    headline: bool = False,
) -> Finding:
    """State a result, show it, and leave it in the notebook for ``labkit run`` to harvest.

    :param name: short and stable: runs are compared by it. Unique within a notebook.
    :param value: a number, or text or a truth value where the result is one; numpy scalars are fine.
    :param unit: ``"us"``, ``"events"``; the empty string where there is none.
    :param how: how it was measured, in words: program, hook, statistic.
    :param ledger: the loss ledger of the capture it comes from, or :meth:`Ledger.none` with the reason.
    :param oracle: the independent value it is held against.
    :param tolerance: the largest residual that still agrees: a number in ``unit``, or a share of the
        oracle's value as text, ``"2 %"``. With an oracle and no tolerance they must be equal.
    :param note: what a reader must know beside it.
    :param headline: this is the finding to be named first in the outcomes of a run.
    :raises MissingLedger: ``ledger`` is not a :class:`~labkit.ledger.Ledger`.
    :raises ParameterError: name, value or tolerance make no sense.
    """
    if not isinstance(ledger, Ledger):
        raise MissingLedger(
            f"finding {name!r} has no loss ledger",
            why=f"`ledger` is {type(ledger).__name__}; a number without its losses cannot be trusted",
            remedy='pass ledger=prog.ledger, or ledger=Ledger.none("why nothing can be lost")',
        )
    if not name.strip():
        raise ParameterError("a finding needs a name", remedy="runs are compared by it: short and stable")
    if oracle is not None and not isinstance(oracle, Oracle):
        raise ParameterError(
            f"finding {name!r}: oracle is a {type(oracle).__name__}", remedy="pass lk.Oracle(name, value)"
        )
    result = Finding(
        name=name,
        value=_scalar(value, f"finding {name!r}"),
        unit=unit,
        how=how,
        ledger=ledger,
        oracle=oracle,
        tolerance=_checked_tolerance(tolerance, name),
        note=note,
        headline=headline,
    )
    result.show()
    return result


def _scalar(value: Any, what: str) -> Value:
    """A plain Python scalar from ``value``; numpy's become Python's so that JSON can hold them."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, (bool, int, float, str)):
        return value
    raise ParameterError(
        f"{what} is a {type(value).__name__}",
        why="a value is one number, text or truth value",
        remedy="reduce it first, for example frame['wait_ns'].sum()",
    )


def _checked_tolerance(tolerance: Any, name: str) -> float | str | None:
    if tolerance is None:
        return None
    if isinstance(tolerance, str):
        _share(tolerance)
        return tolerance
    limit = _scalar(tolerance, f"the tolerance of {name!r}")
    if not _is_number(limit) or not 0 <= float(limit) < math.inf:
        raise ParameterError(
            f"the tolerance of {name!r} is {limit!r}", remedy="a number >= 0 or a share such as '2 %'"
        )
    return float(limit)


def _share(tolerance: str) -> float:
    try:
        if not tolerance.strip().endswith("%"):
            raise ValueError("no percent sign")
        share = float(tolerance.strip().removesuffix("%")) / 100
        if not 0 <= share < math.inf:
            raise ValueError("out of range")
    except ValueError as error:
        raise ParameterError(
            f"tolerance {tolerance!r}", why=str(error), remedy="write a share as '2 %'"
        ) from None
    return share


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_finding(data: object) -> TypeGuard[Mapping[str, Any]]:
    """True if ``data`` has the fields that reports read; a notebook's JSON is input like any other."""
    needed = {
        "name",
        "value",
        "unit",
        "how",
        "oracle",
        "residual",
        "trusted",
        "reasons",
        "mode",
        "ledger",
        "losses",
    }
    return isinstance(data, Mapping) and needed <= data.keys()

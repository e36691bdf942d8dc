"""The loss ledger: what a capture saw, what it delivered, and what it lost and why.

``seen == delivered + sum(losses)`` holds exactly or the ledger says that it does not balance. What the
kernel's own counter saw beyond ``seen`` is ``unseen``: it cannot be split by cause, so it stands apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pandas as pd

__all__ = ["Ledger", "Mode"]

Mode = Literal["live", "replay"]


@dataclass(frozen=True)
class Ledger:
    """What one capture saw and lost.

    :param capture: which capture it belongs to, such as ``"06_run_queue_latency/two_hogs"``.
    :param mode: ``"live"`` or ``"replay"``.
    :param seen: events the program was called for and is accountable for.
    :param delivered: events that reached the result.
    :param losses: cause -> count of events seen and not delivered.
    :param unseen: events that an independent kernel counter saw beyond ``seen``; None where there is no counter. Over a
        short time it may be below 0, as the two are not read at one moment.
    :param event: what an event is, singular.
    :param notes: plain words on anything else a reader must know.
    :param counted: words -> count, for notes that are a number: they can be told for an interval, too.
    """

    capture: str
    mode: Mode
    seen: int
    delivered: int
    losses: Mapping[str, int] = field(default_factory=dict)
    unseen: int | None = None
    event: str = "event"
    notes: tuple[str, ...] = ()
    counted: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def none(cls, reason: str, *, mode: Mode = "live") -> Ledger:
        """A ledger for a value that no capture produced, with the reason why nothing can be lost.

        >>> Ledger.none("read from /proc/version").describe()
        'no capture: read from /proc/version'
        """
        return cls(capture="none", mode=mode, seen=0, delivered=0, notes=(reason,))

    def narrowed(self, what: str, *, expected: int, delivered: int, event: str = "") -> Ledger:
        """The ledger of a part of the capture whose events were counted independently, such as one task's.

        :param expected: how many events there were by another count (``timeslices`` of the task).
        :param delivered: how many of them are in the result.
        :param event: what is counted, singular, if it is something else than the whole's events.
        """
        return Ledger(
            capture=f"{self.capture}: {what}",
            mode=self.mode,
            seen=expected,
            delivered=delivered,
            losses={"missed": expected - delivered},
            event=event or self.event,
            notes=(f"on the whole machine {self.describe()}",),
        )

    @property
    def lost(self) -> int:
        """Events seen and not delivered."""
        return sum(self.losses.values())

    @property
    def balanced(self) -> bool:
        """True if ``seen == delivered + lost``, exactly."""
        return self.seen == self.delivered + self.lost

    @property
    def lost_share(self) -> float:
        """Share of all known events, ``unseen`` included, that did not reach the result (0.0 to 1.0)."""
        unseen = max(0, self.unseen or 0)
        total = self.seen + unseen
        return min(1.0, (self.lost + unseen) / total) if total else 0.0

    def describe(self) -> str:
        """One line for people."""
        if self.capture == "none":
            return f"no capture: {self.notes[0] if self.notes else 'nothing can be lost'}"
        parts = [f"seen {self.seen:,}", f"delivered {self.delivered:,}"]
        parts += [f"{cause} {count:,}" for cause, count in self.losses.items() if count]
        if self.unseen is not None:
            parts.append(f"unseen {self.unseen:,}")
        if not self.balanced:
            parts.append(f"DOES NOT BALANCE by {self.seen - self.delivered - self.lost:+,}")
        notes = [*self.notes, *(f"{count:,} {words}" for words, count in self.counted.items() if count)]
        return f"{self.event}s: " + ", ".join(parts) + "".join(f"; {note}" for note in notes)

    def frame(self) -> pd.DataFrame:
        """Columns ``entry`` (str) and ``count`` (int64): seen, delivered, each loss, unseen."""
        rows = {"seen": self.seen, "delivered": self.delivered, **self.losses}
        if self.unseen is not None:
            rows["unseen"] = self.unseen
        return pd.DataFrame(
            {
                "entry": pd.Series(list(rows), dtype="str"),
                "count": pd.Series(list(rows.values()), dtype="int64"),
            }
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form; :meth:`from_dict` is its inverse."""
        return asdict(self) | {
            "losses": dict(self.losses),
            "notes": list(self.notes),
            "counted": dict(self.counted),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, mode: Mode | None = None) -> Ledger:
        """Rebuild a ledger from :meth:`as_dict`; ``mode`` overrides the recorded one."""
        fields = dict(data) | {"notes": tuple(data.get("notes", ()))}
        if mode is not None:
            fields["mode"] = mode
        return cls(**fields)

    def _repr_html_(self) -> str:
        import html

        state = "balanced" if self.balanced else "<b>does not balance</b>"
        return f"<p>Ledger of <code>{html.escape(self.capture)}</code>: {html.escape(self.describe())} ({state})</p>"

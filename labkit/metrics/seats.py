"""Who of many has one of a few places: those that wait most *now*, not those that came first.

Each key has a *heat*: the sum of what it waited, which halves each :data:`HALF_LIFE_S` seconds, so that it is about the
last minute or two. A place that is free goes to the hottest. Where there are more than places, somebody must have been
there for a whole interval before it is compared, and takes the place of the coldest only if it is clearly hotter
(:data:`CLEARLY`): two of a kind do not throw each other out in turns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

__all__ = ["CLEARLY", "HALF_LIFE_S", "Seats"]

K = TypeVar("K", bound=Any)

HALF_LIFE_S = 60.0
#: A challenger must be so many times hotter than whom it replaces.
CLEARLY = 2.0
#: Of the first snapshot, what was measured must have lasted so long to be an interval.
SETTLED_S = 1.0
#: Heats are kept as of the first moment; before that outgrows a float they are brought down together.
_RESCALE_AT = 256.0


@dataclass
class Seats(Generic[K]):
    """The heats of those that have a place and of those that would like one.

    :ivar waiting_since: when those without a place were first seen, by key.
    """

    waiting_since: dict[K, float] = field(default_factory=dict)
    _heat: dict[K, float] = field(default_factory=dict)
    _origin_s: float | None = None

    def heat(self, key: K) -> float:
        """Comparable with others of the same moment only; 0 for one that never waited."""
        return self._heat.get(key, 0.0)

    def __len__(self) -> int:
        return len(self._heat)

    def hottest(self, count: int) -> list[K]:
        """So many keys, the hottest first."""
        return sorted(self._heat, key=lambda key: (-self._heat[key], key))[:count]

    def warm(self, added: Mapping[K, int], now: float) -> None:
        """Add what each waited (ns) in the interval that ends now."""
        weight = self._weight(now)
        for key, wait_ns in added.items():
            if wait_ns:
                self._heat[key] = self._heat.get(key, 0.0) + wait_ns * weight

    def _weight(self, now: float) -> float:
        """Instead of cooling all at each turn, what is new counts more: the same ratios, and nothing to do for the rest."""
        if self._origin_s is None:
            self._origin_s = now
        halvings = (now - self._origin_s) / HALF_LIFE_S
        if halvings > _RESCALE_AT:
            factor = 2.0**-halvings
            self._heat = {key: heat * factor for key, heat in self._heat.items() if heat * factor > 1e-3}
            self._origin_s, halvings = now, 0.0
        return float(2.0**halvings)

    def keep(self, keys: Collection[K]) -> None:
        """Forget all others: bounded is what is remembered, too."""
        if len(self._heat) > len(keys):
            self._heat = {key: heat for key, heat in self._heat.items() if key in keys}
        self.waiting_since = {key: since for key, since in self.waiting_since.items() if key in keys}

    def choose(
        self,
        wanting: Iterable[K],
        taken: Collection[K],
        *,
        places: int,
        now: float,
        settled: bool,
        idle: Collection[K] = (),
    ) -> tuple[list[K], list[K]]:
        """Who gets a place, and who loses one for it.

        :param wanting: those without a place that did something in this interval.
        :param taken: those that have one.
        :param settled: True if what was measured so far is worth a comparison, though nothing came before it.
        :param idle: of those that have a place, those that have not moved for so long that anybody who does is preferred.
        """
        ranked = sorted(wanting, key=lambda key: (-self.heat(key), key))
        room = max(0, places - len(taken))
        if len(ranked) > room:
            ready = [key for key in ranked if settled or self.waiting_since.get(key, now) < now]
            for key in ranked:
                self.waiting_since.setdefault(key, now)
            ranked = ready
        admitted, challengers = ranked[:room], ranked[room:]
        coldest = sorted(taken, key=lambda key: (key not in idle, self.heat(key), key))
        leaving: list[K] = []
        for challenger, incumbent in zip(challengers, coldest, strict=False):
            if incumbent not in idle and self.heat(challenger) <= CLEARLY * self.heat(incumbent):
                break
            admitted.append(challenger)
            leaving.append(incumbent)
        for key in admitted:
            self.waiting_since.pop(key, None)
        return admitted, leaving

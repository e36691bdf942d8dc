"""A block that SIGTERM and SIGINT leave in good order: what was opened is closed, and the process ends by itself."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

__all__ = ["UntilAsked"]


class _Asked(BaseException):
    """SIGTERM or SIGINT; no Exception, so that nothing takes it for a failure."""


class UntilAsked:
    """The block ends, without an error, when the process is asked to.

    May be nested, main thread only. Once asked, further signals are ignored: the way out shall not be interrupted.

    :ivar asked: whether that is how it ended.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> UntilAsked:
        self._before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.asked = kind is not None and issubclass(kind, _Asked)
        return self.asked

    @staticmethod
    def _ask(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise _Asked

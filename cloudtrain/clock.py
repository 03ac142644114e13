"""The one clock. Whatever waits, decides or dates something is handed a `Clock`, so that a week can be simulated."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """Wall time, timezone-aware, UTC."""
        ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The time of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))


def pause(waited: float, longest: float) -> float:
    """Seconds until the next look at something that may take seconds or minutes: a fifth of the wait so far, so that
    its end is seen, on average, a tenth of its own time too late; a fifth of the longest pause at least."""
    return min(longest, max(longest, waited) / 5)

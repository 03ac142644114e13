"""Being asked to stop: finish the step, save, say so with the exit code."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from trainer.errors import INTERRUPTED, START_ME_AGAIN


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a flag that the training loop looks at after each step.

    Until `training_has_begun()` there is nothing new to save: `leave` is called at once, with the exit code,
    after `before_leaving`. Python runs signal handlers in the main thread, between two bytecodes.
    """

    def __init__(self, leave: Callable[[int], object] = os._exit) -> None:
        self.exit_code: int | None = None
        self._leave = leave
        self._before: dict[int, Any] = {}
        self.before_leaving: Callable[[], None] = lambda: None
        self._training = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._asked)

    def uninstall(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def training_has_begun(self) -> None:
        self._training = True

    def asked(self) -> bool:
        return self.exit_code is not None

    def _asked(self, number: int, frame: FrameType | None) -> None:
        del frame
        again = self.exit_code is not None
        if not again:
            self.exit_code = INTERRUPTED if number == signal.SIGINT else START_ME_AGAIN
        impatient = again and number == signal.SIGINT
        if not self._training or impatient:
            try:
                self.before_leaving()
            finally:
                self._leave(self.exit_code or START_ME_AGAIN)

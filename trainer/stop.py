"""Being asked to stop: finish the step, save, say so with the exit code."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

from trainer.errors import INTERRUPTED, START_ME_AGAIN


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a flag that the training loop looks at after each step.

    Until `training_has_begun()` there is nothing new to save: the process ends at once, after
    `before_leaving`. Python runs signal handlers in the main thread, between two bytecodes.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.before_leaving: Callable[[], None] = lambda: None
        self._training = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked)

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
            self.before_leaving()
            os._exit(self.exit_code or START_ME_AGAIN)

"""What the trainer says when it cannot go on: what happened, and what to do next."""

from __future__ import annotations

FINISHED = 0
FAILED = 1
REFUSED = 2
START_ME_AGAIN = 75  # EX_TEMPFAIL: saved because somebody asked the trainer to stop
INTERRUPTED = 130


class TrainerError(Exception):
    """Training cannot go on. `exit_code` is what the process ends with."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class Refused(TrainerError):
    """What was asked for cannot be done; nothing was changed. Ends with exit code 2."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=REFUSED)


def reason(failure: Exception) -> str:
    """Why something failed, in a few words; never empty."""
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror
    # Most of what is no error of the operating system says too little without its name; MemoryError says nothing else.
    return f"{type(failure).__name__}: {failure}".removesuffix(": ")

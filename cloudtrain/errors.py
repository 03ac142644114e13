"""What can go wrong, in the user's words. Every error says what happened, why, and what to run next."""

from collections.abc import Sequence
from enum import IntEnum, StrEnum


class Exit(IntEnum):
    """The exit codes of the command line: a promise to scripts."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    NO_SUCH_RUN = 3
    REFUSED = 4
    TRAINING_FAILED = 5
    LEFT_BEHIND = 6
    ENGINE = 7
    UNREACHABLE = 8
    INTERRUPTED = 130


class Blocks(StrEnum):
    """What an answer of Azure's closes for a while: asking for it again at once would be refused again."""

    NOTHING = "nothing"  # the same again may well succeed
    ZONE = "zone"  # this size, in this zone
    SIZE = "size"  # this size, in this region
    SPOT = "spot"  # every Spot VM, in this region at least
    REGION = "region"  # every VM of this region
    EVERYTHING = "everything"  # whatever is asked for, until somebody acts


class CloudtrainError(Exception):
    """An error a person can act on.

    code: a stable name for scripts, CamelCase as Azure's own (`NoSuchRun`, `SkuNotAvailable`).
    message: what happened and why. hint: what to run next. exit_code: see `Exit`. blocks: None where it is not Azure
    that refused or failed.
    """

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        exit_code: Exit = Exit.UNEXPECTED,
        blocks: Blocks | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.blocks = blocks

    @property
    def each(self) -> Sequence["CloudtrainError"]:
        """The errors to tell: this one."""
        return (self,)


class Several(CloudtrainError):
    """More than one thing is wrong. The exit code is the first one's."""

    def __init__(self, errors: Sequence[CloudtrainError]) -> None:
        first = errors[0]
        super().__init__(first.code, " ".join(error.message for error in errors), first.hint, first.exit_code)
        self._errors = tuple(errors)

    @property
    def each(self) -> Sequence[CloudtrainError]:
        return self._errors


def all_of(errors: Sequence[CloudtrainError]) -> CloudtrainError | None:
    """One error for all of them; None where there is none."""
    if len(errors) > 1:
        return Several(errors)
    return errors[0] if errors else None


class InvalidSpec(CloudtrainError):
    """What the user asked for cannot be: refused before anything is made."""

    def __init__(self, message: str, hint: str = "", code: str = "InvalidSpec") -> None:
        super().__init__(code, message, hint, Exit.USAGE)


class NoSuchRun(CloudtrainError):
    """There is no run of that name where we looked."""

    def __init__(self, run: str, searched: str) -> None:
        super().__init__(
            "NoSuchRun",
            f"There is no run named '{run}' (looked in {searched}).",
            "cloudtrain list  shows the runs there are; cloudtrain up  starts one.",
            Exit.NO_SUCH_RUN,
        )


class Refused(CloudtrainError):
    """Azure said no: quota, capacity, rights, terms or price. `code` is Azure's own, or ours where Azure's names
    several things (`OperationNotAllowed`)."""

    def __init__(self, code: str, message: str, hint: str = "", blocks: Blocks | None = None) -> None:
        super().__init__(code, message, hint, Exit.REFUSED, blocks)

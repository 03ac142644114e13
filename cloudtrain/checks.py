"""What is looked at before anything is made: each check passed, failed, or could not be decided."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cloudtrain.errors import CloudtrainError, all_of


class State(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Check:
    """name: stable, for scripts. detail: what was seen. fix: what to run. error: of a failed one, to raise."""

    name: str
    state: State
    detail: str
    fix: str = ""
    error: CloudtrainError | None = None


def passed(name: str, detail: str) -> Check:
    return Check(name, State.PASSED, detail)


def failed(name: str, error: CloudtrainError) -> Check:
    return Check(name, State.FAILED, error.message, error.hint, error)


def unknown(name: str, detail: str, fix: str = "") -> Check:
    return Check(name, State.UNKNOWN, detail, fix)


def undecided(name: str, error: CloudtrainError) -> Check:
    """What it takes to decide could not be read."""
    return unknown(name, error.message, error.hint)


def errors_of(checks: Iterable[Check]) -> list[CloudtrainError]:
    return [check.error for check in checks if check.error is not None]


def refuse_failed(checks: Iterable[Check]) -> None:
    """Raises every failed check's error at once."""
    error = all_of(errors_of(checks))
    if error is not None:
        raise error

"""Reads what the scripts print: the marker, and the line meant for programs."""

import re
from typing import TypeVar

import msgspec

MARKER = "cloudtrain-done"


class IncompleteOutput(Exception):
    """The script did not run to its end, or what it printed was damaged on the way: nothing is known."""


class StartOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What install_script() or await_script() saw.

    rc: 0, 5 training failed, 124 time was up, else it could not be installed or started. seen: "progress",
    "container", "finished", "failed" or "". settings: "former" when the container that runs was started
    with others than were installed, which apply at its next start; else "current". start, session: counts
    of container starts and of startup-script runs. time: epoch seconds of the guest, when it was seen.
    """

    rc: int
    seen: str = ""
    time: float = 0.0
    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    resumed_from_step: int | None = None
    steps_lost: int | None = None
    settings: str = ""
    start: int | None = None
    session: int | None = None
    text: tuple[str, ...] = ()


class StopOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What save_and_stop_script() saw. was: "running", "stopped" or "unknown"; exit_code 75: saved when
    asked. delivered: "yes" or "no", whether storage has everything; "" where the VM has no storage."""

    rc: int
    was: str = ""
    exit_code: int | None = None
    step: int | None = None
    saved_step: int | None = None
    delivered: str = ""
    text: tuple[str, ...] = ()


Outcome = TypeVar("Outcome", StartOutcome, StopOutcome)


def split(stdout: str, nonce: str) -> tuple[list[str], int]:
    """The lines before the marker, and the exit code in it. Raises IncompleteOutput."""
    lines = stdout.rstrip("\n").split("\n")
    match = re.fullmatch(rf"{MARKER} {re.escape(nonce)} rc=(\d{{1,3}})", lines[-1].rstrip("\r"))
    if match is None:
        raise IncompleteOutput(f"the output does not end with the marker of {nonce}")
    return lines[:-1], int(match[1])


def exit_code(stdout: str, nonce: str) -> int:
    """The script's own exit code. Raises IncompleteOutput when it did not run to its end."""
    return split(stdout, nonce)[1]


def parse_start(stdout: str, nonce: str) -> StartOutcome:
    """Raises IncompleteOutput."""
    return _outcome(StartOutcome, stdout, nonce, "cloudtrain-seen ")


def parse_stop(stdout: str, nonce: str) -> StopOutcome:
    """Raises IncompleteOutput."""
    return _outcome(StopOutcome, stdout, nonce, "cloudtrain-stopped ")


def _outcome(kind: type[Outcome], stdout: str, nonce: str, prefix: str) -> Outcome:
    lines, rc = split(stdout, nonce)
    told = [line for line in lines if line.startswith(prefix)]
    words = dict(word.split("=", 1) for word in told[-1].split()[1:] if "=" in word) if told else {}
    text = tuple(line for line in lines if not line.startswith(prefix))
    return msgspec.convert({**words, "rc": rc, "text": text}, kind, strict=False)

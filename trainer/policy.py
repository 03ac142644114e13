"""When to save, how to write, what to keep. Pure: measurements in, decisions out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHARE = 0.01
MOST_APART = 60.0
SHARE_TO_STAY_IN_MOST_APART = 0.03
LEAST_APART = 1.0
# Saves vary: aiming a fifth below the limit keeps the sum under it.
AIM = 0.8 * SHARE

CORES_BUSY = 0.75
SLOW_WRITE = 0.25


@dataclass(frozen=True)
class Interval:
    """How far apart checkpoints are: by measured cost (neither is set), in steps, or in seconds."""

    steps: int | None = None
    seconds: float | None = None


def parse_interval(text: str) -> Interval:
    """`auto`, `50` (steps) or `30s` (seconds). Raises ValueError, saying what was expected."""
    expected = "expected auto, a number of steps such as 50, or seconds such as 30s"
    if text == "auto":
        return Interval()
    if re.fullmatch(r"\d+", text) and int(text) > 0:
        return Interval(steps=int(text))
    if re.fullmatch(r"\d+(\.\d+)?s", text) and float(text[:-1]) > 0:
        return Interval(seconds=float(text[:-1]))
    raise ValueError(expected)


def seconds_apart(cost: float) -> float:
    """Seconds between saves that each hold training up for `cost` seconds.

    At most 1 % of the time goes into saving, but never more than 60 s lie between two saves as long as
    that costs under 3 %.
    """
    apart = max(cost / AIM, LEAST_APART)
    if apart > MOST_APART and cost / MOST_APART < SHARE_TO_STAY_IN_MOST_APART:
        return MOST_APART
    return apart


@dataclass(frozen=True)
class Cost:
    """One save. `stall`: seconds that training stood still; `write`: seconds until it was durable."""

    stall: float
    write: float


def is_due(interval: Interval, *, steps: int, seconds: float, costs: Sequence[Cost]) -> bool:
    """Is it time to save, `steps` and `seconds` after the last one, given what the last few cost?"""
    if interval.steps is not None:
        return steps >= interval.steps
    if interval.seconds is not None:
        return seconds >= interval.seconds
    if not costs:
        return seconds >= LEAST_APART
    stall = sum(cost.stall for cost in costs) / len(costs)
    # A slow target is left idle half of the time, for whoever else needs it.
    write = sum(cost.write for cost in costs) / len(costs)
    return seconds >= max(seconds_apart(stall), min(2 * write, MOST_APART))


def in_background(*, busy: float, costs: Sequence[Cost]) -> bool:
    """Write beside training? On busy cores a background writer only steals what it saves
    (measured: +17 % against +7 % when saving each step), unless most of the write is waiting.
    """
    if not costs:
        return False
    return busy < CORES_BUSY or costs[-1].write > SLOW_WRITE


def superfluous(names: Sequence[str], keep: int) -> list[str]:
    """Of checkpoints in order of age, oldest first, those that may go."""
    return list(names[: max(0, len(names) - keep)])

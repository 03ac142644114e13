"""How far training is: progress.json for programs, a bar or a line for people."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from trainer import files

EVERY = 1.0
SPEED_OVER = 10.0
LINES_EVERY = 15.0
BAR_WIDTH = 24


def read(path: Path) -> dict[str, Any]:
    """What progress.json says, or nothing where there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Speed:
    """Examples a second over the last ten seconds of training."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, seconds: float, examples: int) -> None:
        self._marks.append((seconds, examples))
        while len(self._marks) > 2 and seconds - self._marks[0][0] > SPEED_OVER:
            self._marks.popleft()

    def examples_per_second(self) -> float | None:
        if len(self._marks) < 2:
            return None
        (since, first), (until, last) = self._marks[0], self._marks[-1]
        return (last - first) / (until - since) if until > since else None


class Progress:
    """Replaces `path` about once a second. Not fsynced: a checkpoint counts, this only informs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = float("-inf")

    def is_due(self) -> bool:
        return time.monotonic() - self._last >= EVERY

    def write(self, state: Mapping[str, Any]) -> None:
        self._last = time.monotonic()
        # JSON has no NaN: a loss that has diverged is null.
        metrics = {name: value if math.isfinite(value) else None for name, value in state["metrics"].items()}
        content = json.dumps({**state, "metrics": metrics, "time": round(time.time(), 3)}).encode()
        try:
            files.write_bytes(self.path, content, durable=False)
        except OSError:
            pass  # a full disk is reported, loudly, by whoever saves; this file can wait


class Display:
    """A bar on a terminal; elsewhere a line now and then, without control characters."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._bar = self._stream.isatty()
        self._next_line = time.monotonic() + LINES_EVERY
        self._drawn = False

    def show(self, state: Mapping[str, Any]) -> None:
        if self._bar:
            self._stream.write(f"\r\x1b[2K{_bar(state)} {_text(state)}")
            self._stream.flush()
            self._drawn = True
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINES_EVERY
            print(_text(state), file=self._stream, flush=True)

    def clear(self) -> None:
        """Make room for a line of somebody else's."""
        if self._drawn:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
            self._drawn = False


def _bar(state: Mapping[str, Any]) -> str:
    done: int = round(BAR_WIDTH * state["step"] / max(1, state["total_steps"]))
    return "[" + "#" * done + "-" * (BAR_WIDTH - done) + "]"


def _text(state: Mapping[str, Any]) -> str:
    parts = [f"epoch {state['epoch']}/{state['epochs']}", f"step {state['step']}/{state['total_steps']}"]
    parts += [f"{name} {value:.4f}" for name, value in state["metrics"].items() if "val_" not in name]
    if state["examples_per_second"]:
        parts.append(f"{state['examples_per_second']:.0f} examples/s")
    if state["eta_seconds"] is not None:
        parts.append(f"{_clock(state['eta_seconds'])} to go")
    return " · ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""log.txt: what happened to this training, for a person to read."""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import datetime
from pathlib import Path


def now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def before_first_step() -> str:
    return f"Training was asked to stop at: {now()}, before its first step: there is nothing new to save"


class Journal:
    """Appends lines to a file and shows them on stdout. A line that cannot be written is still shown."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: str, *, loud: bool = False) -> None:
        """`loud` lines go to stderr: something is wrong, though training goes on."""
        print(line, file=sys.stderr if loud else sys.stdout, flush=True)
        try:
            self._append(line)
        except OSError as error:
            print(f"cannot write {self.path}: {error.strerror}", file=sys.stderr, flush=True)

    def write_from_handler(self, line: str) -> None:
        """As `write`, in a signal handler: what it interrupts may be a print, which cannot be begun a second time."""
        with contextlib.suppress(OSError):
            os.write(1, f"{line}\n".encode())
        with contextlib.suppress(OSError):
            self._append(line)

    def _append(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            # A kill in the middle of a line must not swallow the next one.
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, ("\n" * torn + line + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

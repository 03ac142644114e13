"""Who is doing a piece of work: locks that a kill -9 releases and that a forked child never inherits.

POSIX record locks have both properties, and one trap: a process loses all its locks on a file when it closes
*any* descriptor of it. So each process opens the lock file once and never closes it, and threads of one
process exclude each other by a set of the numbers in hand.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class _File:
    descriptor: int
    held: set[int] = field(default_factory=set)


_MUTEX = threading.Lock()
_FILES: dict[tuple[int, int, int], _File] = {}  # per process: (pid, device, inode)


class WorkLocks:
    """Numbered locks in one file. A number stands for a piece of work: whoever holds it does it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def attempt(self, number: int) -> Iterator[bool]:
        """Yield whether the lock is ours; never waits."""
        mine = self._take(number)
        try:
            yield mine
        finally:
            if mine:
                self._drop(number)

    def _take(self, number: int) -> bool:
        with _MUTEX:
            file = self._file()
            if number in file.held:
                return False
            try:
                fcntl.lockf(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except (BlockingIOError, PermissionError):
                return False
            file.held.add(number)
            return True

    def _drop(self, number: int) -> None:
        with _MUTEX:
            file = self._file()
            file.held.discard(number)
            fcntl.lockf(file.descriptor, fcntl.LOCK_UN, 1, number)

    def _file(self) -> _File:
        known = _FILES.get(self._key())
        if known is None or os.fstat(known.descriptor).st_nlink == 0:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            status = os.fstat(descriptor)
            known = _File(descriptor)
            _FILES[(os.getpid(), status.st_dev, status.st_ino)] = known
        return known

    def _key(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return (os.getpid(), 0, 0)
        return (os.getpid(), status.st_dev, status.st_ino)

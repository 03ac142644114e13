"""What lies in models/: checkpoints, and everything else; looked at so that a torn file is never taken for a whole one.

Names that begin with '.' are being written, or nobody's. Links are not followed: the trainer image made them, and they
may lead anywhere.
"""

import base64
import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import guest  # type: ignore[import-not-found]
import storage  # type: ignore[import-not-found]

CHECKPOINTS = "checkpoints"
JOURNAL, PROGRESS = "log.txt", "progress.json"
LONGEST_NAME = 1000  # Azure's limit is 1024 characters


@dataclass(frozen=True)
class File:
    """path: below models/. identity: another word where the content may be another."""

    path: str
    size: int
    identity: str
    modified: int

    @property
    def blob(self) -> str:
        return str(storage.MODELS + self.path)


@dataclass(frozen=True)
class Checkpoint:
    """name: of the entry in checkpoints/, '' for a set of files straight in the mount."""

    name: str
    step: int | None
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def order(self) -> tuple[int, int, str]:
        """The newest is the greatest: by step, and by time where names tell none."""
        return -1 if self.step is None else self.step, max((file.modified for file in self.files), default=0), self.name


@dataclass(frozen=True)
class Seen:
    """checkpoints: newest first. straight: the image keeps no checkpoints/, its files are the checkpoint."""

    checkpoints: tuple[Checkpoint, ...]
    others: tuple[File, ...]
    straight: bool


def step_of(name: str) -> int | None:
    found = re.match(r"\d{1,18}", name)
    return int(found[0]) if found else None


def identity(told: os.stat_result) -> str:
    return f"{told.st_ino}:{told.st_size}:{told.st_mtime_ns}"


def walk(directory: Path, below: str) -> Iterator[File]:
    """Every regular file, each path beginning with `below`; what vanishes meanwhile is left out."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError, UnicodeError):
            if entry.name.startswith("."):
                continue
            path = f"{below}{entry.name}"
            path.encode()  # a name that is no text has no blob
            told = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(told.st_mode):
                yield from walk(directory / entry.name, f"{path}/")
            elif stat.S_ISREG(told.st_mode) and len(path) < LONGEST_NAME:
                yield File(path, told.st_size, identity(told), told.st_mtime_ns)


def look() -> Seen:
    files = list(walk(guest.MODELS, ""))
    entries: dict[str, list[File]] = {}
    for file in files:
        top, _, rest = file.path.partition("/")
        if top == CHECKPOINTS and rest:
            entries.setdefault(rest.partition("/")[0], []).append(file)
    found = [Checkpoint(name, step_of(name), tuple(inside)) for name, inside in entries.items()]
    others = tuple(file for file in files if not file.path.startswith(f"{CHECKPOINTS}/"))
    straight = not found and not (guest.MODELS / CHECKPOINTS).is_dir()
    return Seen(tuple(sorted(found, key=lambda each: each.order, reverse=True)), others, straight)


def is_told(file: File) -> bool:
    """What tells of the training and is no part of its state."""
    return file.path in (JOURNAL, PROGRESS)


class Opened:
    """A file held open: what the trainer removes meanwhile, or replaces, can still be sent.

    exact: it has to be the very content that was looked at; else it is whatever is there now."""

    def __init__(self, file: File, *, exact: bool) -> None:
        self.handle = os.open(guest.MODELS / file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        told = os.fstat(self.handle)
        self.file = File(file.path, told.st_size, identity(told), told.st_mtime_ns)
        if (exact and self.file != file) or not stat.S_ISREG(told.st_mode):
            os.close(self.handle)
            raise storage.Damaged(f"{file.path} changes")

    def md5(self) -> str:
        """Base64. Raises Damaged where the file was written to while it was read."""
        total = hashlib.md5()
        for chunk in storage.Part(self.handle, 0, self.file.size).chunks():
            total.update(chunk)
        if identity(os.fstat(self.handle)) != self.file.identity:
            raise storage.Damaged(f"{self.file.path} changes")
        return base64.b64encode(total.digest()).decode()

    def close(self) -> None:
        os.close(self.handle)

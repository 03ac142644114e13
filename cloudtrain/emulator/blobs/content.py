"""The bytes of blobs: files that are written once, whole, and never changed.

A file counts only when the index names it. Its writer keeps it locked from creation until the index has it (or the
writer is gone), so that what a kill -9 left behind can be told from what is being written.
"""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cloudtrain.emulator.blobs.errors import BlobError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Piece:
    """A run of bytes in one file; file '' for no bytes at all."""

    file: str
    size: int
    block_id: str = ""


@dataclass(frozen=True)
class Received:
    piece: Piece
    md5: bytes


class Shortened(Exception):
    """The client stopped sending before the end."""


class Content:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def receive(self, stream: IO[bytes], length: int) -> Iterator[Received]:
        """The bytes on disk, flushed, while the caller writes them into the index; removed if that is refused.

        Raises Shortened."""
        if length == 0:
            yield Received(Piece("", 0), hashlib.md5(b"", usedforsecurity=False).digest())
            return
        name, descriptor = self._create()
        try:
            try:
                digest = _copy(stream, descriptor, length)
            except Shortened:
                self.remove([name])
                raise
            os.fsync(descriptor)
            self._flush_directory()
            try:
                yield Received(Piece(name, length), digest)
            except BlobError:  # a refusal: the index does not name it. Whatever else is raised leaves that open.
                self.remove([name])
                raise
        finally:
            os.close(descriptor)

    def _create(self) -> tuple[str, int]:
        while True:
            name = uuid.uuid4().hex
            descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return name, descriptor
            os.close(descriptor)  # swept away between its creation and its lock

    def open(self, pieces: Sequence[tuple[str, int, int]]) -> "Reader":
        """pieces: file, offset, bytes. Raises FileNotFoundError when one has been replaced since the index was
        read."""
        opened: list[tuple[int, int, int]] = []
        try:
            for file, offset, size in pieces:
                opened.append((os.open(self._directory / file, os.O_RDONLY | os.O_CLOEXEC), offset, size))
        except BaseException:
            for descriptor, _, _ in opened:
                os.close(descriptor)
            raise
        return Reader(opened)

    def remove(self, files: Sequence[str]) -> None:
        """Files that the index does not name any more. Who is reading one goes on reading it."""
        for file in files:
            if file:
                (self._directory / file).unlink(missing_ok=True)

    def sweep(self, named: Callable[[], set[str]]) -> None:
        """Remove what killed writers left behind. named: the files that the index names."""
        there = {entry.name for entry in os.scandir(self._directory)}
        suspects = there - named() if there else set()
        for file in suspects:
            self._remove_unless_written(file, named)

    def _remove_unless_written(self, file: str, named: Callable[[], set[str]]) -> None:
        path = self._directory / file
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file not in named():  # its writer may have finished since
                path.unlink(missing_ok=True)
        except BlockingIOError:
            pass  # somebody is writing it
        finally:
            os.close(descriptor)

    def _flush_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Reader:
    """The chosen bytes of a blob, read while they are sent. Has to be closed."""

    def __init__(self, opened: list[tuple[int, int, int]]) -> None:
        self._opened = opened

    def __iter__(self) -> Iterator[bytes]:
        for descriptor, offset, size in self._opened:
            while size > 0:
                chunk = os.pread(descriptor, min(size, _CHUNK), offset)
                if not chunk:
                    raise OSError("a blob's file is shorter than the index says")
                offset, size = offset + len(chunk), size - len(chunk)
                yield chunk

    def close(self) -> None:
        while self._opened:
            os.close(self._opened.pop()[0])


def _copy(stream: IO[bytes], descriptor: int, length: int) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    left = length
    while left:
        chunk = stream.read(min(left, _CHUNK))
        if not chunk:
            raise Shortened
        digest.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(descriptor, view) :]
        left -= len(chunk)
    return digest.digest()

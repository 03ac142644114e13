"""The bytes of blobs: files that are written once, whole, and never changed.

A file counts only when the index names it. Its writer keeps it locked from creation until the index has it (or the
writer is gone), so that what a kill -9 left behind can be told from what is being written. A few bytes have no file of
their own: they go into the index, which costs one flush instead of three.
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
LARGEST_SMALL = 32 * 1024


@dataclass(frozen=True)
class Received:
    """Bytes that the index has yet to name: in a file, or in hand if they are few. md5: b'' where nobody needs it."""

    size: int
    file: str = ""
    small: bytes = b""
    md5: bytes = b""


Stretch = bytes | tuple[str, int, int]
"""Bytes of a blob: themselves, or a file, an offset and how many."""


class NoSuchAccount(Exception):
    """There is no such account, or not any more: its directory is not there."""


class Shortened(Exception):
    """The client stopped sending before the end."""


class Content:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def receive(self, stream: IO[bytes], length: int, *, hashed: bool) -> Iterator[Received]:
        """The bytes on disk, flushed, while the caller writes them into the index; removed if that is refused.

        hashed: whether their MD5 is wanted. Raises Shortened, NoSuchAccount."""
        if length <= LARGEST_SMALL:
            data = _read(stream, length)
            yield Received(length, small=data, md5=_md5(data).digest() if hashed else b"")
            return
        name, descriptor = self._create()
        try:
            try:
                digest = _copy(stream, descriptor, length, hashed)
            except Shortened:
                self.remove([name])
                raise
            os.fsync(descriptor)
            with self._there():
                flush_directory(self._directory)
            try:
                yield Received(length, file=name, md5=digest)
            except BlobError:  # a refusal: the index does not name it. Whatever else is raised leaves that open.
                self.remove([name])
                raise
        finally:
            os.close(descriptor)

    def _create(self) -> tuple[str, int]:
        while True:
            name = uuid.uuid4().hex
            with self._there():
                descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return name, descriptor
            os.close(descriptor)  # swept away between its creation and its lock

    @contextmanager
    def _there(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise NoSuchAccount from None

    def open(self, stretches: Sequence[Stretch]) -> "Reader":
        """Raises FileNotFoundError when a file has been replaced since the index was read."""
        reader = Reader()
        try:
            for stretch in stretches:
                if isinstance(stretch, bytes):
                    reader.add(stretch)
                else:
                    file, offset, size = stretch
                    reader.add((os.open(self._directory / file, os.O_RDONLY | os.O_CLOEXEC), offset, size))
        except BaseException:
            reader.close()
            raise
        return reader

    def remove(self, files: Sequence[str]) -> None:
        """Files that the index does not name any more. Who is reading one goes on reading it."""
        for file in files:
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


class Reader:
    """The chosen bytes of a blob, read while they are sent. Has to be closed."""

    def __init__(self) -> None:
        self._parts: list[bytes | tuple[int, int, int]] = []

    def add(self, part: bytes | tuple[int, int, int]) -> None:
        """Bytes, or a descriptor, an offset and how many."""
        self._parts.append(part)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
                continue
            descriptor, offset, size = part
            while size > 0:
                chunk = os.pread(descriptor, min(size, _CHUNK), offset)
                if not chunk:
                    raise OSError("a blob's file is shorter than the index says")
                offset, size = offset + len(chunk), size - len(chunk)
                yield chunk

    def close(self) -> None:
        while self._parts:
            part = self._parts.pop()
            if not isinstance(part, bytes):
                os.close(part[0])


def flush_directory(path: Path) -> None:
    """The names in it are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _md5(data: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)


def _read(stream: IO[bytes], length: int) -> bytes:
    data = b""
    while len(data) < length:
        chunk = stream.read(length - len(data))
        if not chunk:
            raise Shortened
        data += chunk
    return data


def _copy(stream: IO[bytes], descriptor: int, length: int, hashed: bool) -> bytes:
    digest = _md5()
    left = length
    while left:
        chunk = stream.read(min(left, _CHUNK))
        if not chunk:
            raise Shortened
        if hashed:
            digest.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(descriptor, view) :]
        left -= len(chunk)
    return digest.digest() if hashed else b""

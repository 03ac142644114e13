"""Files that are either whole or not there, whenever the machine is switched off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"


def temporary_name(path: Path) -> Path:
    """Beside `path`, hidden (never read nor copied), and of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")


def write_aside(path: Path, write: Callable[[BinaryIO], None], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file, then put it in the place of `path`.

    With `durable` the file and its directory are fsynced, so that it survives a power cut too.
    Raises OSError (disk full, read-only, ...); `path` is then as it was before.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        discard(temporary)
        raise
    if durable:
        fsync_directory(path.parent)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    def write(file: BinaryIO) -> None:
        file.write(content)

    write_aside(path, write, durable=durable)


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file or directory that nobody needs; one that will not go does no harm."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:
        pass


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed trainer was writing. Only for a directory that we hold the lock of."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.name.startswith(".") and path.name.endswith(TEMPORARY):
            discard(path)

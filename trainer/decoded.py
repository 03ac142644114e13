"""Data sets decoded once: uint8 arrays on disk, read into memory or, where they do not fit, mapped.

One directory a data set under `<data dir>/decoded`: `train-images.npy`, `train-labels.npy`, the same for
`validation`, and `about.json`, which has the checksums. Written aside and renamed as a whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer import files

PARTS = ("train", "validation")
MOST_OF_MEMORY = 0.4
CHUNK = 1 << 24

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Split:
    """`images`: uint8, examples x height x width x channels. `labels`: int32, examples."""

    images: Array
    labels: Array


@dataclass(frozen=True)
class Dataset:
    """`identity` names the data set, its version, splits and content: equal only if every pixel is."""

    name: str
    identity: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split


def read(directory: Path) -> Dataset | None:
    """The data set in `directory`; None where there is none, or where it is damaged."""
    try:
        about = json.loads((directory / "about.json").read_bytes())
        train, validation = (_read_split(directory, part, about["checksums"]) for part in PARTS)
    except (OSError, ValueError, KeyError):
        return None
    return Dataset(about["name"], about["identity"], tuple(about["class_names"]), train, validation)


def _read_split(directory: Path, part: str, checksums: Mapping[str, int]) -> Split:
    arrays = []
    for kind in ("images", "labels"):
        path = directory / f"{part}-{kind}.npy"
        fits = path.stat().st_size < MOST_OF_MEMORY * available_memory()
        array = np.load(path, mmap_mode=None if fits else "r")
        if fits and checksum(array) != checksums[f"{part}-{kind}"]:
            raise ValueError(f"{path} is damaged")
        arrays.append(array)
    return Split(*arrays)


def checksum(array: Array) -> int:
    """CRC-32 of the elements, in pieces: a mapped array never has to be in memory as a whole."""
    total = 0
    for begin in range(0, len(array), max(1, CHUNK // max(1, array[:1].nbytes))):
        piece = np.ascontiguousarray(array[begin : begin + max(1, CHUNK // max(1, array[:1].nbytes))])
        total = zlib.crc32(piece.reshape(-1).view(np.uint8).data, total)
    return total


def available_memory() -> int:
    """Bytes that this process may still use: of the machine, and of its control group."""
    limits = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if "MemAvailable" in line]
    for limit, used in (("memory.max", "memory.current"),):
        group = [line for name in (limit, used) for line in _lines(f"/sys/fs/cgroup/{name}")]
        if len(group) == 2 and group[0].isdigit():
            limits.append(int(group[0]) - int(group[1]))
    return min(limits, default=1 << 31)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


@contextmanager
def sole_preparer(directory: Path) -> Iterator[None]:
    """Hold others off who would prepare the same data set now; waits for them."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory.with_name(f".{directory.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Writer:
    """Fills a directory aside; `publish` puts it in its place. A context: without that, nothing is left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.aside = files.temporary_name(directory)
        files.discard(self.aside)
        self.aside.mkdir(parents=True)
        self.checksums: dict[str, int] = {}

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        files.discard(self.aside)

    def split(self, part: str, count: int, shape: tuple[int, ...], batches: Iterator[Any]) -> None:
        """Write `count` examples from batches of (images, labels)."""
        images = self._array(f"{part}-images", np.uint8, (count, *shape))
        labels = self._array(f"{part}-labels", np.int32, (count,))
        at = 0
        for some_images, some_labels in batches:
            images[at : at + len(some_images)] = some_images
            labels[at : at + len(some_labels)] = some_labels
            at += len(some_labels)
        if at != count:
            raise ValueError(f"the {part} split should have {count} examples and has {at}")
        for kind, array in (("images", images), ("labels", labels)):
            self.checksums[f"{part}-{kind}"] = checksum(array)
            array.flush()

    def _array(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> Any:
        path = self.aside / f"{name}.npy"
        array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
        # Writing to a mapped file on a full disk ends the process (SIGBUS): take the room while one may refuse.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array

    def publish(self, name: str, source: str, class_names: tuple[str, ...]) -> None:
        content = zlib.crc32(json.dumps(self.checksums, sort_keys=True).encode())
        about = {
            "name": name,
            "identity": f"{source} content {content:08x}",
            "class_names": class_names,
            "checksums": self.checksums,
        }
        files.write_bytes(self.aside / "about.json", json.dumps(about, indent=1).encode())
        files.discard(self.directory)
        self.aside.rename(self.directory)
        files.fsync_directory(self.directory.parent)

"""One checkpoint, one file: header, raw tensors, checksum.

Layout (integers little-endian)::

    magic            8 bytes   b"TRAINER1"
    header length    8 bytes
    header           JSON, UTF-8: {"meta": {...}, "tensors": [[name, dtype, shape], ...]}
    tensors          raw bytes, C order, one after the other
    checksum         4 bytes   CRC-32 of everything before it

The name of the file is the zero-padded step. A file under a name that starts with "." is being written,
or was found damaged; such names are never read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from trainer import files

MAGIC = b"TRAINER1"
NAME = re.compile(r"^(\d+)\.ckpt$")
DAMAGED = ".damaged-"
MOST_DAMAGED = 2

Array = npt.NDArray[Any]
Tensors = Sequence[tuple[str, Array]]


class Damaged(Exception):
    """The file is not a whole checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at one step. `meta` is JSON: position, metrics so far, job, fingerprint."""

    path: Path
    meta: Mapping[str, Any]
    tensors: Mapping[str, Array]


def file_name(step: int) -> str:
    return f"{step:010d}.ckpt"


def step_of(path: Path) -> int:
    match = NAME.match(path.name)
    if match is None:
        raise ValueError(f"not the name of a checkpoint: {path.name}")
    return int(match.group(1))


def write(path: Path, meta: Mapping[str, Any], tensors: Tensors) -> None:
    """Write a checkpoint so that `path` is at no moment anything but whole. Raises OSError."""

    def fill(file: BinaryIO) -> None:
        checksum = 0
        for part in _parts(meta, tensors):
            checksum = zlib.crc32(part, checksum)
            file.write(part)
        file.write(struct.pack("<I", checksum))

    files.write_aside(path, fill)


def _parts(meta: Mapping[str, Any], tensors: Tensors) -> list[bytes | memoryview]:
    listing = [[name, array.dtype.name, list(array.shape)] for name, array in tensors]
    header = json.dumps({"meta": meta, "tensors": listing}, separators=(",", ":")).encode()
    opening = MAGIC + struct.pack("<Q", len(header)) + header
    return [opening, *(_raw(array) for _, array in tensors)]


def _raw(array: Array) -> memoryview:
    # Through uint8, because bfloat16 has no buffer format of its own.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read(path: Path) -> Checkpoint:
    """Read and verify a checkpoint. Raises Damaged, or OSError where the disk does not answer."""
    content = path.read_bytes()
    if len(content) < len(MAGIC) + 12 or not content.startswith(MAGIC):
        raise Damaged("it does not begin like a checkpoint")
    if struct.unpack("<I", content[-4:])[0] != zlib.crc32(memoryview(content)[:-4]):
        raise Damaged("its checksum does not match")
    begin = len(MAGIC) + 8
    (length,) = struct.unpack("<Q", content[len(MAGIC) : begin])
    header = json.loads(content[begin : begin + length])
    return Checkpoint(path, header["meta"], _tensors(content, begin + length, header["tensors"]))


def _tensors(content: bytes, offset: int, listing: Sequence[Any]) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for name, dtype_name, shape in listing:
        dtype, count = _dtype(dtype_name), math.prod(shape)
        tensors[name] = np.frombuffer(content, dtype, count, offset).reshape(shape)
        offset += count * dtype.itemsize
    return tensors


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # numpy learns bfloat16 and its like from it; every backend depends on it

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype


def complete(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, oldest first; written wholly, not yet verified."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if NAME.match(p.name)), key=step_of)


def newest(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a line about each newer one that did not.

    Damaged files are set aside under a name that starts with ".", so that they cost nothing next time.
    """
    damaged: list[str] = []
    for path in reversed(complete(directory)):
        try:
            return read(path), damaged
        except Damaged as reason:
            damaged.append(f"{path.name} ({reason}), {_set_aside(path)}")
        except OSError as error:
            damaged.append(f"{path.name} (cannot be read: {error.strerror})")
    return None, damaged


def _set_aside(path: Path) -> str:
    aside = path.with_name(DAMAGED + path.name)
    try:
        path.replace(aside)
    except OSError as error:
        return f"left where it is ({error.strerror})"
    for old in sorted(path.parent.glob(f"{DAMAGED}*"))[:-MOST_DAMAGED]:
        files.discard(old)
    return f"set aside as {aside.name}"


def digest(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and bytes: equal if and only if every bit is equal."""
    total = hashlib.sha256()
    for name, array in tensors:
        total.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        total.update(_raw(array))
    return total.hexdigest()

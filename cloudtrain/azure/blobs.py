"""Blobs of a run, brought home: listed, fetched so that an interrupted fetch goes on where it was, verified."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cloudtrain.azure.storage import translated_blobs
from cloudtrain.errors import CloudtrainError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class BlobInfo:
    """md5: of the whole content, b'' where the writer gave none. etag: of this version."""

    name: str
    size: int
    md5: bytes
    etag: str


@dataclass
class Fetched:
    """refused: names that are no path below a directory. What the VM says is only information."""

    files: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def list_blobs(container: Any, prefix: str = "") -> list[BlobInfo]:
    """In the order of their names."""
    with translated_blobs("listing the run's blobs"):
        return [
            BlobInfo(blob.name, int(blob.size), bytes(blob.content_settings.content_md5 or b""), blob.etag.strip('"'))
            for blob in container.list_blobs(name_starts_with=prefix)
        ]


def fetch_all(
    container: Any, prefix: str, directory: Path, received: Callable[[int], None] = lambda count: None
) -> Fetched:
    """Every blob whose name begins so, each under the rest of its name. What is there already, whole, stays.

    received: is told of bytes as they arrive. Raises CloudtrainError."""
    fetched = Fetched()
    for blob in list_blobs(container, prefix):
        path = _path_below(blob.name[len(prefix) :])
        if path is None:
            fetched.refused.append(blob.name)
            continue
        fetch(container, blob, directory / path, received)
        fetched.files.append(directory / path)
    return fetched


def _path_below(name: str) -> PurePosixPath | None:
    """None for a name that would lead elsewhere, or is not to be read (its parts begin with '.')."""
    parts = name.split("/")
    if any(not part or part.startswith(".") or "\x00" in part or "\\" in part for part in parts):
        return None
    return PurePosixPath(*parts)


def fetch(container: Any, blob: BlobInfo, target: Path, received: Callable[[int], None] = lambda count: None) -> None:
    """One blob, into a file that appears only whole and verified; the part that there is of this version is kept.

    Raises CloudtrainError: the blob was replaced meanwhile, or is not what its checksum says."""
    if _matches(target, blob):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{_safe(blob.etag)}.part")
    _forget_other_parts(target, part)
    # Without a checksum nobody could tell whether a part that a power cut left is what it seems.
    begin = part.stat().st_size if blob.md5 and part.exists() else 0
    begin = begin if begin <= blob.size else 0
    _download(container, blob, part, begin, received)
    if not _matches(part, blob):
        part.unlink()
        raise CloudtrainError(
            "DamagedBlob",
            f"The blob '{blob.name}' did not arrive as it is said to be ({blob.size} bytes).",
            "Run the same command again.",
        )
    part.replace(target)
    _flush(target.parent, os.O_RDONLY | os.O_DIRECTORY)


def _safe(etag: str) -> str:
    return hashlib.sha256(etag.encode()).hexdigest()[:16]


def _forget_other_parts(target: Path, kept: Path) -> None:
    for path in target.parent.iterdir():
        if path.name.startswith(f".{target.name}.") and path.name.endswith(".part") and path != kept:
            path.unlink()


def _download(container: Any, blob: BlobInfo, part: Path, begin: int, received: Callable[[int], None]) -> None:
    with part.open("r+b" if begin else "wb") as file, translated_blobs(f"fetching the blob '{blob.name}'"):
        file.seek(begin)
        if begin:
            received(begin)
        for chunk in _chunks(container, blob, begin):
            file.write(chunk)
            received(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _chunks(container: Any, blob: BlobInfo, begin: int) -> Iterator[bytes]:
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceModifiedError

    if begin == blob.size:
        return
    client = container.get_blob_client(blob.name)
    try:
        download = client.download_blob(
            offset=begin,
            length=blob.size - begin,
            etag=f'"{blob.etag}"',
            match_condition=MatchConditions.IfNotModified,
        )
        yield from download.chunks()
    except ResourceModifiedError as error:
        raise CloudtrainError(
            "BlobReplaced",
            f"The blob '{blob.name}' was replaced while it was fetched.",
            "Run the same command again.",
        ) from error


def _matches(path: Path, blob: BlobInfo) -> bool:
    """Whether a file is the blob; without a checksum, only by the part that was just fetched of it."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size != blob.size:
            return False
        if blob.md5:
            return _md5(path) == blob.md5
        return path.name.endswith(".part")
    return False


def _md5(path: Path) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Blobs of a run, brought home: listed, fetched so that an interrupted fetch goes on where it was, verified."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudtrain.azure.session import BLOB_PIECE
from cloudtrain.azure.storage import blob_code_of, translated_blobs
from cloudtrain.errors import CloudtrainError

REPLACED = "BlobReplaced"
_MISSING = "BlobNotFound"
_CHUNK = 1 << 20
# Linux allows 255 bytes, and the part of a file has a longer name than the file.
_LONGEST_NAME = 255 - len("..0123456789abcdef.part")


@dataclass(frozen=True)
class BlobInfo:
    """md5: of the whole content, b'' where the writer gave none. etag: of this version."""

    name: str
    size: int
    md5: bytes
    etag: str


@dataclass
class Listing:
    """files: by the path that each has below a directory. refused: names that are no such path; what the VM says is
    only information."""

    files: dict[str, BlobInfo] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def list_blobs(container: Any, prefix: str = "") -> list[BlobInfo]:
    """In the order of their names."""
    with translated_blobs("listing the run's blobs"):
        return [
            BlobInfo(blob.name, int(blob.size), bytes(blob.content_settings.content_md5 or b""), blob.etag.strip('"'))
            for blob in container.list_blobs(name_starts_with=prefix)
        ]


def listed(container: Any, prefix: str) -> Listing:
    """Every blob whose name begins so, as a file under the rest of its name."""
    listing = Listing()
    for blob in list_blobs(container, prefix):
        path = blob.name[len(prefix) :]
        if is_path_below(path):
            listing.files[path] = blob
        else:
            listing.refused.append(blob.name)
    return listing


def is_path_below(name: str) -> bool:
    """False for a name that would lead out of a directory, that no file can have, or that is not to be read (its parts
    begin with '.')."""
    return not any(
        not part or part.startswith(".") or "\x00" in part or "\\" in part or len(part.encode()) > _LONGEST_NAME
        for part in name.split("/")
    )


def read(container: Any, name: str, begin: int = 0) -> bytes | None:
    """A blob's content from there on, as it is now; b'' where it ends before, None where there is no such blob.

    It may grow meanwhile: each piece is a request of its own."""
    pieces: list[bytes] = []
    while not pieces or len(pieces[-1]) == BLOB_PIECE:
        piece = _piece(container, name, begin + BLOB_PIECE * len(pieces))
        if piece is None:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _piece(container: Any, name: str, begin: int) -> bytes | None:
    from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

    with translated_blobs(f"reading the blob '{name}'"):
        try:
            return bytes(container.get_blob_client(name).download_blob(offset=begin, length=BLOB_PIECE).readall())
        except ResourceNotFoundError as error:
            if blob_code_of(error) != _MISSING:
                raise
            return None
        except HttpResponseError as error:
            if error.status_code != 416:
                raise
            return b""


def replaced(name: str) -> CloudtrainError:
    """The error for a blob that is another one by now, or gone."""
    return CloudtrainError(
        REPLACED, f"The blob '{name}' was replaced while it was fetched.", "Run the same command again."
    )


def fetch(container: Any, blob: BlobInfo, target: Path, received: Callable[[int], None] = lambda count: None) -> None:
    """One blob, into a file that appears only whole and verified; the part that there is of this version is kept.

    received: is told of bytes as they arrive. Raises CloudtrainError: the blob was replaced meanwhile (REPLACED), or is
    not what its checksum says."""
    if matches(target, blob):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{_safe(blob.etag)}.part")
    _forget_other_parts(target, part)
    # Without a checksum nobody could tell whether a part that a power cut left is what it seems.
    begin = part.stat().st_size if blob.md5 and part.exists() else 0
    begin = begin if begin <= blob.size else 0
    try:
        _download(container, blob, part, begin, received)
    except CloudtrainError as error:
        if error.code == REPLACED:
            part.unlink()  # of a version that nobody can fetch any more
        raise
    if not matches(part, blob):
        part.unlink()
        raise CloudtrainError(
            "DamagedBlob",
            f"The blob '{blob.name}' did not arrive as its checksum says ({blob.size} bytes).",
            "Run the same command again; where it stays so, the blob itself is damaged.",
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
    from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

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
    except (ResourceModifiedError, ResourceNotFoundError) as error:
        if isinstance(error, ResourceNotFoundError) and blob_code_of(error) != _MISSING:
            raise
        raise replaced(blob.name) from error


def matches(path: Path, blob: BlobInfo) -> bool:
    """Whether a file is the blob; without a checksum, only by the part that was just fetched of it."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size != blob.size:
            return False
        if blob.md5:
            return md5(path) == blob.md5
        return path.name.endswith(".part")
    return False


def md5(path: Path) -> bytes:
    """Of a file's content."""
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

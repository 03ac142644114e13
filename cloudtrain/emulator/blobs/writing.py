"""Blobs written: whole, from blocks, or at their end. Nothing is seen before all of it is on disk."""

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager

from cloudtrain.emulator.blobs import conditions, leases
from cloudtrain.emulator.blobs.call import Call, Reply
from cloudtrain.emulator.blobs.containers import parse_xml
from cloudtrain.emulator.blobs.content import Received, Shortened
from cloudtrain.emulator.blobs.errors import bad_header, bad_query, not_emulated, refused
from cloudtrain.emulator.blobs.index import Blob, Piece, Rows
from cloudtrain.emulator.blobs.place import Place, existing_blob, existing_container, touch, version_headers
from cloudtrain.emulator.blobs.reading import content_headers

# learn.microsoft.com/rest/api/storageservices/understanding-block-blobs--append-blobs--and-page-blobs
_MIB = 1024 * 1024
_LARGEST_BLOB, _LARGEST_BLOCK, _LARGEST_APPEND = 5000 * _MIB, 4000 * _MIB, 100 * _MIB
_MOST_BLOCKS = 50_000
_LONGEST_BLOCK_ID, _LONGEST_NAME = 64, 1024
_LARGEST_BLOCK_LIST = 16 * _MIB


def put(call: Call, place: Place) -> Reply:
    """Put Blob: the whole of a block blob, or an empty append blob."""
    kind = call.required("x-ms-blob-type")
    if kind not in ("BlockBlob", "AppendBlob"):
        raise not_emulated(f"blobs of the type {kind}")
    _check_name(call)
    properties, metadata = content_headers(call), call.metadata()
    if kind == "AppendBlob" and call.length:
        raise bad_header("content-length", str(call.length))
    if kind == "BlockBlob" and not call.header("x-ms-blob-content-type") and call.header("content-type"):
        properties["Content-Type"] = call.header("content-type")
    _check_early(call, place)
    with _received(call, place, _LARGEST_BLOB, hashed=True) as received, place.index.write() as rows:
        if kind == "BlockBlob":
            md5 = base64.b64encode(received.md5).decode()
            if properties.setdefault("Content-MD5", md5) != md5:
                raise refused("Md5Mismatch", UserSpecifiedMd5=properties["Content-MD5"], ServerCalculatedMd5=md5)
        blob = _replaced(rows, call, place, kind, properties, metadata, received.size)
        files = rows.replace_content(blob, [rows.piece(received)] if received.size else [])
    place.index.content.remove(files)
    headers = {**version_headers(blob), "x-ms-request-server-encrypted": "true"}
    if kind == "BlockBlob":
        headers["Content-MD5"] = base64.b64encode(received.md5).decode()
    return Reply(201, headers)


def _check_name(call: Call) -> None:
    if len(call.blob) > _LONGEST_NAME:
        raise refused("InvalidResourceName")


def _check_early(call: Call, place: Place) -> None:
    """What can be refused before the bytes are read. It is checked again when they are there."""
    with place.index.read() as rows:
        existing_container(rows, call)
        _check_writable(call, place, rows.blob(call.container, call.blob))


def _check_writable(call: Call, place: Place, existing: Blob | None) -> None:
    if existing is None:
        if call.header("x-ms-lease-id"):
            raise refused("LeaseNotPresentWithBlobOperation")
        conditions.check_write(call, "", 0.0, creating=True)
        return
    conditions.check_write(call, existing.etag, existing.modified, creating=True)
    leases.check_write(existing.lease, call, "Blob")
    allowed = place.grant.permissions
    if allowed is not None and "w" not in allowed:
        raise refused("UnauthorizedBlobOverwrite")


@contextmanager
def _received(call: Call, place: Place, largest: int, *, hashed: bool = False) -> Iterator[Received]:
    """The body, on disk, checked against the MD5 that was sent."""
    if call.length > largest:
        raise refused("RequestBodyTooLarge", MaxLimit=str(largest))
    expected = _sent_md5(call)
    try:
        hashed = hashed or expected is not None
        with place.index.content.receive(call.stream, call.length, hashed=hashed) as received:
            if expected is not None and received.md5 != expected:
                sent, computed = (base64.b64encode(digest).decode() for digest in (expected, received.md5))
                raise refused("Md5Mismatch", UserSpecifiedMd5=sent, ServerCalculatedMd5=computed)
            yield received
    except Shortened:
        raise refused("InvalidInput") from None


def _sent_md5(call: Call) -> bytes | None:
    value = call.header("content-md5")
    if not value:
        return None
    try:
        digest = base64.b64decode(value, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 16:
        raise refused("InvalidMd5")
    return digest


def _replaced(
    rows: Rows,
    call: Call,
    place: Place,
    kind: str,
    properties: dict[str, str],
    metadata: dict[str, str],
    size: int,
) -> Blob:
    """The blob as it is from now on, in the index; its bytes still have to be."""
    existing_container(rows, call)
    before = rows.blob(call.container, call.blob)
    _check_writable(call, place, before)
    blob = Blob(
        call.container,
        call.blob,
        kind,
        rows.etag(call.now),
        before.created if before else call.now,
        call.now,
        size,
        properties,
        metadata,
        leases.after_write(before.lease, call.now) if before else leases.Lease(),
    )
    rows.put_blob(blob)
    return blob


# blocks


def put_block(call: Call, place: Place) -> Reply:
    block_id = _block_id(call)
    with place.index.read() as rows:
        existing_container(rows, call)
        _check_block(rows, call, block_id)
    if not call.length:
        raise bad_header("content-length", "0")
    with _received(call, place, _LARGEST_BLOCK) as received, place.index.write() as rows:
        existing_container(rows, call)
        _check_block(rows, call, block_id)
        files = rows.stage(call.container, call.blob, rows.piece(received, block_id), call.now)
    place.index.content.remove(files)
    headers = {"x-ms-request-server-encrypted": "true"}
    if call.header("content-md5"):
        headers["Content-MD5"] = call.header("content-md5")
    return Reply(201, headers)


def _block_id(call: Call) -> str:
    block_id = call.required_query("blockid")
    try:
        decoded = base64.b64decode(block_id, validate=True)
    except binascii.Error:
        raise refused("InvalidBlockId") from None
    if not 1 <= len(decoded) <= _LONGEST_BLOCK_ID:
        raise bad_query("blockid", block_id, "Block ID length must be between 1 and 64 bytes.")
    return block_id


def _check_block(rows: Rows, call: Call, block_id: str) -> None:
    existing = rows.blob(call.container, call.blob)
    if existing is not None:
        if existing.kind != "BlockBlob":
            raise refused("InvalidBlobType")
        leases.check_write(existing.lease, call, "Blob")
    other = rows.one_staged(call.container, call.blob)
    if other is not None and len(other) != len(block_id):
        raise refused("InvalidBlobOrBlock")  # all ids of one blob have one length


def put_block_list(call: Call, place: Place) -> Reply:
    properties, metadata = content_headers(call), call.metadata()
    wanted = [(entry.tag, (entry.text or "").strip()) for entry in parse_xml(call.body(_LARGEST_BLOCK_LIST))]
    if len(wanted) > _MOST_BLOCKS:
        raise refused("BlockCountExceedsLimit")
    with place.index.write() as rows:
        existing_container(rows, call)
        before = rows.blob(call.container, call.blob)
        if before is not None and before.kind != "BlockBlob":
            raise refused("InvalidBlobType")
        _check_writable(call, place, before)
        pieces = _chosen(wanted, rows.pieces(before) if before else [], rows.staged(call.container, call.blob))
        size = sum(piece.size for piece in pieces)
        blob = _replaced(rows, call, place, "BlockBlob", properties, metadata, size)
        files = rows.replace_content(blob, pieces)
    place.index.content.remove(files)
    return Reply(201, {**version_headers(blob), "x-ms-request-server-encrypted": "true"})


def _chosen(wanted: list[tuple[str, str]], committed: list[Piece], staged: list[Piece]) -> list[Piece]:
    """The blocks of a list, in its order. Raises InvalidBlockList."""
    old = {piece.block_id: piece for piece in committed if piece.block_id}
    new = {piece.block_id: piece for piece in staged}
    where = {"Committed": old, "Uncommitted": new, "Latest": {**old, **new}}
    try:
        return [where[tag][block_id] for tag, block_id in wanted]
    except KeyError:
        raise refused("InvalidBlockList") from None


# append


def append(call: Call, place: Place) -> Reply:
    with place.index.read() as rows:
        _check_append(call, existing_blob(rows, call))
    if not call.length:
        raise bad_header("content-length", "0")
    with _received(call, place, _LARGEST_APPEND) as received, place.index.write() as rows:
        blob = existing_blob(rows, call)
        _check_append(call, blob)
        offset = blob.size
        count = rows.append(blob, rows.piece(received))
        if count > _MOST_BLOCKS:
            raise refused("BlockCountExceedsLimit")
        blob.size += received.size
        blob.lease = leases.after_write(blob.lease, call.now)
        touch(rows, blob, call.now)
        rows.put_blob(blob)
    headers = {
        **version_headers(blob),
        "x-ms-blob-append-offset": str(offset),
        "x-ms-blob-committed-block-count": str(count),
        "x-ms-request-server-encrypted": "true",
    }
    return Reply(201, headers)


def _check_append(call: Call, blob: Blob) -> None:
    if blob.kind != "AppendBlob":
        raise refused("InvalidBlobType")
    conditions.check_write(call, blob.etag, blob.modified)
    leases.check_write(blob.lease, call, "Blob")
    position, largest = call.number("x-ms-blob-condition-appendpos"), call.number("x-ms-blob-condition-maxsize")
    if position is not None and position != blob.size:
        raise refused("AppendPositionConditionNotMet")
    if largest is not None and blob.size + call.length > largest:
        raise refused("MaxBlobSizeConditionNotMet")

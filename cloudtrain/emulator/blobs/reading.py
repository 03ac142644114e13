"""Blobs shown, read, deleted; their metadata, content headers and leases."""

import base64
import hashlib
import re

from cloudtrain.emulator.blobs import conditions, leases, sas
from cloudtrain.emulator.blobs.call import Call, Reply, xml_reply
from cloudtrain.emulator.blobs.content import Reader, Stretch
from cloudtrain.emulator.blobs.errors import bad_header, bad_query, refused
from cloudtrain.emulator.blobs.index import Blob
from cloudtrain.emulator.blobs.place import Place, existing_blob, existing_container, touch, version_headers

_CONTENT_HEADERS = (
    "Content-Type",
    "Content-Encoding",
    "Content-Language",
    "Content-MD5",
    "Cache-Control",
    "Content-Disposition",
)
_LARGEST_HASHED_RANGE = 4 * 1024 * 1024
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})?")


def content_headers(call: Call) -> dict[str, str]:
    """x-ms-blob-content-*, by the names that they have in an answer."""
    sent = {name: call.header("x-ms-blob-" + name.lower()) for name in _CONTENT_HEADERS}
    sent["Content-Type"] = sent["Content-Type"] or "application/octet-stream"
    return {name: value for name, value in sent.items() if value}


def read(call: Call, place: Place) -> Reply:
    while True:
        blob, begin, end, pieces, blocks = _covering(call, place)
        try:
            reader = place.index.content.open(pieces)
        except FileNotFoundError:
            continue  # replaced between the look and the opening: look again
        reply = _content_reply(call, blob, begin, end, reader)
        reply.headers |= _block_count(blob, blocks)
        return reply


def _covering(call: Call, place: Place) -> tuple[Blob, int, int, list[Stretch], int]:
    with place.index.read() as rows:
        blob = existing_blob(rows, call)
        conditions.check_read(call, blob.etag, blob.modified)
        leases.check_read(blob.lease, call, "Blob")
        begin, end = _range(call, blob.size)
        return blob, begin, end, rows.covering(blob, begin, end), rows.block_count(blob)


def _block_count(blob: Blob, blocks: int) -> dict[str, str]:
    return {"x-ms-blob-committed-block-count": str(blocks)} if blob.kind == "AppendBlob" else {}


def _range(call: Call, size: int) -> tuple[int, int]:
    """First byte, and the one after the last. Raises InvalidRange."""
    asked = call.header("x-ms-range") or call.header("range")
    if not asked:
        return 0, size
    match = _RANGE.fullmatch(asked)
    if match is None:
        return 0, size  # as HTTP says: a range that is not understood is not one
    begin = int(match[1])
    end = min(size, int(match[2]) + 1) if match[2] else size
    if begin >= size or end <= begin:
        raise refused("InvalidRange", {"Content-Range": f"bytes */{size}"})
    return begin, end


def _content_reply(call: Call, blob: Blob, begin: int, end: int, reader: Reader) -> Reply:
    headers = {**_headers(blob, call.now), "Content-Length": str(end - begin), **sas.response_headers(call.query)}
    if not (call.header("x-ms-range") or call.header("range")):
        return Reply(200, headers, reader, end - begin)
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{blob.size}"
    if "Content-MD5" in headers:  # Content-MD5 would be that of the range
        headers["x-ms-blob-content-md5"] = headers.pop("Content-MD5")
    if call.header("x-ms-range-get-content-md5").lower() != "true":
        return Reply(206, headers, reader, end - begin)
    if end - begin > _LARGEST_HASHED_RANGE:
        reader.close()
        raise bad_header("x-ms-range-get-content-md5", "true")
    data = b"".join(reader)
    reader.close()
    headers["Content-MD5"] = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    return Reply(206, headers, data)


def _headers(blob: Blob, now: float) -> dict[str, str]:
    tier = {"x-ms-access-tier": "Hot", "x-ms-access-tier-inferred": "true"} if blob.kind == "BlockBlob" else {}
    return {
        **version_headers(blob),
        **blob.properties,
        "Accept-Ranges": "bytes",
        "x-ms-blob-type": blob.kind,
        "x-ms-creation-time": conditions.http_date(blob.created),
        "x-ms-server-encrypted": "true",
        **blob.lease.headers(now),
        **tier,
        **{f"x-ms-meta-{name}": value for name, value in blob.metadata.items()},
    }


def show(call: Call, place: Place) -> Reply:
    with place.index.read() as rows:
        blob = existing_blob(rows, call)
        blocks = rows.block_count(blob)
    conditions.check_read(call, blob.etag, blob.modified)
    leases.check_read(blob.lease, call, "Blob")
    headers = {**_headers(blob, call.now), "Content-Length": str(blob.size), **sas.response_headers(call.query)}
    return Reply(200, headers | _block_count(blob, blocks))


def show_metadata(call: Call, place: Place) -> Reply:
    with place.index.read() as rows:
        blob = existing_blob(rows, call)
    conditions.check_read(call, blob.etag, blob.modified)
    leases.check_read(blob.lease, call, "Blob")
    return Reply(200, version_headers(blob) | {f"x-ms-meta-{name}": value for name, value in blob.metadata.items()})


def delete(call: Call, place: Place) -> Reply:
    with place.index.write() as rows:
        blob = existing_blob(rows, call)
        conditions.check_write(call, blob.etag, blob.modified)
        leases.check_write(blob.lease, call, "Blob")
        files = rows.delete_blob(blob)
    place.index.content.remove(files)
    return Reply(202, {"x-ms-delete-type-permanent": "true"})


def set_metadata(call: Call, place: Place) -> Reply:
    metadata = call.metadata()
    return _change(call, place, metadata=metadata)


def set_properties(call: Call, place: Place) -> Reply:
    return _change(call, place, properties=content_headers(call))


def _change(
    call: Call, place: Place, *, metadata: dict[str, str] | None = None, properties: dict[str, str] | None = None
) -> Reply:
    with place.index.write() as rows:
        blob = existing_blob(rows, call)
        conditions.check_write(call, blob.etag, blob.modified)
        leases.check_write(blob.lease, call, "Blob")
        blob.metadata = blob.metadata if metadata is None else metadata
        blob.properties = blob.properties if properties is None else properties
        blob.lease = leases.after_write(blob.lease, call.now)
        touch(rows, blob, call.now)
        rows.put_blob(blob)
    return Reply(200, {**version_headers(blob), "x-ms-request-server-encrypted": "true"})


def lease(call: Call, place: Place) -> Reply:
    with place.index.write() as rows:
        blob = existing_blob(rows, call)
        conditions.check_write(call, blob.etag, blob.modified)
        blob.lease, reply = leases.act(blob.lease, call)
        rows.put_blob(blob)
    reply.headers |= version_headers(blob)
    return reply


def show_blocks(call: Call, place: Place) -> Reply:
    """Get Block List."""
    kind = call.query.get("blocklisttype", "committed").lower()
    if kind not in ("committed", "uncommitted", "all"):
        raise bad_query("blocklisttype", kind)
    with place.index.read() as rows:
        existing_container(rows, call)
        blob = rows.blob(call.container, call.blob)
        staged = rows.staged(call.container, call.blob)
        committed = rows.pieces(blob) if blob else []
    if blob is None and not staged:
        raise refused("BlobNotFound")
    if blob is not None and blob.kind != "BlockBlob":
        raise refused("InvalidBlobType")
    if blob is not None:
        leases.check_read(blob.lease, call, "Blob")
    wanted = {"committed": ["Committed"], "uncommitted": ["Uncommitted"], "all": ["Committed", "Uncommitted"]}[kind]
    lists = {"Committed": [piece for piece in committed if piece.block_id], "Uncommitted": staged}
    parts = "".join(
        f"<{name}Blocks>"
        + "".join(f"<Block><Name>{p.block_id}</Name><Size>{p.size}</Size></Block>" for p in lists[name])
        + f"</{name}Blocks>"
        for name in wanted
    )
    reply = xml_reply(f"<BlockList>{parts}</BlockList>")
    reply.headers |= version_headers(blob) if blob else {}
    reply.headers["x-ms-blob-content-length"] = str(blob.size if blob else 0)
    return reply

"""List Blobs: by name, in pages, flat or by a delimiter."""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from cloudtrain.emulator.blobs import conditions
from cloudtrain.emulator.blobs.call import Call, Reply, xml_reply
from cloudtrain.emulator.blobs.errors import bad_query, not_emulated
from cloudtrain.emulator.blobs.index import Blob, Rows
from cloudtrain.emulator.blobs.place import Place, existing_container

_LARGEST_PAGE = 5000
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@dataclass
class Page:
    """entries: a blob, or the name that several blobs begin with. next: where the following page begins, '' at the
    end."""

    entries: list[Blob | str] = field(default_factory=list)
    next: str = ""


def list_blobs(call: Call, place: Place) -> Reply:
    if call.query.get("startfrom"):
        raise not_emulated("startFrom in a list of blobs")
    if "uncommittedblobs" in call.query.get("include", "").lower():
        raise not_emulated("uncommitted blobs in a list")
    most = call.query_number("maxresults", _LARGEST_PAGE, 1, 2**31 - 1)
    prefix, delimiter = call.query.get("prefix", ""), call.query.get("delimiter", "")
    begin = max(prefix, _name_of(call.query.get("marker", "")))
    with place.index.read() as rows:
        existing_container(rows, call)
        page = _page(rows, call.container, prefix, delimiter, begin, min(most, _LARGEST_PAGE))
    return xml_reply(_xml(call, page))


def _page(rows: Rows, container: str, prefix: str, delimiter: str, begin: str, most: int) -> Page:
    page = Page()
    for entry in _entries(rows, container, prefix, delimiter, begin):
        if len(page.entries) == most:
            page.next = entry if isinstance(entry, str) else entry.name
            break
        page.entries.append(entry)
    return page


def _entries(rows: Rows, container: str, prefix: str, delimiter: str, begin: str) -> Iterator[Blob | str]:
    while True:
        for blob in rows.blobs(container, begin):
            if not blob.name.startswith(prefix):
                return
            at = blob.name.find(delimiter, len(prefix)) if delimiter else -1
            if at >= 0:
                common = blob.name[: at + len(delimiter)]
                yield common
                begin = _after(common)
                break  # what begins so is skipped without being read
            yield blob
        else:
            return


def _after(prefix: str) -> str:
    """The first name, in order, that does not begin so."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _marker(name: str) -> str:
    text = base64.b64encode(name.encode()).decode()
    return f"2!{len(text)}!{text}"


def _name_of(marker: str) -> str:
    if not marker:
        return ""
    try:
        version, _, text = marker.split("!", 2)
        if version != "2":
            raise ValueError
        return base64.b64decode(text, validate=True).decode()
    except (ValueError, binascii.Error):
        raise bad_query("marker", marker) from None


def _xml(call: Call, page: Page) -> str:
    asked = "".join(
        f"<{tag}>{escape(call.query[name])}</{tag}>"
        for tag, name in (
            ("Prefix", "prefix"),
            ("Marker", "marker"),
            ("MaxResults", "maxresults"),
            ("Delimiter", "delimiter"),
        )
        if call.query.get(name)
    )
    with_metadata = "metadata" in call.query.get("include", "").split(",")
    entries = "".join(
        f"<BlobPrefix>{_name_xml(entry)}</BlobPrefix>"
        if isinstance(entry, str)
        else _blob_xml(entry, call.now, with_metadata)
        for entry in page.entries
    )
    following = f"<NextMarker>{_marker(page.next)}</NextMarker>" if page.next else "<NextMarker />"
    endpoint = quoteattr(f"https://{call.account}.blob.core.windows.net/")
    head = f"<EnumerationResults ServiceEndpoint={endpoint} ContainerName={quoteattr(call.container)}>"
    return f"{head}{asked}<Blobs>{entries}</Blobs>{following}</EnumerationResults>"


def _name_xml(name: str) -> str:
    if _NOT_IN_XML.search(name):
        return f'<Name Encoded="true">{quote(name)}</Name>'
    return f"<Name>{escape(name)}</Name>"


def _blob_xml(blob: Blob, now: float, with_metadata: bool) -> str:
    held = blob.lease.headers(now)
    shown = {
        "Creation-Time": conditions.http_date(blob.created),
        "Last-Modified": conditions.http_date(blob.modified),
        "Etag": blob.etag,
        "Content-Length": str(blob.size),
        **{name: value for name, value in blob.properties.items() if value},
        "BlobType": blob.kind,
        **({"AccessTier": "Hot", "AccessTierInferred": "true"} if blob.kind == "BlockBlob" else {}),
        "LeaseStatus": held["x-ms-lease-status"],
        "LeaseState": held["x-ms-lease-state"],
        **({"LeaseDuration": held["x-ms-lease-duration"]} if "x-ms-lease-duration" in held else {}),
        "ServerEncrypted": "true",
    }
    properties = "".join(f"<{tag}>{escape(value)}</{tag}>" for tag, value in shown.items())
    metadata = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in blob.metadata.items())
    kept = f"<Metadata>{metadata}</Metadata>" if with_metadata and metadata else ""
    return f"<Blob>{_name_xml(blob.name)}<Properties>{properties}</Properties>{kept}</Blob>"

"""One request to the blob service, taken apart, and its answer."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any
from urllib.parse import parse_qsl, unquote

from cloudtrain.emulator.blobs.errors import bad_header, bad_query, missing_header, missing_query, refused

RAW_HEADERS = "cloudtrain.headers"
"""environ's key for the headers as they were sent, a list of pairs: WSGI loses the case and the underscores that
names of metadata may have. Without it they are read from environ."""

DOMAIN = ".blob.core.windows.net"

_METADATA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LARGEST_METADATA = 8 * 1024


@dataclass(frozen=True)
class Call:
    """host_path: the path as sent, still percent-encoded; signatures cover it. headers: names in lower case.
    sent: the names as sent, by those in lower case."""

    method: str
    account: str
    container: str
    blob: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    sent: Mapping[str, str]
    host_path: str
    secure: bool
    remote: str
    stream: IO[bytes]
    now: float  # epoch seconds

    @property
    def url(self) -> str:
        """As it is on Azure, decoded, without its query: signatures stand there."""
        below = "/".join(part for part in (self.container, self.blob) if part)
        return f"https://{self.account}{DOMAIN}/{below}"

    def header(self, name: str) -> str:
        return self.headers.get(name, "")

    def required(self, name: str) -> str:
        if not self.header(name):
            raise missing_header(name)
        return self.header(name)

    def required_query(self, name: str) -> str:
        if not self.query.get(name):
            raise missing_query(name)
        return self.query[name]

    def number(self, name: str) -> int | None:
        """A header that is a whole number; None when it was not sent."""
        value = self.header(name)
        if not value:
            return None
        if not re.fullmatch(r"-?\d{1,18}", value):
            raise bad_header(name, value)
        return int(value)

    def query_number(self, name: str, default: int, lowest: int, highest: int) -> int:
        value = self.query.get(name)
        if value is None:
            return default
        if not re.fullmatch(r"\d{1,9}", value):
            raise bad_query(name, value, "Invalid query parameter value.")
        if not lowest <= int(value) <= highest:
            detail = {"MinimumAllowed": str(lowest), "MaximumAllowed": str(highest)}
            raise refused("OutOfRangeInput", QueryParameterName=name, QueryParameterValue=value, **detail)
        return int(value)

    @property
    def length(self) -> int:
        """Bytes of the body. Raises BlobError where that is not known."""
        value = self.header("content-length")
        if not value.isdigit():
            raise refused("MissingContentLengthHeader")
        return int(value)

    def body(self, largest: int) -> bytes:
        """The whole body, of a request that carries a document."""
        length = self.length
        if length > largest:
            raise refused("RequestBodyTooLarge", MaxLimit=str(largest))
        read = self.stream.read(length)
        if len(read) != length:
            raise refused("InvalidInput")
        return read

    def metadata(self) -> dict[str, str]:
        """x-ms-meta-*, names as sent."""
        prefix = "x-ms-meta-"
        found = {
            self.sent[name][len(prefix) :]: value for name, value in self.headers.items() if name.startswith(prefix)
        }
        if not all(_METADATA_NAME.fullmatch(name) for name in found):
            raise refused("InvalidMetadata")
        if sum(len(name) + len(value) for name, value in found.items()) > _LARGEST_METADATA:
            raise refused("MetadataTooLarge")
        return found


@dataclass
class Reply:
    """body: bytes, or an iterable that reads files while it is sent; then length says how many they are."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] = b""
    length: int | None = None


def xml_reply(text: str) -> Reply:
    document = f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode()
    return Reply(200, {"Content-Type": "application/xml"}, document)


def headers_of(environ: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if RAW_HEADERS in environ:
        yield from environ[RAW_HEADERS]
        return
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            yield key[len("HTTP_") :].replace("_", "-").lower(), str(value)
    for key in ("CONTENT_LENGTH", "CONTENT_TYPE"):
        if environ.get(key):
            yield key.replace("_", "-").lower(), str(environ[key])


def call_of(environ: Mapping[str, Any], account: str, prefix: str, now: float) -> Call:
    """prefix: what stands before the container in the path ('' when the host names the account)."""
    pairs = list(headers_of(environ))
    raw = str(environ.get("REQUEST_URI") or environ.get("PATH_INFO") or "/").partition("?")[0]
    container, _, blob = raw[len(prefix) :].lstrip("/").partition("/")
    query = parse_qsl(str(environ.get("QUERY_STRING", "")), keep_blank_values=True)
    return Call(
        method=str(environ["REQUEST_METHOD"]).upper(),
        account=account,
        container=unquote(container),
        blob=unquote(blob),
        query={name.lower(): value for name, value in query},
        headers={name.lower(): value.strip() for name, value in pairs},
        sent={name.lower(): name for name, _ in pairs},
        host_path=raw,
        secure=environ.get("wsgi.url_scheme") == "https",
        remote=str(environ.get("REMOTE_ADDR") or ""),
        stream=environ["wsgi.input"],
        now=now,
    )

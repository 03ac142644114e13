"""Conditional headers: If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since.

learn.microsoft.com/rest/api/storageservices/specifying-conditional-headers-for-blob-service-operations
"""

from email.utils import formatdate, parsedate_to_datetime

from cloudtrain.emulator.blobs.call import Call
from cloudtrain.emulator.blobs.errors import BlobError, bad_header, refused


def http_date(epoch: float) -> str:
    return formatdate(int(epoch), usegmt=True)


def check_read(call: Call, etag: str, modified: float) -> None:
    """Raises 304 or 412, as a condition is not met."""
    if _unmet(call, etag, modified, "if-none-match") or _unmet(call, etag, modified, "if-modified-since"):
        raise BlobError(304, "ConditionNotMet", "", headers={"ETag": f'"{etag}"', "Last-Modified": http_date(modified)})
    if _unmet(call, etag, modified, "if-match") or _unmet(call, etag, modified, "if-unmodified-since"):
        raise refused("ConditionNotMet")


def check_write(call: Call, etag: str, modified: float, *, creating: bool = False) -> None:
    """etag '': there is nothing yet. creating: 'If-None-Match: *' then says that it exists."""
    if creating and etag and call.header("if-none-match") == "*":
        raise refused("BlobAlreadyExists")
    for name in ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since"):
        if _unmet(call, etag, modified, name):
            raise refused("ConditionNotMet")


def _unmet(call: Call, etag: str, modified: float, name: str) -> bool:
    value = call.header(name)
    if not value:
        return False
    if name == "if-match":
        return not etag or (value != "*" and etag not in _etags(value))
    if name == "if-none-match":
        return bool(etag) and (value == "*" or etag in _etags(value))
    if not etag:
        return False
    changed_since = int(modified) > _moment(name, value)
    return changed_since if name == "if-unmodified-since" else not changed_since


def _etags(value: str) -> set[str]:
    return {part.strip().removeprefix("W/").strip('"') for part in value.split(",")}


def _moment(name: str, value: str) -> float:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError):
        raise bad_header(name, value) from None

"""Where an authorized operation works, and how it finds what it works on."""

from dataclasses import dataclass

from cloudtrain.emulator.blobs import conditions
from cloudtrain.emulator.blobs.account import Account
from cloudtrain.emulator.blobs.call import Call
from cloudtrain.emulator.blobs.errors import refused
from cloudtrain.emulator.blobs.index import Blob, Container, Index, Rows
from cloudtrain.emulator.blobs.sas import Grant


@dataclass(frozen=True)
class Place:
    account: Account
    index: Index
    grant: Grant


def existing_container(rows: Rows, call: Call) -> Container:
    """Raises ContainerNotFound."""
    container = rows.container(call.container)
    if container is None:
        raise refused("ContainerNotFound")
    return container


def existing_blob(rows: Rows, call: Call) -> Blob:
    """Raises ContainerNotFound or BlobNotFound."""
    existing_container(rows, call)
    blob = rows.blob(call.container, call.blob)
    if blob is None:
        raise refused("BlobNotFound")
    return blob


def version_headers(found: Blob | Container) -> dict[str, str]:
    return {"ETag": f'"{found.etag}"', "Last-Modified": conditions.http_date(found.modified)}


def touch(rows: Rows, found: Blob | Container, now: float) -> None:
    """A change makes another version."""
    found.etag, found.modified = rows.etag(now), now

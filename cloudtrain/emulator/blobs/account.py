"""What the blob service knows of a storage account. The account's own resource lives with Microsoft.Storage."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Account:
    """directory: of its blobs, a name that is never used twice. keys: the two account keys, decoded.

    principal: whom a bearer token for storage stands for, None when it is no such token. may: whether a principal
    has a data right ('read', 'write', 'delete', 'delegate' or 'acl') on a container ('' for the account)."""

    name: str
    directory: str
    keys: tuple[bytes, ...]
    delegation_secret: bytes
    tenant: str
    shared_key: bool
    https_only: bool
    public_access: bool
    open_network: bool
    principal: Callable[[str], str | None]
    may: Callable[[str, str, str], bool]

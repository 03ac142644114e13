"""The WSGI app of the blob service: which account, which operation, may the caller, and the answer's headers.

An account is named by the host, `<account>.blob.core.windows.net`, or by the first segment of the path where the app is
served at an address of this machine (as emulators of storage are).
"""

import re
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cloudtrain.clock import Clock
from cloudtrain.emulator.blobs import access, conditions, containers, listing, reading, writing
from cloudtrain.emulator.blobs.access import Need
from cloudtrain.emulator.blobs.account import Account
from cloudtrain.emulator.blobs.call import DOMAIN, Call, Reply, call_of
from cloudtrain.emulator.blobs.content import NoSuchAccount, Reader
from cloudtrain.emulator.blobs.errors import BlobError, bad_header, bad_query, not_emulated, refused
from cloudtrain.emulator.blobs.index import Index
from cloudtrain.emulator.blobs.place import Place
from cloudtrain.emulator.blobs.sas import Grant
from cloudtrain.emulator.wire import PATIENCE, guid, zulu

Handler = Callable[[Call, Place], Reply]
StartResponse = Callable[..., Any]

_SERVER = "Windows-Azure-Blob/1.0 Microsoft-HTTPAPI/2.0"
_READ, _LIST, _WRITE = Need("read", "o", "r", "r"), Need("read", "c", "l", "l"), Need("write", "o", "w", "w")
_CREATE, _DELETE = Need("write", "o", "cw", "cw"), Need("delete", "o", "d", "d")
# Headers that ask for more than is here: ignored, they would make an answer untrue.
_NOT_EMULATED = (
    "x-ms-structured-body",
    "x-ms-content-crc64",
    "x-ms-copy-source",
    "x-ms-encryption-key",
    "x-ms-encryption-scope",
    "x-ms-immutability-policy-mode",
    "x-ms-legal-hold",
    "x-ms-if-tags",
    "x-ms-tags",
)
_SHOW_CONTAINER = Need("read", "c", "", "r")
_ACL = Need("acl", "c")

# Level of the path, method, comp -> the operation, by the name that it has in Azure's logs (StorageBlobLogs). The
# level's restype has to be there, too.
_OPERATIONS: Mapping[tuple[str, str, str], tuple[str, Handler, Need]] = {
    ("service", "GET", "list"): ("ListContainers", containers.list_containers, Need("read", "s", "", "l")),
    ("service", "POST", "userdelegationkey"): (
        "GetUserDelegationKey",
        containers.user_delegation_key,
        Need("delegate", "s"),
    ),
    ("container", "PUT", ""): ("CreateContainer", containers.create, Need("write", "c", "", "cw")),
    ("container", "GET", ""): ("GetContainerProperties", containers.show, _SHOW_CONTAINER),
    ("container", "HEAD", ""): ("GetContainerProperties", containers.show, _SHOW_CONTAINER),
    ("container", "GET", "metadata"): ("GetContainerMetadata", containers.show, _SHOW_CONTAINER),
    ("container", "HEAD", "metadata"): ("GetContainerMetadata", containers.show, _SHOW_CONTAINER),
    ("container", "PUT", "metadata"): ("SetContainerMetadata", containers.set_metadata, Need("write", "c", "", "w")),
    ("container", "DELETE", ""): ("DeleteContainer", containers.delete, Need("delete", "c", "", "d")),
    ("container", "PUT", "lease"): ("LeaseContainer", containers.lease, Need("write", "c", "", "w")),
    ("container", "GET", "acl"): ("GetContainerACL", containers.show_policies, _ACL),
    ("container", "HEAD", "acl"): ("GetContainerACL", containers.show_policies, _ACL),
    ("container", "PUT", "acl"): ("SetContainerACL", containers.set_policies, _ACL),
    ("container", "GET", "list"): ("ListBlobs", listing.list_blobs, _LIST),
    ("blob", "PUT", ""): ("PutBlob", writing.put, _CREATE),
    ("blob", "PUT", "block"): ("PutBlock", writing.put_block, _WRITE),
    ("blob", "PUT", "blocklist"): ("PutBlockList", writing.put_block_list, _WRITE),
    ("blob", "PUT", "appendblock"): ("AppendBlock", writing.append, Need("write", "o", "aw", "aw")),
    ("blob", "GET", ""): ("GetBlob", reading.read, _READ),
    ("blob", "HEAD", ""): ("GetBlobProperties", reading.show, _READ),
    ("blob", "DELETE", ""): ("DeleteBlob", reading.delete, _DELETE),
    ("blob", "GET", "metadata"): ("GetBlobMetadata", reading.show_metadata, _READ),
    ("blob", "HEAD", "metadata"): ("GetBlobMetadata", reading.show_metadata, _READ),
    ("blob", "PUT", "metadata"): ("SetBlobMetadata", reading.set_metadata, _WRITE),
    ("blob", "PUT", "properties"): ("SetBlobProperties", reading.set_properties, _WRITE),
    ("blob", "PUT", "lease"): ("LeaseBlob", reading.lease, _WRITE),
    ("blob", "GET", "blocklist"): ("GetBlockList", reading.show_blocks, _READ),
}
OPERATION_NAMES = sorted({name for name, _, _ in _OPERATIONS.values()})

Around = Callable[[str, str, str, float | None], AbstractContextManager[None]]


def _undisturbed(operation: str, method: str, url: str, patience: float | None) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class BlobService:
    """PEP 3333. root: the directory that holds a directory for each account. account: None where there is no such
    account, or not any more. around: around the work on each request, given its operation, method, URL, and for how
    many seconds its client waits; what it raises becomes of the request.

    Raises StoreError where an index or a disk cannot be used, and gaierror for a host that there is not: in-process
    callers get them as they are."""

    root: Path
    clock: Clock
    account: Callable[[str], Account | None]
    around: Around = _undisturbed
    indexes: dict[str, Index] = field(default_factory=dict)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        now = self.clock.now().timestamp()
        request_id = guid()
        name, prefix = account_of(environ)
        call = call_of(environ, name, prefix, now)
        try:
            reply = self._answer(call, name, environ.get(PATIENCE))
        except NoSuchAccount:
            # What Azure answers while it deletes an account is not documented: assumed is what it answers afterwards.
            if not prefix:
                raise socket.gaierror(socket.EAI_NONAME, f"Name or service not known: {name}{DOMAIN}") from None
            reply = _refusal(refused("ResourceNotFound"), request_id, now)
        except BlobError as refusal:
            reply = _refusal(refusal, request_id, now)
        return _send(call, reply, request_id, start_response)

    def index(self, account: Account) -> Index:
        with self.mutex:
            known = self.indexes.get(account.directory)
            if known is None:
                known = Index(self.root / account.directory, self.clock.now().timestamp())
                self.indexes[account.directory] = known
            return known

    def close(self) -> None:
        with self.mutex:
            while self.indexes:
                self.indexes.popitem()[1].close()

    def _answer(self, call: Call, name: str, patience: float | None) -> Reply:
        account = self.account(name)
        if account is None:
            raise NoSuchAccount
        _check_version(call)
        operation, handler, need = _operation(call)
        with ExitStack() as unsent:
            with self.around(operation, call.method, call.url, patience):
                reply = handler(call, Place(account, self.index(account), self._grant(call, account, need)))
                if isinstance(reply.body, Reader):
                    unsent.callback(reply.body.close)
            unsent.pop_all()
        return reply

    def _grant(self, call: Call, account: Account, need: Need) -> Grant:
        container = None
        if call.query.get("si"):  # a stored access policy, which is the container's
            with self.index(account).read() as rows:
                container = rows.container(call.container)
        return access.authorize(call, account, need, container)


def account_of(environ: Mapping[str, Any]) -> tuple[str, str]:
    """The account's name, and what stands before the container in the path."""
    host = str(environ.get("HTTP_HOST") or environ.get("SERVER_NAME") or "").partition(":")[0].lower()
    if host.endswith(DOMAIN):
        return host.removesuffix(DOMAIN), ""
    path = str(environ.get("REQUEST_URI") or environ.get("PATH_INFO") or "/").partition("?")[0]
    name = path.lstrip("/").partition("/")[0]
    return name, f"/{name}"


def _operation(call: Call) -> tuple[str, Handler, Need]:
    level = "blob" if call.blob else "container" if call.container else "service"
    comp, restype = call.query.get("comp", "").lower(), call.query.get("restype", "").lower()
    _refuse_what_is_not_here(call)
    found = _OPERATIONS.get((level, call.method, comp))
    if found is None and call.method not in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        raise refused("UnsupportedHttpVerb")
    if found is None:
        raise not_emulated(f"the operation '{call.method} {level}{f' comp={comp}' if comp else ''}'")
    expected = {"container": "container", "service": "service" if comp == "userdelegationkey" else "", "blob": ""}
    if restype != expected[level]:
        raise bad_query("restype", restype)
    return found


def _refuse_what_is_not_here(call: Call) -> None:
    if call.query.get("snapshot") or call.query.get("versionid"):
        raise not_emulated("snapshots and versions of blobs")
    for name in _NOT_EMULATED:
        if call.header(name):
            raise not_emulated(f"the header {name}")
    if call.header("x-ms-access-tier") not in ("", "Hot"):
        raise not_emulated(f"the access tier {call.header('x-ms-access-tier')}")


def _check_version(call: Call) -> None:
    version = call.header("x-ms-version")
    if version and not re.fullmatch(r"20\d\d-\d\d-\d\d", version):
        raise bad_header("x-ms-version", version)


def _refusal(refusal: BlobError, request_id: str, now: float) -> Reply:
    headers = {"x-ms-error-code": refusal.code, **refusal.headers}
    if refusal.status == 304:
        return Reply(304, headers)
    return Reply(refusal.status, {"Content-Type": "application/xml", **headers}, refusal.xml(request_id, zulu(now)))


def _send(call: Call, reply: Reply, request_id: str, start_response: StartResponse) -> Iterable[bytes]:
    body: Iterable[bytes] = [reply.body] if isinstance(reply.body, bytes) else reply.body
    length = len(reply.body) if isinstance(reply.body, bytes) else reply.length
    if call.method == "HEAD" and isinstance(reply.body, bytes):
        body = [b""]
    headers = {
        "Server": _SERVER,
        "Date": conditions.http_date(call.now),
        "x-ms-request-id": request_id,
        "x-ms-version": call.header("x-ms-version") or "2026-10-06",
        "Content-Length": str(length),
        **reply.headers,
    }
    if call.header("x-ms-client-request-id"):
        headers["x-ms-client-request-id"] = call.header("x-ms-client-request-id")
    if call.method == "HEAD" and reply.status >= 400:
        headers.pop("Content-Type", None)
        headers["Content-Length"] = "0"
    start_response(f"{reply.status} {HTTPStatus(reply.status).phrase}", list(headers.items()))
    return body

"""The run's blob container, as this VM reaches it, with no more than Python's own HTTP.

storage.json, which came in protected form, says where it is and how it opens: by the VM's own identity, or by a
signature, or by both while a new role spreads. Neither a signature nor a token is ever in a message. Protocol:
https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api
"""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import time
import urllib.parse
import urllib.request
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import guest  # type: ignore[import-not-found]

VERSION = "2023-11-03"
RESOURCE = "https://storage.azure.com"
LINK_LOCAL = "http://169.254.169.254"
CHUNK = 256 * 1024
NO_TOKEN = ("IdentityNotFound", "ImdsSilent")
# What lies where in the container; cloudtrain/guest/durable.py has the same names, and says what they are.
MODELS = "models/"
SETS = "sets/"
POINTER = "cloudtrain/newest.json"
FENCE = "cloudtrain/generation.json"
GUEST = "cloudtrain/guest.json"
LOGS = "cloudtrain/logs/"


class StorageError(Exception):
    """status: of the answer, 0 when there was none. code: Azure's own, or a word for what went wrong instead."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{code} ({status})" if status else code)
        self.status, self.code = status, code

    @property
    def refused(self) -> bool:
        """Another attempt changes nothing before somebody else has changed something."""
        return self.status in (401, 403) or self.code in ("ContainerNotFound", "ContainerBeingDeleted")

    @property
    def passing(self) -> bool:
        return self.status in (0, 408, 429) or self.status >= 500


class Fenced(Exception):
    """A newer generation of the run's VM has taken over."""

    def __init__(self, generation: int) -> None:
        super().__init__(f"generation {generation} has taken over")
        self.generation = generation


class Damaged(Exception):
    """What arrived is not what it is said to be."""


class Interrupted(Exception):
    """Something more urgent has to be sent."""


# how it opens


@dataclass
class Token:
    """An access token of the VM's identity, for one resource. until: monotonic."""

    resource: str
    value: str = ""
    until: float = 0.0

    def get(self) -> str:
        """Raises StorageError where there is no identity, or IMDS does not answer."""
        if time.monotonic() >= self.until:
            told = ask_imds(self.resource)
            self.value = str(told["access_token"])
            # Azure makes new ones long before the end, by its own clock.
            life = min(float(told.get("expires_in") or 3600), float(told["expires_on"]) - time.time())
            self.until = time.monotonic() + max(30.0, life - 300.0)
        return self.value


def ask_imds(resource: str) -> dict[str, Any]:
    base = os.environ.get("CLOUDTRAIN_IMDS", LINK_LOCAL).rstrip("/")
    query = urllib.parse.urlencode({"api-version": "2018-02-01", "resource": resource})
    url = f"{base}/metadata/identity/oauth2/token?{query}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"Metadata": "true"})
    try:
        with opener.open(request, timeout=guest.tuning("call_seconds")) as answer:
            told: dict[str, Any] = json.loads(answer.read(1024 * 1024))
            float(told["expires_on"]), str(told["access_token"])
            return told
    except urllib.error.HTTPError as error:
        # 400: this VM has no identity (yet). 404, 410, 429, 5xx: IMDS is busy.
        raise StorageError(401 if error.code == 400 else 503, NO_TOKEN[0]) from None
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        guest.say(f"no token from IMDS: {type(error).__name__}")
        raise StorageError(0, NO_TOKEN[1]) from None


@dataclass
class Access:
    """What storage.json says. stamp: of the file."""

    base: str
    kind: str
    signature: str = field(repr=False)
    expires: float | None
    stamp: int
    place: str  # account and container
    token: Token = field(default_factory=lambda: Token(RESOURCE), repr=False)
    distrusted: float = 0.0  # monotonic: until then the identity is not tried where there is a signature

    def credentials(self) -> list[str]:
        """In the order in which to try them."""
        usable = bool(self.signature) and (
            self.expires is None or self.kind == "signature" or time.time() < self.expires
        )
        if self.kind != "identity":
            return ["signature"]
        if not usable:
            return ["identity"]
        return ["signature"] if time.monotonic() < self.distrusted else ["identity", "signature"]


def read_access() -> Access | None:
    """None without storage.json."""
    path = guest.ROOT / "storage.json"
    stamp = guest.changed(path)
    told = guest.read_json(path)
    if told is None:
        return None
    account, container = str(told.get("account")), str(told.get("container"))
    blobs = os.environ.get("CLOUDTRAIN_BLOBS")
    base = f"{blobs.rstrip('/')}/{account}" if blobs else str(told.get("endpoint")).rstrip("/")
    expires = told.get("expires")
    return Access(
        base=f"{base}/{container}",
        kind=str(told.get("kind")),
        signature=str(told.get("signature") or "").lstrip("?"),
        expires=float(expires) if isinstance(expires, (int, float)) else None,
        stamp=stamp,
        place=f"{account}/{container}",
    )


# calls


@dataclass
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes = b""

    @property
    def etag(self) -> str:
        return self.headers.get("etag", "")


@dataclass(frozen=True)
class Part:
    """A piece of an open file."""

    handle: int
    offset: int
    length: int

    def chunks(self) -> Iterator[bytes]:
        at, end = self.offset, self.offset + self.length
        while at < end:
            chunk = os.pread(self.handle, min(CHUNK, end - at), at)
            if not chunk:
                raise Damaged("the file became shorter")
            at += len(chunk)
            yield chunk


class Client:
    """One caller's connection. paced: is told of bytes before they are sent, and may wait or raise Interrupted.
    hurry: there is no time for long pauses."""

    def __init__(
        self,
        access: Access,
        paced: Callable[[int], None] = lambda count: None,
        hurry: Callable[[], bool] = lambda: False,
    ) -> None:
        self.access, self.paced, self.hurry = access, paced, hurry
        self.connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def call(
        self,
        method: str,
        blob: str,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        body: "bytes | Part" = b"",
        sink: Callable[[bytes], None] | None = None,
    ) -> Answer:
        """Raises StorageError for what is not a success."""
        credentials = self.access.credentials()
        for credential in credentials:
            # What has begun to arrive cannot be asked for again in here.
            attempt = self.repeated if sink is None else self.once
            try:
                return attempt(credential, method, blob, query or {}, headers or {}, body, sink)
            except StorageError as error:
                if error.status == 401:
                    self.access.token.until = 0.0
                if credential == credentials[-1] or not (error.status in (401, 403) or error.code in NO_TOKEN):
                    raise
                self.access.distrusted = time.monotonic() + 30.0
        raise AssertionError("there is always a credential")

    def repeated(self, credential: str, method: str, blob: str, *rest: Any) -> Answer:
        pauses: list[float | None] = [*guest.tuning("call_pauses"), None]
        for pause in pauses:
            try:
                return self.once(credential, method, blob, *rest)
            except StorageError as error:
                if pause is None or not error.passing:
                    raise
            time.sleep(min(pause, 0.3) if self.hurry() else pause)
        raise AssertionError("the last attempt returns or raises")

    def once(
        self,
        credential: str,
        method: str,
        blob: str,
        query: dict[str, str],
        headers: dict[str, str],
        body: "bytes | Part",
        sink: Callable[[bytes], None] | None,
    ) -> Answer:
        url = urllib.parse.urlsplit(self.access.base)
        words = [urllib.parse.urlencode(query, quote_via=urllib.parse.quote)]
        sent = {"x-ms-version": VERSION, "x-ms-date": formatdate(usegmt=True), **headers}
        if credential == "identity":
            sent["Authorization"] = f"Bearer {self.access.token.get()}"
        else:
            words.append(self.access.signature)
        path = f"{url.path}/{urllib.parse.quote(blob)}" if blob else url.path
        target = path + "?" + "&".join(word for word in words if word)
        try:
            return self.exchange(url, method, target, sent, body, sink)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            # The text of an exception may hold the address, and with it the signature.
            raise StorageError(0, f"no answer: {type(error).__name__}") from None
        except BaseException:
            self.close()  # in the middle of a body
            raise

    def exchange(
        self,
        url: urllib.parse.SplitResult,
        method: str,
        target: str,
        headers: dict[str, str],
        body: "bytes | Part",
        sink: Callable[[bytes], None] | None,
    ) -> Answer:
        reused = self.connection is not None
        try:
            self.send(url, method, target, headers, body)
            assert self.connection is not None
            answer = self.connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self.close()
            if not reused:
                raise
            return self.exchange(url, method, target, headers, body, sink)  # it was closed for being idle
        told = {name.lower(): value for name, value in answer.getheaders()}
        if answer.status >= 300:
            content = answer.read(64 * 1024)
            answer.read()
            raise StorageError(answer.status, code_of(told, content))
        content = b""
        while chunk := answer.read(CHUNK):
            if sink is None:
                content += chunk
            else:
                sink(chunk)
        if answer.length:  # http.client tells no difference between an end and a cut
            raise http.client.IncompleteRead(b"")
        return Answer(answer.status, told, content)

    def send(
        self, url: urllib.parse.SplitResult, method: str, target: str, headers: dict[str, str], body: "bytes | Part"
    ) -> None:
        if self.connection is None:
            kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
            self.connection = kind(url.netloc, timeout=guest.tuning("storage_call_seconds"))
        length = len(body) if isinstance(body, bytes) else body.length
        self.connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in headers.items():
            self.connection.putheader(name, value)
        if method in ("PUT", "POST"):
            self.connection.putheader("Content-Length", str(length))
        if isinstance(body, bytes):
            self.connection.endheaders(body or None)
            return
        self.connection.endheaders()
        for chunk in body.chunks():
            self.paced(len(chunk))
            self.connection.send(chunk)

    # what is asked of it

    def read(self, blob: str) -> Answer | None:
        """The whole of a small blob; None where there is none."""
        try:
            return self.call("GET", blob)
        except StorageError as error:
            if error.status == 404 and error.code != "ContainerNotFound":
                return None
            raise

    def head(self, blob: str) -> Answer:
        return self.call("HEAD", blob)

    def put(self, blob: str, content: bytes, *, if_match: str | None = None, kind: str = "application/json") -> str:
        """A small blob, whole; its etag. if_match: the version that it replaces, '' for none; None: whichever."""
        headers = {"x-ms-blob-type": "BlockBlob", "Content-Type": kind, "Content-MD5": md5_of(content)}
        headers["x-ms-blob-content-md5"] = headers["Content-MD5"]
        if if_match is not None:
            headers.update({"If-Match": if_match} if if_match else {"If-None-Match": "*"})
        return self.call("PUT", blob, headers=headers, body=content).etag

    def put_file(self, blob: str, handle: int, size: int, md5: str, *, new: bool) -> None:
        """A file, whole. md5: of what is to be sent, base64: anything else is refused. new: only where there is no such
        blob yet, else StorageError 409. Raises Damaged."""
        kind = {"x-ms-blob-content-type": "application/octet-stream", "x-ms-blob-content-md5": md5}
        kind.update({"If-None-Match": "*"} if new else {})
        if size <= guest.tuning("single_put_bytes"):
            headers = {**kind, "x-ms-blob-type": "BlockBlob", "Content-MD5": md5}
            try:
                self.call("PUT", blob, headers=headers, body=Part(handle, 0, size))
            except StorageError as error:
                if error.code == "Md5Mismatch":
                    raise Damaged("the file changed while it was sent") from None
                raise
            return
        identifiers = list(self.put_blocks(blob, handle, size, md5))
        entries = "".join(f"<Latest>{identifier}</Latest>" for identifier in identifiers)
        content = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{entries}</BlockList>'.encode()
        self.call("PUT", blob, {"comp": "blocklist"}, {**kind, "Content-Type": "application/xml"}, content)

    def put_blocks(self, blob: str, handle: int, size: int, md5: str) -> Iterator[str]:
        # Ids of this attempt alone, all of one length: a list never mixes two attempts.
        mark, total = os.urandom(8).hex(), hashlib.md5()
        length = guest.tuning("block_bytes")
        for number, offset in enumerate(range(0, size, length)):
            content = b"".join(Part(handle, offset, min(length, size - offset)).chunks())
            total.update(content)
            identifier = base64.b64encode(f"{mark}{number:08d}".encode()).decode()
            query = {"comp": "block", "blockid": identifier}
            part = Part(handle, offset, len(content))
            try:
                self.call("PUT", blob, query, {"Content-MD5": md5_of(content)}, part)
            except StorageError as error:
                if error.code == "Md5Mismatch":
                    raise Damaged("the file changed while it was sent") from None
                raise
            yield identifier
        if base64.b64encode(total.digest()).decode() != md5:
            raise Damaged("the file changed while it was sent")

    def get_file(self, blob: str, path: Path, md5: str, size: int | None = None) -> int:
        """Into a new file, on the disk when this returns; its size. md5: base64, '' for what the blob itself says.
        Raises Damaged, StorageError (404: it is gone) or OSError."""
        with path.open("wb") as file:
            total = hashlib.md5()

            def sink(chunk: bytes) -> None:
                total.update(chunk)
                file.write(chunk)

            def again() -> Answer:
                nonlocal total
                total = hashlib.md5()
                file.seek(0)
                file.truncate()
                return self.call("GET", blob, sink=sink)

            answer = once_more(again)
            expected = md5 or answer.headers.get("content-md5", "")
            found = base64.b64encode(total.digest()).decode()
            if expected != found or (size is not None and file.tell() != size):
                raise Damaged(f"the blob {blob} is not what it is said to be")
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def list(self, prefix: str) -> dict[str, tuple[int, str]]:
        """Name -> size and MD5 (base64, '' where it has none)."""
        found: dict[str, tuple[int, str]] = {}
        marker = ""
        while True:
            query = {"restype": "container", "comp": "list", "prefix": prefix, **({"marker": marker} if marker else {})}
            try:
                root = xml.etree.ElementTree.fromstring(self.call("GET", "", query).body)
            except xml.etree.ElementTree.ParseError:
                raise StorageError(0, "an answer that is no list") from None
            for each in root.iter("Blob"):
                name = each.find("Name")
                text = (name.text if name is not None else "") or ""
                if name is not None and name.get("Encoded") == "true":
                    text = urllib.parse.unquote(text)
                size = int(each.findtext("Properties/Content-Length") or 0)
                found[text] = size, each.findtext("Properties/Content-MD5") or ""
            marker = root.findtext("NextMarker") or ""
            if not marker:
                return found

    def delete(self, blob: str) -> None:
        with contextlib.suppress(StorageError):  # gone, or removed at the next chance
            self.call("DELETE", blob)

    def create_append(self, blob: str) -> None:
        """An empty append blob, where there is none."""
        try:
            headers = {"x-ms-blob-type": "AppendBlob", "If-None-Match": "*", "Content-Type": "text/plain"}
            self.call("PUT", blob, headers=headers)
        except StorageError as error:
            if error.status != 409:
                raise

    def append(self, blob: str, content: bytes, position: int) -> None:
        """At its end, which has to be there. Raises StorageError, AppendPositionConditionNotMet where it is not."""
        headers = {"x-ms-blob-condition-appendpos": str(position), "Content-MD5": md5_of(content)}
        self.call("PUT", blob, {"comp": "appendblock"}, headers, content)


def once_more(work: Callable[[], Answer]) -> Answer:
    """A body that was cut is asked for again, from its beginning."""
    try:
        return work()
    except StorageError as error:
        if not error.passing:
            raise
    return work()


def code_of(headers: dict[str, str], body: bytes) -> str:
    code = headers.get("x-ms-error-code", "")
    found = re.search(rb"<Code>([A-Za-z0-9]{1,80})</Code>", body)
    return code or (found[1].decode() if found else "") or "NoCode"


def md5_of(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


# which VM may train


def claim(client: Client, generation: int) -> None:
    """Make it known that no VM of an older generation may train. Raises Fenced where this one is older."""
    for _ in range(5):
        found = client.read(FENCE)
        known = generation_of(found)
        if known > generation:
            raise Fenced(known)
        if found is not None and known == generation:
            return
        try:
            content = json.dumps({"generation": generation}).encode()
            client.put(FENCE, content, if_match=found.etag if found else "")
            return
        except StorageError as error:
            if error.status not in (409, 412):  # another was faster
                raise
    raise StorageError(412, "ConditionNotMet")


def check_fence(client: Client, generation: int) -> None:
    known = generation_of(client.read(FENCE))
    if known > generation:
        raise Fenced(known)


def generation_of(found: Answer | None) -> int:
    try:
        told = json.loads(found.body) if found else {}
    except ValueError:
        return 0
    return guest.whole(told.get("generation")) or 0 if isinstance(told, dict) else 0

"""Shared access signatures: of the account, of the service (a stored access policy may stand behind it), and those
that a user delegation key signs.

learn.microsoft.com/rest/api/storageservices/create-service-sas, create-user-delegation-sas, create-account-sas; the
strings to sign are those of azure-storage-blob 12.31.1.
"""

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cloudtrain.emulator.blobs.account import Account
from cloudtrain.emulator.blobs.call import Call
from cloudtrain.emulator.blobs.errors import not_authentic, refused
from cloudtrain.emulator.blobs.index import Container

_OLDEST = "2020-12-06"  # the first version whose string to sign holds ses
_WITH_DELEGATED_USER = "2025-07-05"  # adds skdutid and sduoid
_WITH_REQUEST_PARTS = "2026-04-06"  # adds srh and srq
LONGEST_DELEGATION_SECONDS = 7 * 24 * 3600.0
_RESPONSE_HEADERS = {
    "rscc": "Cache-Control",
    "rscd": "Content-Disposition",
    "rsce": "Content-Encoding",
    "rscl": "Content-Language",
    "rsct": "Content-Type",
}
_TAIL = tuple(_RESPONSE_HEADERS)
_SIGNED_KEY = ("skoid", "sktid", "skt", "ske", "sks", "skv")


@dataclass(frozen=True)
class Grant:
    """permissions: the letters of a SAS; None: not limited."""

    permissions: str | None = None


def sign(key: bytes, text: str) -> str:
    return base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()


def moment(text: str) -> float:
    """Epoch seconds of a time as the service takes it. Raises ValueError."""
    parsed = datetime.fromisoformat(text)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def response_headers(query: Mapping[str, str]) -> dict[str, str]:
    """Headers of the answer that the signature replaces."""
    if "sig" not in query:
        return {}
    return {header: query[name] for name, header in _RESPONSE_HEADERS.items() if query.get(name)}


def delegation_key(account: Account, parts: Mapping[str, str]) -> bytes:
    """The key that signs, for the skoid, sktid, skt, ske, sks and skv that were handed out with it.

    It is derived and not kept: a new secret of the account revokes all."""
    text = "\n".join(parts.get(name, "") for name in _SIGNED_KEY)
    return hmac.new(account.delegation_secret, text.encode(), hashlib.sha256).digest()


def check(call: Call, account: Account, container: Container | None) -> Grant:
    """Signature, time, protocol, address and resource. container: what the path names, if it exists and
    the signature has a stored access policy.

    Raises BlobError. The rights are compared by the caller."""
    if call.query.get("sv", "") < _OLDEST:
        raise not_authentic(f"The embedded Azure knows signatures of version {_OLDEST} and later (sv).")
    if call.query.get("ss"):
        terms = _check_account_signature(call, account)
    elif call.query.get("skoid"):
        terms = _check_delegated(call, account)
    else:
        terms = _check_service_signature(call, account, container)
    _check_time(call, terms)
    _check_protocol(call)
    _check_address(call)
    return Grant(terms.get("sp", ""))


def _check_signature(call: Call, keys: tuple[bytes, ...], text: str) -> None:
    given = call.query["sig"].encode()
    if not any(hmac.compare_digest(sign(key, text).encode(), given) for key in keys):
        raise not_authentic(f"Signature did not match. String to sign used was {text}")


def _check_account_signature(call: Call, account: Account) -> Mapping[str, str]:
    _check_keys_allowed(account)
    fields = ("sp", "ss", "srt", "st", "se", "sip", "spr", "sv", "ses")
    text = account.name + "\n" + "".join(call.query.get(name, "") + "\n" for name in fields)
    _check_signature(call, account.keys, text)
    if "b" not in call.query["ss"]:
        raise refused("AuthorizationServiceMismatch")
    return call.query


def _check_keys_allowed(account: Account) -> None:
    if not account.shared_key:
        raise refused("KeyBasedAuthenticationNotPermitted")


def _resource(call: Call) -> str:
    kind = call.query.get("sr", "")
    if kind == "c":
        return f"/blob/{call.account}/{call.container}"
    if kind == "b":
        return f"/blob/{call.account}/{call.container}/{call.blob}"
    raise not_authentic(f"sr: the embedded Azure has 'c' (container) and 'b' (blob), not '{kind}'.")


def _text(call: Call, names: tuple[str, ...]) -> str:
    query = {**call.query, "resource": _resource(call), "snapshot-time": ""}
    return "\n".join(query.get(name, "") for name in names)


def _check_service_signature(call: Call, account: Account, container: Container | None) -> Mapping[str, str]:
    _check_keys_allowed(account)
    head = ("sp", "st", "se", "resource", "si", "sip", "spr", "sv", "sr", "snapshot-time", "ses")
    _check_signature(call, account.keys, _text(call, head + _TAIL))
    identifier = call.query.get("si")
    return _with_policy(call.query, identifier, container) if identifier else call.query


def _with_policy(query: Mapping[str, str], identifier: str, container: Container | None) -> Mapping[str, str]:
    """The terms of the signature and of the stored access policy that it names, together."""
    policy = next((p for p in container.policies if p["id"] == identifier), None) if container else None
    if policy is None:
        raise not_authentic("SAS identifier cannot be found for specified signed identifier")
    terms = dict(query)
    for name, key in (("st", "start"), ("se", "expiry"), ("sp", "permission")):
        if terms.get(name) and policy.get(key):
            raise not_authentic(f"{name} is in the signature and in the stored access policy; only one may have it.")
        terms[name] = terms.get(name) or policy.get(key, "")
    return terms


def _check_delegated(call: Call, account: Account) -> Mapping[str, str]:
    version = call.query["sv"]
    names: tuple[str, ...] = (
        "sp",
        "st",
        "se",
        "resource",
        "skoid",
        "sktid",
        "skt",
        "ske",
        "sks",
        "skv",
        "saoid",
        "suoid",
        "scid",
    )
    if version >= _WITH_DELEGATED_USER:
        names += ("skdutid", "sduoid")
    names += ("sip", "spr", "sv", "sr", "snapshot-time", "ses")
    if version >= _WITH_REQUEST_PARTS:
        names += ("srh", "srq")
    if call.query.get("srh") or call.query.get("srq") or call.query.get("sduoid"):
        raise not_authentic("The embedded Azure has no signature bound to a delegated user, headers or a query.")
    if call.query.get("si"):
        raise not_authentic("A user delegation SAS cannot have a stored access policy.")
    _check_signature(call, (delegation_key(account, call.query),), _text(call, names + _TAIL))
    try:
        begins, ends = moment(call.query.get("skt", "")), moment(call.query.get("ske", ""))
    except ValueError:
        raise not_authentic("skt and ske are mandatory.") from None
    if not begins <= call.now < ends:
        raise not_authentic(_out_of_time("User delegation key", call, begins, ends))
    return call.query


def _check_time(call: Call, terms: Mapping[str, str]) -> None:
    if not terms.get("se"):
        raise not_authentic("Signature fields not well formed: se is mandatory. Cannot be empty")
    try:
        ends = moment(terms["se"])
        begins = moment(terms["st"]) if terms.get("st") else None
    except ValueError:
        raise not_authentic("Signature fields not well formed: st or se is not a time.") from None
    if call.now >= ends or (begins is not None and call.now < begins):
        raise not_authentic(_out_of_time("Signature", call, begins, ends))


def _out_of_time(what: str, call: Call, begins: float | None, ends: float) -> str:
    def shown(epoch: float) -> str:
        return f"[{datetime.fromtimestamp(epoch, UTC):%a, %d %b %Y %H:%M:%S} GMT]"

    start = "" if begins is None else f"Start {shown(begins)} - "
    return f"{what} not valid in the specified time frame: {start}Expiry {shown(ends)} - Current {shown(call.now)}"


def _check_protocol(call: Call) -> None:
    if call.query.get("spr") == "https" and not call.secure:
        raise refused("AuthorizationProtocolMismatch")


def _check_address(call: Call) -> None:
    allowed = call.query.get("sip")
    if not allowed:
        return
    first, _, last = allowed.partition("-")
    try:
        here = ipaddress.ip_address(call.remote or "127.0.0.1")
        inside = ipaddress.ip_address(first) <= here <= ipaddress.ip_address(last or first)  # type: ignore[operator]
    except (ValueError, TypeError):
        inside = False
    if not inside:
        raise refused("AuthorizationSourceIPMismatch", SourceIP=call.remote)

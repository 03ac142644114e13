"""Containers: made, shown, deleted, their metadata, stored access policies and leases; and what belongs to the whole
account."""

import base64
import re
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from cloudtrain.emulator.blobs import conditions, leases, sas
from cloudtrain.emulator.blobs.call import Call, Reply, xml_reply
from cloudtrain.emulator.blobs.errors import BlobError, bad_query, not_emulated, refused
from cloudtrain.emulator.blobs.index import Container, Index
from cloudtrain.emulator.blobs.place import Place, existing_container, touch, version_headers
from cloudtrain.emulator.ids import CONTAINER_NAME

_LARGEST_DOCUMENT = 64 * 1024
_MOST_POLICIES, _LONGEST_POLICY_ID = 5, 64
_LARGEST_PAGE = 5000


def check_name(name: str) -> None:
    """Raises BlobError."""
    if not 3 <= len(name) <= 63:
        detail = {"MinimumAllowed": "3", "MaximumAllowed": "63"}
        message = "The specified resource name length is not within the permissible limits."
        raise BlobError(400, "OutOfRangeInput", message, detail=detail)
    if not re.fullmatch(CONTAINER_NAME, name):
        raise refused("InvalidResourceName")


def make(index: Index, name: str, metadata: dict[str, str], now: float) -> Container | None:
    """The new container; None where one of that name exists."""
    with index.write() as rows:
        if rows.container(name) is not None:
            return None
        container = Container(name, rows.etag(now), now, metadata)
        rows.put_container(container)
    return container


def remove(index: Index, name: str) -> None:
    with index.write() as rows:
        files = rows.delete_container(name)
    index.content.remove(files)


def create(call: Call, place: Place) -> Reply:
    check_name(call.container)
    _refuse_public(call)
    made = make(place.index, call.container, call.metadata(), call.now)
    if made is None:
        raise refused("ContainerAlreadyExists")
    return Reply(201, version_headers(made))


def _refuse_public(call: Call) -> None:
    if call.header("x-ms-blob-public-access"):
        raise not_emulated("public access to a container (x-ms-blob-public-access)")


def delete(call: Call, place: Place) -> Reply:
    with place.index.write() as rows:
        container = existing_container(rows, call)
        conditions.check_write(call, container.etag, container.modified)
        leases.check_write(container.lease, call, "Container")
        files = rows.delete_container(call.container)
    place.index.content.remove(files)
    return Reply(202)


def show(call: Call, place: Place) -> Reply:
    with place.index.read() as rows:
        container = existing_container(rows, call)
    leases.check_read(container.lease, call, "Container")
    headers = {
        **version_headers(container),
        **container.lease.headers(call.now),
        "x-ms-has-immutability-policy": "false",
        "x-ms-has-legal-hold": "false",
        "x-ms-default-encryption-scope": "$account-encryption-key",
        "x-ms-deny-encryption-scope-override": "false",
        **{f"x-ms-meta-{name}": value for name, value in container.metadata.items()},
    }
    return Reply(200, headers)


def set_metadata(call: Call, place: Place) -> Reply:
    metadata = call.metadata()
    with place.index.write() as rows:
        container = existing_container(rows, call)
        conditions.check_write(call, container.etag, container.modified)
        leases.check_read(container.lease, call, "Container")
        container.metadata = metadata
        touch(rows, container, call.now)
        rows.put_container(container)
    return Reply(200, version_headers(container))


def lease(call: Call, place: Place) -> Reply:
    with place.index.write() as rows:
        container = existing_container(rows, call)
        conditions.check_write(call, container.etag, container.modified)
        container.lease, reply = leases.act(container.lease, call)
        rows.put_container(container)
    reply.headers |= version_headers(container)
    return reply


# stored access policies


def show_policies(call: Call, place: Place) -> Reply:
    with place.index.read() as rows:
        container = existing_container(rows, call)
    leases.check_read(container.lease, call, "Container")
    reply = xml_reply(f"<SignedIdentifiers>{''.join(map(_policy_xml, container.policies))}</SignedIdentifiers>")
    reply.headers |= version_headers(container)
    return reply


def _policy_xml(policy: dict[str, str]) -> str:
    names = (("Start", "start"), ("Expiry", "expiry"), ("Permission", "permission"))
    terms = "".join(f"<{tag}>{escape(policy[key])}</{tag}>" for tag, key in names if policy.get(key))
    return f"<SignedIdentifier><Id>{escape(policy['id'])}</Id><AccessPolicy>{terms}</AccessPolicy></SignedIdentifier>"


def set_policies(call: Call, place: Place) -> Reply:
    _refuse_public(call)
    policies = _read_policies(call.body(_LARGEST_DOCUMENT))
    with place.index.write() as rows:
        container = existing_container(rows, call)
        conditions.check_write(call, container.etag, container.modified)
        leases.check_read(container.lease, call, "Container")
        container.policies = policies
        touch(rows, container, call.now)
        rows.put_container(container)
    return Reply(200, version_headers(container))


def _read_policies(document: bytes) -> list[dict[str, str]]:
    if not document:
        return []
    policies = [
        {
            "id": (identifier.findtext("Id") or ""),
            "start": (identifier.findtext("AccessPolicy/Start") or ""),
            "expiry": (identifier.findtext("AccessPolicy/Expiry") or ""),
            "permission": (identifier.findtext("AccessPolicy/Permission") or ""),
        }
        for identifier in parse_xml(document).iter("SignedIdentifier")
    ]
    if len(policies) > _MOST_POLICIES or len({policy["id"] for policy in policies}) != len(policies):
        raise refused("InvalidXmlDocument")
    for policy in policies:
        if not 1 <= len(policy["id"]) <= _LONGEST_POLICY_ID:
            raise refused("InvalidXmlDocument")
        _check_times(policy)
    return policies


def _check_times(policy: dict[str, str]) -> None:
    for key in ("start", "expiry"):
        try:
            if policy[key]:
                sas.moment(policy[key])
        except ValueError:
            raise refused("InvalidXmlDocument") from None


def parse_xml(document: bytes) -> ElementTree.Element:
    # No document type: nothing here needs entities, and they can be made to grow without end.
    if b"<!DOCTYPE" in document:
        raise refused("InvalidXmlDocument")
    try:
        return ElementTree.fromstring(document)
    except ElementTree.ParseError:
        raise refused("InvalidXmlDocument") from None


# the account


def list_containers(call: Call, place: Place) -> Reply:
    prefix, marker = call.query.get("prefix", ""), call.query.get("marker", "")
    most = call.query_number("maxresults", _LARGEST_PAGE, 1, 2**31 - 1)
    with_metadata = "metadata" in call.query.get("include", "")
    with place.index.read() as rows:
        found = [c for c in rows.containers() if c.name.startswith(prefix) and c.name >= marker]
    page, rest = found[: min(most, _LARGEST_PAGE)], found[min(most, _LARGEST_PAGE) :]
    shown = "".join(_container_xml(container, call.now, with_metadata) for container in page)
    following = f"<NextMarker>{rest[0].name}</NextMarker>" if rest else "<NextMarker />"
    head = f'<EnumerationResults ServiceEndpoint="https://{call.account}.blob.core.windows.net/">'
    asked = f"<Prefix>{escape(prefix)}</Prefix>" if prefix else ""
    return xml_reply(f"{head}{asked}<Containers>{shown}</Containers>{following}</EnumerationResults>")


def _container_xml(container: Container, now: float, with_metadata: bool) -> str:
    held = container.lease.headers(now)
    metadata = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in container.metadata.items())
    return (
        f"<Container><Name>{container.name}</Name><Properties>"
        f"<Last-Modified>{conditions.http_date(container.modified)}</Last-Modified><Etag>{container.etag}</Etag>"
        f"<LeaseStatus>{held['x-ms-lease-status']}</LeaseStatus><LeaseState>{held['x-ms-lease-state']}</LeaseState>"
        "<DefaultEncryptionScope>$account-encryption-key</DefaultEncryptionScope>"
        "<DenyEncryptionScopeOverride>false</DenyEncryptionScopeOverride>"
        "<HasImmutabilityPolicy>false</HasImmutabilityPolicy><HasLegalHold>false</HasLegalHold></Properties>"
        + (f"<Metadata>{metadata}</Metadata>" if with_metadata else "")
        + "</Container>"
    )


def user_delegation_key(call: Call, place: Place) -> Reply:
    """A key to sign with, in the name of whoever asks, for 7 days at most."""
    document = parse_xml(call.body(_LARGEST_DOCUMENT))
    start, expiry = document.findtext("Start") or "", document.findtext("Expiry") or ""
    try:
        begins = sas.moment(start) if start else call.now
        ends = sas.moment(expiry)
    except ValueError:
        raise refused("InvalidXmlDocument") from None
    latest = call.now + sas.LONGEST_DELEGATION_SECONDS
    if not begins < ends <= latest or begins > latest or ends <= call.now:
        raise bad_query("Expiry", expiry, "It has to be in the future, within 7 days of now, and after Start.")
    principal = place.account.principal(call.header("authorization").partition(" ")[2].strip())
    signed = {
        "skoid": principal or "",
        "sktid": place.account.tenant,
        "skt": start,
        "ske": expiry,
        "sks": "b",
        "skv": call.header("x-ms-version"),
    }
    value = base64.b64encode(sas.delegation_key(place.account, signed)).decode()
    tags = ("SignedOid", "SignedTid", "SignedStart", "SignedExpiry", "SignedService", "SignedVersion")
    parts = "".join(f"<{tag}>{escape(text)}</{tag}>" for tag, text in zip(tags, signed.values(), strict=True))
    return xml_reply(f"<UserDelegationKey>{parts}<Value>{value}</Value></UserDelegationKey>")

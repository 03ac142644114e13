"""Azure's Instance Metadata Service, as a VM sees it: scheduled events and the instance document.

Protocol: learn.microsoft.com/azure/virtual-machines/linux/scheduled-events and .../instance-metadata-service.
Not emulated: the first call's wait of up to 2 minutes, and Reboot events (a reboot asked for through Azure happens at
once, as with `userInitiatedReboot.automaticallyApprove`). Tokens of a managed
identity are those of the embedded tenant, and do not end.
"""

import json
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

_VERSION = re.compile(r"20\d\d-\d\d-\d\d")
_LARGEST_REQUEST = 1 << 20
_TOKEN_SECONDS = 86399


@dataclass
class ScheduledEvents:
    """The list of events of one VM. incarnation counts its changes."""

    vm_name: str
    incarnation: int = 1
    events: list[dict[str, Any]] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)

    def preempt(self, not_before: float) -> str:
        """Announce an eviction (epoch seconds); returns the event's id."""
        event_id = str(uuid.uuid4()).upper()
        self.events.append(
            {
                "EventId": event_id,
                "EventStatus": "Scheduled",
                "EventType": "Preempt",
                "ResourceType": "VirtualMachine",
                "Resources": [self.vm_name],
                "NotBefore": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(not_before)),
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
        )
        self.incarnation += 1
        return event_id

    def begin(self, event_id: str) -> None:
        for event in self.events:
            if event["EventId"] == event_id:
                event.update(EventStatus="Started", NotBefore="")
                self.incarnation += 1

    def acknowledge(self, event_ids: list[str]) -> None:
        known = {event["EventId"] for event in self.events}
        self.acknowledged.update(known.intersection(event_ids))

    def document(self) -> dict[str, Any]:
        return {"DocumentIncarnation": self.incarnation, "Events": self.events}


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]  # names in lower case
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"

    def encode(self) -> bytes:
        reasons = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}
        head = (
            f"HTTP/1.1 {self.status} {reasons[self.status]}\r\nServer: IMDS/150.870.65.1854\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + self.body


def parse_request(data: bytes) -> Request | None:
    """None while it is incomplete. Raises ValueError for what is not HTTP."""
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        if len(data) > _LARGEST_REQUEST:
            raise ValueError("no end of headers")
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length") or 0)
    if not 0 <= length <= _LARGEST_REQUEST:
        raise ValueError("bad content-length")
    return Request(method, target, headers, body[:length]) if len(body) >= length else None


def answer(request: Request, events: ScheduledEvents, spec: dict[str, Any]) -> Response:
    url = urlsplit(request.target)
    query = {key: values[-1] for key, values in parse_qs(url.query).items()}
    path = [part for part in url.path.split("/") if part]
    if request.headers.get("metadata", "").lower() != "true":
        return _bad("Bad request. Required metadata header not specified")
    if "x-forwarded-for" in request.headers:
        return _bad("Bad request. Proxied requests are not allowed")
    if not _VERSION.fullmatch(query.get("api-version", "")):
        said = "was not specified in the request" if "api-version" not in query else "is invalid or was not found"
        return _bad(f"Bad request. api-version {said}. For more information refer to aka.ms/azureimds")
    match [part.lower() for part in path[:2]]:
        case ["metadata", "scheduledevents"]:
            return _scheduled_events(request, events)
        case ["metadata", "instance"]:
            return _instance(path[2:], query, spec)
        case ["metadata", "identity"]:
            return _token(path[2:], query, spec)
    return _error(404, "Not found")


def _scheduled_events(request: Request, events: ScheduledEvents) -> Response:
    if request.method == "GET":
        return _json(events.document())
    if request.method != "POST":
        return _error(405, "Method not allowed")
    try:
        wanted = json.loads(request.body)["StartRequests"]
        event_ids = [str(item["EventId"]) for item in wanted]
    except (ValueError, KeyError, TypeError):
        return _bad("Bad request. Malformed StartRequests")
    if not set(event_ids) <= {event["EventId"] for event in events.events}:
        return _bad("Bad request. An EventId is not in the list of events")
    events.acknowledge(event_ids)
    return Response(200, b"")


def _instance(path: list[str], query: dict[str, str], spec: dict[str, Any]) -> Response:
    found: Any = instance_document(spec)
    for part in path:
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return _error(404, "Not found")
    if query.get("format") == "text" and not isinstance(found, dict | list):
        return Response(200, str(found).encode(), "text/plain; charset=utf-8")
    if path and not isinstance(found, dict | list):
        return _bad("Bad request. A leaf is served with format=text only")
    return _json(found)


def _token(path: list[str], query: dict[str, str], spec: dict[str, Any]) -> Response:
    if [part.lower() for part in path] != ["oauth2", "token"]:
        return _error(404, "Not found")
    tokens: dict[str, str] = spec.get("identity_tokens") or {}
    if not tokens:
        return _bad("invalid_request", error_description="Identity not found")
    resource = query.get("resource", "")
    token = tokens.get(resource.rstrip("/").lower())
    if token is None:
        said = f"AADSTS500011: The resource principal named {resource} was not found in the tenant."
        return _bad("invalid_resource", error_description=said)
    now = int(time.time())
    return _json(
        {
            "access_token": token,
            "client_id": spec["vm_id"],
            "expires_in": str(_TOKEN_SECONDS),
            "expires_on": str(now + _TOKEN_SECONDS),
            "ext_expires_in": str(_TOKEN_SECONDS),
            "not_before": str(now),
            "resource": resource,
            "token_type": "Bearer",
        }
    )


def instance_document(spec: dict[str, Any]) -> dict[str, Any]:
    group = f"/subscriptions/{spec['subscription_id']}/resourceGroups/{spec['resource_group']}"
    keys_path = f"/home/{spec['admin_username']}/.ssh/authorized_keys"
    return {
        "compute": {
            "azEnvironment": "AzurePublicCloud",
            "evictionPolicy": spec["eviction_policy"],
            "location": spec["location"],
            "name": spec["name"],
            "osProfile": {
                "adminUsername": spec["admin_username"],
                "computerName": spec["computer_name"],
                "disablePasswordAuthentication": "true",
            },
            "osType": "Linux",
            "priority": spec["priority"],
            "publicKeys": [{"keyData": key, "path": keys_path} for key in spec["ssh_public_keys"]],
            "resourceGroupName": spec["resource_group"],
            "resourceId": f"{group}/providers/Microsoft.Compute/virtualMachines/{spec['name']}",
            "subscriptionId": spec["subscription_id"],
            "tags": ";".join(f"{name}:{value}" for name, value in spec["tags"].items()),
            "tagsList": [{"name": name, "value": value} for name, value in spec["tags"].items()],
            "userData": spec["user_data"],
            "vmId": spec["vm_id"],
            "vmSize": spec["size"],
            "zone": "",
        },
        "network": {
            "interface": [
                {
                    "ipv4": {
                        "ipAddress": [{"privateIpAddress": "10.0.0.4", "publicIpAddress": ""}],
                        "subnet": [{"address": "10.0.0.0", "prefix": "24"}],
                    },
                    "ipv6": {"ipAddress": []},
                    "macAddress": spec["vm_id"].replace("-", "")[-12:].upper(),
                }
            ]
        },
    }


def _json(value: Any) -> Response:
    return Response(200, json.dumps(value).encode())


def _bad(error: str, **more: str) -> Response:
    return _error(400, error, **more)


def _error(status: int, error: str, **more: str) -> Response:
    return Response(status, json.dumps({"error": error, **more}).encode())

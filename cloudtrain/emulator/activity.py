"""The activity log: Microsoft.Insights' events of what somebody asked of a VM.

The frame of an event is Azure's; the values of a deallocation were not recorded, and follow those of other operations.
Azure shows an event minutes after it; here it is shown at once. An eviction leaves none."""

import re
from datetime import UTC, datetime

from cloudtrain.emulator import ids
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, guid, same, zulu

_NAMES = {
    "vm.deallocate": ("deallocate", "Deallocate Virtual Machine"),
    "vm.powerOff": ("powerOff", "Power Off Virtual Machine"),
    "vm.start": ("start", "Start Virtual Machine"),
    "vm.restart": ("restart", "Restart Virtual Machine"),
}
_KEPT = 20
_OLDEST_SECONDS = 90 * 86400.0
_TIME = re.compile(r"eventTimestamp (?P<which>ge|le) '(?P<time>[^']+)'", re.IGNORECASE)
_RESOURCE = re.compile(r"resourceUri eq '(?P<id>[^']+)'", re.IGNORECASE)
_CALLER = "you@embedded.invalid"


def note(vm: Resource, kind: str, now: float) -> None:
    """Somebody asked for an operation."""
    if kind in _NAMES:
        vm.private["activity"] = [*vm.private.get("activity", []), {"kind": kind, "time": now, "id": guid()}][-_KEPT:]


def list_events(azure: Azure, request: Request) -> Answer:
    text = request.query.get("$filter", "")
    times = {found["which"].lower(): _epoch(found["time"]) for found in _TIME.finditer(text)}
    about = _RESOURCE.search(text)
    if "ge" not in times or about is None:
        raise ArmError(
            501,
            "OperationNotEmulated",
            "The embedded Azure lists events (EventCategories_List) of one resource since a time only: "
            "$filter=eventTimestamp ge '...' and resourceUri eq '...'.",
        )
    if times["ge"] < azure.now() - _OLDEST_SECONDS:
        # Not the shape of Resource Manager's errors: so recorded.
        message = "The start time cannot be more than 90 days in the past."
        return Answer(400, {"Code": "BadRequest", "Message": message})
    with azure.store.read() as records:
        vm = records.resource(about["id"])
    if vm is None or not same(vm.type, ids.VM):
        return Answer(200, {"value": []})
    until = times.get("le", azure.now())
    found = [each for each in vm.private.get("activity", []) if times["ge"] <= each["time"] <= until]
    newest_first = sorted(found, key=lambda each: -float(each["time"]))
    return Answer(200, {"value": [_event(request.subscription, vm, each) for each in newest_first]})


def _event(subscription: str, vm: Resource, each: Json) -> Json:
    name, shown = _NAMES[each["kind"]]
    action = f"Microsoft.Compute/virtualMachines/{name}/action"
    return {
        "authorization": {"action": action, "scope": vm.id},
        "caller": _CALLER,
        "channels": "Operation",
        "claims": {},
        "correlationId": each["id"],
        "eventDataId": each["id"],
        "eventName": {"value": "EndRequest", "localizedValue": "End request"},
        "category": {"value": "Administrative", "localizedValue": "Administrative"},
        "eventTimestamp": zulu(each["time"]),
        "id": f"{vm.id}/events/{each['id']}",
        "level": "Informational",
        "operationId": each["id"],
        "operationName": {"value": action, "localizedValue": shown},
        "resourceGroupName": vm.group,
        "resourceProviderName": {"value": "Microsoft.Compute", "localizedValue": "Microsoft.Compute"},
        "resourceType": {"value": ids.VM, "localizedValue": ids.VM},
        "resourceId": vm.id,
        "status": {"value": "Succeeded", "localizedValue": "Succeeded"},
        "subStatus": {"value": "", "localizedValue": ""},
        "submissionTimestamp": zulu(each["time"]),
        "subscriptionId": subscription,
        "properties": {},
    }


def _epoch(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ArmError(400, "BadRequest", f"'{text}' is no time.") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


ROUTES = [
    Route(
        "GET",
        "/subscriptions/<subscription>/providers/microsoft.insights/eventtypes/management/values",
        "ActivityLogs_List",
        list_events,
    )
]

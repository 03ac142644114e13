"""Resource Health's annotations of VMs, and the one table of Resource Graph that shows them.

Names: Microsoft's table of VM annotations. Only the latest annotation of a VM is kept, as in Azure. Azure shows it
minutes later and may write one more (VirtualMachineAllocated) on a start; here it is shown at once. Whether Azure
annotates a simulated eviction as it does a real one was not seen."""

import re
from collections.abc import Mapping

from cloudtrain.emulator import ids
from cloudtrain.emulator.machines import OffCause
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Records, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, same, zulu

_CUSTOMER, _PLATFORM, _VM = "Customer Initiated", "Platform Initiated", "VM Initiated"
# annotation -> reason, summary, context, category
_TEXTS: Mapping[str, tuple[str, str, str, str]] = {
    "VirtualMachineDeallocationInitiated": (
        "Stopping and deallocating",
        "This virtual machine is stopped and deallocated as requested by an authorized user or process.",
        _CUSTOMER,
        "Not Applicable",
    ),
    "VirtualMachineStopInitiatedByControlPlane": (
        "Stopping",
        "This virtual machine is stopping as requested by an authorized user or process.",
        _CUSTOMER,
        "Not Applicable",
    ),
    "VirtualMachineStartInitiatedByControlPlane": (
        "Starting",
        "This virtual machine is starting as requested by an authorized user or process.",
        _CUSTOMER,
        "Not Applicable",
    ),
    "VirtualMachineRebootInitiatedByControlPlane": (
        "Rebooting",
        "This virtual machine is rebooting as requested by an authorized user or process.",
        _CUSTOMER,
        "Not Applicable",
    ),
    "VirtualMachinePreempted": (
        "Preempted",
        "This Spot virtual machine has been preempted.",
        _PLATFORM,
        "Unplanned",
    ),
    "VirtualMachineStoppedInternally": (
        "Stopped by user or process",
        "This virtual machine was stopped from within.",
        _VM,
        "Not Applicable",
    ),
    "VirtualMachineHostCrashed": (
        "Unexpected host failure",
        "The host of this virtual machine failed.",
        _PLATFORM,
        "Unplanned",
    ),
}
_OF_OPERATION = {
    "vm.deallocate": "VirtualMachineDeallocationInitiated",
    "vm.powerOff": "VirtualMachineStopInitiatedByControlPlane",
    "vm.start": "VirtualMachineStartInitiatedByControlPlane",
    "vm.restart": "VirtualMachineRebootInitiatedByControlPlane",
}
_OF_CAUSE = {
    OffCause.EVICTED: "VirtualMachinePreempted",
    OffCause.GUEST_SHUTDOWN: "VirtualMachineStoppedInternally",
    OffCause.HOST_REBOOTED: "VirtualMachineHostCrashed",
    OffCause.SUPERVISOR_DIED: "VirtualMachineHostCrashed",
}


def note_operation(vm: Resource, kind: str, now: float) -> None:
    """Somebody asked for an operation that changes the VM's power."""
    _note(vm, _OF_OPERATION.get(kind), now)


def note_off(vm: Resource, cause: OffCause | None, now: float) -> None:
    """The VM went off by itself."""
    _note(vm, _OF_CAUSE.get(cause) if cause is not None else None, now)


def _note(vm: Resource, name: str | None, now: float) -> None:
    if name is not None:
        vm.private["annotation"] = {"name": name, "time": now}


def _row(vm: Resource) -> Json:
    name = vm.private["annotation"]["name"]
    reason, summary, context, category = _TEXTS[name]
    return {
        "targetResourceId": vm.id,
        "targetResourceType": ids.VM,
        "occurredTime": zulu(vm.private["annotation"]["time"]),
        "annotationName": name,
        "reason": reason,
        "summary": summary,
        "context": context,
        "category": category,
    }


# Resource Graph

_CLAUSE = re.compile(r"^where\s+(?P<field>[\w.]+)\s*=~\s*'(?P<value>[^']*)'$", re.IGNORECASE)
_ANNOTATIONS = "microsoft.resourcehealth/resourceannotations"


def query(azure: Azure, request: Request) -> Answer:
    """HealthResources, filtered by `where FIELD =~ 'VALUE'`, with `project properties` at the end."""
    text = str(request.object().get("query", ""))
    table, *clauses = [part.strip() for part in text.split("|")]
    if not same(table, "HealthResources") or not clauses or not same(clauses[-1], "project properties"):
        raise _not_emulated(text)
    wanted = []
    for clause in clauses[:-1]:
        match = _CLAUSE.match(clause)
        if match is None:
            raise _not_emulated(text)
        wanted.append((match["field"].lower(), match["value"]))
    with azure.store.read() as records:
        rows = [_row(vm) for vm in _asked_for(records, wanted) if vm.private.get("annotation")]
    data = [{"properties": row} for row in rows if all(_holds(row, *each) for each in wanted)]
    count = len(data)
    return Answer(
        200,
        {"totalRecords": count, "count": count, "data": data, "facets": [], "resultTruncated": "false"},
    )


def _asked_for(records: Records, wanted: list[tuple[str, str]]) -> list[Resource]:
    """The VMs among which those are that are wanted."""
    named = [value for field, value in wanted if field == "properties.targetresourceid"]
    if not named:
        return records.resources(ids.VM)
    vm = records.resource(named[0])
    return [vm] if vm is not None and same(vm.type, ids.VM) else []


def _holds(row: Json, field: str, value: str) -> bool:
    if field == "type":
        return same(value, _ANNOTATIONS)
    held = {f"properties.{key.lower()}": text for key, text in row.items()}
    return field in held and same(held[field], value)


def _not_emulated(text: str) -> ArmError:
    return ArmError(
        501, "OperationNotEmulated", f"The embedded Azure's Resource Graph does not know the query '{text}'."
    )


ROUTES = [Route("POST", "/providers/microsoft.resourcegraph/resources", "ResourceGraph_Resources", query)]

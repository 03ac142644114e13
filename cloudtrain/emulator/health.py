"""Resource Health's annotations of VMs, which Resource Graph shows.

Names: Microsoft's table of VM annotations. Only the latest annotation of a VM is kept, as in Azure. Azure shows it
minutes later and may write one more (VirtualMachineAllocated) on a start; here it is shown at once. Whether Azure
annotates a simulated eviction as it does a real one was not seen."""

from collections.abc import Mapping

from cloudtrain.emulator import ids
from cloudtrain.emulator.machines import OffCause
from cloudtrain.emulator.store import Json, Resource
from cloudtrain.emulator.wire import zulu

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


def annotation(vm: Resource) -> Json | None:
    """The latest, as Resource Graph shows it; None where nothing has happened to the VM yet."""
    if "annotation" not in vm.private:
        return None
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

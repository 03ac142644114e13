"""A VM as Azure shows it: the resource, and the instance view."""

import copy
from collections.abc import Sequence

from cloudtrain.emulator import catalog, power
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.store import Json, Resource
from cloudtrain.emulator.wire import moment, second

_ORDER = (
    "hardwareProfile",
    "provisioningState",
    "resiliencyProfile",
    "vmId",
    "storageProfile",
    "osProfile",
    "securityProfile",
    "networkProfile",
    "diagnosticsProfile",
)
_DISPLAY = {
    "running": "VM running",
    "starting": "VM starting",
    "stopping": "VM stopping",
    "stopped": "VM stopped",
    "deallocating": "VM deallocating",
    "deallocated": "VM deallocated",
}
_PROVISIONING = {
    "Succeeded": "Provisioning succeeded",
    "Failed": "Provisioning failed",
    "Creating": "Creating",
    "Updating": "Updating",
    "Deleting": "Deleting",
}


def shown(azure: Azure, vm: Resource, *, view: bool = False, user_data: bool = False) -> Json:
    """The resource. A deallocated VM has no disk size and no disk type."""
    held = copy.deepcopy(vm.body["properties"])
    held["provisioningState"] = vm.private["provisioning"]
    held["vmId"] = vm.private["vm_id"]
    if power.shown_phase(azure, vm) in (power.DEALLOCATED, power.DEALLOCATING):
        held["storageProfile"]["osDisk"].pop("diskSizeGB", None)
        held["storageProfile"]["osDisk"]["managedDisk"].pop("storageAccountType", None)
    properties = {key: held.pop(key) for key in _ORDER if key in held} | held
    if user_data and vm.private.get("user_data"):
        properties["userData"] = vm.private["user_data"]
    if view:
        properties["instanceView"] = instance_view(azure, vm)
    properties["timeCreated"] = moment(vm.created)
    body = _outer(vm, ("name", "id", "type", "location", "tags", "zones", "plan", "identity"))
    return {**body, "properties": properties, "etag": f'"{vm.private["etag"]}"'}


def _outer(vm: Resource, keys: Sequence[str]) -> Json:
    return {key: vm.body[key] for key in keys if key in vm.body}


def instance_view(azure: Azure, vm: Resource) -> Json:
    current = power.shown_phase(azure, vm)
    allocated = current in (power.RUNNING, power.STOPPED, power.STARTING, power.STOPPING)
    view: Json = {}
    if allocated and "agent_time" in vm.private:
        image = vm.body["properties"]["storageProfile"]["imageReference"]
        known = catalog.find_image(image["publisher"], image["offer"], image["sku"], image["exactVersion"])
        view |= {
            "computerName": vm.body["properties"]["osProfile"]["computerName"],
            "osName": known.os_name if known else "ubuntu",
            "osVersion": known.os_version if known else "22.04",
            "vmAgent": {
                "vmAgentVersion": "2.15.0.1",
                "statuses": [_agent(azure, vm, current)],
                "extensionHandlers": [],
            },
        }
    if "disk_time" in vm.private:
        view["disks"] = [
            {
                "name": vm.body["properties"]["storageProfile"]["osDisk"]["name"],
                "statuses": [
                    _status("ProvisioningState/succeeded", _PROVISIONING["Succeeded"], vm.private["disk_time"])
                ],
            }
        ]
    view["hyperVGeneration"] = vm.private["generation"]
    view["statuses"] = _statuses(vm, current)
    return view


def statuses_only(azure: Azure, vm: Resource) -> Json:
    """What `statusOnly=true` lists: where a VM is, and its instance view."""
    body = _outer(vm, ("name", "id", "type", "location"))
    properties = {
        "provisioningState": vm.private["provisioning"],
        "vmId": vm.private["vm_id"],
        "instanceView": instance_view(azure, vm),
    }
    return {**body, "properties": properties}


def _status(code: str, display: str, time: float, level: str = "Info") -> Json:
    return {"code": code, "level": level, "displayStatus": display, "time": moment(time)}


def _agent(azure: Azure, vm: Resource, current: str) -> Json:
    """A stopped VM's agent is still listed as Ready: the last that was heard of it."""
    if current == power.RUNNING and not azure.machines.agent_ready(vm.private["vm_id"]):
        return {
            "code": "ProvisioningState/Unavailable",
            "level": "Warning",
            "displayStatus": "Not Ready",
            "message": "VM status blob is found but not yet populated.",
            "time": second(azure.now()),
        }
    return {
        "code": "ProvisioningState/succeeded",
        "level": "Info",
        "displayStatus": "Ready",
        "message": "Guest Agent is running",
        "time": second(vm.private["agent_time"]),
    }


def _statuses(vm: Resource, current: str) -> list[Json]:
    provisioning = vm.private["provisioning"]
    code = f"ProvisioningState/{provisioning.lower()}"
    if provisioning == "Failed" and vm.private.get("failure"):
        code += f"/{vm.private['failure']}"
    level = "Error" if provisioning == "Failed" else "Info"
    statuses = [_status(code, _PROVISIONING[provisioning], vm.private["status_time"], level)]
    if current:
        statuses.append({"code": f"PowerState/{current}", "level": "Info", "displayStatus": _DISPLAY[current]})
    return statuses

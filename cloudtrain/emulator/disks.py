"""Managed disks: the OS disks of VMs, kept after them when their delete option says so."""

from cloudtrain.emulator import ids, network, operations, preconditions
from cloudtrain.emulator.operations import Azure, Kind, Outcome
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Operation, Records, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, guid, moment

NAMESPACE = "Microsoft.Compute"


def new_os_disk(azure: Azure, records: Records, vm: Resource, generation: str) -> Resource:
    """Made with the VM; the VM's own answers name it only once it has succeeded."""
    parsed = ids.parse(vm.id)
    assert parsed is not None
    shown = vm.body["properties"]["storageProfile"]["osDisk"]
    disk_id = ids.resource_id(parsed.subscription, parsed.group, ids.DISK, shown["name"])
    if records.resource(disk_id) is not None:
        raise ArmError(
            409,
            "ConflictingUserInput",
            f"Disk '{shown['name']}' already exists in resource group '{parsed.group}'. Only "
            "CreateOption.Attach is "
            "supported.",
            target="osDisk.name",
        )
    kind, gigabytes = shown["managedDisk"]["storageAccountType"], shown["diskSizeGB"]
    body: Json = {
        "name": shown["name"],
        "id": disk_id,
        "type": ids.DISK,
        "location": vm.location,
        "tags": dict(vm.body.get("tags") or {}),
        "sku": {"name": kind, "tier": kind.split("_")[0].removesuffix("SSD")},
        "managedBy": vm.id,
        "properties": {
            "osType": "Linux",
            "hyperVGeneration": generation,
            "creationData": {"createOption": "FromImage"},
            "diskSizeGB": gigabytes,
            "diskSizeBytes": gigabytes * 1024**3,
            "timeCreated": moment(azure.now()),
            "provisioningState": "Succeeded",
            "diskState": "Attached",
            "uniqueId": guid(),
        },
    }
    if vm.body.get("zones"):
        body["zones"] = vm.body["zones"]
    disk = Resource(disk_id, ids.DISK, shown["name"], vm.location, body, created=azure.now(), changed=azure.now())
    return records.put(disk)


def of_vm(records: Records, vm: Resource) -> Resource | None:
    parsed = ids.parse(vm.id)
    assert parsed is not None
    name = vm.body["properties"]["storageProfile"]["osDisk"]["name"]
    return records.resource(ids.resource_id(parsed.subscription, parsed.group, ids.DISK, name))


def shown_on_vm(records: Records, vm: Resource) -> None:
    disk = of_vm(records, vm)
    if disk is not None:
        vm.body["properties"]["storageProfile"]["osDisk"]["managedDisk"]["id"] = disk.id


def follow(records: Records, vm: Resource, *, allocated: bool) -> None:
    """The disk of a deallocated VM is 'Reserved'."""
    disk = of_vm(records, vm)
    if disk is not None:
        disk.body["properties"]["diskState"] = "Attached" if allocated else "Reserved"
        records.put(disk)


def forget_with_vm(records: Records, vm: Resource, *, delete: bool) -> None:
    disk = of_vm(records, vm)
    if disk is None:
        return
    if delete:
        records.delete(disk.id)
        return
    disk.body.pop("managedBy", None)
    disk.body["properties"]["diskState"] = "Unattached"
    records.put(disk)


def get_disk(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        return Answer(200, network.found(records, request, ids.DISK, group, name).body)


def list_disks(azure: Azure, request: Request, group: str | None = None) -> Answer:
    with azure.store.read() as records:
        if group is not None:
            preconditions.readable_group(records, request.subscription, group)
        return Answer(200, {"value": [disk.body for disk in records.resources(ids.DISK, group)]})


def delete_disk(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        disk = network.existing(records, request, ids.DISK, group, name)
        if disk is None:
            return Answer(204)
        if disk.body.get("managedBy"):
            raise ArmError(409, "OperationNotAllowed", f"Disk {disk.name} is attached to VM {disk.body['managedBy']}.")
        operation = operations.begin(azure, records, "disk.delete", disk.key)
        return operations.accepted(request, operation, NAMESPACE, disk.location, status=202, with_location=True)


def patch_disk(azure: Azure, request: Request, group: str, name: str) -> Answer:
    tags = preconditions.tags(request.object().get("tags"))
    if set(request.object()) - {"tags"}:
        raise ArmError(501, "OperationNotEmulated", "The embedded Azure has Disks_Update for tags only.")
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        disk = network.found(records, request, ids.DISK, group, name)
        disk.body["tags"] = tags or {}
        records.put(disk)
    return Answer(200, disk.body)


def _settle_delete(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    if outcome.error is None:
        records.delete(operation.target)


KINDS = {"disk.delete": Kind(settle=_settle_delete)}

_S = "/subscriptions/<subscription>"
_P = f"{_S}/resourcegroups/<group>/providers/microsoft.compute"
ROUTES = [
    Route("GET", f"{_P}/disks/<name>", "Disks_Get", get_disk, "LowCostGet"),
    Route("DELETE", f"{_P}/disks/<name>", "Disks_Delete", delete_disk),
    Route("PATCH", f"{_P}/disks/<name>", "Disks_Update", patch_disk),
    Route("GET", f"{_P}/disks", "Disks_ListByResourceGroup", list_disks),
    Route("GET", f"{_S}/providers/microsoft.compute/disks", "Disks_List", list_disks),
]

"""Virtual machines: Microsoft.Compute/virtualMachines."""

from dataclasses import dataclass
from typing import Any

from cloudtrain.emulator import (
    catalog,
    disks,
    ids,
    interfaces,
    ledger,
    market,
    network,
    operations,
    power,
    preconditions,
    timing,
    vm_request,
    vm_view,
)
from cloudtrain.emulator.machines import MachineError
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Operation, Records, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, entries, guid, same, section, text

NAMESPACE = "Microsoft.Compute"


def existing(records: Records, request: Request, group: str, name: str) -> Resource | None:
    return records.resource(ids.resource_id(request.subscription, group, ids.VM, name))


def found(azure: Azure, records: Records, request: Request, group: str, name: str) -> Resource:
    """Raises ARM's 404, or Compute's own while ARM still routes to a VM that an eviction has deleted."""
    preconditions.readable_group(records, request.subscription, group)
    vm = existing(records, request, group, name)
    if vm is None:
        if power.is_ghost(azure, records, ids.resource_id(request.subscription, group, ids.VM, name)):
            raise ArmError(404, "NotFound", "The entity was not found in this Azure location.")
        raise preconditions.resource_not_found(ids.VM, name, group)
    return vm


def accepted(request: Request, operation: Operation, vm: Resource, **rest: Any) -> Answer:
    return operations.accepted(request, operation, NAMESPACE, vm.location, **rest)


# create and update


def put_vm(azure: Azure, request: Request, group: str, name: str) -> Answer:
    body = request.object()
    with azure.store.write() as records:
        home = preconditions.writable_group(records, request.subscription, group)
        preconditions.registered(records, NAMESPACE)
        location = preconditions.location(body, ids.VM)
        known = existing(records, request, group, name)
        preconditions.same_location(known, location, home.name)
        properties = section(body, "properties")
        vm_request.check_members(properties)
        if known is None:
            vm, operation = _create(azure, records, request, home, name, location, body)
        else:
            vm, operation = _update(azure, records, known, body, whole=True)
        answer = accepted(
            request,
            operation,
            vm,
            status=200 if known else 201,
            body=vm_view.shown(azure, vm),
        )
        answer.headers["ETag"] = answer.body["etag"]
    operations.advance(azure, operation.seq, patience=timing.PATIENCE_SECONDS)
    return answer


def patch_vm(azure: Azure, request: Request, group: str, name: str) -> Answer:
    body = request.object()
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        vm = found(azure, records, request, group, name)
        vm_request.check_members(section(body, "properties"))
        vm, operation = _update(azure, records, vm, body, whole=False)
        answer = accepted(request, operation, vm, status=200, body=vm_view.shown(azure, vm))
    operations.advance(azure, operation.seq, patience=timing.PATIENCE_SECONDS)
    return answer


@dataclass(frozen=True)
class _Asked:
    """What the body of a new VM asks for, understood and granted."""

    size: catalog.Size
    zones: list[str]
    spot: Json
    storage: vm_request.Storage
    guest: vm_request.Guest
    user_data: str | None


def _asked(records: Records, subscription: str, name: str, location: str, body: Json) -> _Asked:
    properties = section(body, "properties")
    vm_request.check_name(name)
    size, zones = vm_request.size(properties, location), vm_request.zones(body)
    spot = vm_request.spot_terms(records, properties, size, location)
    storage = vm_request.storage(properties, size, name)
    guest = vm_request.guest(properties, name)
    user_data = vm_request.user_data(properties)
    vm_request.check_plan(records, storage.image, body, subscription)
    vm_request.check_availability(size, location, zones)
    market.check_quota(records, size, location, spot="evictionPolicy" in spot, known=None)
    return _Asked(size, zones, spot, storage, guest, user_data)


def check_new(records: Records, subscription: str, name: str, body: Json) -> None:
    """Raises what a PUT of that new VM would be refused with, whatever becomes of the resources it refers to."""
    vm_request.check_members(section(body, "properties"))
    _asked(records, subscription, name, preconditions.location(body, ids.VM), body)


def _create(
    azure: Azure, records: Records, request: Request, home: Resource, name: str, location: str, body: Json
) -> tuple[Resource, Operation]:
    properties = section(body, "properties")
    _check_machine(azure, records)
    asked = _asked(records, request.subscription, name, location, body)
    vm_id = ids.resource_id(request.subscription, home.name, ids.VM, name)
    kept: Json = {
        "hardwareProfile": {"vmSize": asked.size.name},
        "storageProfile": asked.storage.profile,
        "osProfile": asked.guest.profile,
        "networkProfile": {"networkInterfaces": []},
        **_echoed(properties),
        **asked.spot,
    }
    vm = Resource(
        vm_id,
        ids.VM,
        name,
        location,
        _outer(azure, records, vm_id, name, location, body, asked.zones),
        {
            "vm_id": guid(),
            "phase": "",
            "generation": asked.storage.image.generation,
            "ssh_keys": list(asked.guest.keys),
            "custom_data_digest": asked.guest.custom_data_digest,
            "user_data": asked.user_data,
            "etag": 0,
        },
        created=azure.now(),
    )
    vm.body["properties"] = kept
    kept["networkProfile"]["networkInterfaces"] = _interfaces(azure, records, request, home, vm, properties)
    vm.private["provisioning"] = "Creating"
    ledger.note(azure.ledger, vm.private["vm_id"])
    power.touch(azure, vm)
    records.drop_setting(f"ghost:{vm.key}")
    disks.new_os_disk(azure, records, records.put(vm), asked.storage.image.generation)
    return vm, power.begin(azure, records, vm, "vm.create", market.without_capacity(records, vm, azure.now()))


def _check_machine(azure: Azure, records: Records) -> None:
    """Another command may have chosen another kind of machine since this one began."""
    chosen = records.setting("machine") or azure.machines.kind
    if chosen != azure.machines.kind:
        raise ArmError(409, "Conflict", f"The VMs of this embedded Azure are machines of kind '{chosen}' from now on.")


def _outer(azure: Azure, records: Records, vm_id: str, name: str, location: str, body: Json, zones: list[str]) -> Json:
    outer: Json = {"name": name, "id": vm_id, "type": ids.VM, "location": location}
    tags = preconditions.tags(body.get("tags"))
    if tags is not None:
        outer["tags"] = tags
    if zones:
        outer["zones"] = zones
    if vm_request.plan(body):
        outer["plan"] = vm_request.plan(body)
    identity = vm_request.identity(body, records.setting("tenant_id") or "")
    if identity:
        outer["identity"] = identity
    return outer


def _echoed(properties: Json) -> Json:
    kept = {key: properties[key] for key in vm_request.ECHOED if properties.get(key) is not None}
    if section(properties, "securityProfile"):
        kept["securityProfile"] = properties["securityProfile"]
    if properties.get("resiliencyProfile") is not None:
        moves = section(properties, "resiliencyProfile", "zoneMovement").get("isEnabled")
        kept["resiliencyProfile"] = {"zoneMovement": {"isEnabled": bool(moves)}}
    return kept


def _interfaces(
    azure: Azure, records: Records, request: Request, home: Resource, vm: Resource, properties: Json
) -> list[Json]:
    profile = section(properties, "networkProfile")
    given = entries(profile, "networkInterfaces", "networkProfile")
    described = entries(profile, "networkInterfaceConfigurations", "networkProfile")
    if bool(given) == bool(described):
        raise ArmError(
            400,
            "InvalidParameter",
            "Virtual Machine must have exactly one of networkProfile.networkInterfaces and "
            "networkProfile.networkInterfaceConfigurations.",
            target="networkProfile",
        )
    if described:
        return _described(azure, records, request, home, vm, profile, described)
    return [_attached(azure, records, vm, reference, index == 0) for index, reference in enumerate(given)]


def _described(
    azure: Azure,
    records: Records,
    request: Request,
    home: Resource,
    vm: Resource,
    profile: Json,
    given: list[Json],
) -> list[Json]:
    if profile.get("networkApiVersion") not in ("2020-11-01", "2022-11-01"):
        raise ArmError(
            400,
            "InvalidParameter",
            "Required parameter 'networkProfile.networkApiVersion' is missing or not one of 2020-11-01, 2022-11-01.",
            target="networkProfile.networkApiVersion",
        )
    preconditions.registered(records, network.NAMESPACE)
    shown = []
    for index, configuration in enumerate(given):
        made = interfaces.from_configuration(azure, records, request, home, vm.location, configuration, index == 0)
        interfaces.attach(records, made.nic, vm.id, made.primary)
        option = "Delete" if made.delete_with_vm else "Detach"
        shown.append({"id": made.nic.id, "properties": {"primary": made.primary, "deleteOption": option}})
    return shown


def _attached(azure: Azure, records: Records, vm: Resource, reference: Json, first: bool) -> Json:
    nic = records.resource(text(reference, "id", "networkInterfaces") or "")
    if nic is None or not same(nic.location, vm.location):
        raise ArmError(
            404 if nic is None else 400,
            "NotFound" if nic is None else "InvalidResourceReference",
            f"Network interface {reference.get('id')} was not found in region {vm.location}.",
        )
    user = (nic.body["properties"].get("virtualMachine") or {}).get("id")
    if user and not same(user, vm.id):
        raise interfaces.nic_in_use(nic, user)
    interfaces.check_not_reserved(azure, nic, vm.id)
    options = {key: value for key, value in section(reference, "properties").items() if value is not None}
    interfaces.attach(records, nic, vm.id, bool(options.get("primary", first)))
    return {"id": nic.id, "properties": options} if options else {"id": nic.id}


def _update(azure: Azure, records: Records, vm: Resource, body: Json, *, whole: bool) -> tuple[Resource, Operation]:
    """PUT (whole) or PATCH on an existing VM. What a PUT leaves out stays too, but for tags."""
    power.check_free(records, vm, "Update Virtual Machine" if whole else "Patch Virtual Machine")
    properties = section(body, "properties")
    vm_request.check_unchanged(vm, body, properties)
    _check_interfaces_unchanged(vm, properties)
    _change_spot(vm, properties)
    resized = _change_size(records, vm, properties)
    vm.body["properties"].update(_echoed(properties))
    user_data = vm_request.user_data(properties)
    if user_data is not None:
        vm.private["user_data"] = user_data
    tags = preconditions.tags(body.get("tags"))
    if tags is not None or (whole and "tags" in vm.body):
        vm.body["tags"] = tags or {}
    identity = vm_request.identity(body, records.setting("tenant_id") or "")
    if identity and "identity" not in vm.body:
        vm.body["identity"] = identity
    arguments = {}
    if resized and power.phase(vm) == power.RUNNING:
        arguments["boot"] = azure.machines.power(vm.private["vm_id"]).boot
    return vm, power.begin(azure, records, vm, "vm.update", arguments)


def _check_interfaces_unchanged(vm: Resource, properties: Json) -> None:
    given = entries(section(properties, "networkProfile"), "networkInterfaces", "networkProfile")
    held = {n["id"].lower() for n in vm.body["properties"]["networkProfile"]["networkInterfaces"]}
    if given and {str(n.get("id")).lower() for n in given} != held:
        raise ArmError(
            501,
            "OperationNotEmulated",
            "The embedded Azure cannot change the network interfaces of a VM that exists.",
        )


def _change_spot(vm: Resource, properties: Json) -> None:
    held = vm.body["properties"]
    allocated = power.phase(vm) != power.DEALLOCATED
    wanted = vm_request.priority(properties)
    if wanted is not None and wanted != held.get("priority", "Regular"):
        if allocated or (held.get("priority"), wanted) != ("Low", "Spot"):
            raise vm_request.immutable("priority")
        held["priority"] = wanted
    policy = text(properties, "evictionPolicy")
    if policy is not None and not same(policy, held.get("evictionPolicy", "")):
        raise vm_request.immutable("evictionPolicy")
    price = vm_request.max_price(properties)
    if price is None or price == section(held, "billingProfile").get("maxPrice"):
        return
    if not market.is_spot(vm):
        raise ArmError(
            400,
            "MaxPriceCanBeSetOnlyOnAzureSpotVirtualMachines",
            "Max price can be set only on Azure Spot Virtual Machines.",
        )
    if allocated:
        raise ArmError(
            400,
            "MaxPriceChangeNotAllowedForAllocatedVMs",
            "Max price change is not allowed when the VM is currently allocated. Please deallocate and try again.",
        )
    held["billingProfile"] = {"maxPrice": price}


def _change_size(records: Records, vm: Resource, properties: Json) -> bool:
    if not section(properties, "hardwareProfile").get("vmSize"):
        return False
    size = vm_request.size(properties, vm.location)
    held = vm.body["properties"]["hardwareProfile"]
    if same(size.name, held["vmSize"]):
        return False
    if vm.private["generation"] not in size.generations.split(","):
        raise ArmError(400, "BadRequest", f"The selected VM size '{size.name}' cannot boot this VM's generation.")
    vm_request.check_availability(size, vm.location, vm.body.get("zones", []))
    if market.is_spot(vm):
        if not size.spot:
            raise ArmError(
                400,
                "AzureSpotIsNotSupportedForThisVMSize",
                f"Azure Spot Virtual Machine is not supported for this VM size {size.name}.",
            )
        highest = vm.body["properties"]["billingProfile"]["maxPrice"]
        market.check_price(records, size, vm.location, highest, "Update Virtual Machine")
    market.check_quota(records, size, vm.location, spot=market.is_spot(vm), known=vm)
    held["vmSize"] = size.name
    return True


# read


def get_vm(azure: Azure, request: Request, group: str, name: str) -> Answer:
    expand = request.query.get("$expand", "").lower()
    with azure.store.read() as records:
        vm = found(azure, records, request, group, name)
    body = vm_view.shown(azure, vm, view="instanceview" in expand, user_data="userdata" in expand)
    return Answer(200, body, {} if expand else {"ETag": body["etag"]})


def get_instance_view(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        vm = found(azure, records, request, group, name)
    return Answer(200, vm_view.instance_view(azure, vm))


def list_vms(azure: Azure, request: Request, group: str | None = None, location: str | None = None) -> Answer:
    with azure.store.read() as records:
        if group is not None:
            preconditions.readable_group(records, request.subscription, group)
        vms = records.resources(ids.VM, group)
    if location is not None:
        vms = [vm for vm in vms if same(vm.location, location)]
    if request.query.get("statusonly", "").lower() == "true":
        return Answer(200, {"value": [vm_view.statuses_only(azure, vm) for vm in vms]})
    view = "instanceview" in request.query.get("$expand", "").lower()
    return Answer(200, {"value": [vm_view.shown(azure, vm, view=view) for vm in vms]})


# actions


def _act(azure: Azure, request: Request, group: str, name: str, kind: str, arguments: Json | None = None) -> Answer:
    """Record a power operation on a VM that is free for it, and answer 202."""
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        vm = found(azure, records, request, group, name)
        power.check_free(records, vm, kind.removeprefix("vm."))
        given = dict(arguments or {})
        vm.private["phase_before"] = power.phase(vm)
        if kind in ("vm.restart", "vm.redeploy"):
            power.check_running(vm)
            given["boot"] = azure.machines.power(vm.private["vm_id"]).boot
        if kind == "vm.powerOff" and power.phase(vm) == power.DEALLOCATED:
            power.check_running(vm)
        if kind == "vm.start":
            _check_start(azure, records, vm)
            if power.phase(vm) == power.DEALLOCATED:
                given |= market.without_capacity(records, vm, azure.now())
            else:
                given["takes"] = "vm.start.warm"
        operation = power.begin(azure, records, vm, kind, given)
        answer = accepted(request, operation, vm, status=202, with_location=True)
    operations.advance(azure, operation.seq, patience=timing.PATIENCE_SECONDS)
    return answer


def _check_start(azure: Azure, records: Records, vm: Resource) -> None:
    """A deallocated VM holds its quota, so only the price may stand against its start."""
    if power.shown_phase(azure, vm) == power.DEALLOCATING:
        raise ArmError(
            409,
            "OperationNotAllowed",
            f"Operation 'start' is not allowed on VM '{vm.name}' since another operation is in progress.",
        )
    if market.is_spot(vm) and power.phase(vm) == power.DEALLOCATED:
        size = catalog.SIZES[vm.body["properties"]["hardwareProfile"]["vmSize"].lower()]
        highest = vm.body["properties"]["billingProfile"]["maxPrice"]
        market.check_price(records, size, vm.location, highest, "Start Virtual Machine")


def start(azure: Azure, request: Request, group: str, name: str) -> Answer:
    return _act(azure, request, group, name, "vm.start")


def restart(azure: Azure, request: Request, group: str, name: str) -> Answer:
    return _act(azure, request, group, name, "vm.restart")


def redeploy(azure: Azure, request: Request, group: str, name: str) -> Answer:
    return _act(azure, request, group, name, "vm.redeploy")


def reapply(azure: Azure, request: Request, group: str, name: str) -> Answer:
    return _act(azure, request, group, name, "vm.reapply")


def power_off(azure: Azure, request: Request, group: str, name: str) -> Answer:
    skip = request.query.get("skipshutdown", "").lower() == "true"
    return _act(azure, request, group, name, "vm.powerOff", {"skip_shutdown": skip})


def deallocate(azure: Azure, request: Request, group: str, name: str) -> Answer:
    if request.query.get("hibernate", "").lower() == "true":
        raise ArmError(501, "OperationNotEmulated", "The embedded Azure cannot hibernate (VirtualMachines_Deallocate).")
    return _act(azure, request, group, name, "vm.deallocate")


def delete_vm(azure: Azure, request: Request, group: str, name: str) -> Answer:
    """Deletion takes precedence over whatever goes on."""
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        vm = existing(records, request, group, name)
        if vm is None:
            return Answer(204)
        running = [o for o in records.open_operations(target=vm.key) if o.kind == "vm.delete"]
        for child in (vm, *records.children(vm.id)):
            for other in records.open_operations(target=child.key):
                if other.kind != "vm.delete":
                    operations.cancel(records, other, azure.now())
        given = {"takes": "vm.delete.deallocated"} if power.phase(vm) == power.DEALLOCATED else {}
        operation = running[0] if running else power.begin(azure, records, vm, "vm.delete", given)
        answer = accepted(request, operation, vm, status=202, with_location=True)
    operations.advance(azure, operation.seq, patience=timing.PATIENCE_SECONDS)
    return answer


def simulate_eviction(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        preconditions.writable_group(records, request.subscription, group)
        vm = found(azure, records, request, group, name)
        if not market.is_spot(vm):
            raise ArmError(
                409,
                "OperationNotAllowed",
                "Operation 'simulateEviction' is allowed only for Spot Virtual Machines",
            )
        power.check_free(records, vm, "simulateEviction")
        power.check_running(vm)
        notice = power.notice(records, vm)
    try:
        azure.machines.evict(vm.private["vm_id"], notice)
    except MachineError:  # it went off since it was looked at
        raise power.not_running() from None
    return Answer(204)


def get_operation(azure: Azure, request: Request, location: str, operation: str) -> Answer:
    current = operations.find(azure, operation)
    if request.query.get("monitor", "").lower() == "true":
        return operations.monitor(request, current)
    return operations.poll(current, brief=False)


_S = "/subscriptions/<subscription>"
_P = f"{_S}/resourcegroups/<group>/providers/microsoft.compute/virtualmachines"
_V = f"{_P}/<name>"
_L = f"{_S}/providers/microsoft.compute"
ROUTES = [
    Route("PUT", _V, "VirtualMachines_CreateOrUpdate", put_vm, "PutVM"),
    Route("PATCH", _V, "VirtualMachines_Update", patch_vm, "UpdateVM"),
    Route("GET", _V, "VirtualMachines_Get", get_vm, "LowCostGet"),
    Route("DELETE", _V, "VirtualMachines_Delete", delete_vm, "DeleteVM"),
    Route("GET", f"{_V}/instanceview", "VirtualMachines_InstanceView", get_instance_view, "LowCostGet"),
    Route("GET", _P, "VirtualMachines_List", list_vms, "HighCostGet"),
    Route("GET", f"{_L}/virtualmachines", "VirtualMachines_ListAll", list_vms, "HighCostGet"),
    Route(
        "GET",
        f"{_L}/locations/<location>/virtualmachines",
        "VirtualMachines_ListByLocation",
        list_vms,
        "HighCostGet",
    ),
    Route("POST", f"{_V}/start", "VirtualMachines_Start", start, "UpdateVM"),
    Route("POST", f"{_V}/restart", "VirtualMachines_Restart", restart, "UpdateVM"),
    Route("POST", f"{_V}/redeploy", "VirtualMachines_Redeploy", redeploy, "UpdateVM"),
    Route("POST", f"{_V}/reapply", "VirtualMachines_Reapply", reapply, "UpdateVM"),
    Route("POST", f"{_V}/poweroff", "VirtualMachines_PowerOff", power_off, "UpdateVM"),
    Route("POST", f"{_V}/deallocate", "VirtualMachines_Deallocate", deallocate, "DeleteVM"),
    Route("POST", f"{_V}/simulateeviction", "VirtualMachines_SimulateEviction", simulate_eviction, "DeleteVM"),
    Route(
        "GET",
        f"{_L}/locations/<location>/operations/<operation>",
        "ComputeOperations_Get",
        get_operation,
        "GetOperation",
    ),
]

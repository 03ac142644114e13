"""The power of VMs: what start, restart, powerOff, deallocate, eviction and deletion do, and what the
machines say.

The machine's power is the truth. What the store says is what was last asked for; `observe` brings it up to
date."""

import contextlib
from datetime import UTC

from cloudtrain.emulator import activity, disks, firewall, health, ids, interfaces, operations, principals, timing
from cloudtrain.emulator.machines import MachineError, MachineSpec, OffCause, Power
from cloudtrain.emulator.operations import Azure, Kind, Outcome
from cloudtrain.emulator.store import Json, Operation, Records, Resource
from cloudtrain.emulator.wire import ArmError, same

RUNNING, STOPPED, DEALLOCATED, STARTING, STOPPING, DEALLOCATING = (
    "running",
    "stopped",
    "deallocated",
    "starting",
    "stopping",
    "deallocating",
)
_PROVISIONING_WHILE = {"vm.create": "Creating", "vm.delete": "Deleting"}
_PHASE_WHILE = {"vm.start": STARTING, "vm.powerOff": STOPPING, "vm.deallocate": DEALLOCATING}
_PHASE_AFTER = {"vm.powerOff": STOPPED, "vm.deallocate": DEALLOCATED}


def vm_operations(records: Records, vm: Resource) -> list[Operation]:
    """What is going on with the VM itself; its commands are operations of their own."""
    return [operation for operation in records.open_operations(target=vm.key) if operation.kind.startswith("vm.")]


def check_free(records: Records, vm: Resource, action: str) -> None:
    if vm_operations(records, vm):
        raise ArmError(
            409,
            "OperationNotAllowed",
            f"Operation '{action}' is not allowed on VM '{vm.name}' since another operation is in progress.",
        )


def check_running(vm: Resource) -> None:
    if phase(vm) != RUNNING:
        raise not_running()


def not_running() -> ArmError:
    return ArmError(409, "OperationNotAllowed", "The operation requires the VM to be running (or set to run).")


def phase(vm: Resource) -> str:
    """running, stopped, ..., or "" while a VM has never been powered."""
    return str(vm.private["phase"])


def notice(records: Records, vm: Resource) -> float:
    """How many seconds before an eviction the VM is told."""
    return float(records.setting(f"notice:{vm.key}") or timing.DEFAULT_NOTICE_SECONDS)


def policy_is_delete(vm: Resource) -> bool:
    return same(str(vm.body["properties"].get("evictionPolicy", "")), "Delete")


def begin(azure: Azure, records: Records, vm: Resource, kind: str, arguments: Json | None = None) -> Operation:
    """Record an operation on a VM and show it as going on."""
    vm.private["provisioning"] = _PROVISIONING_WHILE.get(kind, "Updating")
    no_change = (kind, phase(vm)) in (
        ("vm.start", RUNNING),
        ("vm.deallocate", DEALLOCATED),
        ("vm.powerOff", STOPPED),
    )
    if kind in _PHASE_WHILE and not no_change:
        vm.private["phase"] = _PHASE_WHILE[kind]
    if not no_change:
        health.note_operation(vm, kind, azure.now())
        activity.note(vm, kind, azure.now())
    touch(azure, vm)
    records.put(vm)
    given = {"vm_id": vm.private["vm_id"], **(arguments or {})}
    return operations.begin(azure, records, kind, vm.key, given, lock=vm.seq)


def touch(azure: Azure, vm: Resource) -> None:
    """A new etag, a counter, and the time of the last change of state."""
    vm.private["etag"] = int(vm.private.get("etag", 0)) + 1
    vm.private["status_time"] = vm.changed = azure.now()


def machine_spec(records: Records, vm: Resource) -> MachineSpec:
    parsed = ids.parse(vm.id)
    assert parsed is not None
    properties = vm.body["properties"]
    return MachineSpec(
        vm_id=vm.private["vm_id"],
        name=vm.name,
        computer_name=properties["osProfile"]["computerName"],
        subscription_id=parsed.subscription,
        resource_group=parsed.group,
        location=vm.location,
        size=properties["hardwareProfile"]["vmSize"],
        priority=properties.get("priority", "Regular"),
        eviction_policy=properties.get("evictionPolicy", ""),
        identity_tokens=principals.tokens_of_vm(records, vm),
        admin_username=properties["osProfile"]["adminUsername"],
        ssh_public_keys=tuple(vm.private["ssh_keys"]),
        user_data=vm.private.get("user_data") or "",
        tags=vm.body.get("tags") or {},
        ssh_open=firewall.lets_in(records, vm),
    )


# the work on machines; each may be done twice


def _boot(azure: Azure, operation: Operation) -> None:
    with azure.store.read() as records:
        vm = records.resource(operation.target)
        spec = None if vm is None else machine_spec(records, vm)
    if vm is not None and spec is not None:
        # Only a VM that was stopped, not deallocated, is on the host where it was, with the temporary disk it had.
        stayed = operation.kind != "vm.create" and vm.private.get("phase_before") != DEALLOCATED
        azure.machines.boot(spec, same_host=stayed)
    if operation.arguments.get("evicted"):
        with contextlib.suppress(MachineError):  # cut already, by a process that was killed before it said so
            azure.machines.evict(operation.arguments["vm_id"], 0)


def _reboot(azure: Azure, operation: Operation) -> None:
    power = azure.machines.power(operation.arguments["vm_id"])
    if not power.on:  # a reboot that was cut off between its halves
        _boot(azure, operation)
    elif power.boot <= operation.arguments["boot"]:
        azure.machines.reboot(operation.arguments["vm_id"])


def _stop(azure: Azure, operation: Operation) -> None:
    if operation.arguments.get("skip_shutdown"):
        azure.machines.power_off(operation.arguments["vm_id"])
    else:
        azure.machines.shut_down(operation.arguments["vm_id"])


def _update(azure: Azure, operation: Operation) -> None:
    if "boot" in operation.arguments:  # a running VM changes its size by a reboot
        _reboot(azure, operation)


def _erase(azure: Azure, operation: Operation) -> None:
    azure.machines.erase(operation.arguments["vm_id"])


# how operations end


def _settle(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    vm = records.resource(operation.target)
    if vm is None:
        return
    vm.private["provisioning"] = "Succeeded" if outcome.error is None else "Failed"
    vm.private["failure"] = None if outcome.error is None else outcome.error["code"]
    if operation.kind in ("vm.create", "vm.start", "vm.restart", "vm.redeploy"):
        vm.private["phase"] = RUNNING if outcome.error is None else vm.private.get("phase_before", "")
    elif operation.kind in _PHASE_AFTER:
        after = _PHASE_AFTER[operation.kind] if outcome.error is None else vm.private["phase_before"]
        vm.private["phase"] = after
    if operation.kind in ("vm.create", "vm.deallocate"):
        vm.private["disk_time"] = azure.now()
    if operation.kind in ("vm.create", "vm.start", "vm.restart", "vm.redeploy"):
        vm.private["agent_time"] = azure.now()
    if operation.kind == "vm.create" and outcome.error is None:
        disks.shown_on_vm(records, vm)
    disks.follow(records, vm, allocated=vm.private["phase"] != DEALLOCATED)
    touch(azure, vm)
    records.put(vm)


def _settle_create(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    vm = records.resource(operation.target)
    if vm is not None and operation.arguments.get("evicted") and policy_is_delete(vm):
        _vanish(azure, records, vm)
    else:
        _settle(azure, records, operation, outcome)


def _outcome_of_create(azure: Azure, operation: Operation) -> Outcome | None:
    with azure.store.read() as records:
        vm = records.resource(operation.target)
    if vm is not None and operation.arguments.get("evicted") and policy_is_delete(vm):
        # Seen on Azure: such a VM is "Creating" for minutes, and then not there. How its operation ends is not known.
        return Outcome(error={"code": "NotFound", "message": "The entity was not found in this Azure location."})
    return Outcome(operation.result, operation.error)


def _vanish(azure: Azure, records: Records, vm: Resource) -> Operation:
    """An eviction has deleted the VM; the operation that erases its machine."""
    records.set_setting(f"ghost:{vm.key}", str(azure.now() + timing.GHOST_SECONDS))
    arguments = {"vm_id": vm.private["vm_id"]}
    erase = operations.begin(azure, records, "vm.evicted", vm.key, arguments, lock=vm.seq)
    remove(azure, records, vm, evicted=True)
    return erase


def _settle_delete(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    vm = records.resource(operation.target)
    if vm is None:
        return
    if outcome.error is not None:
        vm.private["provisioning"] = "Failed"
        records.put(vm)
        return
    remove(azure, records, vm, evicted=False)


def remove(azure: Azure, records: Records, vm: Resource, *, evicted: bool) -> None:
    """Take a VM out of the records, with what its delete options say; an eviction takes its OS disk in any
    case."""
    for child in records.children(vm.id):
        for operation in records.open_operations(target=child.key):
            operations.cancel(records, operation, azure.now())
        records.delete(child.id)
    # An orderly deletion gives its interfaces back itself (assumed: those who wrote down the refusal met it after a VM
    # that failed, or that Azure took).
    orderly = not evicted and vm.private.get("failure") is None
    reserved = None if orderly else {"vm": vm.id, "until": azure.now() + timing.NIC_RESERVED_SECONDS}
    for reference in vm.body["properties"]["networkProfile"]["networkInterfaces"]:
        nic = records.resource(reference["id"])
        if nic is not None:
            option = (reference.get("properties") or {}).get("deleteOption") or "Detach"
            interfaces.forget_with_vm(records, nic, delete=same(option, "Delete"), reserved=reserved)
    option = vm.body["properties"]["storageProfile"]["osDisk"]["deleteOption"]
    disks.forget_with_vm(records, vm, delete=evicted or same(option, "Delete"))
    records.drop_setting(f"notice:{vm.key}")
    records.delete(vm.id)


KINDS = {
    "vm.create": Kind(_boot, _outcome_of_create, _settle_create),
    "vm.update": Kind(_update, settle=_settle),
    "vm.reapply": Kind(settle=_settle),
    "vm.start": Kind(_boot, settle=_settle),
    "vm.restart": Kind(_reboot, settle=_settle),
    "vm.redeploy": Kind(_reboot, settle=_settle),
    "vm.powerOff": Kind(_stop, settle=_settle),
    "vm.deallocate": Kind(_stop, settle=_settle),
    "vm.delete": Kind(_erase, settle=_settle_delete),
    "vm.evicted": Kind(_erase),
}


# what the machines say


def observe(azure: Azure, group: str | None, name: str | None) -> None:
    """Bring the VMs of a group, one VM of it, or all of them, up to date with their machines."""
    with azure.store.read() as records:
        believed = [
            vm
            for vm in records.resources(ids.VM, group)
            if phase(vm) == RUNNING and (name is None or same(vm.name, name)) and not vm_operations(records, vm)
        ]
    for vm in believed:
        power = azure.machines.power(vm.private["vm_id"])
        if not power.on:
            _accept(azure, vm, power)


def _accept(azure: Azure, believed: Resource, power: Power) -> None:
    erase: Operation | None = None
    with azure.store.write() as records:
        vm = records.resource(believed.id)
        if vm is None or phase(vm) != RUNNING or vm_operations(records, vm):
            return
        if vm.private["etag"] != believed.private["etag"]:
            return  # it was worked on since the machine was asked
        if power.cause is OffCause.EVICTED and policy_is_delete(vm):
            erase = _vanish(azure, records, vm)
        else:
            _accept_off(azure, records, vm, power)
    if erase is not None:
        operations.advance(azure, erase.seq, patience=timing.PATIENCE_SECONDS)


def _accept_off(azure: Azure, records: Records, vm: Resource, power: Power) -> None:
    now = azure.now()
    since = now if power.since is None else power.since.astimezone(UTC).timestamp()
    takes = operations.latency(records).seconds("vm.evicted")
    # A guest that shuts itself down stays allocated, and billed; a lost host or an eviction deallocates.
    vm.private["phase"] = STOPPED if power.cause is OffCause.GUEST_SHUTDOWN else DEALLOCATED
    vm.private["off_cause"] = power.cause.value if power.cause is not None else ""
    health.note_off(vm, power.cause, since)
    touch(azure, vm)
    vm.private["status_time"] = vm.private["disk_time"] = min(since + takes, now)
    vm.private["deallocating_until"] = since + takes
    disks.follow(records, vm, allocated=vm.private["phase"] != DEALLOCATED)
    records.put(vm)


def shown_phase(azure: Azure, vm: Resource) -> str:
    """The phase as a client sees it: what Azure does by itself takes a moment too."""
    if phase(vm) == DEALLOCATED and azure.now() < float(vm.private.get("deallocating_until") or 0):
        return DEALLOCATING
    return phase(vm)


def is_ghost(azure: Azure, records: Records, vm_id: str) -> bool:
    """Whether an eviction deleted a VM of that id a moment ago."""
    until = records.setting(f"ghost:{vm_id.lower()}")
    return until is not None and azure.now() < float(until)

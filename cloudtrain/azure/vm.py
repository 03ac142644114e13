"""The Spot VM: made in one PUT with its NIC and public address, started, deallocated, evicted."""

import base64
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from cloudtrain.azure import images, names
from cloudtrain.azure.errors import in_conflict, is_missing, translated
from cloudtrain.azure.group import Group
from cloudtrain.azure.session import REPEATABLE, Session
from cloudtrain.azure.words import word
from cloudtrain.clock import Clock
from cloudtrain.recovery import Place
from cloudtrain.spec import RunSpec

ADMIN = "azureuser"
REGULAR = "Regular"
# The public IP inside the VM's PUT needs this version of the network API (azure-mgmt-compute's own enum).
NETWORK_API_VERSION = "2022-11-01"
# How long another operation on the same VM may hold ours up: a redeploy takes 2 minutes.
CONFLICT_SECONDS = 300.0


class PowerState(StrEnum):
    """Azure's own words. ABSENT: no power state is reported, as while a VM is being made."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DEALLOCATING = "deallocating"
    DEALLOCATED = "deallocated"
    ABSENT = "unknown"


@dataclass(frozen=True)
class Vm:
    name: str
    id: str
    location: str
    size: str
    provisioning: str  # Creating, Updating, Failed, Succeeded, Deleting, Migrating
    power: PowerState
    priority: str
    eviction_policy: str
    max_price: float
    zone: str = ""
    failure: str = ""  # why provisioning failed, in Azure's words
    principal: str = ""  # object id of its managed identity

    @property
    def place(self) -> Place:
        return Place(self.size, self.location, self.zone, spot=self.priority != REGULAR)

    @property
    def gone_wrong(self) -> bool:
        return self.provisioning == "Failed"


def find(session: Session, group: Group) -> Vm | None:
    """The VM of the run's current generation, None where there is none, or it is given up for the next one."""
    from azure.core.exceptions import HttpResponseError

    if group.given_up:
        return None
    with translated("reading the VM"):
        try:
            found = session.compute.virtual_machines.get(
                group.name, names.vm(group.run, group.generation), expand="instanceView"
            )
        except HttpResponseError as error:
            if is_missing(error):
                return None
            raise
    return _read(found)


def create(session: Session, group: Group, *, subnet_id: str, nsg_id: str) -> None:
    """PUT the VM and wait for it. Raises Refused when Azure will not have it.

    Returns also when Azure says that something is being done to the VM already: the connection broke over the first
    PUT, and the second one met what that had begun."""
    from azure.core.exceptions import HttpResponseError

    plan = images.plan(session, group.place.location, group.spec.vm_image)
    with translated("creating the Spot VM" if group.place.spot else "creating the VM on demand"):
        try:
            session.compute.virtual_machines.begin_create_or_update(
                group.name,
                names.vm(group.run, group.generation),
                _body(group, subnet_id, nsg_id, plan),
                polling=session.polling(),
            ).result()
        except HttpResponseError as error:
            if not in_conflict(error):
                raise


def start(session: Session, group: Group, clock: Clock) -> None:
    _operate(session, group, clock, "starting the VM", "begin_start", **REPEATABLE)


def restart(session: Session, group: Group, clock: Clock) -> None:
    _operate(session, group, clock, "rebooting the VM", "begin_restart")


def deallocate(session: Session, group: Group, clock: Clock) -> None:
    _operate(session, group, clock, "deallocating the VM", "begin_deallocate", **REPEATABLE)


def delete(session: Session, group: Group, clock: Clock) -> None:
    _operate(session, group, clock, "deleting the VM", "begin_delete")


def update(session: Session, group: Group, spec_changes: dict[str, Any]) -> None:
    """PATCH properties of the deallocated VM: its size or its maximum price."""
    with translated("changing the VM"):
        session.compute.virtual_machines.begin_update(
            group.name,
            names.vm(group.run, group.generation),
            {"properties": spec_changes},
            polling=session.polling(),
            **REPEATABLE,
        ).result()


def simulate_eviction(session: Session, group: Group) -> None:
    """Ask Azure to evict the VM; answers at once, the VM is gone half a minute to a minute later."""
    with translated("simulating the eviction"):
        session.compute.virtual_machines.simulate_eviction(group.name, names.vm(group.run, group.generation))


def _operate(session: Session, group: Group, clock: Clock, doing: str, method: str, **options: Any) -> None:
    """Run one operation, after whatever else holds the VM right now."""
    from azure.core.exceptions import HttpResponseError

    deadline = clock.now().timestamp() + CONFLICT_SECONDS
    with translated(doing):
        while True:
            try:
                call = getattr(session.compute.virtual_machines, method)
                call(group.name, names.vm(group.run, group.generation), polling=session.polling(), **options).result()
                return
            except HttpResponseError as error:
                if not in_conflict(error) or clock.now().timestamp() > deadline:
                    raise
            clock.sleep(session.capabilities.poll_seconds)


def _body(group: Group, subnet_id: str, nsg_id: str, plan: dict[str, str] | None) -> dict[str, Any]:
    spec, place = group.spec, group.place
    publisher, offer, sku, version = spec.vm_image.split(":")
    user_data = msgspec.json.encode({"run": spec.run, "generation": group.generation, "spec": spec})
    body: dict[str, Any] = {
        "location": place.location,
        "tags": {"cloudtrain-run": spec.run, "cloudtrain-generation": str(group.generation)},
        # Free, and nothing by itself: it can do what roles are assigned to it.
        "identity": {"type": "SystemAssigned"},
        "properties": {
            "hardwareProfile": {"vmSize": place.size},
            **_priority(spec, place),
            "storageProfile": {
                "imageReference": {"publisher": publisher, "offer": offer, "sku": sku, "version": version},
                "osDisk": {
                    "createOption": "FromImage",
                    "name": names.disk(group.run, group.generation),
                    "caching": "ReadWrite",
                    "diskSizeGB": spec.disk_gb,
                    "deleteOption": "Delete",
                    "managedDisk": {"storageAccountType": "StandardSSD_LRS"},
                },
            },
            "osProfile": _os_profile(group),
            "networkProfile": _network_profile(group, subnet_id, nsg_id),
            "userData": base64.b64encode(user_data).decode(),
        },
    }
    if place.zone:
        body["zones"] = [place.zone]
    if plan is not None:
        body["plan"] = plan
    return body


def _priority(spec: RunSpec, place: Place) -> dict[str, Any]:
    """Azure refuses an eviction policy and a maximum price on a VM that is not Spot."""
    if not place.spot:
        return {"priority": REGULAR}
    return {
        "priority": "Spot",
        "evictionPolicy": spec.eviction_policy,
        "billingProfile": {"maxPrice": spec.max_price},
    }


def _os_profile(group: Group) -> dict[str, Any]:
    keys = [{"path": f"/home/{ADMIN}/.ssh/authorized_keys", "keyData": group.spec.ssh_public_key}]
    return {
        "computerName": names.vm(group.run, group.generation),
        "adminUsername": ADMIN,
        "linuxConfiguration": {
            "disablePasswordAuthentication": True,
            "provisionVMAgent": True,
            "ssh": {"publicKeys": keys},
        },
    }


def _network_profile(group: Group, subnet_id: str, nsg_id: str) -> dict[str, Any]:
    # Without a public address a VM of a new network reaches nothing outside, and RunCommand needs port 443 out.
    address = {
        "name": names.public_ip(group.run, group.generation),
        "sku": {"name": "Standard", "tier": "Regional"},
        "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"},
    }
    ip = {
        "name": "ipconfig",
        "properties": {"primary": True, "subnet": {"id": subnet_id}, "publicIPAddressConfiguration": address},
    }
    nic = {
        "name": names.nic(group.run, group.generation),
        "properties": {
            "primary": True,
            "deleteOption": "Delete",
            "networkSecurityGroup": {"id": nsg_id},
            "ipConfigurations": [ip],
        },
    }
    return {"networkApiVersion": NETWORK_API_VERSION, "networkInterfaceConfigurations": [nic]}


def _read(found: Any) -> Vm:
    view = found.instance_view
    statuses = list(view.statuses or []) if view else []
    power = next((s.code.split("/")[1] for s in statuses if s.code.startswith("PowerState/")), None)
    failed = next((s for s in statuses if s.code.startswith("ProvisioningState/failed")), None)
    billing = found.billing_profile
    return Vm(
        name=found.name,
        id=found.id,
        location=found.location,
        size=word(found.hardware_profile.vm_size) if found.hardware_profile else "",
        provisioning=word(found.provisioning_state),
        power=PowerState(power) if power else PowerState.ABSENT,
        priority=word(found.priority) or REGULAR,
        eviction_policy=word(found.eviction_policy),
        max_price=billing.max_price if billing and billing.max_price is not None else -1.0,
        zone=next(iter(found.zones or []), ""),
        failure=(failed.message or failed.code) if failed else "",
        principal=str(found.identity.principal_id or "") if found.identity else "",
    )

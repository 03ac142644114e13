"""What earlier generations of a run's VM may have left in its group: found by name, removed one after the other."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from cloudtrain.azure import leftovers, names, shutdown
from cloudtrain.azure.errors import code_of, in_conflict, is_missing, translated
from cloudtrain.azure.group import Group
from cloudtrain.azure.session import Session
from cloudtrain.clock import Clock

# Azure keeps a NIC reserved for 180 s after its VM has gone; a minute or two more for whatever else is under way.
PATIENCE_SECONDS = 300.0
# In the order in which they let go of each other.
KINDS = (
    "virtualMachines",
    "networkInterfaces",
    "publicIPAddresses",
    "disks",
    "schedules",
    "virtualNetworks",
    "networkSecurityGroups",
)
_HELD = frozenset(
    {
        "NicReservedForAnotherVm",
        "NicInUse",
        "PublicIPAddressCannotBeDeleted",
        "InUseSubnetCannotBeDeleted",
        "InUseNetworkSecurityGroupCannotBeDeleted",
    }
)


def remove(session: Session, group: Group, clock: Clock) -> list[str]:
    """Delete what there is of the generations before the group's; returns the names. Gone already: nothing happens."""
    found = find(session, group)
    for id_ in sorted(found, key=lambda id_: KINDS.index(_kind(id_))):
        with translated(f"removing {_name(id_)}, which a former VM left"):
            _until_deleted(partial(_begin_delete, session, group, id_), session, clock)
    return [_name(id_) for id_ in found]


def find(session: Session, group: Group) -> list[str]:
    """Ids of what earlier generations left, and of the networks that they had in other locations."""
    there = [id_ for id_ in leftovers.in_group(session, group.name) if _kind(id_) in KINDS]
    return [id_ for id_ in there if 0 < _generation(group, id_) < group.generation or _is_former_network(group, id_)]


def _is_former_network(group: Group, id_: str) -> bool:
    ours = (names.vnet(group.run, group.elsewhere), names.nsg(group.run, group.elsewhere))
    return names.is_network_elsewhere(_name(id_), group.run) and _name(id_).lower() not in ours


def _kind(id_: str) -> str:
    kind = id_.split("/")[-2]
    return next((known for known in KINDS if known.lower() == kind.lower()), kind)


def _name(id_: str) -> str:
    return id_.rsplit("/", 1)[-1]


def _generation(group: Group, id_: str) -> int:
    """0 for what belongs to none. Azure may add a suffix to the name of what was made with a VM."""
    match = re.fullmatch(rf"(?:shutdown-computevm-)?{re.escape(group.run)}-g(\d+)(?:-.*)?", _name(id_), re.IGNORECASE)
    return int(match[1]) if match else 0


def _begin_delete(session: Session, group: Group, id_: str) -> Any:
    kind, polling = _kind(id_), session.polling()
    if kind == "schedules":
        return session.resources.resources.begin_delete_by_id(
            id_.lstrip("/"), api_version=shutdown.API_VERSION, polling=polling
        )
    operations = {
        "virtualMachines": lambda: session.compute.virtual_machines,
        "disks": lambda: session.compute.disks,
        "networkInterfaces": lambda: session.network.network_interfaces,
        "publicIPAddresses": lambda: session.network.public_ip_addresses,
        "virtualNetworks": lambda: session.network.virtual_networks,
        "networkSecurityGroups": lambda: session.network.network_security_groups,
    }[kind]()
    return operations.begin_delete(group.name, _name(id_), polling=polling)


def _until_deleted(begin: Callable[[], Any], session: Session, clock: Clock) -> None:
    from azure.core.exceptions import HttpResponseError

    deadline = clock.now().timestamp() + PATIENCE_SECONDS
    while True:
        try:
            begin().result()
            return
        except HttpResponseError as error:
            if is_missing(error):
                return
            if not (in_conflict(error) or code_of(error) in _HELD) or clock.now().timestamp() > deadline:
                raise
        clock.sleep(session.capabilities.poll_seconds)

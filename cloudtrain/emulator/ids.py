"""Azure's resource ids: made, taken apart, compared without case."""

import re
from dataclasses import dataclass

GROUP = "Microsoft.Resources/resourceGroups"
DEPLOYMENT = "Microsoft.Resources/deployments"
VM = "Microsoft.Compute/virtualMachines"
RUN_COMMAND = "Microsoft.Compute/virtualMachines/runCommands"
DISK = "Microsoft.Compute/disks"
VNET = "Microsoft.Network/virtualNetworks"
NSG = "Microsoft.Network/networkSecurityGroups"
PUBLIC_IP = "Microsoft.Network/publicIPAddresses"
NIC = "Microsoft.Network/networkInterfaces"
WATCHER = "Microsoft.Network/networkWatchers"
STORAGE_ACCOUNT = "Microsoft.Storage/storageAccounts"
ROLE_ASSIGNMENT = "Microsoft.Authorization/roleAssignments"

CONTAINER_NAME = r"[a-z0-9](?:-?[a-z0-9])*"
"""A blob container's name; it has 3 to 63 characters."""

_ID = re.compile(
    r"^/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)"
    r"(?:/providers/(?P<namespace>[^/]+)/(?P<rest>.+))?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ResourceId:
    subscription: str
    group: str
    type: str  # 'Microsoft.Network/virtualNetworks/subnets'; GROUP for a group
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[-1]


def parse(resource_id: str) -> ResourceId | None:
    """None when it is not the id of a resource group or of something in one."""
    match = _ID.match(resource_id)
    if match is None:
        return None
    if match["rest"] is None:
        return ResourceId(match["subscription"], match["group"], GROUP, (match["group"],))
    parts = match["rest"].split("/")
    if len(parts) % 2:
        return None
    type_ = "/".join((match["namespace"], *parts[0::2]))
    return ResourceId(match["subscription"], match["group"], type_, tuple(parts[1::2]))


def group_id(subscription: str, group: str) -> str:
    return f"/subscriptions/{subscription}/resourceGroups/{group}"


def resource_id(subscription: str, group: str, type_: str, *names: str) -> str:
    namespace, *kinds = type_.split("/")
    path = "/".join(part for pair in zip(kinds, names, strict=True) for part in pair)
    return f"{group_id(subscription, group)}/providers/{namespace}/{path}"

"""Built-in roles, and what their assignments let a principal do: with the data in blobs, and with resources.

Of the roles for resources there is Virtual Machine Contributor. The caller of the embedded Azure needs none: it owns
the subscription.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from cloudtrain.emulator import ids, operations
from cloudtrain.emulator.store import Records, Resource
from cloudtrain.emulator.wire import ArmError, same

# Built-in roles: learn.microsoft.com/azure/role-based-access-control/built-in-roles/storage. 'acl' is for the owner of
# the data alone (an assumption: the page of Set Container ACL names an action that only the owner's wildcard holds).
BLOB_RIGHTS: Mapping[str, frozenset[str]] = {
    "b7e6dc6d-f1e8-4753-8033-0f276bb0955b": frozenset({"read", "write", "delete", "delegate", "acl"}),  # Owner
    "ba92f5b4-2d11-453d-a403-e96b0029c9fe": frozenset({"read", "write", "delete", "delegate"}),  # Contributor
    "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1": frozenset({"read", "delegate"}),  # Reader
    "db58b8e5-c6ad-4a2a-8342-4190687cbf4a": frozenset({"delegate"}),  # Delegator
}
# .../built-in-roles/compute: those of the role's actions for which there is something here. It may read keys of
# storage accounts: assigned to a group, it opens every blob in it.
ACTIONS: Mapping[str, Sequence[str]] = {
    "9980e02c-c2be-4d73-94e8-173b1dc7cf3c": (  # Virtual Machine Contributor
        "Microsoft.Authorization/*/read",
        "Microsoft.Compute/disks/delete",
        "Microsoft.Compute/disks/read",
        "Microsoft.Compute/disks/write",
        "Microsoft.Compute/locations/*",
        "Microsoft.Compute/virtualMachines/*",
        "Microsoft.DevTestLab/schedules/*",
        "Microsoft.Network/locations/*",
        "Microsoft.Network/networkInterfaces/*",
        "Microsoft.Network/networkSecurityGroups/read",
        "Microsoft.Network/publicIPAddresses/read",
        "Microsoft.Network/virtualNetworks/read",
        "Microsoft.Resources/deployments/*",
        "Microsoft.Resources/subscriptions/resourceGroups/read",
        "Microsoft.Storage/storageAccounts/listKeys/action",
        "Microsoft.Storage/storageAccounts/read",
    ),
}
_VERBS = {"GET": "read", "HEAD": "read", "PUT": "write", "PATCH": "write", "DELETE": "delete"}


def emulated() -> list[str]:
    return [*BLOB_RIGHTS, *ACTIONS]


def may(records: Records, now: float, principal: str, scope: str, right: str) -> bool:
    """Whether a role of the principal, assigned at the scope or above and in effect, gives a data right on blobs."""
    return any(right in BLOB_RIGHTS.get(role, ()) for role in _held(records, now, principal, scope))


def check(records: Records, now: float, principal: str, method: str, path: str) -> None:
    """Whether a principal may make this request to Resource Manager. Raises ArmError."""
    action, scope = asked_for(method, path)
    for role in _held(records, now, principal, scope):
        if any(fnmatchcase(action.lower(), pattern.lower()) for pattern in ACTIONS.get(role, ())):
            return
    # A managed identity's application has another id than its object on Azure; here they are one.
    raise ArmError(
        403,
        "AuthorizationFailed",
        f"The client '{principal}' with object id '{principal}' does not have authorization to perform action "
        f"'{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, please refresh "
        "your credentials.",
        headers={"x-ms-failure-cause": "gateway"},
    )


def asked_for(method: str, path: str) -> tuple[str, str]:
    """The action that a request is, and the scope at which it needs it.

    An operation's URL is below the subscription, so that a role at the VM does not let its holder poll (reported for
    Azure: MicrosoftDocs/azure-docs issue 111535)."""
    trimmed = path.strip("/")
    *above, below = re.split(r"(?i)(?:^|/)providers/", trimmed)
    namespace, *parts = below.split("/") if above else ("Microsoft.Resources", *trimmed.split("/"))
    inside = len(parts) % 2  # a list, or a deed that its last word names
    verb = _VERBS.get(method, "action")
    scope = trimmed.rpartition("/")[0] if inside else trimmed
    return "/".join([namespace, *parts[0::2], verb]), f"/{scope}"


def _held(records: Records, now: float, principal: str, scope: str) -> list[str]:
    """The ids of the roles that have spread."""
    spreads = operations.latency(records).seconds("role.spread")
    return [
        _role(assignment)
        for assignment in _at_or_above(records, scope)
        if same(assignment.body["properties"]["principalId"], principal) and now >= assignment.created + spreads
    ]


def _at_or_above(records: Records, scope: str) -> Iterator[Resource]:
    """Found by their ids, which begin with their scopes: each request for a blob asks, and runs may be a thousand."""
    parts = scope.strip("/").split("/")
    for length in range(1, len(parts) + 1):
        yield from records.children(f"/{'/'.join(parts[:length])}/providers/{ids.ROLE_ASSIGNMENT}")


def _role(assignment: Resource) -> str:
    return str(assignment.body["properties"]["roleDefinitionId"]).rsplit("/", 1)[-1].lower()

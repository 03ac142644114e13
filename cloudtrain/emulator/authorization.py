"""Role assignments; what they let a principal do is in `roles`.

The caller of the embedded Azure may assign roles and, like the owner of a subscription on Azure, has no right on the
data in blobs that was not assigned.
"""

from typing import Any

from cloudtrain.emulator import ids, operations, preconditions, principals, roles
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Records, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, same, section, zulu

_KEPT = ("principalId", "principalType", "roleDefinitionId", "description", "condition", "conditionVersion")


def _assignment_id(scope: str, name: str) -> str:
    return f"/{scope}/providers/{ids.ROLE_ASSIGNMENT}/{name}"


def put(azure: Azure, request: Request, scope: str, name: str) -> Answer:
    given = section(request.object(), "properties")
    assignment_id = _assignment_id(scope, name)
    with azure.store.write() as records:
        _check_scope(records, request, scope)
        known = records.resource(assignment_id)
        properties = _properties(azure, records, given, scope)
        if known is not None:
            return _again(known, properties)
        _refuse_duplicate(records, properties)
        body: Json = {
            "properties": properties,
            "id": assignment_id,
            "type": ids.ROLE_ASSIGNMENT,
            "name": name,
        }
        now = azure.now()
        records.put(Resource(assignment_id, ids.ROLE_ASSIGNMENT, name, "", body, created=now, changed=now))
    operations.take(azure, "role.assign")
    return Answer(201, body)


def _check_scope(records: Records, request: Request, scope: str) -> None:
    """The subscription, or something in it that exists."""
    if same(scope, f"subscriptions/{request.subscription}"):
        return
    parsed = ids.parse(f"/{scope}")
    if parsed is None:
        raise ArmError(400, "InvalidScope", f"The scope '/{scope}' is not valid.")
    group = preconditions.readable_group(records, request.subscription, parsed.group)
    # A container is no resource of its own here; its account is.
    owner = f"/{scope}".lower().partition("/blobservices/")[0]
    if parsed.type != ids.GROUP and records.resource(owner) is None:
        raise preconditions.resource_not_found(parsed.type, "/".join(parsed.names), group.name)


def _properties(azure: Azure, records: Records, given: Json, scope: str) -> Json:
    principal, role = str(given.get("principalId") or ""), str(given.get("roleDefinitionId") or "")
    if role.rsplit("/", 1)[-1].lower() not in roles.emulated():
        raise ArmError(
            501,
            "OperationNotEmulated",
            "The embedded Azure has the Storage Blob Data roles and Virtual Machine Contributor "
            f"({', '.join(roles.emulated())}), not '{role}'.",
        )
    if not principals.known(records, principal):
        tenant = (records.setting("tenant_id") or "").replace("-", "")
        raise ArmError(
            400,
            "PrincipalNotFound",
            f"Principal {principal.replace('-', '')} does not exist in the directory {tenant}. Check that you have the "
            "correct principal ID. If you are creating this principal and then immediately assigning a role, this "
            "error might be related to a replication delay.",
        )
    caller, now = principals.caller(records), zulu(azure.now())
    return {
        **{key: given.get(key) for key in _KEPT},
        "principalType": given.get("principalType") or "User",
        "scope": f"/{scope}",
        "createdOn": now,
        "updatedOn": now,
        "createdBy": caller,
        "updatedBy": caller,
        "delegatedManagedIdentityResourceId": None,
    }


def _again(known: Resource, properties: Json) -> Answer:
    held = known.body["properties"]
    if any(not same(str(held[key]), str(properties[key])) for key in ("principalId", "roleDefinitionId")):
        raise ArmError(
            400,
            "RoleAssignmentUpdateNotPermitted",
            "Tenant ID, application ID, principal ID, and scope are not allowed to be updated.",
        )
    return Answer(200, known.body)


def _refuse_duplicate(records: Records, properties: Json) -> None:
    for other in records.resources(ids.ROLE_ASSIGNMENT, mentions=properties["principalId"]):
        held = other.body["properties"]
        if all(same(held[key], properties[key]) for key in ("principalId", "roleDefinitionId", "scope")):
            raise _exists(other)


def _exists(known: Resource) -> ArmError:
    return ArmError(
        409,
        "RoleAssignmentExists",
        f"The role assignment already exists. The ID of the existing role assignment is {known.name.replace('-', '')}.",
    )


def get(azure: Azure, request: Request, scope: str, name: str) -> Answer:
    with azure.store.read() as records:
        known = records.resource(_assignment_id(scope, name))
    if known is None:
        raise ArmError(404, "RoleAssignmentNotFound", f"The role assignment '{name}' is not found.")
    return Answer(200, known.body)


def delete(azure: Azure, request: Request, scope: str, name: str) -> Answer:
    with azure.store.write() as records:
        known = records.resource(_assignment_id(scope, name))
        if known is None:
            return Answer(204)
        records.delete(known.id)
    return Answer(200, known.body)


def list_at(azure: Azure, request: Request, scope: str) -> Answer:
    """Those at the scope and above, and, without atScope(), below it."""
    at_scope = "atscope()" in request.query.get("$filter", "").lower()
    here = f"/{scope}/".lower()
    with azure.store.read() as records:
        found = [assignment.body for assignment in records.resources(ids.ROLE_ASSIGNMENT)]

    def shown(body: dict[str, Any]) -> bool:
        there = body["properties"]["scope"].lower() + "/"
        return here.startswith(there) or (not at_scope and there.startswith(here))

    return Answer(200, {"value": [body for body in found if shown(body)]})


_A = "/<path:scope>/providers/microsoft.authorization/roleassignments"
ROUTES = [
    Route("PUT", f"{_A}/<name>", "RoleAssignments_Create", put),
    Route("GET", f"{_A}/<name>", "RoleAssignments_Get", get),
    Route("DELETE", f"{_A}/<name>", "RoleAssignments_Delete", delete),
    Route("GET", _A, "RoleAssignments_ListForScope", list_at),
]

"""Role assignments: what a managed identity, or whoever is logged in, may do with one resource."""

import uuid

from cloudtrain.azure.errors import code_of, is_missing, translated
from cloudtrain.azure.session import Session


def assign(session: Session, scope: str, role: str, principal: str, kind: str) -> bool:
    """Give a principal (kind 'User' or 'ServicePrincipal') a built-in role, by its id, on one resource; False where the
    caller may not assign roles.

    Raises Refused: PrincipalNotFound while Microsoft Entra does not know a new identity everywhere."""
    from azure.core.exceptions import HttpResponseError

    definition = f"/subscriptions/{session.subscription_id}/providers/Microsoft.Authorization/roleDefinitions/{role}"
    # The same assignment always has the same name, so that a second try finds it.
    name = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{scope}|{definition}|{principal}".lower()))
    properties = {"roleDefinitionId": definition, "principalId": principal, "principalType": kind}
    with translated("assigning a role"):
        try:
            session.authorization.role_assignments.create(scope, name, {"properties": properties})
        except HttpResponseError as error:
            if code_of(error) == "RoleAssignmentExists":
                return True
            if code_of(error) == "AuthorizationFailed":
                return False
            raise
    return True


def remove_below(session: Session, scope: str) -> None:
    """Delete every assignment on what lies in a resource group. On Azure assignments may outlive what they are for."""
    from azure.core.exceptions import HttpResponseError

    inside = f"{scope}/".lower()
    with translated("removing role assignments"):
        try:
            # Without a filter Azure lists those at the scope, above it and below it.
            for found in list(session.authorization.role_assignments.list_for_scope(scope)):
                if str(found.scope).lower().startswith(inside):
                    session.authorization.role_assignments.delete(found.scope, found.name)
        except HttpResponseError as error:
            if not is_missing(error):
                raise

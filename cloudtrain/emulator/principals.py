"""Who calls: the bearer tokens of the embedded tenant, and whom they stand for.

A token is for one audience, as Azure's: one for Resource Manager opens no blob.
"""

import hashlib
import hmac
import uuid

from cloudtrain.emulator import ids
from cloudtrain.emulator.store import Records, Resource
from cloudtrain.emulator.wire import same

STORAGE = "https://storage.azure.com"
MANAGEMENT = "https://management.azure.com"


def caller(records: Records) -> str:
    """The object id of whoever uses this embedded Azure."""
    return str(uuid.uuid5(uuid.UUID(records.setting("tenant_id") or ""), "caller"))


def token(records: Records, audience: str, principal: str) -> str:
    return f"{principal}.{_mac(records, audience, principal)}"


def holder(records: Records, audience: str, given: str) -> str | None:
    """The object id of the principal whose token it is; None for what is no token for that audience."""
    principal, _, mac = given.partition(".")
    return principal if hmac.compare_digest(mac.encode(), _mac(records, audience, principal).encode()) else None


def tokens_of_vm(records: Records, vm: Resource) -> dict[str, str]:
    """By audience; none for a VM without a managed identity."""
    principal = _of_vm(vm)
    return {audience: token(records, audience, principal) for audience in (STORAGE, MANAGEMENT) if principal}


def _of_vm(vm: Resource) -> str:
    return str((vm.body.get("identity") or {}).get("principalId") or "")


def known(records: Records, principal: str) -> bool:
    """The caller, or the managed identity of a VM."""
    return same(principal, caller(records)) or any(
        same(principal, _of_vm(vm)) for vm in records.resources(ids.VM, mentions=principal)
    )


def _mac(records: Records, audience: str, principal: str) -> str:
    key = (records.setting("token") or "").encode()
    return hmac.new(key, f"{audience}\n{principal}".encode(), hashlib.sha256).hexdigest()

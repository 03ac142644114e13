"""Storage accounts: made, shown, changed, deleted; their keys, their blob service and its containers.

Facts of Azure's answers: recordings of azure-cli's storage commands (2022 and later).
"""

import base64
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudtrain.clock import Clock
from cloudtrain.emulator import account_files, ids, network, operations, preconditions, principals, roles, sealing
from cloudtrain.emulator.blobs import containers
from cloudtrain.emulator.blobs.account import Account
from cloudtrain.emulator.blobs.call import DOMAIN
from cloudtrain.emulator.blobs.content import NoSuchAccount
from cloudtrain.emulator.blobs.errors import BlobError
from cloudtrain.emulator.blobs.index import Container, Index
from cloudtrain.emulator.operations import Azure, Kind, Outcome
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Operation, Records, Resource, Store
from cloudtrain.emulator.wire import Answer, ArmError, Request, bad_type, guid, same, section, text, zulu

NAMESPACE = "Microsoft.Storage"
_NAME = r"[a-z0-9]{3,24}"
_SKUS = frozenset({"Standard_LRS", "Standard_GRS", "Standard_RAGRS", "Standard_ZRS", "Premium_LRS"})
_KINDS = frozenset({"StorageV2", "Storage", "BlobStorage", "BlockBlobStorage"})
_SWITCHES = ("allowBlobPublicAccess", "allowSharedKeyAccess", "supportsHttpsTrafficOnly")
_TLS = frozenset({"TLS1_0", "TLS1_1", "TLS1_2", "TLS1_3"})
_NETWORK_RULES: Json = {"bypass": "AzureServices", "virtualNetworkRules": [], "ipRules": [], "defaultAction": "Allow"}


# requests


def _sku(body: Json, required: bool) -> str | None:
    name = text(section(body, "sku"), "name", "sku")
    if name is None and not required:
        return None
    found = next((sku for sku in _SKUS if name is not None and same(sku, name)), None)
    if found is None:
        raise ArmError(400, "InvalidValuesForRequestParameters", "Values for request parameters are invalid: sku.name.")
    return found


def _kind(body: Json) -> str:
    given = text(body, "kind")
    if given is None:
        raise ArmError(400, "InvalidRequestPropertyValue", "The value of 'kind' is required.")
    found = next((kind for kind in _KINDS if same(kind, given)), None)
    if found is None:
        raise ArmError(400, "InvalidValuesForRequestParameters", "Values for request parameters are invalid: kind.")
    return found


def _settings(body: Json) -> Json:
    """The properties that a caller may set, as sent."""
    given = section(body, "properties")
    kept: Json = {}
    for key in _SWITCHES:
        if given.get(key) is not None:
            if not isinstance(given[key], bool):
                raise bad_type(f"properties.{key}", given[key], "boolean")
            kept[key] = given[key]
    for key, allowed in (("minimumTlsVersion", _TLS), ("accessTier", frozenset({"Hot", "Cool", "Cold"}))):
        value = text(given, key, "properties")
        if value is not None:
            if value not in allowed:
                raise ArmError(
                    400, "InvalidValuesForRequestParameters", f"Values for request parameters are invalid: {key}."
                )
            kept[key] = value
    if given.get("networkAcls") is not None:
        kept["networkAcls"] = {**_NETWORK_RULES, **section(given, "networkAcls")}
    return kept


def _check_name(name: str) -> None:
    if not re.fullmatch(_NAME, name):
        raise ArmError(400, "AccountNameInvalid", _invalid_name(name))


def _invalid_name(name: str) -> str:
    return (
        f"{name} is not a valid storage account name. Storage account name must be between 3 and 24 characters in "
        "length and use numbers and lower-case letters only."
    )


def _taken(name: str) -> str:
    return f"The storage account named {name} is already taken."


def _named(records: Records, name: str) -> Resource | None:
    """The account of that name in whatever group: names are unique in all of Azure."""
    return next(iter(records.resources(ids.STORAGE_ACCOUNT, name=name)), None)


# accounts


def put_account(azure: Azure, request: Request, group: str, name: str) -> Answer:
    body = request.object()
    with azure.store.write() as records:
        home = preconditions.writable_group(records, request.subscription, group)
        preconditions.registered(records, NAMESPACE)
        location = preconditions.location(body, ids.STORAGE_ACCOUNT)
        _check_name(name)
        sku, kind, settings = _sku(body, required=True), _kind(body), _settings(body)
        known = network.existing(records, request, ids.STORAGE_ACCOUNT, group, name)
        preconditions.same_location(known, location, home.name)
        if known is not None:
            return _changed(azure, records, request, known, {**settings, "sku": sku})
        if _named(records, name) is not None:
            raise ArmError(409, "StorageAccountAlreadyTaken", _taken(name))
        account = _new(azure, request, home, name, location)
        account.body |= {"sku": {"name": sku, "tier": str(sku).split("_")[0]}, "kind": kind}
        account.body["tags"] = preconditions.tags(body.get("tags")) or {}
        account.body["properties"] |= settings
        records.put(account)
        operation = operations.begin(azure, records, "storage.create", account.key)
    return Answer(202, None, _location(request, location, operation))


def _new(azure: Azure, request: Request, group: Resource, name: str, location: str) -> Resource:
    account_id = ids.resource_id(request.subscription, group.name, ids.STORAGE_ACCOUNT, name)
    now = zulu(azure.now())
    encrypted = {"keyType": "Account", "enabled": True, "lastEnabledTime": now}
    properties: Json = {
        "keyCreationTime": {"key1": now, "key2": now},
        "privateEndpointConnections": [],
        "minimumTlsVersion": "TLS1_0",  # what Azure still gives to who names none
        "allowBlobPublicAccess": False,
        "networkAcls": dict(_NETWORK_RULES),
        "supportsHttpsTrafficOnly": True,
        "encryption": {"services": {"file": encrypted, "blob": encrypted}, "keySource": "Microsoft.Storage"},
        "accessTier": "Hot",
        "provisioningState": "Creating",
        "creationTime": now,
        "primaryEndpoints": {"blob": f"https://{name}{DOMAIN}/"},
        "primaryLocation": location,
        "statusOfPrimary": "available",
    }
    body: Json = {
        "id": account_id,
        "name": name,
        "type": ids.STORAGE_ACCOUNT,
        "location": location,
        "properties": properties,
    }
    made = azure.now()
    private = {"directory": guid(), "secrets": _sealed(azure, _new_secrets())}
    return Resource(account_id, ids.STORAGE_ACCOUNT, name, location, body, private, created=made, changed=made)


def _location(request: Request, location: str, operation: Operation) -> dict[str, str]:
    root = f"{request.base}/subscriptions/{request.subscription}/providers/{NAMESPACE}/locations/{location}"
    url = f"{root}/asyncoperations/{operation.id}?monitor=true&api-version={request.api_version}"
    return {"Location": url, **operations.polling_headers(operation)}


def get_operation(azure: Azure, request: Request, location: str, operation: str) -> Answer:
    """The end is the whole account and not a status: azure-mgmt-storage asks for nothing after it."""
    current = operations.find(azure, operation)
    if current.open:
        return Answer(202, None, _location(request, location, current))
    if current.error is not None:
        return Answer(409, {"error": current.error})
    with azure.store.read() as records:
        account = records.resource(current.target)
    azure.store.flush()  # from now on it may hold what must not be lost with it
    if account is None:
        raise ArmError(404, "ResourceNotFound", "The storage account was deleted while it was being created.")
    return Answer(200, account.body)


def _settle_create(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    account = records.resource(operation.target)
    if account is not None:
        account_files.make(azure, account)
        state = "Succeeded" if outcome.error is None else "Failed"
        account.body["properties"]["provisioningState"] = state
        records.put(account)


KINDS = {"storage.create": Kind(settle=_settle_create)}


def _changed(azure: Azure, records: Records, request: Request, account: Resource, settings: Json) -> Answer:
    if records.open_operations(target=account.key):
        raise ArmError(
            409,
            "StorageAccountOperationInProgress",
            "An operation is currently performing on this storage account that requires exclusive access.",
        )
    sku = settings.pop("sku", None)
    if sku:
        account.body["sku"] = {"name": sku, "tier": sku.split("_")[0]}
    account.body["properties"] |= settings
    tags = preconditions.tags(request.object().get("tags"))
    if tags is not None:
        account.body["tags"] = tags
    account.changed = azure.now()
    records.put(account)
    return Answer(200, account.body)


def patch_account(azure: Azure, request: Request, group: str, name: str) -> Answer:
    body = request.object()
    settings = {**_settings(body), "sku": _sku(body, required=False)}
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        account = network.found(records, request, ids.STORAGE_ACCOUNT, group, name)
        return _changed(azure, records, request, account, settings)


def get_account(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        return Answer(200, network.found(records, request, ids.STORAGE_ACCOUNT, group, name).body)


def list_accounts(azure: Azure, request: Request, group: str | None = None) -> Answer:
    with azure.store.read() as records:
        if group is not None:
            preconditions.readable_group(records, request.subscription, group)
        return Answer(200, {"value": [a.body for a in records.resources(ids.STORAGE_ACCOUNT, group)]})


def delete_account(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        account = network.existing(records, request, ids.STORAGE_ACCOUNT, group, name)
        if account is not None:
            _forget(azure, records, account)
    account_files.sweep(azure)
    if account is None:
        return Answer(204)
    operations.take(azure, "storage.delete")
    return Answer(200)


def _forget(azure: Azure, records: Records, account: Resource) -> None:
    for child in records.children(account.id):
        records.delete(child.id)
    for other in records.open_operations(target=account.key):
        operations.cancel(records, other, azure.now())
    records.delete(account.id)


def check_name(azure: Azure, request: Request) -> Answer:
    body = request.object()
    name = text(body, "name") or ""
    if not same(text(body, "type") or "", ids.STORAGE_ACCOUNT):
        raise ArmError(400, "InvalidRequestPropertyValue", f"The type has to be '{ids.STORAGE_ACCOUNT}'.")
    if not re.fullmatch(_NAME, name):
        refusal = {"nameAvailable": False, "reason": "AccountNameInvalid", "message": _invalid_name(name)}
        return Answer(200, refusal)
    with azure.store.read() as records:
        taken = _named(records, name) is not None
    if taken:
        return Answer(200, {"nameAvailable": False, "reason": "AlreadyExists", "message": _taken(name)})
    return Answer(200, {"nameAvailable": True})


# keys


def _new_secrets() -> Json:
    made = {name: base64.b64encode(secrets.token_bytes(64)).decode() for name in ("key1", "key2")}
    return {**made, "delegation": secrets.token_hex(32)}


def _sealed(azure: Azure, content: Json) -> str:
    return sealing.seal(azure.secrets, content).decode()


def _secrets(key: Path, account: Resource) -> Json:
    return sealing.unseal(key, account.private["secrets"].encode())


def list_keys(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        account = network.found(records, request, ids.STORAGE_ACCOUNT, group, name)
    return Answer(200, _keys(azure, account))


def _keys(azure: Azure, account: Resource) -> Json:
    held, times = _secrets(azure.secrets, account), account.body["properties"]["keyCreationTime"]
    shown = [
        {"creationTime": times[key], "keyName": key, "value": held[key], "permissions": "FULL"}
        for key in ("key1", "key2")
    ]
    return {"keys": shown}


def regenerate_key(azure: Azure, request: Request, group: str, name: str) -> Answer:
    key = text(request.object(), "keyName") or ""
    if key not in ("key1", "key2"):
        raise ArmError(400, "InvalidValuesForRequestParameters", "Values for request parameters are invalid: keyName.")
    with azure.store.write() as records:
        account = network.found(records, request, ids.STORAGE_ACCOUNT, group, name)
        account.private["secrets"] = _sealed(azure, {**_secrets(azure.secrets, account), key: _new_secrets()[key]})
        account.body["properties"]["keyCreationTime"][key] = zulu(azure.now())
        records.put(account)
    return Answer(200, _keys(azure, account))


def revoke_delegation_keys(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        account = network.found(records, request, ids.STORAGE_ACCOUNT, group, name)
        made = {"delegation": secrets.token_hex(32)}
        account.private["secrets"] = _sealed(azure, {**_secrets(azure.secrets, account), **made})
        records.put(account)
    return Answer(200)


# the blob service and its containers


@dataclass
class Accounts:
    """The storage accounts as the blob service sees them. Unsealed secrets are kept: unsealing costs more than a
    request."""

    store: Store
    clock: Clock
    key: Path  # opens their secrets
    _unsealed: dict[str, Json] = field(default_factory=dict)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def account(self, name: str) -> Account | None:
        """None while there is no such account, or its creation has not ended."""
        with self.store.read() as records:
            found = _named(records, name)
            tenant = records.setting("tenant_id") or ""
        if found is None or found.body["properties"]["provisioningState"] != "Succeeded":
            return None
        held, properties = self._secrets(found), found.body["properties"]
        return Account(
            name=found.name,
            directory=found.private["directory"],
            keys=tuple(base64.b64decode(held[key]) for key in ("key1", "key2")),
            delegation_secret=held["delegation"].encode(),
            tenant=tenant,
            shared_key=properties.get("allowSharedKeyAccess") is not False,
            https_only=properties["supportsHttpsTrafficOnly"],
            public_access=properties["allowBlobPublicAccess"],
            open_network=properties["networkAcls"]["defaultAction"] == "Allow",
            principal=self._principal,
            may=lambda principal, container, right: self._may(found.id, principal, container, right),
        )

    def _secrets(self, account: Resource) -> Json:
        sealed = account.private["secrets"]
        with self._mutex:
            if sealed not in self._unsealed:
                self._unsealed[sealed] = _secrets(self.key, account)
            return self._unsealed[sealed]

    def _principal(self, token: str) -> str | None:
        with self.store.read() as records:
            return principals.holder(records, principals.STORAGE, token)

    def _may(self, account_id: str, principal: str, container: str, right: str) -> bool:
        scope = f"{account_id}/blobServices/default/containers/{container}" if container else account_id
        with self.store.read() as records:
            return roles.may(records, self.clock.now().timestamp(), principal, scope, right)


@contextmanager
def _opened(azure: Azure, request: Request, group: str, name: str) -> Iterator[tuple[Resource, Index]]:
    with azure.store.read() as records:
        account = network.found(records, request, ids.STORAGE_ACCOUNT, group, name)
    if account.body["properties"]["provisioningState"] != "Succeeded":
        raise _not_there(name)
    try:
        with closing(Index(azure.blobs / account.private["directory"], azure.now())) as index:
            yield account, index
    except NoSuchAccount:  # it is being deleted
        raise _not_there(name) from None


def _not_there(name: str) -> ArmError:
    return ArmError(404, "StorageAccountNotFound", f"The storage account {name} was not found.")


def _container_id(account: Resource, container: str) -> str:
    return f"{account.id}/blobServices/default/containers/{container}"


def _shape(account: Resource, container: Container, now: float) -> Json:
    held = container.lease.headers(now)
    properties: Json = {
        "deleted": False,
        "remainingRetentionDays": 0,
        "defaultEncryptionScope": "$account-encryption-key",
        "denyEncryptionScopeOverride": False,
        "publicAccess": "None",
        "leaseStatus": held["x-ms-lease-status"].capitalize(),
        "leaseState": held["x-ms-lease-state"].capitalize(),
        "lastModifiedTime": zulu(container.modified),
        "hasImmutabilityPolicy": False,
        "hasLegalHold": False,
    }
    if container.metadata:
        properties["metadata"] = container.metadata
    return {**_brief(account, container.name), "etag": f'"{container.etag}"', "properties": properties}


def _brief(account: Resource, container: str) -> Json:
    return {"id": _container_id(account, container), "name": container, "type": f"{ids.STORAGE_ACCOUNT}/{_CONTAINERS}"}


_CONTAINERS = "blobServices/containers"


def _metadata(properties: Json) -> dict[str, str]:
    given: Mapping[str, Any] = section(properties, "metadata")
    return {name: str(value) for name, value in given.items()}


def put_container(azure: Azure, request: Request, group: str, name: str, container: str) -> Answer:
    properties = section(request.object(), "properties")
    if properties.get("publicAccess") not in (None, "None"):
        raise ArmError(409, "PublicAccessNotPermitted", "Public access is not permitted on this storage account.")
    try:
        containers.check_name(container)
    except BlobError as refusal:
        raise ArmError(refusal.status, refusal.code, refusal.message) from None
    with azure.store.read() as records:
        preconditions.writable_group(records, request.subscription, group)
    with _opened(azure, request, group, name) as (account, index):
        made = containers.make(index, container, _metadata(properties), azure.now())
        with index.read() as rows:
            kept = rows.container(container)
    headers = {"ETag": f'"{kept.etag}"'} if kept else {}
    return Answer(201 if made else 200, _brief(account, container), headers)


def get_container(azure: Azure, request: Request, group: str, name: str, container: str) -> Answer:
    with _opened(azure, request, group, name) as (account, index), index.read() as rows:
        found = rows.container(container)
    if found is None:
        raise ArmError(404, "ContainerNotFound", f"The specified container does not exist.\nRequestId:{guid()}")
    return Answer(200, _shape(account, found, azure.now()), {"ETag": f'"{found.etag}"'})


def list_containers(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with _opened(azure, request, group, name) as (account, index), index.read() as rows:
        found = rows.containers()
    return Answer(200, {"value": [_shape(account, container, azure.now()) for container in found]})


def delete_container(azure: Azure, request: Request, group: str, name: str, container: str) -> Answer:
    with azure.store.read() as records:
        preconditions.writable_group(records, request.subscription, group)
    with _opened(azure, request, group, name) as (_, index):
        with index.read() as rows:
            found = rows.container(container)
        if found is None:
            return Answer(204)
        if found.lease.held(azure.now()):
            raise ArmError(409, "LeaseIdMissing", "There is currently a lease on the container.")
        containers.remove(index, container)
    return Answer(200)


def _service(account: Resource) -> Json:
    return {
        "sku": account.body["sku"],
        "id": f"{account.id}/blobServices/default",
        "name": "default",
        "type": f"{ids.STORAGE_ACCOUNT}/blobServices",
        "properties": {
            "cors": {"corsRules": []},
            "deleteRetentionPolicy": {"allowPermanentDelete": False, "enabled": False},
        },
    }


def get_service(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        return Answer(200, _service(network.found(records, request, ids.STORAGE_ACCOUNT, group, name)))


def list_services(azure: Azure, request: Request, group: str, name: str) -> Answer:
    return Answer(200, {"value": [get_service(azure, request, group, name).body]})


_S = "/subscriptions/<subscription>"
_P = f"{_S}/resourcegroups/<group>/providers/microsoft.storage/storageaccounts"
_A = f"{_P}/<name>"
_B = f"{_A}/blobservices/default"
_N = f"{_S}/providers/microsoft.storage"
ROUTES = [
    Route("PUT", _A, "StorageAccounts_Create", put_account),
    Route("GET", _A, "StorageAccounts_GetProperties", get_account),
    Route("PATCH", _A, "StorageAccounts_Update", patch_account),
    Route("DELETE", _A, "StorageAccounts_Delete", delete_account),
    Route("GET", _P, "StorageAccounts_ListByResourceGroup", list_accounts),
    Route("GET", f"{_N}/storageaccounts", "StorageAccounts_List", list_accounts),
    Route("POST", f"{_N}/checknameavailability", "StorageAccounts_CheckNameAvailability", check_name),
    Route("GET", f"{_N}/locations/<location>/asyncoperations/<operation>", "StorageOperations_Get", get_operation),
    Route("POST", f"{_A}/listkeys", "StorageAccounts_ListKeys", list_keys),
    Route("POST", f"{_A}/regeneratekey", "StorageAccounts_RegenerateKey", regenerate_key),
    Route(
        "POST",
        f"{_A}/revokeuserdelegationkeys",
        "StorageAccounts_RevokeUserDelegationKeys",
        revoke_delegation_keys,
    ),
    Route("GET", f"{_A}/blobservices", "BlobServices_List", list_services),
    Route("GET", _B, "BlobServices_GetServiceProperties", get_service),
    Route("PUT", f"{_B}/containers/<container>", "BlobContainers_Create", put_container),
    Route("GET", f"{_B}/containers/<container>", "BlobContainers_Get", get_container),
    Route("DELETE", f"{_B}/containers/<container>", "BlobContainers_Delete", delete_container),
    Route("GET", f"{_B}/containers", "BlobContainers_List", list_containers),
]

"""The run's storage account and its one private container, and who may reach it: the VM by a signature of limited life,
this side by its login's role or, where that has none, by the account's key.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from cloudtrain.azure import names, roles
from cloudtrain.azure.errors import code_of, is_missing, message_of, translated
from cloudtrain.azure.group import TAG_RUN, Group
from cloudtrain.azure.session import Session
from cloudtrain.azure.words import word
from cloudtrain.clock import Clock
from cloudtrain.errors import CloudtrainError, Exit, Refused

CONTAINER = "run"
# Read, add, create, write, delete, list: what the uploader on the VM does, and a new VM that goes on from the blobs.
VM_RIGHTS = "racwdl"
POLICY = "vm"
# Azure's limit for what a user delegation key signs.
LONGEST_DELEGATION = timedelta(days=7)
# Built-in role: Storage Blob Data Contributor.
DATA_ROLE = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
_NAMES_TRIED = 5
# Azure takes 17 to 20 s.
_CREATE_SECONDS = 600.0
_CHANGE_SECONDS = 120.0
_NO_RIGHT = frozenset({"AuthorizationPermissionMismatch", "AuthorizationFailure", "AuthorizationFailed"})
_NO_KEYS = "KeyBasedAuthenticationNotPermitted"


@dataclass(frozen=True)
class Storage:
    """endpoint: of its blobs, `https://name.blob.core.windows.net/`. shared_key: whether its account keys open it."""

    account: str
    id: str
    group: str
    endpoint: str
    shared_key: bool


class AccessKind(StrEnum):
    """How the VM is let in. A delegated signature ends with the caller's role; a policy's when `down` removes it."""

    DELEGATION = "user delegation"
    POLICY = "stored access policy"


@dataclass(frozen=True)
class VmAccess:
    """signature: a secret; it reaches the VM only as a protected parameter."""

    kind: AccessKind
    expires: datetime
    container_url: str
    signature: str = field(repr=False)


# the account


def find(session: Session, group: Group) -> Storage | None:
    """The run's account; None where the group has none that is ours and ready."""
    ready = [account for account in _ours(session, group) if word(account.provisioning_state) == "Succeeded"]
    return _storage(ready[0], group.name) if ready else None


def _ours(session: Session, group: Group) -> list[Any]:
    from azure.core.exceptions import HttpResponseError

    with translated("looking for the storage account"):
        try:
            found = list(session.storage.storage_accounts.list_by_resource_group(group.name))
        except HttpResponseError as error:
            if is_missing(error):
                return []
            raise
    return [account for account in found if (account.tags or {}).get(TAG_RUN) == group.run]


def create(session: Session, group: Group, clock: Clock) -> Storage:
    """The account and its container: private, TLS only, closed to account keys. Made already: as it is."""
    storage = _begun_before(session, group, clock) or _create_account(session, group)
    with translated("creating the blob container"):
        session.storage.blob_containers.create(group.name, storage.account, CONTAINER, {})
    return storage


def _begun_before(session: Session, group: Group, clock: Clock) -> Storage | None:
    """The account, waited for where a command that was interrupted has begun it."""
    deadline = clock.now() + timedelta(seconds=_CREATE_SECONDS)
    while (storage := find(session, group)) is None and _ours(session, group):
        if clock.now() > deadline:
            raise CloudtrainError(
                "StorageNotReady",
                f"The storage account of run '{group.run}' has not been ready for {_CREATE_SECONDS / 60:.0f} minutes.",
                "Run the same command again later.",
                Exit.UNREACHABLE,
            )
        clock.sleep(session.capabilities.poll_seconds)
    return storage


def _create_account(session: Session, group: Group) -> Storage:
    body = {
        "location": group.location,
        "kind": "StorageV2",
        "sku": {"name": "Standard_LRS"},
        "tags": {TAG_RUN: group.run},
        "properties": {
            "minimumTlsVersion": "TLS1_2",
            "supportsHttpsTrafficOnly": True,
            "allowBlobPublicAccess": False,
            "allowSharedKeyAccess": False,
        },
    }
    name = _free_name(session, group)
    with translated("creating the storage account"):
        made = session.storage.storage_accounts.begin_create(group.name, name, body).result()
    return _storage(made, group.name)


def _free_name(session: Session, group: Group) -> str:
    """Names are shared by all of Azure: the run's first one that nobody has. Raises Refused."""
    message = ""
    for attempt in range(_NAMES_TRIED):
        name = names.storage_account(group.run, group.id, attempt)
        with translated("choosing a name for the storage account"):
            answer = session.storage.storage_accounts.check_name_availability(
                {"name": name, "type": "Microsoft.Storage/storageAccounts"}
            )
        if answer.name_available:
            return name
        message = str(answer.message)
    raise Refused("StorageAccountAlreadyTaken", f"No name for a storage account is free: {message}")


def _storage(account: Any, group: str) -> Storage:
    return Storage(
        account=str(account.name),
        id=str(account.id),
        group=group,
        endpoint=str(account.primary_endpoints.blob),
        # Azure leaves it out where nobody said it: then keys are allowed.
        shared_key=account.allow_shared_key_access is not False,
    )


# roles


def assign_data_role(session: Session, storage: Storage, principal: str, kind: str) -> bool:
    """Let a principal (kind 'User' or 'ServicePrincipal') read and write the blobs; False where the caller may not
    assign roles. It takes up to ten minutes until the blobs know it."""
    return roles.assign(session, storage.id, DATA_ROLE, principal, kind)


# the VM


def vm_access(session: Session, storage: Storage, lifetime: timedelta, clock: Clock) -> VmAccess:
    """A signature for the container, of at most that life: by the caller's own role where it has one on the blobs,
    else by an account key, behind a policy that `revoke` takes back."""
    delegated = delegation(session, storage, lifetime, clock)
    return delegated or _behind_policy(session, storage, lifetime, clock)


def delegation(session: Session, storage: Storage, lifetime: timedelta, clock: Clock) -> VmAccess | None:
    """A signature by the caller's own role, for seven days at most; None where its login has none on the blobs."""
    from azure.core.exceptions import HttpResponseError
    from azure.storage.blob import generate_container_sas

    now = clock.now()
    # A start a little ago: clocks differ. Azure counts the seven days from now.
    start, expires = now - timedelta(minutes=15), now + min(lifetime, LONGEST_DELEGATION) - timedelta(minutes=1)
    with translated_blobs("asking for a user delegation key"):
        try:
            key = session.blob_service(storage.endpoint).get_user_delegation_key(start, expires)
        except HttpResponseError as error:
            if blob_code_of(error) in _NO_RIGHT:
                return None
            raise
    signature = generate_container_sas(
        storage.account, CONTAINER, user_delegation_key=key, permission=VM_RIGHTS, expiry=expires, protocol="https"
    )
    return VmAccess(AccessKind.DELEGATION, expires, storage.endpoint + CONTAINER, signature)


def _behind_policy(session: Session, storage: Storage, lifetime: timedelta, clock: Clock) -> VmAccess:
    from azure.storage.blob import AccessPolicy, generate_container_sas

    storage = _allow_keys(session, storage)
    key = _account_key(session, storage)
    expires = clock.now() + lifetime
    container = _keyed(session, storage, key).get_container_client(CONTAINER)

    def set_policy() -> None:
        # Whatever else was let in before ends with this.
        container.set_container_access_policy({POLICY: AccessPolicy(permission=VM_RIGHTS, expiry=expires)})

    _until_keys_open(set_policy, clock)
    signature = generate_container_sas(storage.account, CONTAINER, account_key=key, policy_id=POLICY, protocol="https")
    return VmAccess(AccessKind.POLICY, expires, storage.endpoint + CONTAINER, signature)


def _allow_keys(session: Session, storage: Storage) -> Storage:
    if storage.shared_key:
        return storage
    with translated("allowing account keys on the storage account"):
        changed = session.storage.storage_accounts.update(
            storage.group, storage.account, {"properties": {"allowSharedKeyAccess": True}}
        )
    return _storage(changed, storage.group)


def _account_key(session: Session, storage: Storage) -> str:
    with translated("reading the storage account's key"):
        return str(session.storage.storage_accounts.list_keys(storage.group, storage.account).keys_property[0].value)


def _keyed(session: Session, storage: Storage, key: str) -> Any:
    return session.blob_service(storage.endpoint, {"account_name": storage.account, "account_key": key})


def _until_keys_open(work: Callable[[], object], clock: Clock) -> None:
    """Storage learns of a change of the account after a while."""
    from azure.core.exceptions import HttpResponseError

    deadline = clock.now() + timedelta(seconds=_CHANGE_SECONDS)
    with translated_blobs("opening the blobs with an account key"):
        while True:
            try:
                work()
                return
            except HttpResponseError as error:
                if blob_code_of(error) != _NO_KEYS or clock.now() > deadline:
                    raise
            clock.sleep(2.0)


def revoke(session: Session, storage: Storage) -> None:
    """Close the container to every signature that was ever made for it."""
    with translated("revoking access to the blobs"):
        session.storage.storage_accounts.revoke_user_delegation_keys(storage.group, storage.account)
    if storage.shared_key:
        container = _keyed(session, storage, _account_key(session, storage)).get_container_client(CONTAINER)
        with translated_blobs("removing the container's access policy"):
            container.set_container_access_policy({})
        with translated("closing the storage account to account keys"):
            session.storage.storage_accounts.update(
                storage.group, storage.account, {"properties": {"allowSharedKeyAccess": False}}
            )


# this side


def open_container(session: Session, storage: Storage, *, patient: bool = True) -> Any:
    """The run's container for reading, as azure-storage-blob's ContainerClient. Raises Refused without the right.
    patient: whether trying it outlasts a hiccup of the network, as whatever is read from it later does."""
    from azure.core.exceptions import HttpResponseError

    container = session.blob_service(storage.endpoint).get_container_client(CONTAINER)
    tried = session.blob_service(storage.endpoint, patient=patient).get_container_client(CONTAINER)
    with translated_blobs("reading the run's blobs"):
        try:
            next(tried.list_blobs(results_per_page=1).by_page(), None)
            return container
        except HttpResponseError as error:
            if blob_code_of(error) not in _NO_RIGHT:
                raise
    if storage.shared_key:
        return _keyed(session, storage, _account_key(session, storage)).get_container_client(CONTAINER)
    raise Refused(
        "NoDataRole",
        f"This login has no role on the blobs of storage account '{storage.account}', and its keys are switched off.",
        f"Ask for the role Storage Blob Data Reader on {storage.id}",
    )


def opened(session: Session, group: Group) -> Any:
    """As `open_container`, found and tried once, without patience, for as long as the session keeps what came of it;
    None where the run has no account."""
    kept = session.opened.get(group.id)
    if kept is None:
        try:
            found = find(session, group)
            kept = None if found is None else open_container(session, found, patient=False)
        except CloudtrainError as error:
            kept = error
        if kept is not None:
            session.opened[group.id] = kept
    if isinstance(kept, CloudtrainError):
        raise kept
    return kept


def open_with_key(session: Session, storage: Storage, clock: Clock) -> Any:
    """The run's container, to read and write by an account key, which is allowed from now on. Raises Refused."""
    storage = _allow_keys(session, storage)
    container = _keyed(session, storage, _account_key(session, storage)).get_container_client(CONTAINER)
    _until_keys_open(lambda: next(container.list_blobs(results_per_page=1).by_page(), None), clock)
    return container


# errors of blobs


def blob_code_of(error: Any) -> str:
    """The blob service's own code; '' where the answer had none."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or code_of(error))


@contextmanager
def translated_blobs(doing: str) -> Iterator[None]:
    """Turns what azure-storage-blob raises into a CloudtrainError."""
    from azure.core.exceptions import HttpResponseError

    with translated(doing):
        try:
            yield
        except HttpResponseError as error:
            code = blob_code_of(error)
            if not code:
                raise
            # The first line says it; request ids and signatures follow.
            reason = message_of(error).strip().splitlines()[0]
            if error.status_code is not None and error.status_code >= 500:
                raise CloudtrainError(
                    code, f"Azure failed while {doing}: {reason}", "Run the same command again.", Exit.UNREACHABLE
                ) from error
            raise Refused(code, f"Azure refused while {doing}: {reason}", _HINTS.get(code, "")) from error


_HINTS = {
    "AuthenticationFailed": "The signature is over, revoked or of another account.",
    "AuthorizationPermissionMismatch": "Ask for the role Storage Blob Data Contributor on the storage account; "
    "a new assignment takes up to ten minutes.",
    _NO_KEYS: "Ask for the role Storage Blob Data Contributor on the storage account.",
    "ContainerNotFound": "cloudtrain up  makes it again.",
}

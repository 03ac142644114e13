"""What outlives a run's VM: its storage account, how the VM reaches it, and the fence between two generations."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from cloudtrain import guest
from cloudtrain.azure import group as groups
from cloudtrain.azure import names, roles, run_command
from cloudtrain.azure import storage as storages
from cloudtrain.azure.group import Group
from cloudtrain.azure.storage import AccessKind, Storage, VmAccess
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import Blocks, CloudtrainError, Exit, Refused
from cloudtrain.guest.durable import FENCE
from cloudtrain.lifecycle.context import Context

# How a VM is let in by a role of its own; else by a signature of one of `AccessKind`.
IDENTITY = "identity"
# A signature's life: what is left of the maximum duration and this, else seven days.
MARGIN = timedelta(days=1)
WITHOUT_LIMIT = timedelta(days=7)
# Until a role has spread over Azure's storage, which takes up to ten minutes.
BRIDGE = timedelta(hours=1)
SPREADING_SECONDS = 600.0
# A signature is renewed where less than half of its life, or than this, is left; and not for a gain smaller than that.
RENEW_BELOW = timedelta(days=2)
SMALLEST_GAIN = timedelta(hours=6)
WARN_BELOW = timedelta(days=1)
# Microsoft Entra knows a new identity everywhere after a while.
ENTRA_SECONDS = 120.0
# Built-in role: Virtual Machine Contributor.
VM_ROLE = "9980e02c-c2be-4d73-94e8-173b1dc7cf3c"
RENEW_COMMAND = "cloudtrain-renew"
ATTEMPTS = 5


class NoStorage(Refused):
    """The run's storage cannot be had."""


@dataclass(frozen=True)
class Access:
    """How a VM reaches the run's blobs. signature: of an identity, the bridge until its role has spread, where there
    is one."""

    storage: Storage
    by_identity: bool
    signature: VmAccess | None = field(repr=False)

    @property
    def kind(self) -> str:
        return IDENTITY if self.by_identity or self.signature is None else self.signature.kind.value

    @property
    def tags(self) -> dict[str, str]:
        until = "" if self.by_identity or self.signature is None else _iso(self.signature.expires)
        return {
            groups.TAG_STORAGE: self.storage.account,
            groups.TAG_ACCESS: self.kind,
            groups.TAG_ACCESS_UNTIL: until,
        }

    @property
    def protected(self) -> dict[str, str]:
        """What the VM is handed, as the protected parameter of a RunCommand and nowhere else."""
        told = {
            "version": 1,
            "account": self.storage.account,
            "container": storages.CONTAINER,
            "endpoint": self.storage.endpoint,
            "kind": IDENTITY if self.by_identity else "signature",
            "signature": self.signature.signature if self.signature else "",
            "expires": self.signature.expires.timestamp() if self.signature else None,
        }
        return {guest.STORAGE: base64.b64encode(msgspec.json.encode(told)).decode()}


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")


# letting the VM in


def prepare(ctx: Context, group: Group) -> Access:
    """The run's storage account, made where there is none, and what its VM is to reach it by. Needs no VM, so that it
    can be done beside the making of one. Raises NoStorage where it cannot be had."""
    with ctx.progress.step("storage account", usually="about 20 s on Azure"):
        try:
            storage = storages.create(ctx.session, group, ctx.clock)
            if _may_assign(ctx, storage):
                return Access(storage, True, storages.delegation(ctx.session, storage, BRIDGE, ctx.clock))
            return by_signature(ctx, group, storage)
        except Refused as refusal:
            raise NoStorage(refusal.code, refusal.message, refusal.hint, refusal.blocks) from refusal


def _may_assign(ctx: Context, storage: Storage) -> bool:
    """Whether the caller may assign roles: tried on itself, which lets this side read without any key."""
    principal, kind = ctx.session.principal
    return bool(principal) and storages.assign_data_role(ctx.session, storage, principal, kind)


def by_signature(ctx: Context, group: Group, storage: Storage) -> Access:
    """Raises Refused."""
    life = _lifetime(ctx, group)
    return Access(storage, False, storages.vm_access(ctx.session, storage, life, ctx.clock))


def _lifetime(ctx: Context, group: Group) -> timedelta:
    if not group.spec.max_duration:
        return WITHOUT_LIMIT
    left = group.begun + group.spec.max_duration - ctx.clock.now().timestamp()
    return timedelta(seconds=max(0.0, left)) + MARGIN


def for_vm(ctx: Context, group: Group, vm: Vm, access: Access) -> Access:
    """The same, by a signature where that VM has no identity: an older cloudtrain made it."""
    return access if vm.principal or not access.by_identity else by_signature(ctx, group, access.storage)


def let_in(ctx: Context, vm: Vm, access: Access) -> bool:
    """Give the VM's identity its role on the blobs. False where the caller may not after all."""
    if not access.by_identity:
        return True
    return _assigned(ctx, access.storage.id, storages.DATA_ROLE, vm.principal)


def let_end(ctx: Context, group: Group, vm: Vm) -> bool:
    """Give the VM's identity the right to do with the VM what `when_done` says; False where it could not be given.

    Deallocating needs Microsoft.Compute/virtualMachines/deallocate/action, which the role has, on the VM alone. An
    assumption: deleting the VM needs its own right alone as well, for disk, NIC and address are deleted by Azure
    because of their deleteOption, and not by the caller. Should Azure think otherwise it refuses, and the VM stays as
    it is until a command or a watcher sees that training has finished."""
    if group.spec.when_done == "keep" or not vm.principal:
        return False
    try:
        return _assigned(ctx, vm.id, VM_ROLE, vm.principal)
    except CloudtrainError:
        # Training matters more: a command or a watcher does it instead.
        return False


def _assigned(ctx: Context, scope: str, role: str, principal: str) -> bool:
    deadline = ctx.clock.now().timestamp() + ENTRA_SECONDS
    while True:
        try:
            return roles.assign(ctx.session, scope, role, principal, "ServicePrincipal")
        except Refused as refusal:
            if refusal.code != "PrincipalNotFound" or ctx.clock.now().timestamp() > deadline:
                raise
        ctx.clock.sleep(ctx.session.capabilities.poll_seconds)


def deliver(ctx: Context, group: Group, protected: Mapping[str, str]) -> None:
    """Hand the VM what is protected, and nothing else. Raises GuestUnreachable, Refused."""
    nonce = run_command.new_nonce()
    output = run_command.run(
        ctx.session,
        group,
        ctx.clock,
        name=RENEW_COMMAND,
        script=guest.renew_script(nonce),
        protected=protected,
    )
    try:
        if guest.exit_code(output, nonce) == 0:
            return
    except guest.IncompleteOutput as error:
        raise run_command.GuestUnreachable(f"The VM did not take up its access to storage: {error}") from error
    raise run_command.GuestUnreachable(f"The VM did not take up its access to storage: {output[-300:]}")


# keeping it in


def renew(ctx: Context, group: Group, vm: Vm | None) -> str:
    """Make the VM's signature last longer where it is time to. Returns what the user has to know: that access ends
    within a day and could not be renewed; '' as a rule. Never raises a CloudtrainError."""
    until = _until(group)
    if until is None or vm is None:
        return ""
    failed = ""
    if _due(ctx, group, until):
        try:
            until = _renewed(ctx, group, vm, until)
        except CloudtrainError as error:
            failed = error.message
    return _warning(ctx, group, until, failed)


def _until(group: Group) -> datetime | None:
    """When the VM's signature ends; None for an identity, and where checkpoints lie on the disk alone."""
    try:
        return datetime.fromisoformat(group.tags.get(groups.TAG_ACCESS_UNTIL, ""))
    except ValueError:
        return None


def _due(ctx: Context, group: Group, until: datetime) -> bool:
    now, life = ctx.clock.now(), _lifetime(ctx, group)
    if group.tags.get(groups.TAG_ACCESS) == AccessKind.DELEGATION.value:
        life = min(life, storages.LONGEST_DELEGATION)
    return until - now < max(life / 2, RENEW_BELOW) and now + life - until >= SMALLEST_GAIN


def _renewed(ctx: Context, group: Group, vm: Vm, until: datetime) -> datetime:
    """A policy lasts longer wherever its signature is; any other signature has to reach the VM."""
    behind_policy = group.tags.get(groups.TAG_ACCESS) == AccessKind.POLICY.value
    if vm.power is not PowerState.RUNNING and not behind_policy:
        return until
    storage = storages.find(ctx.session, group)
    if storage is None:
        return until
    with ctx.progress.step("renewing the VM's access to storage", usually="a few seconds on Azure"):
        access = by_signature(ctx, group, storage)
        if not behind_policy or access.kind != AccessKind.POLICY.value:
            deliver(ctx, group, access.protected)
        groups.set_tags(ctx.session, group, access.tags)
    return access.signature.expires if access.signature else until


def _warning(ctx: Context, group: Group, until: datetime, failed: str) -> str:
    left = until - ctx.clock.now()
    if left > WARN_BELOW or (_lifetime(ctx, group) <= MARGIN and not failed):
        return ""
    why = f": {failed}" if failed else ""
    if left <= timedelta(0):
        text = f"The VM's access to storage ended at {_iso(until)}, and what it saves stays on its disk{why}"
    else:
        text = f"The VM's access to storage ends at {_iso(until)}{why}"
    return f"{text.rstrip('.')}. cloudtrain up {group.run}  gives it a new one."


# this side


def opened(ctx: Context, group: Group) -> Any:
    """The run's container, to read and write from this side. Raises Refused: there is no storage account, or nothing
    that would open it."""
    storage = storages.find(ctx.session, group)
    if storage is None:
        raise Refused(
            "NoStorageAccount",
            f"Run '{group.run}' has no storage account: somebody deleted it, or up was interrupted before it was made.",
            f"cloudtrain up {group.run}  makes it.",
        )
    return entered(ctx, storage)


def entered(ctx: Context, storage: Storage) -> Any:
    """As `opened`, of an account that is there. Waits for a role that has just been assigned."""
    try:
        return storages.open_container(ctx.session, storage)
    except Refused as refusal:
        if refusal.code != "NoDataRole":
            raise
        return _opened_by_right(ctx, storage, refusal)


def _opened_by_right(ctx: Context, storage: Storage, refusal: Refused) -> Any:
    """A caller that may assign roles has one soon; any other may be allowed to use the account's keys."""
    if not _may_assign(ctx, storage):
        try:
            return storages.open_with_key(ctx.session, storage, ctx.clock)
        except Refused as no_key:
            if no_key.code != "AuthorizationFailed":
                raise
            # The role is what to ask for; a key would be the way around it.
            raise refusal from no_key
    deadline = ctx.clock.now().timestamp() + SPREADING_SECONDS
    with ctx.progress.step("waiting for the role on the blobs", usually="30 s to 10 minutes on Azure"):
        while ctx.clock.now().timestamp() < deadline:
            try:
                return storages.open_container(ctx.session, storage)
            except Refused as again:
                if again.code != "NoDataRole":
                    raise
            ctx.clock.sleep(ctx.session.capabilities.poll_seconds)
    raise refusal


def _read(container: Any, name: str) -> tuple[bytes | None, str]:
    """A small blob and its ETag; None where there is none."""
    from azure.core.exceptions import ResourceNotFoundError

    with storages.translated_blobs(f"reading the blob '{name}'"):
        try:
            found = container.download_blob(name)
            return bytes(found.readall()), str(found.properties.etag)
        except ResourceNotFoundError:
            return None, ""


# one generation at a time


class Fence(msgspec.Struct, frozen=True):
    """The blob `durable.FENCE`: which generation of the run's VM may train."""

    generation: int


def raise_fence(ctx: Context, group: Group, generation: int) -> None:
    """From now on only a VM of that generation may train: one of an earlier that reads this ends its trainer for good.

    Raised already, nothing happens. Raises Refused where a later one is there, by another command, or where the blobs
    are closed to this side."""
    container = opened(ctx, group)
    for _ in range(ATTEMPTS):
        content, etag = _read(container, FENCE)
        held = _fence(content)
        if held > generation:
            raise Refused(
                "MovedElsewhere",
                f"Another command is making generation {held} of run '{group.run}' already.",
                f"cloudtrain status {group.run}  shows the run.",
                Blocks.NOTHING,
            )
        if held == generation or _written(container, FENCE, Fence(generation), etag):
            return
    raise CloudtrainError(
        "FenceBusy",
        f"The blob '{FENCE}' of run '{group.run}' changes again and again.",
        "Run the same command again.",
        Exit.UNREACHABLE,
    )


def _fence(content: bytes | None) -> int:
    """0 where there is none; a damaged one is written anew."""
    try:
        return msgspec.json.decode(content, type=Fence).generation if content else 0
    except (msgspec.DecodeError, msgspec.ValidationError):
        return 0


def _written(container: Any, name: str, fence: Fence, etag: str) -> bool:
    """False where somebody else has written it meanwhile."""
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

    condition = {"etag": etag, "match_condition": MatchConditions.IfNotModified} if etag else {}
    with storages.translated_blobs(f"writing the blob '{name}'"):
        try:
            container.upload_blob(name, msgspec.json.encode(fence), overwrite=bool(etag), **condition)
        except (ResourceExistsError, ResourceModifiedError, ResourceNotFoundError):
            return False
    return True


# the end


def close(ctx: Context, group: Group) -> None:
    """Before the run is deleted: every signature ends, and the roles on its resources go. Whatever cannot be done now
    goes with the account, as far as Azure lets it. Never raises a CloudtrainError."""
    try:
        storage = storages.find(ctx.session, group)
        if storage is not None:
            storages.revoke(ctx.session, storage)
    except CloudtrainError as error:
        ctx.progress.note(
            f"Access to storage could not be revoked beforehand; it ends with the account: {error.message}"
        )
    try:
        # An assignment may outlive what it is on, and the identity that it is for.
        roles.remove_below(ctx.session, group.id)
    except CloudtrainError:
        # Whoever may not assign roles has assigned none.
        return


def vm_id(group: Group) -> str:
    return f"{group.id}/providers/Microsoft.Compute/virtualMachines/{names.vm(group.run, group.generation)}"

"""`up`: make what is missing, start what is stopped, and end when training is under way. Run again, it converges."""

import ipaddress
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import msgspec

from cloudtrain import secret_values
from cloudtrain.azure import group as groups
from cloudtrain.azure import network
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group, Intent
from cloudtrain.azure.session import check_image
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.checks import Check, refuse_failed
from cloudtrain.errors import CloudtrainError, InvalidSpec, Refused
from cloudtrain.image import Build, Ensured, ImageError
from cloudtrain.lifecycle import anew, durable, power, release, training
from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.durable import Access, NoStorage
from cloudtrain.lifecycle.results import Training, VmInfo, vm_info
from cloudtrain.lifecycle.state import state_of
from cloudtrain.secret_values import SecretValues
from cloudtrain.spec import SSH_CALLER, RunSpec, Settings
from cloudtrain.together import together
from cloudtrain.workflow import plan, preflight, trainer_image
from cloudtrain.workflow.plan import Plan

# What cannot change on a run that has a VM; place, image and policy are for its whole life.
FIXED = ("location", "vm_image", "eviction_policy", "ssh_public_key", "disk_gb")
# What Azure changes only on a deallocated VM.
WHILE_DEALLOCATED = ("size", "max_price")
# What Azure changes on a running VM.
AT_ONCE = ("ssh",)
# What the next start of the trainer takes up.
AT_NEXT_START = ("image", "mount", "arguments", "env", "secrets", "when_done")


class UpResult(msgspec.Struct, frozen=True):
    """created: this command made the run. seen: how training was seen to be under way: 'progress' (its step moved),
    'container' (an image that writes no progress: its container stayed up) or 'finished'. image: the trainer image;
    image_built, image_pushed: what this command did for it. storage_account: where checkpoints go. access: how the VM
    reaches it: 'identity', 'user delegation' or 'stored access policy'; access_until: ISO 8601, None for an
    identity."""

    run: str
    cloud: str
    resource_group: str
    state: str
    created: bool
    seen: str
    vm: VmInfo
    training: Training | None
    image: str
    image_built: bool
    image_pushed: bool
    storage_account: str
    access: str
    access_until: str | None
    notes: list[str]


def current_spec(ctx: Context, run: str) -> RunSpec | None:
    """What the run was asked to be, None where there is no such run: unsaid settings of a new `up` come from here."""
    found = groups.find(ctx.session, run)
    return found.spec if found and not found.deleting else None


def with_callers_address(ctx: Context, settings: Settings) -> Settings:
    """`ssh = "caller"` as the network that it stands for. Raises InvalidSpec where nobody knows it."""
    if settings.ssh != SSH_CALLER:
        return settings
    address = ctx.session.caller_address()
    try:
        network = ipaddress.IPv4Network(address or "")
    except ValueError as error:
        raise InvalidSpec(
            "--ssh: this login does not tell which public IPv4 address you come from "
            f"({f'it says {address}' if address else 'only the login of a person does'}).",
            f"Say it: cloudtrain up {settings.run} --ssh ADDRESS  (a web page that shows your address will tell).",
        ) from error
    ctx.progress.note(f"SSH: port 22 of the VM is open to {network.network_address} alone, where you come from.")
    return replace(settings, ssh=str(network))


def up(
    ctx: Context,
    spec: RunSpec,
    build: Build | None = None,
    *,
    accept_terms: bool = False,
    approve: Callable[[Plan], None] | None = None,
    secrets: SecretValues | None = None,
    watched: bool = False,
) -> UpResult:
    """build: makes spec.image. accept_terms: those of the VM image, for the subscription. approve: is shown the plan of
    a new VM that costs money, and raises where the user will not have it. secrets: the values of spec.secrets, as far
    as they are at hand; None: as the environment has them. A new run that gets no VM, no storage or no image is removed
    again; watched: not where a watcher will find room for it, see `waits_for_room`.

    Raises InvalidSpec, Refused, ImageError, TrainingFailed, GuestUnreachable."""
    group = _after_deletion(ctx, spec.run)
    created, had_finished = group is None, group is not None and group.intent is Intent.FINISHED
    notes: list[str] = []
    vm = vms.find(ctx.session, group) if group else None
    secrets = secrets or secret_values.read(spec.secrets)
    if group is None or _wants_new_vm(group, vm):
        secret_values.refuse_missing(secrets, spec.run)
    if spec.ssh and not ctx.session.capabilities.ssh:
        raise InvalidSpec(
            "ssh: the VMs of this rehearsal are processes of this machine, and have no SSH server.",
            f"cloudtrain up {spec.run} --machine container --ssh  rehearses on ones that have; it needs a Docker "
            "engine.",
        )
    if group is not None:
        ctx.session.prepare(ctx.progress)
    if build is None and group is not None and not group.trained:
        trainer_image.refuse_unpushed(ctx.session, spec)
    image = trainer_image.NOTHING_DONE
    if group is not None and vm is not None:
        allowed_changes(group, vm, spec)
        image, build = _image_first(ctx, group, spec, build), None
        group, notes = _adopt(ctx, group, vm, spec)
    if group is None or vm is None:
        _prepare(ctx, spec, group, accept_terms, approve)
        if group is None:
            ctx.session.prepare(ctx.progress)
        group = _go_on(ctx, group, spec) if group and group.storage_account else _create_group(ctx, spec)
    was_off = vm is not None and vm.power is not PowerState.RUNNING
    with release.undisturbed(ctx, group) as alone:
        group, vm, access, done = _run_and_image(alone, group, build, secrets, watched=watched)
        image = image if build is None else done
        if was_off and any(note.startswith(AT_NEXT_START) for note in notes):
            # Booting has started the trainer as it was; the changed spec wants a trainer of its own.
            training.save_and_stop(alone, group)
        outcome = training.begin(alone, group, vm, access, _to_send(alone, secrets))
    anew.remove_former(ctx, groups.get(ctx.session, spec.run))
    group = groups.get(ctx.session, spec.run)
    if had_finished and outcome.training.finished:
        notes.append(release.nothing_left_to_train(group))
        ctx.progress.note(notes[-1])
    else:
        notes += _about_the_end(ctx, group)
    if group.spec.max_duration or any(note.startswith("max_duration") for note in notes):
        power.backstop(ctx, group, vm)
    return UpResult(
        run=spec.run,
        cloud=ctx.session.cloud,
        resource_group=group.name,
        state=state_of(group, vm, outcome.training),
        created=created,
        seen=outcome.seen,
        vm=vm_info(vm, network.public_ip(ctx.session, group)),
        training=outcome.training,
        image=group.spec.image,
        image_built=image.built,
        image_pushed=image.pushed,
        storage_account=group.storage_account,
        access=group.tags.get(groups.TAG_ACCESS, ""),
        access_until=group.tags.get(groups.TAG_ACCESS_UNTIL) or None,
        notes=notes,
    )


def _wants_new_vm(group: Group, vm: Vm | None) -> bool:
    """A VM that Azure failed to make stays as a resource; nothing of the user's is on its disk."""
    return vm is None or (vm.gone_wrong and not group.may_hold_work)


def _to_send(ctx: Context, secrets: SecretValues) -> Mapping[str, str] | None:
    """All of them, or none: the VM keeps what it has."""
    if secrets.complete:
        return secrets.values
    ctx.progress.note(f"Not at hand here, so the VM keeps the values it has: {', '.join(secrets.missing)}.")
    return None


def _about_the_end(ctx: Context, group: Group) -> list[str]:
    """What has to be said of a VM that will not end itself."""
    if group.ends_itself or group.spec.when_done == "keep" or not ctx.session.capabilities.bills:
        return []
    text = (
        "Once training has finished the VM bills on, until a command (status, logs -f, watch) sees it, or  cloudtrain "
        f"stop {group.run}  or  cloudtrain down {group.run}: this login could not give the VM the right to end itself."
    )
    ctx.progress.note(text)
    return [text]


def dry_run(ctx: Context, spec: RunSpec, *, accept_terms: bool) -> tuple[Plan, list[Check]]:
    """What `up` would do, and the checks that would keep it from that. Makes nothing. Raises InvalidSpec where the run
    cannot become what is asked for."""
    group = groups.find(ctx.session, spec.run)
    group = None if group is None or group.deleting else group
    vm = vms.find(ctx.session, group) if group else None
    changes = allowed_changes(group, vm, spec) if group else []
    with ctx.progress.step(f"preflight checks for {spec.size} in {spec.location}", usually="a few seconds on Azure"):
        found = preflight.examine(ctx, spec, held_size=vm.size if vm else "")
    in_the_way = preflight.in_the_way(found.checks, accept_terms=accept_terms)
    return plan.make(ctx, spec, found, group, vm, changes), in_the_way


def _image_first(ctx: Context, group: Group, spec: RunSpec, build: Build | None) -> Ensured:
    """Of a run that exists: nothing of it changes before its image is there."""
    check_image(ctx.session, spec.image)
    if build is not None:
        return build.ensure(ctx.progress, threading.Event())
    if spec.image != group.spec.image:
        refuse_failed([preflight.trainer_image(ctx, spec)])
    return trainer_image.NOTHING_DONE


def _run_and_image(
    ctx: Context, group: Group, build: Build | None, secrets: SecretValues, *, watched: bool
) -> tuple[Group, Vm, Access, Ensured]:
    def running() -> tuple[Group, Vm, Access]:
        (made, vm), access = together(lambda: _ensure_running(ctx, group, secrets), lambda: durable.prepare(ctx, group))
        return made, vm, access

    try:
        (made, vm, access), image = trainer_image.beside(running, build, ctx.progress)
    except (ImageError, NoStorage) as error:
        _undo_after(ctx, group, error, running=True)
        raise
    except Refused as error:
        if not (watched and waits_for_room(error)):
            _undo_after(ctx, group, error)
        raise
    return made, vm, access, image


# Azure has no room now, and may have it elsewhere or later. What else it refuses, somebody has to put right.
NO_ROOM = frozenset(
    {
        "SkuNotAvailable",
        "AllocationFailed",
        "ZonalAllocationFailed",
        "OverconstrainedAllocationRequest",
        "OverconstrainedZonalAllocationRequest",
        "EvictedWhileMade",
        "VmNotMade",
        "VmDidNotStart",
    }
)


def waits_for_room(error: CloudtrainError) -> bool:
    return isinstance(error, Refused) and error.code in NO_ROOM


def _after_deletion(ctx: Context, run: str) -> Group | None:
    """The run's group; one that is being deleted is waited for."""
    group = groups.find(ctx.session, run)
    if group is None or not group.deleting:
        return group
    with ctx.progress.step("waiting for the earlier run of that name to be deleted", usually="a few minutes on Azure"):
        while groups.find(ctx.session, run) is not None:
            ctx.clock.sleep(ctx.session.capabilities.poll_seconds)
    return None


def _prepare(
    ctx: Context, spec: RunSpec, existing: Group | None, accept_terms: bool, approve: Callable[[Plan], None] | None
) -> None:
    """Everything that can be known before the first resource is made; existing: a group without a VM."""
    if existing is not None:
        allowed_changes(existing, None, spec)
    found = preflight.allowed(ctx, spec, accept_terms=accept_terms)
    if approve is not None and ctx.session.capabilities.bills:
        approve(plan.make(ctx, spec, found, existing))
    preflight.put_right(ctx, spec, found, accept_terms=accept_terms)


def _create_group(ctx: Context, spec: RunSpec) -> Group:
    def make_group() -> Group:
        return groups.create(ctx.session, spec, ctx.clock.now().isoformat(timespec="seconds"))

    with ctx.progress.step("resource group"):
        # Importing the network client takes as long as Azure's answer, and is what comes next.
        return cast(Group, together(make_group, lambda: ctx.session.network)[0])


def _go_on(ctx: Context, group: Group, spec: RunSpec) -> Group:
    """Of a run without a VM, whose work lies in storage: its story goes on."""
    groups.set_spec(ctx.session, group, spec)
    return groups.get(ctx.session, group.run)


def _adopt(ctx: Context, group: Group, vm: Vm, wanted: RunSpec) -> tuple[Group, list[str]]:
    """Take up what changed of an existing run's spec; returns what was taken up, in words. Raises InvalidSpec."""
    if not allowed_changes(group, vm, wanted):
        return group, []
    changed = _changes(group.spec, wanted)
    if changed.keys() & set(WHILE_DEALLOCATED):
        refuse_failed(preflight.examine(ctx, wanted, held_size=vm.size).checks)
        _change_vm(ctx, group, vm, wanted)
    groups.set_spec(ctx.session, group, wanted)
    later = " (applies at the next start: cloudtrain restart)" if vm.power is PowerState.RUNNING else ""
    notes = [text + (later if key in AT_NEXT_START else "") for key, text in changed.items()]
    for note in notes:
        ctx.progress.note(note)
    group = groups.get(ctx.session, group.run)
    if changed.keys() & set(AT_ONCE):
        with ctx.progress.step("network security group", usually="about 5 s on Azure"):
            network.create_nsg(ctx.session, group)
    return group, notes


def allowed_changes(group: Group, vm: Vm | None, wanted: RunSpec) -> list[str]:
    """What would change of a run that exists, in words. Raises InvalidSpec where that cannot be."""
    changes = _changes(group.spec, wanted)
    if vm is None:
        # Nothing is made of the old spec yet but the group itself.
        if group.location != wanted.location:
            raise _refuse_changes(wanted.run, [f"location: '{group.location}' -> '{wanted.location}'"])
        return list(changes.values())
    fixed = [text for key, text in changes.items() if key in FIXED]
    if fixed:
        raise _refuse_changes(group.run, fixed)
    on_vm = [text for key, text in changes.items() if key in WHILE_DEALLOCATED]
    if on_vm and vm.power is not PowerState.DEALLOCATED:
        raise InvalidSpec(
            f"The VM of run '{group.run}' has to be deallocated before this can change: {', '.join(on_vm)}.",
            f"cloudtrain stop {group.run}  saves and deallocates; then run up again.",
            code="SpecChanged",
        )
    return list(changes.values())


def _changes(old: RunSpec, new: RunSpec) -> dict[str, str]:
    """Key -> "key: 'old' -> 'new'" for every key that differs."""
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    told = [key for key in before if key != "built_from" and before[key] != after[key]]  # the image says it
    return {key: f"{key}: {before[key]!r} -> {after[key]!r}" for key in told}


def _refuse_changes(run: str, texts: list[str]) -> InvalidSpec:
    return InvalidSpec(
        f"Run '{run}' exists, and this cannot change on it: {', '.join(texts)}.",
        f"cloudtrain down {run}  removes it; or choose another name for a run of its own.",
        code="SpecChanged",
    )


def _change_vm(ctx: Context, group: Group, vm: Vm, wanted: RunSpec) -> None:
    changed: dict[str, Any] = {}
    # Recovery may have changed the VM to one of the other sizes.
    if wanted.size != vm.size:
        changed["hardwareProfile"] = {"vmSize": wanted.size}
    if wanted.max_price != group.spec.max_price:
        changed["billingProfile"] = {"maxPrice": wanted.max_price}
    with ctx.progress.step("changing the VM"):
        vms.update(ctx.session, group, changed)


def _ensure_running(ctx: Context, group: Group, secrets: SecretValues) -> tuple[Group, Vm]:
    vm = power.settled(ctx, group)
    if _wants_new_vm(group, vm):
        secret_values.refuse_missing(secrets, group.run)
        return _new_vm(ctx, group, vm)
    assert vm is not None, "else a new one is wanted"
    if group.intent is Intent.STOPPED:
        groups.set_intent(ctx.session, group, Intent.RUNNING, ctx.clock.now())
    if vm.power is not PowerState.RUNNING:
        vm = power.start(ctx, group)
    return groups.get(ctx.session, group.run), vm


def _new_vm(ctx: Context, group: Group, failed: Vm | None) -> tuple[Group, Vm]:
    if group.intent is Intent.STOPPED:
        groups.set_intent(ctx.session, group, Intent.RUNNING, ctx.clock.now())
    if group.storage_account or failed is not None:
        # What another VM of the run has done goes on, and that one must not come back.
        group = anew.claim(ctx, group, group.place)
    vm = anew.create_vm(ctx, group)
    power.note(ctx, group, "recreated" if group.generation > 1 else "made")
    return groups.get(ctx.session, group.run), vm


def _undo_after(ctx: Context, group: Group, reason: CloudtrainError, *, running: bool = False) -> None:
    """The reason is what the user has to hear, also where what was made cannot be removed now."""
    try:
        _undo(ctx, group, running=running)
    except CloudtrainError as error:
        reason.hint += f"\ncloudtrain down {group.run}  removes what was made; that failed just now: {error.message}"


def _undo(ctx: Context, group: Group, *, running: bool = False) -> None:
    """No VM, or no image or storage for it: a group that never trained holds nothing of the user's, and would only be
    in the way. running: a VM that runs goes, too."""
    now = groups.find(ctx.session, group.run)
    if now is None or now.may_hold_work or now.storage_account:
        return
    vm = vms.find(ctx.session, group)
    if vm is not None and not vm.gone_wrong and not running:
        return
    with ctx.progress.step("removing what was made"):
        groups.delete(ctx.session, group)

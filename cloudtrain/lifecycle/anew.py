"""A VM of the run's next generation, which goes on from the blobs where the one before it left off.

The order makes it safe to be killed anywhere: a tag first, by which no command starts an older VM any more; the fence,
from which on none of them trains; then the tag by which every command finds the new VM; and what is left of the older
ones goes last, once the new one trains."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cloudtrain import secret_values
from cloudtrain.azure import former, network
from cloudtrain.azure import group as groups
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import Blocks, CloudtrainError, Refused
from cloudtrain.lifecycle import durable, power, training
from cloudtrain.lifecycle.context import Context
from cloudtrain.recovery import Place
from cloudtrain.together import together


@dataclass(frozen=True)
class Anew:
    """group: with the new generation."""

    group: Group
    vm: Vm
    outcome: training.Outcome


def make_anew(ctx: Context, group: Group, place: Place | None = None, secrets: Mapping[str, str] | None = None) -> Anew:
    """Make a VM of the next generation, wait until it trains, remove what is left of the ones before it.

    place: where, and of which size; None: as the spec says. secrets: values by name; None: from the environment.
    Killed in between, the same again converges. Raises InvalidSpec (a secret's value is missing; nothing was made),
    Refused (the new VM was refused: what was begun of it is gone, the generation counts), TrainingFailed,
    GuestUnreachable."""
    values = secrets if secrets is not None else values_for_new_vm(group)
    placed = claim(ctx, group, place or group.place)
    try:
        vm, access = together(lambda: _made(ctx, placed), lambda: durable.prepare(ctx, placed))
    except Refused as refusal:
        _without_failed_vm(ctx, placed, refusal)
        raise
    outcome = training.begin(ctx, placed, vm, access, values)
    remove_former(ctx, placed)
    return Anew(groups.get(ctx.session, group.run), vm, outcome)


def go_on(ctx: Context, group: Group, vm: Vm) -> training.Outcome:
    """Tell a VM that runs to train, as `make_anew` would have if it had not been interrupted. Trains already: nothing
    changes."""
    outcome = training.begin(ctx, group, vm, durable.prepare(ctx, group), values_for_new_vm(group))
    remove_former(ctx, group)
    return outcome


def claim(ctx: Context, group: Group, place: Place) -> Group:
    """The group, whose VM is to be made at that place: of the next generation, unless there is none of this one that
    ever trained, nor may have."""
    if group.may_hold_work:
        return _next_generation(ctx, group, place)
    if vms.find(ctx.session, group) is not None:
        with ctx.progress.step("removing the VM that could not be made"):
            vms.delete(ctx.session, group, ctx.clock)
    return _tagged(ctx, group, groups.place_tags(place))


def _tagged(ctx: Context, group: Group, tags: Mapping[str, str]) -> Group:
    if tags.items() - group.tags.items():
        groups.set_tags(ctx.session, group, tags)
    return replace(group, tags={**group.tags, **tags})


# A deallocated VM still holds its part of these.
QUOTAS = frozenset({"SpotQuotaExceeded", "RegionalQuotaExceeded", "FamilyQuotaExceeded", "QuotaExceeded"})


def _made(ctx: Context, group: Group) -> Vm:
    try:
        return create_vm(ctx, group)
    except Refused as refusal:
        if refusal.code not in QUOTAS or not former.find(ctx.session, group):
            raise
        # The old VM holds cores that the new one needs; no VM but the new one may go on any more.
        remove_former(ctx, group)
        return create_vm(ctx, group)


def values_for_new_vm(group: Group) -> Mapping[str, str]:
    """A new VM has none of the run's secrets. Raises InvalidSpec where one's value is not at hand."""
    found = secret_values.read(group.spec.secrets)
    secret_values.refuse_missing(found, group.run)
    return found.values


def _next_generation(ctx: Context, group: Group, place: Place) -> Group:
    """Close the run to every VM there was, and give the next one its number."""
    generation = group.generation + 1
    with ctx.progress.step(f"generation {generation}"):
        # Killed after the fence, a VM that it keeps from training for good would be started again and again.
        group = _tagged(ctx, group, {groups.TAG_NEXT: str(generation)})
        _fence(ctx, group, generation)
        tags = {
            groups.TAG_GENERATION: str(generation),
            groups.TAG_TRAINED: "false",
            groups.TAG_ASKED: "false",
            groups.TAG_ENDS: "false",
            groups.TAG_FORMER: "true",
            **groups.place_tags(place),
        }
        return replace(_tagged(ctx, group, tags), generation=generation, trained=False)


def _fence(ctx: Context, group: Group, generation: int) -> None:
    """Where this login cannot write to the storage, no VM is left that would have to read it."""
    try:
        durable.raise_fence(ctx, group, generation)
    except Refused as refusal:
        if refusal.code == "MovedElsewhere":
            raise
        ctx.progress.note(f"The old VM goes first, for storage cannot be told to hold it back: {refusal.message}")
        with ctx.progress.step("deleting the old VM", usually="about a minute on Azure"):
            vms.delete(ctx.session, group, ctx.clock)


def remove_former(ctx: Context, group: Group) -> bool:
    """Whatever is left of older generations; whether Azure shows nothing of them any more. What cannot be removed now
    is for the next command or look, or for `down`."""
    if not group.has_former:
        return True
    try:
        if former.find(ctx.session, group):
            with ctx.progress.step("removing what is left of the former VM", usually="up to 3 minutes on Azure"):
                former.remove(ctx.session, group, ctx.clock)
        if former.find(ctx.session, group):
            return False
        groups.set_tags(ctx.session, group, {groups.TAG_FORMER: "false"})
    except CloudtrainError as error:
        ctx.progress.note(f"Something of the former VM is still there: {error.message}")
        return False
    return True


def create_vm(ctx: Context, group: Group) -> Vm:
    """Make the VM of the run's generation, and its network. Made already: the same again changes nothing."""

    def make_vnet() -> str:
        with ctx.progress.step("virtual network", usually="about 10 s on Azure"):
            return network.create_vnet(ctx.session, group)

    def make_nsg() -> str:
        rule = f"port 22 from {group.spec.ssh}" if group.spec.ssh else "no inbound rule"
        with ctx.progress.step(f"network security group ({rule})", usually="about 5 s on Azure"):
            return network.create_nsg(ctx.session, group)

    subnet_id, nsg_id = together(make_vnet, make_nsg)
    kind = "Spot VM" if group.place.spot else "VM"
    with ctx.progress.step(f"{kind} {group.place.in_words}", usually="1 to 3 minutes on Azure"):
        vms.create(ctx.session, group, subnet_id=subnet_id, nsg_id=nsg_id)
        vm = power.settled(ctx, group)
    if vm is None or vm.gone_wrong:
        raise Refused(
            "VmNotMade",
            f"The VM was asked for, and is {'gone: it was evicted at once' if vm is None else vm.failure}.",
            f"cloudtrain up {group.run}  tries again; another --size or --location may have more capacity.",
            Blocks.SIZE,
        )
    # Evicted while it was made: one more try, and then it is for the user to say.
    return vm if vm.power is PowerState.RUNNING else power.start(ctx, group)


def _without_failed_vm(ctx: Context, group: Group, reason: Refused) -> None:
    """A VM that Azure failed to make stays as a resource, and its name would be in the way. The reason is what the
    user has to hear, also where it cannot be removed now."""
    try:
        vm = vms.find(ctx.session, group)
        if vm is not None and vm.gone_wrong:
            vms.delete(ctx.session, group, ctx.clock)
    except CloudtrainError as error:
        reason.hint += f"\nThe VM that could not be made is still there: {error.message}"

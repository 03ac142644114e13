"""A VM of the run's next generation, which goes on from the blobs where the one before it left off.

The order makes it safe to be killed anywhere: the fence first, from which on no older VM trains; then the tag, by which
every command finds the new VM; and what is left of the older ones goes last, once the new one trains."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from cloudtrain import secret_values
from cloudtrain.azure import former, network
from cloudtrain.azure import group as groups
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import Blocks, CloudtrainError, Refused
from cloudtrain.recovery import Place
from cloudtrain.together import together
from cloudtrain.workflow import durable, power, training
from cloudtrain.workflow.context import Context


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
    group = next_generation(ctx, group)
    placed = at(group, place)
    try:
        vm, access = together(lambda: create_vm(ctx, placed), lambda: durable.prepare(ctx, placed))
    except Refused as refusal:
        _without_failed_vm(ctx, placed, refusal)
        raise
    outcome = training.begin(ctx, placed, vm, access, values)
    remove_former(ctx, group)
    return Anew(groups.get(ctx.session, group.run), vm, outcome)


def values_for_new_vm(group: Group) -> Mapping[str, str]:
    """A new VM has none of the run's secrets. Raises InvalidSpec where one's value is not at hand."""
    found = secret_values.read(group.spec.secrets)
    secret_values.refuse_missing(found, group.run)
    return found.values


def next_generation(ctx: Context, group: Group) -> Group:
    """Close the run to every VM there was, and give the next one its number."""
    generation = group.generation + 1
    with ctx.progress.step(f"generation {generation}"):
        durable.raise_fence(ctx, group, generation)
        tags = {groups.TAG_GENERATION: str(generation), groups.TAG_TRAINED: "false", groups.TAG_ENDS: "false"}
        groups.set_tags(ctx.session, group, tags)
    return replace(group, generation=generation, trained=False, tags={**group.tags, **tags})


def at(group: Group, place: Place | None) -> Group:
    """The group, its spec changed to that place. The tags keep what the user asked for."""
    if place is None:
        return group
    return replace(group, spec=msgspec.structs.replace(group.spec, size=place.size, location=place.location))


def remove_former(ctx: Context, group: Group) -> None:
    """Whatever is left of older generations. What cannot be removed now is for the next command, or for `down`."""
    if group.generation == 1:
        return
    try:
        with ctx.progress.step("removing what is left of the former VM", usually="up to 3 minutes on Azure"):
            former.remove(ctx.session, group, ctx.clock)
    except CloudtrainError as error:
        ctx.progress.note(f"Something of the former VM stays until  cloudtrain down {group.run}: {error.message}")


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
    with ctx.progress.step(f"Spot VM {group.spec.size} in {group.spec.location}", usually="1 to 3 minutes on Azure"):
        vms.create(ctx.session, group, subnet_id=subnet_id, nsg_id=nsg_id)
        vm = power.settled(ctx, group)
    if vm is None or vm.gone_wrong:
        raise Refused(
            "VmNotMade",
            f"The Spot VM was asked for, and is {'gone: it was evicted at once' if vm is None else vm.failure}.",
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

"""The VM's power, waited for: on Azure's word alone."""

from cloudtrain.azure import notes, shutdown
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group
from cloudtrain.azure.prices import Standing
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import CloudtrainError, Exit, Refused
from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.money import price_of, standing
from cloudtrain.recovery.history import MAKES, STARTS, Event

ON_THE_WAY = ("Creating", "Updating", "Deleting", "Migrating")
MOVING = (PowerState.STARTING, PowerState.STOPPING, PowerState.DEALLOCATING)
# Longer than any single operation was ever recorded to take.
PATIENCE_SECONDS = 1800.0


def settled(ctx: Context, group: Group) -> Vm | None:
    """The VM once nothing is under way on it, such as what an interrupted command began; None where there is no VM."""
    vm = vms.find(ctx.session, group)
    if vm is None or not _moving(vm):
        return vm
    with ctx.progress.step("waiting for an operation on the VM to end") as step:
        deadline = ctx.clock.now().timestamp() + PATIENCE_SECONDS
        while vm is not None and _moving(vm):
            step.update(f"{vm.provisioning}, {vm.power}")
            _not_beyond(ctx, deadline, f"the VM stays {vm.provisioning}, {vm.power}")
            ctx.clock.sleep(ctx.session.capabilities.poll_seconds)
            vm = vms.find(ctx.session, group)
    return vm


def start(ctx: Context, group: Group) -> Vm:
    """Start the VM; raises Refused when Azure has no capacity for it: it stays deallocated then, with its disk."""
    try:
        with ctx.progress.step("starting the VM", usually="about a minute on Azure"):
            vms.start(ctx.session, group, ctx.clock)
            vm = settled(ctx, group)
    except Refused as refusal:
        note(ctx, group, "refused", refusal.code)
        raise
    note(ctx, group, "started")
    if vm is None or vm.power is not PowerState.RUNNING:
        raise Refused(
            "VmDidNotStart",
            f"The VM was started, and is now {vm.power if vm else 'gone'}: it was evicted again at once.",
            f"cloudtrain restart {group.run}  tries again.",
        )
    return vm


def note(ctx: Context, group: Group, what: str, why: str = "") -> None:
    """Add to the run's history what just happened to its VM."""
    vm = vms.find(ctx.session, group)
    place = vm.place.in_words if vm else ""
    at, price = ctx.clock.now().timestamp(), price_of(ctx, vm) if what in STARTS else None
    rates = standing(ctx, group) if what in MAKES else Standing()
    event = Event(at=at, what=what, place=place, why=why, price=price, disk=rates.disk, address=rates.address)
    notes.add(ctx.session, group, event)


def backstop(ctx: Context, group: Group, vm: Vm) -> None:
    """Azure's auto-shutdown, in line with the maximum duration. Where it cannot be set, that is said."""
    try:
        shutdown.ensure(ctx.session, group, vm.id, ctx.clock.now())
    except CloudtrainError as error:
        ctx.progress.note(
            f"Azure's auto-shutdown could not be set, so only a watcher keeps the maximum duration: {error.message}"
        )


def until_off(ctx: Context, group: Group) -> Vm | None:
    """Wait until the VM is deallocated (None: or gone, with eviction policy Delete)."""
    deadline = ctx.clock.now().timestamp() + PATIENCE_SECONDS
    while True:
        vm = vms.find(ctx.session, group)
        if vm is None or vm.power is PowerState.DEALLOCATED:
            return vm
        _not_beyond(ctx, deadline, f"the VM is still {vm.power}")
        ctx.clock.sleep(ctx.session.capabilities.poll_seconds)


def require_running(group: Group, vm: Vm | None, doing: str) -> Vm:
    """Raises Refused, as Azure would, with what to do about it."""
    if vm is not None and vm.power is PowerState.RUNNING:
        return vm
    state = vm.power.value if vm else "not there"
    raise Refused(
        "VmNotRunning",
        f"{doing} needs a running VM; the VM of run '{group.run}' is {state}.",
        f"cloudtrain restart {group.run}  starts it; cloudtrain status {group.run}  shows the run.",
    )


def _moving(vm: Vm) -> bool:
    return vm.provisioning in ON_THE_WAY or vm.power in MOVING


def _not_beyond(ctx: Context, deadline: float, what: str) -> None:
    if ctx.clock.now().timestamp() > deadline:
        raise CloudtrainError(
            "TookTooLong",
            f"After {PATIENCE_SECONDS / 60:.0f} minutes {what}.",
            "Look at the VM in the Azure portal, or run the same command again.",
            Exit.UNREACHABLE,
        )

"""`stop`: save, deallocate, keep the disk. The intent is written first: nothing brings the run back meanwhile."""

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import notes
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group, Intent
from cloudtrain.azure.run_command import GuestUnreachable
from cloudtrain.azure.vm import PowerState
from cloudtrain.errors import Refused
from cloudtrain.lifecycle import power, training
from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.state import state_of
from cloudtrain.recovery.history import Event


class StopResult(msgspec.Struct, frozen=True):
    """was: the VM's power state before. saved_step: the step of the newest checkpoint, None where it is not known."""

    run: str
    cloud: str
    state: str
    was: str
    saved_step: int | None


def stop(ctx: Context, run: str, *, why: str = "") -> StopResult:
    """Stopped already: nothing happens. why: for the history. Raises NoSuchRun."""
    group = groups.get(ctx.session, run)
    if group.intent is Intent.RUNNING:
        groups.set_intent(ctx.session, group, Intent.STOPPED, ctx.clock.now())
    vm = power.settled(ctx, group)
    saved = group.progress.saved
    if vm is not None and vm.power is PowerState.RUNNING and group.may_hold_work:
        saved = _save(ctx, group)
    if vm is not None and vm.power is not PowerState.DEALLOCATED:
        with ctx.progress.step("deallocating the VM", usually="10 to 30 s on Azure"):
            vms.deallocate(ctx.session, group, ctx.clock)
            power.until_off(ctx, group)
        notes.add(ctx.session, group, Event(at=ctx.clock.now().timestamp(), what="stopped", why=why))
    after = groups.get(ctx.session, run)
    return StopResult(
        run=run,
        cloud=ctx.session.cloud,
        state=state_of(after, vms.find(ctx.session, after), None),
        was=vm.power.value if vm else "absent",
        saved_step=saved,
    )


def _save(ctx: Context, group: Group) -> int | None:
    try:
        return training.save_and_stop(ctx, group)
    except (GuestUnreachable, Refused) as error:
        # The deallocation below shuts the operating system down, which asks the trainer to save once more.
        ctx.progress.note(f"The trainer could not be asked to save beforehand: {error.message}")
        return None

"""`restart`: start the VM if it is deallocated, reboot it if it runs, and end when training is under way again."""

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Intent
from cloudtrain.azure.vm import PowerState
from cloudtrain.errors import Refused
from cloudtrain.workflow import power, training
from cloudtrain.workflow.context import Context
from cloudtrain.workflow.results import Training
from cloudtrain.workflow.state import state_of


class RestartResult(msgspec.Struct, frozen=True):
    """action: 'started' or 'rebooted'. seen: as in `up`."""

    run: str
    cloud: str
    state: str
    action: str
    seen: str
    training: Training | None


def restart(ctx: Context, run: str) -> RestartResult:
    """Raises NoSuchRun, Refused, TrainingFailed."""
    group = groups.get(ctx.session, run)
    vm = power.settled(ctx, group)
    if vm is None:
        raise Refused(
            "VmMissing",
            f"Run '{run}' has no VM: its creation was interrupted, or somebody deleted it.",
            f"cloudtrain up {run}  makes it.",
        )
    if group.intent is Intent.STOPPED:
        groups.set_intent(ctx.session, group, Intent.RUNNING, ctx.clock.now())
    if vm.power is PowerState.RUNNING:
        if group.trained:
            training.save_and_stop(ctx, group)
        with ctx.progress.step("rebooting the VM", usually="30 to 90 s on Azure"):
            vms.restart(ctx.session, group, ctx.clock)
        action, vm = "rebooted", power.settled(ctx, group)
    else:
        action, vm = "started", power.start(ctx, group)
    outcome = training.begin(ctx, group)
    after = groups.get(ctx.session, run)
    return RestartResult(
        run=run,
        cloud=ctx.session.cloud,
        state=state_of(after, vm, outcome.training),
        action=action,
        seen=outcome.seen,
        training=outcome.training,
    )

"""`restart`: start the VM if it is deallocated, reboot it if it runs, and end when training is under way again."""

from collections.abc import Mapping

import msgspec

from cloudtrain import secret_values
from cloudtrain.azure import group as groups
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group, Intent
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import Refused
from cloudtrain.lifecycle import anew, durable, power, release, training
from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.durable import Access, NoStorage
from cloudtrain.lifecycle.results import Training
from cloudtrain.lifecycle.state import state_of
from cloudtrain.secret_values import SecretValues
from cloudtrain.together import together


class RestartResult(msgspec.Struct, frozen=True):
    """action: 'started', 'rebooted', or 'recreated' (the VM was gone). seen: as in `up`."""

    run: str
    cloud: str
    state: str
    action: str
    seen: str
    training: Training | None


def restart(ctx: Context, run: str, secret_files: Mapping[str, str] | None = None) -> RestartResult:
    """secret_files: files that have the values of secrets, by name. Raises NoSuchRun, Refused, TrainingFailed."""
    group = groups.get(ctx.session, run)
    vm = power.settled(ctx, group)
    if vm is None and not group.storage_account:
        raise Refused(
            "VmMissing",
            f"Run '{run}' has no VM: its creation was interrupted, or somebody deleted it.",
            f"cloudtrain up {run}  makes it.",
        )
    secrets = secret_values.read(group.spec.secrets, secret_files)
    if vm is None:
        secret_values.refuse_missing(secrets, run)
    if group.intent is Intent.STOPPED:
        groups.set_intent(ctx.session, group, Intent.RUNNING, ctx.clock.now())
    with release.undisturbed(ctx, group) as alone:
        action, vm, outcome = _made_to_train(alone, group, vm, secrets)
    after = groups.get(ctx.session, run)
    if group.intent is Intent.FINISHED and outcome.training.finished:
        ctx.progress.note(release.nothing_left_to_train(after))
    return RestartResult(
        run=run,
        cloud=ctx.session.cloud,
        state=state_of(after, vm, outcome.training),
        action=action,
        seen=outcome.seen,
        training=outcome.training,
    )


def _made_to_train(
    ctx: Context, group: Group, vm: Vm | None, secrets: SecretValues
) -> tuple[str, Vm | None, training.Outcome]:
    if vm is None:
        made = anew.make_anew(ctx, group, secrets=secrets.values)
        power.note(ctx, made.group, "recreated")
        return "recreated", made.vm, made.outcome
    known = vm
    (action, vm), access = together(lambda: _powered(ctx, group, known), lambda: _access(ctx, group))
    outcome = training.begin(ctx, group, vm, access, secrets.values if secrets.complete else None)
    anew.remove_former(ctx, group)
    return action, vm, outcome


def _powered(ctx: Context, group: Group, vm: Vm) -> tuple[str, Vm | None]:
    if vm.power is not PowerState.RUNNING:
        return "started", power.start(ctx, group)
    if group.may_hold_work:
        training.save_and_stop(ctx, group)
    with ctx.progress.step("rebooting the VM", usually="30 to 90 s on Azure"):
        vms.restart(ctx.session, group, ctx.clock)
    return "rebooted", power.settled(ctx, group)


def _access(ctx: Context, group: Group) -> Access | None:
    """Of a run that has storage. Where it cannot be had now the VM goes on with what it has, and with its disk."""
    if not group.storage_account:
        return None
    try:
        return durable.prepare(ctx, group)
    except NoStorage as refusal:
        ctx.progress.note(f"The VM's access to storage could not be renewed: {refusal.message}")
        return None

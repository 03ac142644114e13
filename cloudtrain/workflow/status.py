"""`status`: what Azure says of the VM, what the guest says of training, and which of the two is known now."""

from datetime import UTC, datetime

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import lease, network, notes
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group, Intent
from cloudtrain.azure.run_command import GuestUnreachable
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import Refused
from cloudtrain.recovery.history import Event, Sums, added, goodput, sums
from cloudtrain.together import together
from cloudtrain.workflow import durable, release, training
from cloudtrain.workflow.context import Context
from cloudtrain.workflow.history import in_our_words, where_read_to
from cloudtrain.workflow.money import MoneyInfo, account
from cloudtrain.workflow.results import Training, VmInfo, last_known, vm_info
from cloudtrain.workflow.state import EVICTED, state_of


class RecoveryInfo(msgspec.Struct, frozen=True):
    """What happened to the run, as far as it was noted; `history` tells more. watched: watchers may touch it. watcher:
    one looks after it now. refusals: of starts. goodput: see `history`. next_attempt: ISO 8601."""

    watched: bool
    watcher: bool
    evictions: int
    with_notice: int
    resumes: int
    steps_lost: int
    refusals: int
    goodput: float | None
    next_attempt: str | None


class StatusResult(msgspec.Struct, frozen=True):
    """intent: what the user last asked for. note: what a reader should know beside the state; '' as a rule."""

    run: str
    cloud: str
    resource_group: str
    state: str
    intent: str
    generation: int
    created: str
    image: str
    arguments: list[str]
    vm: VmInfo | None
    training: Training | None
    note: str
    recovery: RecoveryInfo
    money: MoneyInfo


def status(ctx: Context, run: str) -> StatusResult:
    """Raises NoSuchRun."""
    group = groups.get(ctx.session, run)
    vm = vms.find(ctx.session, group)
    group = release.noticed(ctx, group, vm)
    (seen, note, told), address = together(
        lambda: _training(ctx, group, vm), lambda: network.public_ip(ctx.session, group) if vm else None
    )
    if seen is not None and seen.finished:
        vm = vms.find(ctx.session, group)  # it may have been released just now
    state = state_of(group, vm, seen)
    now = ctx.clock.now().timestamp()
    total = sums(added(notes.history(group), told), group.begun, now)
    return StatusResult(
        run=run,
        cloud=ctx.session.cloud,
        resource_group=group.name,
        state=state,
        intent=group.intent.value,
        generation=group.generation,
        created=group.created,
        image=group.spec.image,
        arguments=list(group.spec.arguments),
        vm=vm_info(vm, address) if vm else None,
        training=seen or last_known(group.progress),
        note=note or _about(state, vm),
        recovery=_recovery(group, total, now),
        money=account(ctx, group, total, vm),
    )


def _recovery(group: Group, total: Sums, now: float) -> RecoveryInfo:
    """total: with what the guest has noted since its notes were last taken over. `history` keeps them; this only
    counts."""
    useful = goodput(total)
    waits = notes.memory(group).next_at
    return RecoveryInfo(
        watched=group.watched,
        watcher=lease.of(group).until > now,
        evictions=total.evictions,
        with_notice=total.with_notice,
        resumes=total.resumes,
        steps_lost=total.steps_lost,
        refusals=total.refusals,
        goodput=None if useful is None else round(useful, 4),
        next_attempt=datetime.fromtimestamp(waits, UTC).isoformat(timespec="seconds") if waits > now else None,
    )


def _training(ctx: Context, group: Group, vm: Vm | None) -> tuple[Training | None, str, list[Event]]:
    """What the guest says now, why it could not be asked, and what it noted."""
    if vm is None or vm.power is not PowerState.RUNNING:
        return None, "", []
    try:
        with ctx.progress.step("asking the guest", usually="20 to 40 s on Azure"):
            observed = training.observe(ctx, group, events=where_read_to(group))
    except (GuestUnreachable, Refused) as error:
        # The VM's power state stands all the same; what the guest says is only information.
        return None, f"The guest could not be asked: {error.message}", []
    seen = training.of(observed)
    if seen.finished and group.intent is not Intent.FINISHED:
        training.remember(ctx, group, seen)
    note = release.after_finish(ctx, group, vm, observed) or durable.renew(ctx, group, vm)
    return seen, note, [event for each in observed.events if (event := in_our_words(each)) is not None]


def _about(state: str, vm: Vm | None) -> str:
    if state == EVICTED and vm is not None:
        return "Azure shows an eviction exactly as a deallocation by somebody else: it is one of the two."
    return vm.failure if vm else ""

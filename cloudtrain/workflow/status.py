"""`status`: what Azure says of the VM, what the guest says of training, and which of the two is known now."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import lease, network, notes
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group, Intent
from cloudtrain.azure.run_command import GuestUnreachable
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import CloudtrainError, Refused
from cloudtrain.guest import Observation
from cloudtrain.lifecycle import durable, release, stored, training
from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.money import MoneyInfo, account
from cloudtrain.lifecycle.results import Training, VmInfo, last_known, vm_info
from cloudtrain.lifecycle.state import EVICTED, state_of
from cloudtrain.recovery.history import Event, Sums, added, goodput, sums
from cloudtrain.together import together
from cloudtrain.workflow.history import in_our_words, told_in_storage, where_read_to


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
    """intent: what the user last asked for. source: who told of training: "guest" (asked now), "storage" (where the
    guest writes what it sees), "tags" (what was last known), '' where nothing is known. note: what a reader should know
    beside the state; '' as a rule."""

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
    source: str
    note: str
    recovery: RecoveryInfo
    money: MoneyInfo


def status(ctx: Context, run: str) -> StatusResult:
    """Raises NoSuchRun."""
    group = groups.get(ctx.session, run)
    vm = vms.find(ctx.session, group)
    told, address = together(
        lambda: _told(ctx, group, vm), lambda: network.public_ip(ctx.session, group) if vm else None
    )
    on = vm is not None and vm.power is PowerState.RUNNING
    if told.live.finished if told.live else on:
        # It may have been released just now; one that could not be asked may have been evicted meanwhile.
        group = groups.get(ctx.session, run)
        vm = vms.find(ctx.session, group)
    state = state_of(group, vm, told.live)
    now = ctx.clock.now().timestamp()
    total = sums(added(notes.history(group), told.events), group.begun, now)
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
        training=told.training,
        source=told.source,
        note=told.note or _about(state, vm),
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


@dataclass(frozen=True)
class _Told:
    """What is known of training, and by whom. live: what the state may be decided by. note: why the guest could not be
    asked. events: what it noted."""

    training: Training | None
    source: str
    live: Training | None = None
    note: str = ""
    events: list[Event] = field(default_factory=list)


def _told(ctx: Context, group: Group, vm: Vm | None) -> _Told:
    container = stored.readable(ctx, group)
    seen, events = _in_storage(ctx, group, container) if container is not None else (None, [])
    if vm is None or vm.power is not PowerState.RUNNING:
        last = _last_told(group, seen, events)
        if last.live is not None and seen is not None:
            _keep_the_end(ctx, group, seen)
        return last
    if seen is None or not stored.is_fresh(ctx, group, seen):
        return _ask(ctx, group, vm, seen, events)
    _keep_the_end(ctx, group, seen)
    live = training.dated(seen)
    return _Told(live, "storage", live, note=_in_passing(ctx, group, vm, seen), events=events)


def _in_storage(ctx: Context, group: Group, container: Any) -> tuple[Observation | None, list[Event]]:
    try:
        return stored.observation(container), told_in_storage(container, notes.history(group))
    except CloudtrainError as error:
        ctx.progress.note(f"The run's storage cannot be read: {error.message}")
        return None, []


def _last_told(group: Group, seen: Observation | None, events: list[Event]) -> _Told:
    """Of a VM that is off. Only a guest that ended for good may have put it off itself, and says so."""
    if seen is None or not stored.is_current(group, seen):
        last = last_known(group.progress)
        return _Told(last, "tags" if last else "", events=events)
    last = msgspec.structs.replace(training.dated(seen), under_way=False)
    return _Told(last, "storage", last if last.finished else None, events=events)


def _ask(ctx: Context, group: Group, vm: Vm, last: Observation | None, events: list[Event]) -> _Told:
    try:
        with ctx.progress.step("asking the guest", usually="20 to 40 s on Azure"):
            observed = training.observe(ctx, group, events=where_read_to(group))
    except (GuestUnreachable, Refused) as error:
        # The VM's power state stands all the same; what the guest says is only information.
        return replace(_last_told(group, last, events), note=f"The guest could not be asked: {error.message}")
    _keep_the_end(ctx, group, observed)
    seen = training.of(observed)
    fresh = [event for each in observed.events if (event := in_our_words(each)) is not None]
    return _Told(seen, "guest", seen, note=_in_passing(ctx, group, vm, observed), events=[*events, *fresh])


def _keep_the_end(ctx: Context, group: Group, seen: Observation) -> None:
    if seen.finished and group.intent is not Intent.FINISHED:
        training.remember(ctx, group, training.of(seen), seen.time)


def _in_passing(ctx: Context, group: Group, vm: Vm, seen: Observation) -> str:
    """What every look at a run does for it; returns what there is to say of it."""
    released = release.after_finish(ctx, group, vm, seen)
    return released or durable.renew(ctx, group, vm) or _refused(seen)


def _refused(seen: Observation) -> str:
    """What will be missed once the VM is gone."""
    if seen.storage is None or not seen.storage.refused:
        return ""
    return f"Storage refuses what the VM sends ({seen.storage.refused}): checkpoints stay on its disk alone."


def _about(state: str, vm: Vm | None) -> str:
    if state == EVICTED and vm is not None:
        return "Azure shows an eviction exactly as a deallocation by somebody else: it is one of the two."
    return vm.failure if vm else ""

"""A finished run stops its VM from billing: by the VM itself where it may, else by whichever command sees it first."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from cloudtrain.azure import group as groups
from cloudtrain.azure import lease, notes, storage
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group, Intent
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import CloudtrainError, Exit
from cloudtrain.guest import Observation
from cloudtrain.lifecycle import power, stored, training
from cloudtrain.lifecycle.context import Context
from cloudtrain.recovery.history import Event

# A guest that has sent nothing for so long is not waited for: what it has stays on the disk.
STALLED_SECONDS = 600.0
# So long after a run was last seen nothing is decided about its VM that is off while storage cannot be reached.
UNREACHED_SECONDS = 900.0


def after_finish(ctx: Context, group: Group, vm: Vm | None, seen: Observation, holder: str = "") -> str:
    """Do with a finished run's VM what `when_done` says, once all of it is in storage. Returns what there is to say.
    holder: of the run's lease, who asks for it; of a run that somebody else has in hand nothing is done."""
    wanted = group.spec.when_done
    if not seen.finished or wanted == "keep" or vm is None or vm.power is not PowerState.RUNNING:
        return ""
    if _in_other_hands(ctx, group, holder):
        return "Training has finished; a watcher, or a command that is under way, has the run in hand."
    if _still_sending(group, seen):
        return f"Training has finished; the VM is sending the rest to storage, then it goes ({wanted})."
    if wanted == "delete" and _all_sent(group, seen):
        groups.set_intent(ctx.session, group, Intent.FINISHED, ctx.clock.now())
        with ctx.progress.step("deleting the VM of the finished run", usually="about a minute on Azure"):
            vms.delete(ctx.session, group, ctx.clock)
        _note(ctx, group, gone=True)
        said = "Training has finished, and everything is in storage: the VM and its disk are deleted."
    else:
        deallocate(ctx, group)
        said = "Training has finished: the VM is deallocated, its disk stays."
        if wanted == "delete":
            said += " It was not deleted, for not everything on it is in storage."
    return said


def _in_other_hands(ctx: Context, group: Group, holder: str) -> bool:
    """As somebody may be about to make a longer job of it: until it trains, its guest says that it has finished."""
    now = groups.find(ctx.session, group.run)
    held = lease.of(now or group)
    return held.by != holder and held.until > ctx.clock.now().timestamp()


@contextmanager
def undisturbed(ctx: Context, group: Group) -> Iterator[Context]:
    """For whoever starts the VM of a run that had finished: until it trains, nobody else lets it go again."""
    if group.intent is not Intent.FINISHED:
        yield ctx
        return
    with lease.held(ctx.session, group, ctx.clock) as clock:
        yield replace(ctx, clock=clock)


def nothing_left_to_train(group: Group) -> str:
    """What has to be said where the VM of a run that had finished before was started again: its guest lets it go only
    once, so that somebody can look at its disk."""
    wanted, run = group.spec.when_done, group.run
    ends = f"cloudtrain down {run}" if wanted == "keep" else f"cloudtrain status {run}  lets it go ({wanted})"
    return (
        f"Training had finished before, so nothing trains: the VM runs and bills until  {ends}. "
        f"cloudtrain up {run} -- ARGUMENTS  makes a longer job of it."
    )


def deallocate(ctx: Context, group: Group) -> None:
    """The VM of a run that has finished."""
    groups.set_intent(ctx.session, group, Intent.FINISHED, ctx.clock.now())
    with ctx.progress.step("deallocating the VM of the finished run", usually="10 to 30 s on Azure"):
        vms.deallocate(ctx.session, group, ctx.clock)
        power.until_off(ctx, group)
    _note(ctx, group)


def _note(ctx: Context, group: Group, *, gone: bool = False) -> None:
    """gone: its disk and its address bill no more."""
    rate = 0.0 if gone else None
    at = ctx.clock.now().timestamp()
    event = Event(at=at, what="released", why="training has finished", disk=rate, address=rate)
    notes.add(ctx.session, group, event)


def _still_sending(group: Group, seen: Observation) -> bool:
    sending = seen.storage
    if not group.storage_account or sending is None or not sending.pending or sending.refused:
        return False
    return sending.at is None or seen.time - sending.at < STALLED_SECONDS


def _all_sent(group: Group, seen: Observation) -> bool:
    return bool(group.storage_account and seen.storage and not seen.storage.pending and not seen.storage.refused)


def noticed(ctx: Context, group: Group, vm: Vm | None) -> Group:
    """The group, marked as finished where its VM has finished and then ended itself: only storage tells that apart
    from an eviction."""
    off = vm is None or vm.power in (PowerState.DEALLOCATED, PowerState.DEALLOCATING, PowerState.STOPPED)
    if not off or group.intent is not Intent.RUNNING or group.spec.when_done == "keep":
        return group
    seen = stored.told(ctx, group)
    if seen is None and group.ends_itself:
        seen = _told_for_certain(ctx, group)
    if seen is None or not seen.finished or seen.time < _last_seen(group):
        return group
    training.remember(ctx, group, training.of(seen), seen.time)
    return groups.get(ctx.session, group.run)


def _told_for_certain(ctx: Context, group: Group) -> Observation | None:
    """As `stored.told`, of a VM that may have put itself off. Raises CloudtrainError for a while where storage cannot
    be reached: else a finished run would be taken for one that somebody stopped, or be started again."""
    try:
        account = storage.find(ctx.session, group)
        return None if account is None else stored.observation(storage.open_container(ctx.session, account))
    except CloudtrainError as error:
        long_ago = ctx.clock.now().timestamp() - _last_seen(group) > UNREACHED_SECONDS
        if error.exit_code is not Exit.UNREACHABLE or long_ago:
            return None
        raise


def _last_seen(group: Group) -> float:
    """Whatever is older was told before the run was made to go on, by other arguments perhaps."""
    at = group.progress.at
    return datetime.fromisoformat(at).timestamp() if at else 0.0

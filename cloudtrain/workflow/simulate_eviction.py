"""`simulate-eviction`: evict the VM through Azure's own operation, bring it back, and account for every step."""

from dataclasses import replace
from datetime import datetime

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import lease, notes
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group, Intent
from cloudtrain.azure.vm import Vm
from cloudtrain.errors import Refused
from cloudtrain.guest.observation import GuestEvent, Observation
from cloudtrain.lifecycle import anew, power, stored, training
from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.results import Training
from cloudtrain.lifecycle.state import state_of
from cloudtrain.recovery.history import Event


class TimelineEntry(msgspec.Struct, frozen=True):
    """at_seconds: since the eviction was asked for."""

    event: str
    at_seconds: float


class EvictionResult(msgspec.Struct, frozen=True):
    """notice_seconds: the warning that the guest got, 0 where it saw none, None where nobody knows (the VM is off).

    steps_lost: done before the eviction and done again after it; None where nothing tells, and then steps_lost_note
    says why."""

    run: str
    cloud: str
    state: str
    notice_seconds: float | None
    saved_step: int | None
    resumed_step: int | None
    steps_lost: int | None
    steps_lost_note: str
    timeline: list[TimelineEntry]
    training: Training | None


def simulate_eviction(ctx: Context, run: str, *, notice: float | None, bring_back: bool) -> EvictionResult:
    """notice: seconds, None for the cloud's own. Raises NoSuchRun, Refused, InvalidSpec."""
    group = groups.get(ctx.session, run)
    if group.intent is Intent.FINISHED:
        raise _finished(run)  # its VM may be off, and is not to be started for this
    vm = power.require_running(group, power.settled(ctx, group), "Simulating an eviction")
    if bring_back and vm.eviction_policy == "Delete":
        anew.values_for_new_vm(group)  # nothing is evicted that could not come back
    _require_training(ctx, group)
    with lease.held(ctx.session, group, ctx.clock) as clock:
        return _evict(replace(ctx, clock=clock), group, vm, notice, bring_back)


def _evict(ctx: Context, group: Group, vm: Vm, notice: float | None, bring_back: bool) -> EvictionResult:
    """Watchers keep off meanwhile: who starts the VM here is to be timed."""
    if notice is not None:
        ctx.session.set_notice(vm.id, notice)
    began = ctx.clock.now()
    vms.simulate_eviction(ctx.session, group)
    with ctx.progress.step("eviction", usually="about a minute on Azure"):
        off = power.until_off(ctx, group)
    notes.add(ctx.session, group, Event(at=ctx.clock.now().timestamp(), what="evicted", why="simulated"))
    timeline = _Timeline(began)
    timeline.add("deallocated" if off else "deleted", ctx.clock.now())
    if not bring_back:
        return _result(ctx, group, timeline, None, None)
    if off is None:
        return _made_anew(ctx, group, timeline)
    power.start(ctx, group)
    timeline.add("VM started", ctx.clock.now())
    outcome = training.begin(ctx, group)
    after = training.observe(ctx, group, events=-4096)
    return _result(ctx, group, timeline, after, outcome.training)


def _made_anew(ctx: Context, group: Group, timeline: "_Timeline") -> EvictionResult:
    """The VM is gone with its disk, and with what its guest has noted but for what it left in storage."""
    former = stored.told(ctx, group)
    made = anew.make_anew(ctx, group)
    power.note(ctx, made.group, "recreated")
    timeline.add("new VM trains", ctx.clock.now())
    after = training.observe(ctx, made.group, events=-4096)
    if former is not None:
        after = msgspec.structs.replace(after, events=(*former.events, *after.events))
    return _result(ctx, made.group, timeline, after, made.outcome.training)


def _require_training(ctx: Context, group: Group) -> None:
    """An eviction of a run that does not train would show nothing, and nothing would come back."""
    with ctx.progress.step("asking the guest", usually="20 to 40 s on Azure"):
        now = training.of(training.observe(ctx, group))
    if now.finished:
        raise _finished(group.run)
    if not now.under_way:
        raise Refused(
            "NotTraining",
            f"Run '{group.run}' is not training right now, so an eviction would prove nothing.",
            f"cloudtrain status {group.run}  shows why; cloudtrain up {group.run}  starts training.",
        )


def _finished(run: str) -> Refused:
    return Refused(
        "TrainingFinished",
        f"Training of run '{run}' has finished: there is nothing to resume after an eviction.",
        f"cloudtrain up {run} -- ARGUMENTS  makes a longer job of it (the trainer that comes along: -- --epochs 60); "
        f"cloudtrain down {run}  removes the run.",
    )


class _Timeline:
    def __init__(self, began: datetime) -> None:
        self.began = began
        self.entries: list[TimelineEntry] = []

    def add(self, event: str, at: datetime) -> None:
        self.add_epoch(event, at.timestamp())

    def add_epoch(self, event: str, at: float) -> None:
        self.entries.append(TimelineEntry(event=event, at_seconds=round(at - self.began.timestamp(), 2)))

    def in_order(self) -> list[TimelineEntry]:
        return sorted(self.entries, key=lambda entry: entry.at_seconds)


# What of the guest's events belongs on the timeline, in a reader's words.
TOLD = {
    "notice": "notice",
    "saved": "checkpoint saved at step {step}",
    "gone": "process gone",
    "started": "container started",
    "first_step": "first new step: {step}",
}


def _result(
    ctx: Context, group: Group, timeline: _Timeline, after: Observation | None, seen: Training | None
) -> EvictionResult:
    """after: the guest once it trains again; None where the VM was left off, and nothing can be asked."""
    events = [event for event in after.events if event.time >= timeline.began.timestamp()] if after else []
    for event in _told(events):
        timeline.add_epoch(_in_words(event), event.time)
    now = training.of(after) if after else seen
    group_now = groups.get(ctx.session, group.run)
    return EvictionResult(
        run=group.run,
        cloud=ctx.session.cloud,
        state=state_of(group_now, vms.find(ctx.session, group_now), now),
        notice_seconds=_notice(events) if after else None,
        saved_step=_saved_step(events, after),
        resumed_step=now.resumed_from_step if now else None,
        steps_lost=after.steps_lost if after else None,
        steps_lost_note=_why_unknown(after),
        timeline=timeline.in_order(),
        training=now,
    )


def _told(events: list[GuestEvent]) -> list[GuestEvent]:
    """The first event of each kind that is told: after the boot the guest finds, and says, some of it once more.

    Of the saves the last one before the end: one that was due anyway can come in between notice and SIGTERM."""
    told: dict[str, GuestEvent] = {}
    for event in events:
        again = event.event == "saved" and "gone" not in told
        if event.event in TOLD and (again or event.event not in told):
            told[event.event] = event
    return list(told.values())


def _in_words(event: GuestEvent) -> str:
    words = TOLD[event.event]
    if "{step}" in words and event.details.get("step") is None:
        return words.partition(" at ")[0].partition(":")[0]
    return words.format(**event.details)


def _notice(events: list[GuestEvent]) -> float:
    """Seconds of warning that the guest was given; 0 where it saw none."""
    for event in events:
        given = event.details.get("notice_seconds")
        if event.event == "notice" and isinstance(given, int | float):
            return float(given)
    return 0.0


def _saved_step(events: list[GuestEvent], after: Observation | None) -> int | None:
    """The step of the checkpoint that was made because of the notice, else of the newest one that was found."""
    for event in _told(events):
        step = event.details.get("step")
        if event.event == "saved" and isinstance(step, int):
            return step
    return after.progress.resumed_from_step if after and after.progress else None


def _why_unknown(after: Observation | None) -> str:
    if after is None:
        return "unknown until the run is back: the VM is off"
    if after.steps_lost is None:
        return "unknown: this trainer image writes no progress.json"
    return ""

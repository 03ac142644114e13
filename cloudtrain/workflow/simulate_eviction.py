"""`simulate-eviction`: evict the VM through Azure's own operation, bring it back, and account for every step."""

from datetime import datetime

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group
from cloudtrain.azure.run_command import GuestUnreachable
from cloudtrain.errors import Refused
from cloudtrain.guest.observe import Observation
from cloudtrain.workflow import power, training
from cloudtrain.workflow.context import Context
from cloudtrain.workflow.results import Training


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
    vm = power.require_running(group, power.settled(ctx, group), "Simulating an eviction")
    _require_training(ctx, group)
    if notice is not None:
        ctx.session.set_notice(vm.id, notice)
    began = ctx.clock.now()
    vms.simulate_eviction(ctx.session, group)
    with ctx.progress.step("eviction", usually="about a minute on Azure"):
        power.until_off(ctx, group)
    timeline = _Timeline(began)
    timeline.add("deallocated", ctx.clock.now())
    if not bring_back:
        return _result(ctx, group, timeline, None, None)
    power.start(ctx, group)
    timeline.add("VM started", ctx.clock.now())
    outcome = training.begin(ctx, group)
    after = training.observe(ctx, group)
    return _result(ctx, group, timeline, after, outcome.training)


def _require_training(ctx: Context, group: Group) -> None:
    """An eviction of a run that does not train would show nothing, and nothing would come back."""
    with ctx.progress.step("asking the guest", usually="20 to 40 s on Azure"):
        now = training.of(training.observe(ctx, group))
    if now.finished:
        raise Refused(
            "TrainingFinished",
            f"Training of run '{group.run}' has finished: there is nothing to resume after an eviction.",
            f"cloudtrain down {group.run}  removes the run.",
        )
    if not now.under_way:
        raise Refused(
            "NotTraining",
            f"Run '{group.run}' is not training right now, so an eviction would prove nothing.",
            f"cloudtrain status {group.run}  shows why; cloudtrain up {group.run}  starts training.",
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

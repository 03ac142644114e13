"""`watch`: look at a run, decide, do, note it down, say it; and again. All it knows between two looks is in the cloud,
so another watcher, on another machine, goes on where this one was killed."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

import msgspec

from cloudtrain import recovery
from cloudtrain.azure import activity, health, lease, notes
from cloudtrain.azure import group as groups
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group, Intent
from cloudtrain.azure.run_command import GuestUnreachable
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import Blocks, CloudtrainError, Exit, NoSuchRun, Refused
from cloudtrain.guest.observation import Observation as GuestObservation
from cloudtrain.lifecycle import anew, durable, money, power, release, stored, training
from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.results import Training, last_known
from cloudtrain.lifecycle.state import FAILED, state_of
from cloudtrain.recovery import Action, Do, Guest, Limits, Memory, Observation, Place, Power, Want, places
from cloudtrain.recovery.history import Event, sums
from cloudtrain.spec import RunSpec
from cloudtrain.workflow import history
from cloudtrain.workflow.stop import stop

# The VM is looked at more often than its guest: where storage does not tell, asking takes 20 to 40 s on Azure.
LOOKS_PER_GUEST_LOOK = 12
# Saving takes up to a minute, deallocating half of one.
STOPPING_SECONDS = 120.0
# What leaves the run other than it was looked at.
CHANGING = recovery.RESTARTING | {Do.BEGIN, Do.SAVE_AND_STOP, Do.RELEASE, Do.HONOUR_STOP}
# How often it is looked at what storage costs.
STORAGE_SECONDS = 3600.0
# So long a run without a VM is believed to be in the hands of the `up` that makes it.
MAKING_SECONDS = 900.0


class WatchLine(msgspec.Struct, frozen=True):
    """One line of what a watcher says. at: ISO 8601. action: what was done, in `recovery.Do`'s words."""

    at: str
    run: str
    state: str
    action: str
    text: str


class WatchResult(msgspec.Struct, frozen=True):
    """How the watching ended. next_look: ISO 8601, when the next attempt is due, where one waits for it."""

    run: str
    cloud: str
    state: str
    action: str
    text: str
    next_look: str | None


def watch(ctx: Context, run: str, *, once: bool, emit: Callable[[WatchLine], None]) -> WatchResult:
    """once: one look. Else until the run is over: finished, failed, stopped, or gone. Raises NoSuchRun."""
    holder = lease.new_holder()
    clock = lease.Keeping(ctx.session, run, holder, ctx.clock)
    watcher = _Watcher(replace(ctx, clock=clock), run, emit, holder, clock)
    try:
        while True:
            look = watcher.look()
            if once or look.over:
                return look.result
            ctx.clock.sleep(interval(ctx))
    finally:
        watcher.leave()


def search_on(ctx: Context, run: str, refusal: Refused) -> None:
    """`up` was refused its first VM: the watcher goes on from there, at the other places."""
    group, now = groups.get(ctx.session, run), ctx.clock.now().timestamp()
    looked = Observation(
        now=now,
        want=Want.RUNNING,
        power=Power.GONE,
        place=group.place,
        places=places_of(group.spec),
        on_demand_after=group.spec.on_demand_after or 0.0,
        trained=False,
        memory=Memory(off_since=now),
    )
    notes.add(ctx.session, group, Event(at=now, what="refused", place=group.place.in_words, why=refusal.code))
    after = recovery.after_refusal(looked, group.place, refusal.code, refusal.blocks or Blocks.SIZE)
    notes.set_memory(ctx.session, group, after)


def error_of(result: WatchResult) -> CloudtrainError | None:
    """What is wrong with a run whose watching ended so."""
    if result.state == FAILED:
        return CloudtrainError(
            "TrainingFailed",
            f"Run '{result.run}' has failed: {result.text}.",
            f"cloudtrain restart {result.run}  tries again; cloudtrain logs {result.run} --source container  then "
            "shows what the trainer said.",
            Exit.TRAINING_FAILED,
        )
    if result.action == Do.REPORT.value:
        return CloudtrainError(
            "NothingToGoOnFrom",
            f"Run '{result.run}': {result.text}.",
            f"cloudtrain status {result.run}  shows it; cloudtrain up {result.run}  begins anew.",
            Exit.REFUSED,
        )
    return None


def interval(ctx: Context) -> float:
    """Seconds between two looks at the VM's power state. On Azure 6: it allows a read of a VM each 5 s."""
    return max(1.0, 0.6 * ctx.session.capabilities.poll_seconds)


@dataclass(frozen=True)
class _Look:
    result: WatchResult
    over: bool


@dataclass
class _Watcher:
    ctx: Context
    run: str
    emit: Callable[[WatchLine], None]
    holder: str
    keeping: lease.Keeping
    said: str = ""
    looks: int = 0
    failures: int = 0
    # What the guest told at this look.
    told: Training | None = None
    seen: GuestObservation | None = None
    warning: str = ""
    # Why a limit cannot be kept, or the run cannot go elsewhere.
    doubt: str = ""
    rates: money.StorageRates = field(default_factory=money.StorageRates)
    rates_at: float | None = None
    # As it was read last.
    group: Group | None = None
    news: list[Event] = field(default_factory=list)

    def look(self) -> _Look:
        """Once it has begun it never ends because a request was refused or lost: that says nothing of the run."""
        self.told, self.seen, self.news, self.doubt = None, None, [], ""
        if self.group is not None:
            self.ctx.session.opened.pop(self.group.id, None)
        try:
            look = self._look()
        except NoSuchRun:
            self.keeping.taken_at = None
            if not self.said:
                raise
            return self._say("deleted", Do.NOTHING, "the run is gone", over=True)
        except CloudtrainError as error:
            if error.exit_code is Exit.TRAINING_FAILED or not self.said:
                raise
            self.failures += 1
            look = self._say("unknown", Do.WAIT, f"this look failed: {error.message}")
            self.ctx.clock.sleep(recovery.pause_after(self.failures, random.random()))
            return look
        self.failures = 0
        return look

    def _look(self) -> _Look:
        group = self.group = groups.get(self.ctx.session, self.run)
        if group.deleting:
            self.keeping.taken_at = None
            return self._say("deleting", Do.NOTHING, "the run is being deleted", over=True)
        vm = vms.find(self.ctx.session, group)
        self.keeping.taken_at = self._now()
        if not lease.take(self.ctx.session, group, self.holder, self._now()):
            self.keeping.taken_at = None
            return self._say(state_of(group, vm, None), Do.NOTHING, "another watcher, or a command, looks after it")
        group = release.noticed(self.ctx, group, vm)
        before = self._observe(group, vm)
        observation = msgspec.structs.replace(before, memory=recovery.seen(before))
        action = recovery.decide(observation)
        # Noted down before it is done: whoever is killed now has at most tried less often than it says.
        self._note(group, vm, before, observation)
        memory = self._do(group, vm, observation, action)
        if memory != observation.memory:
            notes.set_memory(self.ctx.session, group, memory)
        look = self._conclude(group, vm, action, memory)
        # What earlier generations left goes once this one has trained.
        gone = anew.remove_former(self.ctx, group) if group.trained or look.over else not group.has_former
        return replace(look, over=look.over and gone)

    def leave(self) -> None:
        if self.group is None or self.keeping.taken_at is None:
            return
        try:
            lease.release(self.ctx.session, self.group, self.holder)
        except CloudtrainError:
            # Out of reach: the lease ends by itself.
            return

    # what is seen

    def _observe(self, group: Group, vm: Vm | None) -> Observation:
        memory, spec = notes.memory(group), group.spec
        state = self._power(group, vm)
        here = vm.place if vm else group.place
        wanted = group.intent is Intent.RUNNING
        off = vm is not None and vm.power in (PowerState.DEALLOCATED, PowerState.STOPPED)
        return Observation(
            now=self._now(),
            want=Want(group.intent.value),
            power=state,
            place=here,
            watched=group.watched,
            durable=self._durable(group, vm, memory),
            kept=spec.when_done == "keep",
            places=places_of(spec),
            on_demand_after=spec.on_demand_after or 0.0,
            trained=group.may_hold_work,
            begun=group.trained or group.generation == 1,
            saved_step=group.progress.saved,
            user_stopped=(
                self._stopped_by_somebody(group, vm)
                if vm is not None and off and wanted and self._now() >= memory.next_at
                else None
            ),
            failure=vm.failure if vm else "",
            guest=self._guest(group, vm) if group.watched else None,
            limits=self._limits(group),
            memory=memory,
            # The same for every watcher that looks at this attempt.
            jitter=random.Random(f"{group.run} {group.created} {memory.off_since} {memory.refused}").random(),
        )

    def _durable(self, group: Group, vm: Vm | None, memory: Memory) -> bool:
        """Whether a new VM loses nothing that is known of: a disk that is there is not given up for a storage that
        lacks its work, as where the VM was refused there."""
        kept = vm is not None and vm.power is PowerState.DEALLOCATED and group.may_hold_work
        if not group.storage_account or not kept or self._now() < memory.next_at:
            return bool(group.storage_account)
        held = stored.holds(self.ctx, group, group.progress.saved)
        if not held and len(places_of(group.spec)) > 1:
            self.doubt = "the VM's disk has work that storage has not, or nobody here can tell: it goes nowhere else"
        return held

    def _stopped_by_somebody(self, group: Group, vm: Vm) -> bool | None:
        told = health.stopped_by_somebody(self.ctx.session, vm.id, group.wanted_since)
        if told is not None:
            return told
        return activity.stopped_by_somebody(self.ctx.session, vm.id, group.wanted_since, self.ctx.clock.now())

    def _limits(self, group: Group) -> Limits:
        """Money: what will be spent by the time the run could be saved and stopped after the next look."""
        spec, spent = group.spec, 0.0
        if spec.max_cost:
            total = sums(notes.history(group), group.begun, self._now() + interval(self.ctx) + STOPPING_SECONDS)
            spent = money.of_vms_disk_and_address(total)
            spent += self._storage_rates(group).spent(group, total, self._now() + interval(self.ctx))
            hours = total.unpriced / 3600
            if hours:
                self.doubt = f"no price is known for {hours:.1f} h of the VM: max_cost cannot be kept"
        return Limits(
            until=group.begun + spec.max_duration if spec.max_duration else None,
            cost=spec.max_cost or None,
            spent=spent,
        )

    def _storage_rates(self, group: Group) -> money.StorageRates:
        """What lies there grows by cents a day, and listing it takes requests."""
        if self.rates_at is None or self._now() - self.rates_at > STORAGE_SECONDS:
            seen = money.storage_rates(self.ctx, group)
            if seen.held is not None:
                self.rates, self.rates_at = seen, self._now()
        return self.rates

    def _power(self, group: Group, vm: Vm | None) -> Power:
        if vm is None:
            being_made = group.generation == 1 and not group.may_hold_work and not notes.memory(group).off_since
            return Power.MOVING if being_made and self._now() - group.begun < MAKING_SECONDS else Power.GONE
        if vm.provisioning in power.ON_THE_WAY or vm.power in power.MOVING:
            return Power.MOVING
        if vm.gone_wrong and vm.power is not PowerState.RUNNING and not group.may_hold_work:
            return Power.FAILED
        known = {
            PowerState.RUNNING: Power.RUNNING,
            PowerState.STOPPED: Power.STOPPED,
            PowerState.DEALLOCATED: Power.DEALLOCATED,
        }
        return known.get(vm.power, Power.FAILED if vm.gone_wrong else Power.MOVING)

    def _guest(self, group: Group, vm: Vm | None) -> Guest | None:
        """What the guest says, where it can be asked and it is time to; of a VM that is off, what was last known."""
        if vm is None or vm.power is not PowerState.RUNNING:
            last = last_known(group.progress)
            failed = f"exit code {last.exit_code}" if last and last.failed else ""
            return Guest(finished=bool(last and last.finished), failed=failed)
        due = self.looks % LOOKS_PER_GUEST_LOOK == 0
        self.looks += 1
        return self._ask_guest(group, vm) if due else None

    def _ask_guest(self, group: Group, vm: Vm) -> Guest | None:
        try:
            seen, self.news = history.read(self.ctx, group)
        except (GuestUnreachable, Refused):
            # It boots, or is busy, or the network is: asked again at the next look. It says nothing of the VM.
            self.looks = 0
            return None
        self.told, self.seen = training.of(seen), seen
        self.warning = durable.renew(self.ctx, group, vm)
        if group.spec.max_duration:
            power.backstop(self.ctx, group, vm)
        # Of a later generation that has not trained yet, whoever makes it remembers more: see BEGIN.
        if group.trained or (group.generation == 1 and self.told.under_way):
            training.remember(self.ctx, group, self.told, seen.time)
        if not self.told.under_way and not seen.failed and not seen.finished:
            self.looks = 0
        return Guest(under_way=self.told.under_way, finished=seen.finished, failed=_why_failed(seen))

    # what is done

    def _do(self, group: Group, vm: Vm | None, observation: Observation, action: Action) -> Memory:
        """Returns the memory after it."""
        if action.do in recovery.RESTARTING and action.place is not None:
            return self._bring_back(group, vm, observation, action, action.place)
        if action.do is Do.BEGIN and vm is not None:
            anew.go_on(self.ctx, group, vm)
        elif action.do is Do.SAVE_AND_STOP:
            stop(self.ctx, self.run, why=action.why)
        elif action.do is Do.RELEASE:
            self._release(group, vm)
        elif action.do is Do.HONOUR_STOP:
            groups.set_intent(self.ctx.session, group, Intent.STOPPED, self.ctx.clock.now())
            self._record(group, "stopped", why=action.why)
        return observation.memory

    def _release(self, group: Group, vm: Vm | None) -> None:
        if self.seen is None and vm is not None and vm.power is PowerState.RUNNING:
            self._ask_guest(group, vm)
        if self.seen is not None:
            release.after_finish(self.ctx, group, vm, self.seen, self.holder)
        else:
            release.deallocate(self.ctx, group)

    def _bring_back(
        self, group: Group, vm: Vm | None, observation: Observation, action: Action, place: Place
    ) -> Memory:
        if self._still_wanted() is None:
            return observation.memory
        try:
            if action.do is Do.RECREATE:
                anew.make_anew(self.ctx, group, place)
            else:
                self._start(group, place, resize=action.do is Do.RESIZE)
        except Refused as refusal:
            self._record(group, "refused", where=place.in_words, why=refusal.code)
            return recovery.after_refusal(observation, place, refusal.code, refusal.blocks or Blocks.SIZE)
        what = {Do.START: "started", Do.RESIZE: "resized", Do.RECREATE: "recreated"}[action.do]
        self.looks = 0
        now = self._still_wanted()
        power.note(self.ctx, now or groups.get(self.ctx.session, self.run), what)
        if now is None:
            # Somebody ran `stop` while the VM was being started, and may have found it off.
            vms.deallocate(self.ctx.session, group, self.ctx.clock)
        return recovery.after_start(observation.memory)

    def _start(self, group: Group, place: Place, *, resize: bool) -> None:
        if resize:
            with self.ctx.progress.step(f"changing the VM to {place.size}"):
                vms.update(self.ctx.session, group, {"hardwareProfile": {"vmSize": place.size}})
                groups.set_tags(self.ctx.session, group, groups.place_tags(place))
        with self.ctx.progress.step("starting the VM", usually="about a minute on Azure"):
            vms.start(self.ctx.session, group, self.ctx.clock)

    def _still_wanted(self) -> Group | None:
        """The run as it is now; None where it is not to run any more."""
        now = groups.find(self.ctx.session, self.run)
        wanted = now is not None and not now.deleting and now.intent is Intent.RUNNING and now.watched
        return now if wanted else None

    # what is noted, and said

    def _note(self, group: Group, vm: Vm | None, before: Observation, observation: Observation) -> None:
        if observation.memory == before.memory:
            return
        memory = observation.memory
        if not memory.off_since or before.memory.off_since:
            notes.set_memory(self.ctx.session, group, memory)
            return
        why = "" if observation.user_stopped is False else "Azure tells no cause"
        gone = observation.power is Power.GONE
        self._record(group, "evicted", where=observation.place.in_words, why=why, gone=gone, memory=memory)

    def _record(
        self,
        group: Group,
        what: str,
        *,
        where: str = "",
        why: str = "",
        gone: bool = False,
        memory: Memory | None = None,
    ) -> None:
        """memory: noted in the same write."""
        event = Event(at=self._now(), what=what, place=where, why=why[:120])
        if gone:
            # Its disk and its address went with it.
            event = msgspec.structs.replace(event, disk=0.0, address=0.0)
        notes.add(self.ctx.session, group, event, memory)

    def _conclude(self, group: Group, vm: Vm | None, action: Action, memory: Memory) -> _Look:
        ends = self.told is not None and (self.told.finished or group.intent is not Intent.RUNNING)
        if action.do in CHANGING or ends:
            group = groups.get(self.ctx.session, self.run)
            vm = vms.find(self.ctx.session, group)
        state = state_of(group, vm, self.told)
        waits = memory.next_at if memory.next_at > self._now() else None
        kept = group.intent is Intent.FINISHED and group.spec.when_done == "keep"
        off = vm is None or vm.power is PowerState.DEALLOCATED
        ended = group.intent is not Intent.RUNNING and (off or kept)
        over = ended or (action.do is Do.REPORT and vm is None)
        text = f"{self.warning} {self._text(action, memory, waits)}".lstrip()
        text += f" ({self.doubt})" if self.doubt else ""
        return self._say(state, action.do, text, over=over, until=waits)

    def _text(self, action: Action, memory: Memory, waits: float | None) -> str:
        resumed = [event for event in self.news if event.what == "resumed"]
        if action.do in recovery.RESTARTING:
            place = action.place.in_words if action.place else ""
            if memory.refused and memory.code:
                text = f"{action.why}; {place} was refused ({memory.code})"
                return text + (f"; next attempt at {_clock(waits)}" if waits else "; the next place at once")
            return f"{action.why}; {_DONE[action.do]} {place}".rstrip()
        if action.do is Do.WAIT and waits:
            return f"{action.why}; next attempt at {_clock(waits)}"
        if resumed:
            lost = resumed[-1].lost
            return f"resumed from step {resumed[-1].step}, {'unknown' if lost is None else lost} steps lost"
        if action.do is Do.NOTHING and self.told is not None and self.told.step is not None:
            total = f" of {self.told.total_steps}" if self.told.total_steps else ""
            return f"{action.why}, step {self.told.step}{total}"
        return action.why

    def _say(self, state: str, do: Do, text: str, *, over: bool = False, until: float | None = None) -> _Look:
        # A healthy run is said once, however far it gets.
        key = f"{state} {do} {text.partition(', step ')[0]}"
        if key != self.said:
            at = self.ctx.clock.now().isoformat(timespec="seconds")
            self.emit(WatchLine(at=at, run=self.run, state=state, action=do.value, text=text))
            self.said = key
        result = WatchResult(
            run=self.run,
            cloud=self.ctx.session.cloud,
            state=state,
            action=do.value,
            text=text,
            next_look=None if until is None else _moment(until).isoformat(timespec="seconds"),
        )
        return _Look(result, over)

    def _now(self) -> float:
        return self.ctx.clock.now().timestamp()


def places_of(spec: RunSpec) -> tuple[Place, ...]:
    return places(
        spec.size,
        spec.location,
        zones=spec.zones,
        other_sizes=spec.other_sizes,
        other_locations=spec.other_locations,
        on_demand=spec.on_demand_after is not None,
    )


_DONE = {Do.START: "started", Do.RESIZE: "changed to and started", Do.RECREATE: "made anew:"}


def _why_failed(seen: GuestObservation) -> str:
    return seen.failed or ""


def _moment(epoch: float) -> datetime:
    from datetime import UTC

    return datetime.fromtimestamp(epoch, UTC)


def _clock(epoch: float | None) -> str:
    return "" if epoch is None else f"{_moment(epoch):%H:%M:%S} UTC"

"""`history`: what happened to a run, and where its time went: the watcher's notes, and what the guests noted, which the
run's storage has, or the VM's disk."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import notes
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group
from cloudtrain.azure.run_command import GuestUnreachable
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import CloudtrainError, Refused
from cloudtrain.guest.observation import GuestEvent, Observation
from cloudtrain.lifecycle import durable, stored, training
from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.money import MoneyInfo, account
from cloudtrain.lifecycle.state import state_of
from cloudtrain.recovery import history as told
from cloudtrain.recovery.history import Event, Record


class HistoryEntry(msgspec.Struct, frozen=True):
    """at: ISO 8601. place: size and location. why: Azure's code, or words. price: USD an hour, by list."""

    at: str
    what: str
    place: str
    why: str
    step: int | None
    steps_lost: int | None
    notice_seconds: float | None
    price: float | None


class Seconds(msgspec.Struct, frozen=True):
    """What the time was spent on; see `recovery.history.Sums`."""

    starting: float = 0.0
    useful: float = 0.0
    redone: float = 0.0
    saving: float = 0.0
    waiting: float = 0.0
    restarting: float = 0.0
    stopped: float = 0.0


class HistoryResult(msgspec.Struct, frozen=True):
    """earlier_events: how many older events are kept as sums only. goodput: the useful share of the time in which the
    run was wanted. note: why the guest's part may be missing; '' as a rule."""

    run: str
    cloud: str
    state: str
    events: list[HistoryEntry]
    earlier_events: int
    evictions: int
    with_notice: int
    without_notice: int
    refusals: int
    resumes: int
    steps_lost: int
    seconds: Seconds
    goodput: float | None
    money: MoneyInfo
    note: str


def history(ctx: Context, run: str) -> HistoryResult:
    """Raises NoSuchRun."""
    group = groups.get(ctx.session, run)
    vm, container = vms.find(ctx.session, group), stored.readable(ctx, group)
    record, note = notes.history(group), ""
    runs = vm is not None and vm.power is PowerState.RUNNING
    if container is not None and (not runs or stored.is_fresh(ctx, group, stored.observation(container))):
        record = told.added(record, told_in_storage(container, record))
    elif runs:
        try:
            with ctx.progress.step("asking the guest", usually="20 to 40 s on Azure"):
                record = _take_all_over(ctx, group)
        except (GuestUnreachable, Refused) as error:
            note = f"The guest could not be asked for its part: {error.message}"
    elif group.may_hold_work:
        note = "The VM is off: what it noted since it was last read is on its disk, and is shown once it runs."
    return _result(ctx, group, record, vm, note or durable.renew(ctx, group, vm))


def where_read_to(group: Group) -> int:
    """Position in the guest's events up to which they were taken over; another generation has another disk."""
    record = notes.history(group)
    return record.read if record.generation == group.generation else 0


def told_in_storage(container: Any, record: Record) -> list[Event]:
    """What the guests noted, of all generations, but for what the record holds as sums only."""
    events = [event for each in stored.events(container) if (event := in_our_words(each)) is not None]
    since = record.events[0].at if record.folded else 0.0
    return [event for event in events if event.at > since]


def read(ctx: Context, group: Group) -> tuple[Observation, list[Event]]:
    """Where the guest of a VM that is on stands, and what is new of its events, which are kept: from storage where it
    wrote there a moment ago, else by asking it. Raises GuestUnreachable, Refused."""
    return _read_stored(ctx, group) or _read_guest(ctx, group)


def _read_guest(ctx: Context, group: Group) -> tuple[Observation, list[Event]]:
    seen = training.observe(ctx, group, events=where_read_to(group))
    events = [event for each in seen.events if (event := in_our_words(each)) is not None]
    known = notes.history(group)
    if events or seen.events_offset != where_read_to(group):
        notes.append(ctx.session, group, events, read=(seen.events_offset, group.generation))
    return seen, [event for event in events if event not in known.events]


def _read_stored(ctx: Context, group: Group) -> tuple[Observation, list[Event]] | None:
    container, known = stored.readable(ctx, group), notes.history(group)
    if container is None:
        return None
    try:
        seen = stored.observation(container)
        if seen is None or not stored.is_fresh(ctx, group, seen):
            return None
        held = set(known.events)
        fresh = [event for event in told.added(known, told_in_storage(container, known)).events if event not in held]
    except CloudtrainError:
        return None
    if fresh:
        notes.append(ctx.session, group, fresh)
    return seen, fresh


def _take_all_over(ctx: Context, group: Group) -> Record:
    while True:
        seen, _ = _read_guest(ctx, group)
        group = groups.get(ctx.session, group.run)
        if not seen.events:
            return notes.history(group)


# The guest's word -> ours. Whatever else it notes belongs to its logs.
WORDS = {
    "notice": "notice",
    "gone": "saved",
    "session": "booted",
    "stop_asked": "stop asked",
    "finished": "finished",
    "failed": "failed",
    "shut_down": "shut down",
}


def in_our_words(event: GuestEvent) -> Event | None:
    details = event.details
    if event.event == "first_step":
        resumed = _whole(details.get("resumed_from_step"))
        return Event(
            at=round(event.time, 1),
            what="resumed" if resumed else "began",
            step=resumed,
            lost=_whole(details.get("steps_lost")),
            seen=_number(details.get("last_seen")),
        )
    if event.event not in WORDS:
        return None
    return Event(
        at=round(event.time, 1),
        what=WORDS[event.event],
        why=str(details.get("reason") or "")[:120],
        step=_whole(details.get("saved_step")),
        notice=_number(details.get("notice_seconds")),
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    return round(float(value), 1) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _result(ctx: Context, group: Group, record: Record, vm: Vm | None, note: str) -> HistoryResult:
    total = told.sums(record, group.begun, ctx.clock.now().timestamp())
    goodput = told.goodput(total)
    return HistoryResult(
        run=group.run,
        cloud=ctx.session.cloud,
        state=state_of(group, vm, None),
        events=[_entry(event) for event in record.events],
        earlier_events=record.folded,
        evictions=total.evictions,
        with_notice=total.with_notice,
        without_notice=total.evictions - total.with_notice,
        refusals=total.refusals,
        resumes=total.resumes,
        steps_lost=total.steps_lost,
        seconds=Seconds(**{name: round(getattr(total, name), 1) for name in Seconds.__struct_fields__}),
        goodput=None if goodput is None else round(goodput, 4),
        money=account(ctx, group, total, vm),
        note=note,
    )


def _entry(event: Event) -> HistoryEntry:
    return HistoryEntry(
        at=datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds"),
        what=event.what,
        place=event.place,
        why=event.why,
        step=event.step,
        steps_lost=event.lost,
        notice_seconds=event.notice,
        price=event.price,
    )

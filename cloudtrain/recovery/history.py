"""What happened to a run: events, and where its time went. Pure: events in, sums out. Times are epoch seconds."""

import base64
import binascii
import zlib
from collections.abc import Iterable, Sequence

import msgspec

from cloudtrain.recovery.observed import ON_DEMAND


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened.

    what, as a command or a watcher saw it: made, evicted, refused, started, resized, recreated, stopped, released; as
    the guest told it: began, notice, saved, booted, resumed, stop asked, finished, failed.
    place: size and location. why: Azure's code, or words. step: resumed from, saved at or finished at. lost: steps done
    again. notice: seconds of warning. seen: when training before a resume was last seen. price: of the VM from then
    on, USD an hour, by list; disk, address: of what bills whether the VM runs or not, 0 once it is gone.
    """

    at: float
    what: str
    place: str = ""
    why: str = ""
    step: int | None = None
    lost: int | None = None
    notice: float | None = None
    seen: float | None = None
    price: float | None = None
    disk: float | None = None
    address: float | None = None

    @property
    def on_demand(self) -> bool:
        return self.place.endswith(ON_DEMAND)


class Sums(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counts, and seconds by what they were spent on.

    starting: from the run's creation to its first step. useful: training that counts. redone: training that an
    eviction took and that was done again. saving: from a notice to the end of the trainer. waiting: off. restarting:
    from the start of the VM to the first new step. stopped: off because somebody wanted it.

    billed: while a VM ran; unpriced: the part of it for which no price was known. spent: US dollars for the rest, by
    the list price at each start; on_demand: the part of it that was for VMs on demand. disk, address: US dollars."""

    evictions: int = 0
    with_notice: int = 0
    refusals: int = 0
    resumes: int = 0
    steps_lost: int = 0
    starting: float = 0.0
    useful: float = 0.0
    redone: float = 0.0
    saving: float = 0.0
    waiting: float = 0.0
    restarting: float = 0.0
    stopped: float = 0.0
    billed: float = 0.0
    unpriced: float = 0.0
    spent: float = 0.0
    on_demand: float = 0.0
    disk: float = 0.0
    address: float = 0.0


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept. earlier: the sums of events that are no longer kept, up to events[0]. read: how far the guest's
    own events were taken over, in bytes, from the disk of that generation."""

    events: tuple[Event, ...] = ()
    earlier: Sums = Sums()
    folded: int = 0
    read: int = 0
    generation: int = 0


OFF = frozenset({"evicted", "stopped", "released"})
ENDS_TRAINING = OFF | {"notice", "cut", "stop asked", "finished", "failed"}
BY_SOMEBODY = frozenset({"stopped", "released", "stop asked"})
TRAINS = frozenset({"began", "resumed"})
MAKES = frozenset({"made", "recreated"})
STARTS = MAKES | {"started", "resized"}


def sums(record: Record, begun: float, now: float) -> Sums:
    """begun: when the run was made. now: until when to count."""
    account = _Account(begun, record.earlier)
    events = _with_cuts(record.events)
    if record.folded:
        # The resume that ended the part folded is the first event kept, and is counted there.
        account.go_on_from(events.pop(0))
    for event in events:
        account.take(event)
    return account.until(now)


def goodput(total: Sums) -> float | None:
    """The useful share of the time in which the run was wanted; None before there was any."""
    wanted = total.starting + total.useful + total.redone + total.saving + total.waiting + total.restarting
    return total.useful / wanted if wanted > 0 else None


def _with_cuts(events: Sequence[Event]) -> list[Event]:
    """The events in order, with a `cut` where training was last seen before an end that nobody announced."""
    told: list[Event] = []
    for event in sorted(events, key=lambda each: each.at):
        if event.what == "resumed" and event.seen is not None:
            since = max((n for n, each in enumerate(told) if each.what in TRAINS), default=None)
            between = told[since + 1 :] if since is not None else []
            announced = any(each.what in ("notice", "stop asked") for each in between)
            if since is not None and not announced and told[since].at < event.seen < event.at:
                told.append(Event(at=event.seen, what="cut"))
                told.sort(key=lambda each: each.at)
        told.append(event)
    return told


class _Account:
    """Walks along the events; `mode` names what the time since `since` is spent on."""

    def __init__(self, since: float, earlier: Sums) -> None:
        self.since = since
        self.mode = "starting"
        self.counts = {name: getattr(earlier, name) for name in Sums.__struct_fields__}
        self.stretch = 0.0  # seconds of training since it last began
        self.from_step = 0
        self.on = False  # the VM, and what it costs an hour
        self.price: float | None = None
        self.paid = False  # on demand
        self.disk = self.address = 0.0
        # An end of training that is an eviction as far as anybody knows, and was not counted yet.
        self.open = self.noticed = False

    def go_on_from(self, event: Event) -> None:
        """Training is under way from that step on."""
        self.on, self.price = True, event.price if event.price is not None else self.price
        self._note_rates(event)
        self.since, self.mode = max(self.since, event.at), "useful"
        self.stretch, self.from_step = 0.0, event.step or 0

    def take(self, event: Event) -> None:
        self._spend(event.at)
        self._note_rates(event)
        what = event.what
        if what == "refused":
            self.counts["refusals"] += 1
        elif what in TRAINS:
            self._train(event)
        elif what in ENDS_TRAINING:
            self._end(event)
        elif what in ("saved", "shut down") and self.mode == "saving":
            self.mode = "waiting"
        elif what in STARTS or what == "booted":
            self._count_eviction()
            self.on, self.price = True, event.price if what in STARTS else self.price
            if self.mode in ("waiting", "stopped", "saving"):
                self.mode = "restarting"

    def _note_rates(self, event: Event) -> None:
        self.disk = self.disk if event.disk is None else event.disk
        self.address = self.address if event.address is None else event.address
        if event.price is not None or event.what in STARTS:
            self.paid = event.on_demand

    def until(self, now: float) -> Sums:
        self._spend(max(now, self.since))
        return Sums(**self.counts)

    def _spend(self, until: float) -> None:
        seconds = max(0.0, until - self.since)
        if self.mode != "over":
            self.counts[self.mode] += seconds
        if self.mode == "useful":
            self.stretch += seconds
        if self.on:
            self.counts["billed"] += seconds
            self.counts["unpriced"] += seconds if self.price is None else 0.0
            self.counts["spent"] += seconds / 3600 * (self.price or 0.0)
            self.counts["on_demand"] += seconds / 3600 * (self.price or 0.0) * self.paid
        self.counts["disk"] += seconds / 3600 * self.disk
        self.counts["address"] += seconds / 3600 * self.address
        self.since = max(self.since, until)

    def _end(self, event: Event) -> None:
        was_on, self.on = self.on, self.on and event.what not in OFF
        if event.what in BY_SOMEBODY:
            self.open = self.noticed = False
        elif event.what in ("notice", "cut"):
            self.open, self.noticed = True, event.what == "notice"
        elif event.what == "evicted" and was_on:
            # Two may have seen the same one: who simulated it, and a watcher.
            self.open = True
            self._count_eviction()
        if event.what in ("finished", "failed"):
            self.mode = "over"
        elif event.what == "notice":
            self.mode = "saving"
        elif event.what in BY_SOMEBODY:
            self.mode = "stopped"
        elif self.mode != "stopped":
            self.mode = "waiting"

    def _train(self, event: Event) -> None:
        if event.what == "resumed":
            self.counts["resumes"] += 1
            self._redo(event)
        self._count_eviction()
        self.go_on_from(event)

    def _redo(self, event: Event) -> None:
        """Training that was lost moves from useful to redone, in proportion to its steps."""
        lost = event.lost or 0
        self.counts["steps_lost"] += lost
        steps = (event.step or 0) + lost - self.from_step
        if lost and steps > 0:
            seconds = self.stretch * min(1.0, lost / steps)
            self.counts["useful"] -= seconds
            self.counts["redone"] += seconds

    def _count_eviction(self) -> None:
        if self.open:
            self.counts["evictions"] += 1
            self.counts["with_notice"] += self.noticed
        self.open = self.noticed = False


def added(record: Record, events: Iterable[Event]) -> Record:
    """The record with events that it did not hold yet; the same event told twice counts once. What is older than the
    first event that is kept is in the sums."""
    since = record.events[0].at if record.folded and record.events else 0.0
    known = {(event.at, event.what) for event in record.events}
    fresh: dict[tuple[float, str], Event] = {}
    for event in events:
        tidy = msgspec.structs.replace(event, at=round(event.at, 1))
        if tidy.at >= since and (tidy.at, tidy.what) not in known:
            fresh[tidy.at, tidy.what] = tidy
    merged = sorted((*record.events, *fresh.values()), key=lambda event: event.at)
    return msgspec.structs.replace(record, events=tuple(merged))


def fold(record: Record, begun: float) -> Record | None:
    """The record with its oldest part replaced by its sums, from one resume to another; without a resume, with half of
    its refusals counted only. None where nothing can be spared."""
    resumes = [n for n, event in enumerate(record.events) if event.what == "resumed" and n > 0]
    if not resumes:
        return _without_old_refusals(record)
    at = resumes[len(resumes) // 2]
    part = record.events[: at + 1]
    priced = [event for event in part if event.what in STARTS or event.price is not None]
    first = msgspec.structs.replace(
        record.events[at],
        price=priced[-1].price if priced else None,
        # Its place says whether the price is that of a VM on demand.
        place=priced[-1].place if priced else record.events[at].place,
        disk=next((event.disk for event in reversed(part) if event.disk is not None), None),
        address=next((event.address for event in reversed(part) if event.address is not None), None),
    )
    earlier = sums(msgspec.structs.replace(record, events=part), begun, record.events[at].at)
    return msgspec.structs.replace(
        record, events=(first, *record.events[at + 1 :]), earlier=earlier, folded=record.folded + at
    )


def _without_old_refusals(record: Record) -> Record | None:
    refused = [event for event in record.events if event.what == "refused"]
    gone = refused[: (len(refused) + 1) // 2]
    if not gone:
        return None
    return msgspec.structs.replace(
        record,
        events=tuple(event for event in record.events if event not in gone),
        earlier=msgspec.structs.replace(record.earlier, refusals=record.earlier.refusals + len(gone)),
    )


def packed(record: Record) -> str:
    """Text that is short enough for tags."""
    return base64.b64encode(zlib.compress(msgspec.json.encode(record), 9)).decode()


def unpacked(text: str) -> Record:
    """Raises ValueError where the text is none of `packed`."""
    if not text:
        return Record()
    try:
        return msgspec.json.decode(zlib.decompress(base64.b64decode(text, validate=True)), type=Record)
    except (binascii.Error, zlib.error, msgspec.DecodeError) as error:
        raise ValueError(f"the history cannot be read: {error}") from error

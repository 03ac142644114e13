"""Leases of blobs and containers: their states over time, and what they let pass.

learn.microsoft.com/rest/api/storageservices/lease-blob, "Outcomes of use attempts on blobs by lease state".
"""

import re
import uuid
from dataclasses import dataclass

from cloudtrain.emulator.blobs.call import Call, Reply
from cloudtrain.emulator.blobs.errors import bad_header, refused

INFINITE = -1
_SHORTEST, _LONGEST, _LONGEST_BREAK = 15, 60, 60


@dataclass(frozen=True)
class Lease:
    """id '': there never was one, or it was released. Times are epoch seconds; ends and broken None: never."""

    id: str = ""
    duration: int = INFINITE
    ends: float | None = None
    broken: float | None = None

    def state(self, now: float) -> str:
        if not self.id:
            return "available"
        if self.broken is not None:
            return "breaking" if now < self.broken else "broken"
        return "leased" if self.ends is None or now < self.ends else "expired"

    def held(self, now: float) -> bool:
        return self.state(now) in ("leased", "breaking")

    def headers(self, now: float) -> dict[str, str]:
        state = self.state(now)
        shown = {"x-ms-lease-state": state, "x-ms-lease-status": "locked" if self.held(now) else "unlocked"}
        if state == "leased":
            shown["x-ms-lease-duration"] = "infinite" if self.duration == INFINITE else "fixed"
        return shown


def check_write(lease: Lease, call: Call, kind: str) -> None:
    """kind: 'Blob' or 'Container'. Raises BlobError where the lease forbids the change."""
    if lease.held(call.now) and not call.header("x-ms-lease-id"):
        raise refused("LeaseIdMissing")
    check_read(lease, call, kind)


def check_read(lease: Lease, call: Call, kind: str) -> None:
    """A lease that a reader names has to be there."""
    given = call.header("x-ms-lease-id").lower()
    if not given:
        return
    state = lease.state(call.now)
    if state in ("available", "broken"):
        raise refused(f"LeaseNotPresentWith{kind}Operation")
    if given != lease.id:
        raise refused(f"LeaseIdMismatchWith{kind}Operation")
    if state == "expired":
        raise refused("LeaseLost")


def after_write(lease: Lease, now: float) -> Lease:
    """A change ends what is left of a lease that is over: it cannot be renewed any more."""
    return lease if lease.held(now) else Lease()


def act(lease: Lease, call: Call) -> tuple[Lease, Reply]:
    """The lease after the action that the call asks for. Raises BlobError."""
    action = call.required("x-ms-lease-action").lower()
    actions = {"acquire": _acquire, "renew": _renew, "change": _change, "release": _release, "break": _break}
    if action not in actions:
        raise bad_header("x-ms-lease-action", action)
    return actions[action](lease, call)


def _guid(call: Call, header: str, required: bool = True) -> str:
    value = call.required(header) if required else call.header(header)
    if value and not re.fullmatch(r"\{?[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}\}?", value):
        raise bad_header(header, value)
    return str(uuid.UUID(value)) if value else ""


def _acquire(lease: Lease, call: Call) -> tuple[Lease, Reply]:
    duration = call.number("x-ms-lease-duration")
    if duration is None or (duration != INFINITE and not _SHORTEST <= duration <= _LONGEST):
        raise bad_header("x-ms-lease-duration", call.header("x-ms-lease-duration"))
    wanted = _guid(call, "x-ms-proposed-lease-id", required=False)
    state = lease.state(call.now)
    if state == "breaking" and wanted == lease.id:
        raise refused("LeaseIsBreakingAndCannotBeAcquired")
    if lease.held(call.now) and wanted != lease.id:
        raise refused("LeaseAlreadyPresent")
    taken = Lease(wanted or str(uuid.uuid4()), duration, _end(duration, call.now))
    return taken, Reply(201, {"x-ms-lease-id": taken.id})


def _end(duration: int, now: float) -> float | None:
    return None if duration == INFINITE else now + duration


def _own(lease: Lease, call: Call) -> None:
    if _guid(call, "x-ms-lease-id") != lease.id:
        raise refused("LeaseIdMismatchWithLeaseOperation")


def _renew(lease: Lease, call: Call) -> tuple[Lease, Reply]:
    _own(lease, call)
    if lease.broken is not None:
        raise refused("LeaseIsBrokenAndCannotBeRenewed")
    renewed = Lease(lease.id, lease.duration, _end(lease.duration, call.now))
    return renewed, Reply(200, {"x-ms-lease-id": lease.id})


def _change(lease: Lease, call: Call) -> tuple[Lease, Reply]:
    wanted = _guid(call, "x-ms-proposed-lease-id")
    given = _guid(call, "x-ms-lease-id")
    state = lease.state(call.now)
    if state not in ("leased", "breaking"):
        raise refused("LeaseNotPresentWithLeaseOperation")
    if lease.id not in (given, wanted):
        raise refused("LeaseIdMismatchWithLeaseOperation")
    if state == "breaking":
        raise refused("LeaseIsBreakingAndCannotBeChanged")
    return Lease(wanted, lease.duration, lease.ends), Reply(200, {"x-ms-lease-id": wanted})


def _release(lease: Lease, call: Call) -> tuple[Lease, Reply]:
    _own(lease, call)
    return Lease(), Reply(200)


def _break(lease: Lease, call: Call) -> tuple[Lease, Reply]:
    period = call.number("x-ms-lease-break-period")
    if period is not None and not 0 <= period <= _LONGEST_BREAK:
        raise bad_header("x-ms-lease-break-period", str(period))
    state = lease.state(call.now)
    if state == "available":
        raise refused("LeaseNotPresentWithLeaseOperation")
    if not lease.held(call.now):
        return Lease(lease.id, lease.duration, lease.ends, call.now), Reply(202, {"x-ms-lease-time": "0"})
    # What is left of a fixed lease is the longest it can take; an infinite one breaks at once unless asked otherwise.
    ends = lease.broken if lease.broken is not None else lease.ends
    left = None if ends is None else max(0.0, ends - call.now)
    if left is None:
        wait = float(period or 0)
    else:
        wait = left if period is None else min(left, period)
    broken = Lease(lease.id, lease.duration, lease.ends, call.now + wait)
    return broken, Reply(202, {"x-ms-lease-time": str(int(wait))})

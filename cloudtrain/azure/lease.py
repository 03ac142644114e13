"""Who looks after a run: a lease in a tag of its group, so that several watchers do not get in each other's way.

Azure's tags know no condition on a write, so this is no lock: whoever writes last holds it, and each reads back what it
wrote. Two that write at the very same moment may both act once. That is harmless, because what they do is: Azure runs
one operation on a VM at a time, starting a running VM changes nothing, and a run's VM has one name. Holders are told
apart by their clocks' word on expiry: clocks that differ by minutes make a lease last that much longer or shorter.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure.group import Group
from cloudtrain.azure.session import Session
from cloudtrain.clock import Clock

TAG_LEASE = "cloudtrain-watcher"
# Longer than one step takes, as a rule; after kill -9 of the holder another waits at most this long.
SECONDS = 180.0
RENEW_SECONDS = 120.0


class Lease(msgspec.Struct, frozen=True, omit_defaults=True):
    """by: the holder's own name for itself. until: epoch seconds."""

    by: str = ""
    until: float = 0.0


def new_holder() -> str:
    return secrets.token_hex(6)


def of(group: Group) -> Lease:
    try:
        return msgspec.json.decode(group.tags.get(TAG_LEASE, "{}"), type=Lease)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return Lease()


def take(session: Session, group: Group, holder: str, now: float, *, by_force: bool = False) -> bool:
    """Whether `holder` has the lease now. by_force: a person's own command goes before any watcher."""
    held = of(group)
    if held.by == holder and held.until - now > RENEW_SECONDS:
        return True
    if held.by != holder and held.until > now and not by_force:
        return False
    _write(session, group, Lease(holder, round(now + SECONDS, 1)))
    found = groups.find(session, group.run)
    return found is not None and of(found).by == holder


def release(session: Session, group: Group, holder: str) -> None:
    """Let the next one have it at once. A lease that somebody else took meanwhile stays theirs."""
    found = groups.find(session, group.run)
    if found is not None and not found.deleting and of(found).by == holder:
        _write(session, found, Lease())


@contextmanager
def held(session: Session, group: Group, clock: Clock) -> Iterator[None]:
    """For a person's own command: watchers keep off until it is done, or until the lease ends."""
    holder = new_holder()
    take(session, group, holder, clock.now().timestamp(), by_force=True)
    try:
        yield
    finally:
        release(session, group, holder)


def _write(session: Session, group: Group, lease: Lease) -> None:
    groups.set_tags(session, group, {TAG_LEASE: msgspec.json.encode(lease).decode()})

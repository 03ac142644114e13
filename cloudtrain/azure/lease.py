"""Who looks after a run: a lease in a tag of its group, so that several watchers do not get in each other's way.

Where the run has storage that this login can write to, a blob decides: its ETag is the condition on which it is
written, so of two that begin in the same instant one has it. Else the tag alone does, and Azure's tags know no
condition on a write: whoever writes last holds it, and each reads back what it wrote. Two that write at the very same
moment may both act once. That is harmless, because what they do is: Azure runs one operation on a VM at a time,
starting a running VM changes nothing, and a run's VM has one name. Holders are told apart by their clocks' word on
expiry: clocks that differ by minutes make a lease last that much longer or shorter.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import storage
from cloudtrain.azure.group import Group
from cloudtrain.azure.session import Session
from cloudtrain.clock import Clock
from cloudtrain.errors import CloudtrainError

TAG_LEASE = "cloudtrain-watcher"
BLOB = "cloudtrain/watcher"
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
    decided = _take_blob(session, group, holder, now, by_force=by_force) if group.storage_account else None
    if decided is False:
        return False
    _write(session, group, Lease(holder, round(now + SECONDS, 1)))
    if decided:
        return True
    found = groups.find(session, group.run)
    return found is not None and of(found).by == holder


class Keeping:
    """The clock of a lease's holder: whatever it waits for, which may take an hour and a half, the lease is renewed.

    taken_at: epoch seconds of when the holder took the lease; None while it has none."""

    def __init__(self, session: Session, run: str, holder: str, clock: Clock) -> None:
        self._session, self._run, self._holder, self._clock = session, run, holder, clock
        self.taken_at: float | None = None

    def now(self) -> datetime:
        return self._clock.now()

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)
        now = self.now().timestamp()
        if self.taken_at is None or now - self.taken_at < SECONDS - RENEW_SECONDS:
            return
        self.taken_at = now
        # What is under way is not held up by it: the next wait tries again.
        with suppress(CloudtrainError):
            take(self._session, groups.get(self._session, self._run), self._holder, now)


def release(session: Session, group: Group, holder: str) -> None:
    """Let the next one have it at once. A lease that somebody else took meanwhile stays theirs."""
    if not (group.storage_account and _give_back_blob(session, group, holder)):
        _give_back_tag(session, group, holder)


def _give_back_tag(session: Session, group: Group, holder: str) -> None:
    found = groups.find(session, group.run)
    if found is not None and not found.deleting and of(found).by == holder:
        _write(session, found, Lease())


def _take_blob(session: Session, group: Group, holder: str, now: float, *, by_force: bool) -> bool | None:
    """False where another holder has it; None where the tag has to do, for the blobs are closed to this login or do not
    answer: a run is not left lying because of that."""
    try:
        blob = _blob(session, group)
        if blob is None:
            return None
        with storage.translated_blobs("looking who watches"):
            held, etag = _read(blob)
        if held.by != holder and held.until > now and not by_force:
            return False
        return _written(blob, Lease(holder, round(now + SECONDS, 1)), etag)
    except CloudtrainError:
        return None


def _give_back_blob(session: Session, group: Group, holder: str) -> bool:
    """Whether the blob was this holder's. The tag goes first, for as long as the blob is held no other watcher that
    reaches it writes one; whoever took the tag by force, or for want of a blob, keeps it."""
    try:
        blob = _blob(session, group)
        if blob is None:
            return False
        with storage.translated_blobs("giving back the watch"):
            held, etag = _read(blob)
        if held.by != holder:
            return False
        _give_back_tag(session, group, holder)
        _written(blob, Lease(), etag)
    except CloudtrainError:
        # What is left of it ends by itself.
        return False
    return True


def _blob(session: Session, group: Group) -> Any:
    container = storage.opened(session, group)
    return None if container is None else container.get_blob_client(BLOB)


def _read(blob: Any) -> tuple[Lease, str]:
    """With the ETag of what was read, '' where there is no such blob."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        found = blob.download_blob()
        content, etag = found.readall(), str(found.properties.etag)
    except ResourceNotFoundError:
        return Lease(), ""
    try:
        return msgspec.json.decode(content, type=Lease), etag
    except (msgspec.DecodeError, msgspec.ValidationError):
        return Lease(), etag


def _written(blob: Any, lease: Lease, etag: str) -> bool:
    """False where somebody else wrote since it was read."""
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceExistsError, ResourceModifiedError

    condition = {"match_condition": MatchConditions.IfNotModified, "etag": etag} if etag else {}
    with storage.translated_blobs("saying who watches"):
        try:
            blob.upload_blob(msgspec.json.encode(lease), overwrite=bool(etag), **condition)
        except (ResourceExistsError, ResourceModifiedError):
            return False
    return True


@contextmanager
def held(session: Session, group: Group, clock: Clock) -> Iterator[Clock]:
    """For a person's own command: watchers keep off until it is done. It is to wait by the clock that it gets."""
    holder = new_holder()
    keeping = Keeping(session, group.run, holder, clock)
    keeping.taken_at = clock.now().timestamp()
    take(session, group, holder, keeping.taken_at, by_force=True)
    try:
        yield keeping
    finally:
        release(session, group, holder)


def _write(session: Session, group: Group, lease: Lease) -> None:
    groups.set_tags(session, group, {TAG_LEASE: msgspec.json.encode(lease).decode()})

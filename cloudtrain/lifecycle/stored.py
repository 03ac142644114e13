"""What the run's storage tells, without asking the VM: where its guest stands, its events and logs, its checkpoints.

It answers in a second, whether the VM is up or not, and may be old: `is_fresh` says whether it can stand for the guest.
What the guest says is only information: Azure's power state decides what a VM is.
"""

import codecs
import os
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from cloudtrain import guest
from cloudtrain.azure import blobs, storage
from cloudtrain.azure.group import Group
from cloudtrain.errors import CloudtrainError
from cloudtrain.guest import GuestEvent, Observation
from cloudtrain.guest.durable import GUEST, LOGS, MODELS, POINTER, Pointer, parse_pointer
from cloudtrain.lifecycle import durable
from cloudtrain.lifecycle.context import Context

# A guest that has missed so many times to write what it sees may be in trouble, or its way to storage is.
MISSED_UNTIL_STALE = 3
# How much of a file that was read before is read again, to see that it still is the same file.
_OVERLAP = 256


def opened(ctx: Context, group: Group) -> Any:
    """The run's container; None where the run has no storage. Raises CloudtrainError where it cannot be read."""
    account = storage.find(ctx.session, group)
    return None if account is None else _there(lambda: durable.entered(ctx, account))


def _there(enter: Callable[[], Any]) -> Any:
    try:
        return enter()
    except CloudtrainError as error:
        if error.code == "ContainerNotFound":
            return None
        raise


def readable(ctx: Context, group: Group) -> Any:
    """As `opened`, for what the VM can tell as well: None, and a note, where storage cannot be read at once."""
    if not group.storage_account:
        return None
    try:
        return _there(lambda: storage.opened(ctx.session, group))
    except CloudtrainError as error:
        ctx.progress.note(f"The run's storage cannot be read, so its VM is asked: {error.message}")
        return None


def told(ctx: Context, group: Group) -> Observation | None:
    """What the guest wrote last; None where there is nothing, or nobody here may read it. Never raises a
    CloudtrainError: it is only information."""
    try:
        container = readable(ctx, group)
        return None if container is None else observation(container)
    except CloudtrainError:
        return None


# where the guest stands


def observation(container: Any) -> Observation | None:
    """What the guest wrote last; None where it wrote nothing yet, or nothing that can be read."""
    content = blobs.read(container, GUEST)
    try:
        return None if content is None else guest.parse_stored_observation(content)
    except guest.IncompleteOutput:
        return None


def is_fresh(ctx: Context, group: Group, seen: Observation | None) -> bool:
    """Whether it can stand for a guest that runs: written just now, and not before what the run's tags tell."""
    return is_recent(ctx, group, seen) and is_current(group, seen)


def is_recent(ctx: Context, group: Group, seen: Observation | None) -> bool:
    """Whether the VM there is has written it a moment ago."""
    longest = MISSED_UNTIL_STALE * ctx.session.capabilities.publish_seconds
    return seen is not None and seen.generation == group.generation and age(ctx, seen) <= longest


def is_current(group: Group, seen: Observation | None) -> bool:
    """Whether it is of the VM there is, and later than whatever else is known of the guest, such as a start of training
    that the tags tell of."""
    if seen is None or seen.generation != group.generation:
        return False
    return not group.progress.at or seen.time >= datetime.fromisoformat(group.progress.at).timestamp()


def age(ctx: Context, seen: Observation) -> float:
    """Seconds, as far as the two clocks agree."""
    return max(0.0, ctx.clock.now().timestamp() - seen.time)


def events(container: Any) -> list[GuestEvent]:
    """All that the guests of all generations noted."""
    stream = Stream(container, "events")
    content = b"".join(stream.more())
    return guest.parse_events(content)


def pointer(container: Any) -> Pointer | None:
    """To what a new VM goes on from; None where there is nothing yet. Raises CloudtrainError."""
    content = blobs.read(container, POINTER)
    try:
        return None if content is None else parse_pointer(content)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise CloudtrainError(
            "DamagedBlob",
            f"The blob '{POINTER}', which names the newest checkpoint, cannot be read: {error}.",
            "Without checkpoints everything can be fetched:  cloudtrain pull",
        ) from error


def holds(ctx: Context, group: Group, step: int | None) -> bool:
    """Whether it has a checkpoint no older than that step, and than the last one that the guest told of. False where
    nobody here can tell."""
    try:
        container = readable(ctx, group)
        if container is None:
            return False
        seen, found = observation(container), pointer(container)
    except CloudtrainError:
        return False
    if seen is not None and seen.generation == group.generation:
        if _was_saving(seen):
            return False
        told = seen.progress.saved_step if seen.progress else None
        step = max((known for known in (step, told) if known is not None), default=None)
    if found is None or found.newest is None:
        return False
    return step is None or found.newest.step is None or found.newest.step >= step


def _was_saving(seen: Observation) -> bool:
    """Whether its last word came between the notice of an eviction and the trainer's end: what was saved then may be on
    the disk alone."""
    if seen.evicting is None or seen.container is None or not seen.container.running:
        return False
    names = [event.event for event in seen.events]
    since = len(names) - names[::-1].index("notice") if "notice" in names else len(names)
    return "gone" not in names[since:]


# logs


class Stream:
    """The append blobs `<source>.<number>` one after the other, from where they were read to.

    Whoever writes them begins a new number only when the last one is closed for good. So a number is read to its end
    only after the next one was seen: what came to it until then belongs before the next one's bytes."""

    def __init__(self, container: Any, source: str) -> None:
        self._container, self._source = container, source
        self._number, self._offset = -1, 0

    def more(self) -> list[bytes]:
        pieces = []
        for number in [n for n in self._numbers() if n >= self._number]:
            if number > self._number:
                self._number, self._offset = number, 0
            name = f"{LOGS}{self._source}.{number:06}"
            piece = blobs.read(self._container, name, self._offset) or b""
            self._offset += len(piece)
            pieces.append(piece)
        return pieces

    def _numbers(self) -> list[int]:
        prefix = f"{LOGS}{self._source}."
        numbers = [blob.name[len(prefix) :] for blob in blobs.list_blobs(self._container, prefix)]
        return sorted(int(number) for number in numbers if re.fullmatch(r"[0-9]{6,}", number))


class Journal:
    """The journal, which is one file: it grows, and a new VM goes on with the copy that it found. Where that one lacks
    the last lines of the old VM, the lines that it has in their place follow them."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self.read = b""

    def more(self) -> list[bytes]:
        name, begin = MODELS + "log.txt", max(0, len(self.read) - _OVERLAP)
        piece = blobs.read(self._container, name, begin)
        if piece is None:
            return []
        if begin and not piece.startswith(self.read[begin:]):
            begin, piece = 0, blobs.read(self._container, name) or b""
        return [self.take(begin, piece)]

    def take(self, begin: int, piece: bytes) -> bytes:
        """What is new in a piece of the file that begins there."""
        known = self.read[begin:]
        common = len(os.path.commonprefix([known, piece]))  # noqa: RUF071  # bytes, and not paths
        if common == len(piece):
            return b""
        if common < len(known):
            common = piece.rfind(b"\n", 0, common) + 1
        self.read = self.read[:begin] + piece
        return piece[common:]


class StoredLog:
    """Hands over a log of the run from storage, each byte once. journal: None for the other logs."""

    def __init__(self, container: Any, source: str, emit: Callable[[str], None]) -> None:
        self.source = source
        self.journal = Journal(container) if source == "training" else None
        self._stream = self.journal or Stream(container, source)
        self._emit = emit
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self.total = 0  # bytes handed over so far

    def read(self) -> None:
        for piece in self._stream.more():
            self.hand_over(piece)

    def hand_over(self, piece: bytes) -> None:
        if piece:
            self.total += len(piece)
            self._emit(self._text.decode(piece))

    def end(self) -> None:
        """Hand over the rest of a character that was cut off for good."""
        if rest := self._text.decode(b"", True):
            self._emit(rest)

"""What recovery keeps with a run, in tags of its group: its memory from one look to the next, and the history."""

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure.group import TAG_SPEC, Group
from cloudtrain.azure.session import Session
from cloudtrain.recovery import Memory
from cloudtrain.recovery.history import Event, Record, added, fold, packed, unpacked

TAG_MEMORY = "cloudtrain-recovery"
TAG_HISTORY = "cloudtrain-history-"
# Azure's limit of 50 tags, less what a run needs besides its spec and its history, and what its owner may add.
TAGS_FOR_PARTS = 29
HISTORY_TAGS = 20
# Another writer may come between reading and writing.
ATTEMPTS = 4


def memory(group: Group) -> Memory:
    """An unreadable one is none: recovery then begins to count anew."""
    try:
        return msgspec.json.decode(group.tags.get(TAG_MEMORY, "{}"), type=Memory)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return Memory()


def set_memory(session: Session, group: Group, new: Memory) -> None:
    groups.set_tags(session, group, _memory_tags(new))


def _memory_tags(new: Memory | None) -> dict[str, str]:
    return {} if new is None else {TAG_MEMORY: msgspec.json.encode(new).decode()}


def history(group: Group) -> Record:
    """An unreadable one is empty: somebody else wrote these tags."""
    try:
        return unpacked(groups.parts_of(group, TAG_HISTORY))
    except ValueError:
        return Record()


def add(session: Session, group: Group, event: Event, memory: Memory | None = None) -> None:
    """Note one thing that happened just now, and what recovery is to remember of it."""
    append(session, group, [event], memory=memory)


def append(
    session: Session,
    group: Group,
    events: list[Event],
    *,
    read: tuple[int, int] | None = None,
    memory: Memory | None = None,
) -> Record:
    """Add events to the history, beside whatever was noted since `group` was read; what does not fit any more is
    folded into its sums, the oldest first. Returns it.

    read: how far the guest's own events were taken over, and the generation of its disk. Tags know no condition on a
    write: what another writer overwrote is added again."""
    wanted, now = history(group), groups.find(session, group.run)
    for _ in range(ATTEMPTS):
        if now is None or now.deleting:
            break
        held = history(now)
        wanted = added(held, events)
        if read is not None:
            wanted = msgspec.structs.replace(wanted, read=read[0], generation=read[1])
        if wanted == held:
            break
        wanted = _fitting(wanted, group)
        groups.set_parts(session, group, TAG_HISTORY, packed(wanted), _memory_tags(memory))
        now = groups.find(session, group.run)
        if now is not None and history(now) == wanted:
            break
    return wanted


def _fitting(record: Record, group: Group) -> Record:
    spec_tags = int(group.tags.get(f"{TAG_SPEC}count", "0"))
    room = min(HISTORY_TAGS, TAGS_FOR_PARTS - spec_tags) * groups.TAG_VALUE_LIMIT
    while len(packed(record)) > room:
        shorter = fold(record, group.begun)
        if shorter is None:
            # Evicted hundreds of times and not once resumed: the oldest go.
            shorter = msgspec.structs.replace(record, events=record.events[len(record.events) // 2 :])
        record = shorter
    return record

"""The resource group of a run: one per run, and where the run's state lives, so that it survives the VM.

Intent, generation, spec and the last known progress are tags of the group. A tag's value holds at most 256 characters,
so the spec's JSON is split over several.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from cloudtrain.azure import names
from cloudtrain.azure.errors import is_missing, translated
from cloudtrain.azure.session import REPEATABLE, Session
from cloudtrain.errors import CloudtrainError, NoSuchRun, Refused
from cloudtrain.recovery import Place
from cloudtrain.spec import RunSpec

TAG_RUN = "cloudtrain-run"
TAG_INTENT = "cloudtrain-intent"
TAG_GENERATION = "cloudtrain-generation"
TAG_CREATED = "cloudtrain-created"
TAG_TRAINED = "cloudtrain-trained"
# "true" once a VM of this generation was told to train, whether or not anybody saw it do so.
TAG_ASKED = "cloudtrain-asked"
# The generation that a command has begun to make: from then on the VMs before it are given up.
TAG_NEXT = "cloudtrain-next-generation"
TAG_PROGRESS = "cloudtrain-progress"
TAG_SPEC = "cloudtrain-spec-"
# When the user last asked for the run: what Azure tells of an earlier stop does not count any more.
TAG_WANTED = "cloudtrain-wanted-since"
# The name of the run's storage account, once checkpoints go there: then they outlive the VM and its disk.
TAG_STORAGE = "cloudtrain-storage"
# How the VM reaches it ('identity', or the kind of its signature), and until when: ISO 8601, '' for an identity.
TAG_ACCESS = "cloudtrain-access"
TAG_ACCESS_UNTIL = "cloudtrain-access-until"
# "true" where the VM may deallocate or delete itself once training has finished.
TAG_ENDS = "cloudtrain-ends-itself"
# Where the VM of this generation is made; absent on a run that never moved.
TAG_PLACE = "cloudtrain-place"
# "true" while something of earlier generations may be there.
TAG_FORMER = "cloudtrain-former"
# "off", set by whoever wants the watchers to leave the run alone.
TAG_WATCH = "cloudtrain-watch"
TAG_VALUE_LIMIT = 256


class Intent(StrEnum):
    """What the user wants of the run, whatever Azure does to the VM meanwhile."""

    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"


class LastProgress(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last known state of training, kept with the group for when the guest cannot be read. Short names: one tag."""

    at: str = ""  # ISO 8601, UTC
    step: int | None = None
    total: int | None = None
    epoch: int | None = None
    saved: int | None = None
    finished: bool = False
    failed: bool = False
    exit_code: int | None = None


@dataclass(frozen=True)
class Group:
    run: str
    name: str
    id: str
    location: str
    deleting: bool
    intent: Intent
    generation: int
    spec: RunSpec
    created: str = ""
    # Whether training was seen on this generation's disk.
    trained: bool = False
    progress: LastProgress = field(default_factory=LastProgress)
    # All tags, as they were read.
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def wanted_since(self) -> str:
        """ISO 8601: when somebody last asked for the run."""
        return self.tags.get(TAG_WANTED) or self.created

    @property
    def may_hold_work(self) -> bool:
        """Whether this generation's disk may hold work: then it is never thrown away, whoever was killed while waiting
        for the first step."""
        return self.trained or self.tags.get(TAG_ASKED) == "true"

    @property
    def given_up(self) -> bool:
        """Whether this generation's VM is never to train again: whoever makes the next one was interrupted."""
        following = self.tags.get(TAG_NEXT, "")
        return following.isdigit() and int(following) > self.generation

    @property
    def place(self) -> Place:
        """Where the VM of this generation is made."""
        try:
            return msgspec.json.decode(self.tags[TAG_PLACE], type=Place)
        except (KeyError, msgspec.DecodeError, msgspec.ValidationError):
            return Place(self.spec.size, self.spec.location, next(iter(self.spec.zones), ""))

    @property
    def elsewhere(self) -> str:
        """The location of the VM, where it is not the run's own."""
        return "" if self.place.location == self.location else self.place.location

    @property
    def has_former(self) -> bool:
        """Whether something of earlier generations may be there."""
        return self.tags.get(TAG_FORMER) == "true"

    @property
    def begun(self) -> float:
        """Epoch seconds: when the run was made."""
        return datetime.fromisoformat(self.created).timestamp() if self.created else 0.0

    @property
    def storage_account(self) -> str:
        """'' where checkpoints lie on the VM's disk alone."""
        return self.tags.get(TAG_STORAGE, "")

    @property
    def ends_itself(self) -> bool:
        return self.tags.get(TAG_ENDS) == "true"

    @property
    def watched(self) -> bool:
        return self.tags.get(TAG_WATCH, "").lower() != "off"


def create(session: Session, spec: RunSpec, created: str) -> Group:
    """Make the group, tagged. Made already by an interrupted `up`: the same call again is harmless, and begins a new
    story of the run."""
    tags = {
        TAG_RUN: spec.run,
        TAG_INTENT: Intent.RUNNING.value,
        TAG_GENERATION: "1",
        TAG_CREATED: created,
        **_spec_tags(spec),
    }
    with translated("creating the resource group"):
        found = session.resources.resource_groups.create_or_update(
            names.group(spec.run), {"location": spec.location, "tags": tags}
        )
    return _read(found)


def find(session: Session, run: str) -> Group | None:
    """The run's group; None where there is none. Raises Refused for a group of that name that is not ours."""
    from azure.core.exceptions import HttpResponseError

    with translated("looking for the run"):
        try:
            found = session.resources.resource_groups.get(names.group(run))
        except HttpResponseError as error:
            if is_missing(error) and _says_group_missing(error):
                return None
            raise
    if (found.tags or {}).get(TAG_RUN) != run:
        raise Refused(
            "NotOurs",
            f"The resource group '{found.name}' exists and is not cloudtrain's: it lacks the tag {TAG_RUN}={run}.",
            "Choose another name for the run; nothing without that tag is ever adopted or deleted.",
        )
    return _read(found)


def get(session: Session, run: str) -> Group:
    """Raises NoSuchRun."""
    found = find(session, run)
    if found is None:
        raise NoSuchRun(run, session.name)
    return found


def find_all(session: Session) -> list[Group]:
    """Every run of the subscription."""
    with translated("listing the runs"):
        found = list(session.resources.resource_groups.list(filter=f"tagName eq '{TAG_RUN}'"))
    return sorted((_read(group) for group in found), key=lambda group: group.run)


def set_tags(session: Session, group: Group, tags: Mapping[str, str]) -> None:
    """Merge tags into the group's, leaving the others alone, whoever else writes at the same time."""
    with translated("updating the run's tags"):
        session.resources.tags.begin_update_at_scope(
            group.id.lstrip("/"),
            {"operation": "Merge", "properties": {"tags": dict(tags)}},
            polling=session.polling(),
            **REPEATABLE,
        ).result()


def set_intent(session: Session, group: Group, intent: Intent, at: datetime) -> None:
    """at: now."""
    if group.intent is not intent:
        tags = {TAG_INTENT: intent.value}
        if intent is Intent.RUNNING:
            tags[TAG_WANTED] = at.isoformat(timespec="milliseconds")
        set_tags(session, group, tags)


def set_parts(session: Session, group: Group, prefix: str, text: str, more: Mapping[str, str] | None = None) -> None:
    """Keep a text that may be longer than a tag's value, in one write. more: other tags of the same write."""
    set_tags(session, group, {**_parts(prefix, text), **(more or {})})


def parts_of(group: Group, prefix: str) -> str:
    """The text that `set_parts` kept, '' where there is none. Raises ValueError where some of it is missing."""
    count = int(group.tags.get(f"{prefix}count", "0"))
    try:
        return "".join(group.tags[f"{prefix}{n}"] for n in range(count))
    except KeyError as error:
        raise ValueError(f"the tag {error} is missing") from error


def set_spec(session: Session, group: Group, spec: RunSpec) -> None:
    set_tags(session, group, _spec_tags(spec))


def place_tags(place: Place) -> dict[str, str]:
    return {TAG_PLACE: msgspec.json.encode(place).decode()}


def progress_tags(progress: LastProgress) -> dict[str, str]:
    return {TAG_PROGRESS: msgspec.json.encode(progress).decode()}


def begin_delete(session: Session, group: Group) -> Any:
    """The SDK's poller of the deletion; None where the group is gone already."""
    from azure.core.exceptions import HttpResponseError

    with translated("deleting the resource group"):
        try:
            return session.resources.resource_groups.begin_delete(group.name, polling=session.polling())
        except HttpResponseError as error:
            if is_missing(error):
                return None
            raise


def delete(session: Session, group: Group) -> None:
    """Delete the group and wait for its end; gone already: nothing happens."""
    poller = begin_delete(session, group)
    if poller is not None:
        with translated("deleting the resource group"):
            poller.result()


def _says_group_missing(error: Any) -> bool:
    # A wrong subscription is a 404 too, and says nothing about the group.
    return getattr(error.error, "code", None) in (None, "ResourceGroupNotFound")


def _spec_tags(spec: RunSpec) -> dict[str, str]:
    return _parts(TAG_SPEC, msgspec.json.encode(spec).decode())


def _parts(prefix: str, text: str) -> dict[str, str]:
    parts = [text[at : at + TAG_VALUE_LIMIT] for at in range(0, len(text), TAG_VALUE_LIMIT)]
    # A shorter text leaves tags of the longer one behind: the first part says how many count.
    return {f"{prefix}count": str(len(parts))} | {f"{prefix}{n}": part for n, part in enumerate(parts)}


def _read(found: Any) -> Group:
    tags = found.tags or {}
    try:
        count = int(tags[f"{TAG_SPEC}count"])
        spec = msgspec.json.decode("".join(tags[f"{TAG_SPEC}{n}"] for n in range(count)), type=RunSpec)
        intent = Intent(tags[TAG_INTENT])
        generation = int(tags[TAG_GENERATION])
        progress = msgspec.json.decode(tags.get(TAG_PROGRESS, "{}"), type=LastProgress)
    except (KeyError, ValueError) as error:
        raise CloudtrainError(
            "DamagedTags",
            f"The tags of resource group '{found.name}' cannot be read ({error!r}): somebody else changed them, "
            "or another version of cloudtrain wrote them.",
            f"az group show -n {found.name}  shows them; az group delete -n {found.name}  removes the run.",
        ) from error
    return Group(
        run=tags[TAG_RUN],
        name=found.name,
        id=found.id,
        location=found.location,
        deleting=getattr(found.properties, "provisioning_state", "") == "Deleting",
        intent=intent,
        generation=generation,
        spec=spec,
        created=tags.get(TAG_CREATED, ""),
        trained=tags.get(TAG_TRAINED) == "true",
        progress=progress,
        tags=dict(tags),
    )

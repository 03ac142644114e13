"""`pull`: what the run made, brought home from its storage, whether its VM is up, off or gone."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from cloudtrain.azure import blobs
from cloudtrain.azure import group as groups
from cloudtrain.azure.blobs import BlobInfo, Listing
from cloudtrain.azure.group import Group
from cloudtrain.errors import CloudtrainError
from cloudtrain.guest import Observation, durable
from cloudtrain.guest.durable import Pointer, StoredCheckpoint
from cloudtrain.lifecycle import stored
from cloudtrain.lifecycle.context import Context
from cloudtrain.workflow import homecoming
from cloudtrain.workflow.homecoming import Home

CHECKPOINTS = "checkpoints/"
# A run that trains replaces its files. Each round fetches only what changed since the one before, so the rounds soon
# are short enough to come between two changes.
ROUNDS = 10


class Checkpoints(StrEnum):
    """Which ones to bring along. Of an image that writes straight into the mount the newest set always comes: there,
    it is the model."""

    NONE = "none"
    NEWEST = "newest"
    ALL = "all"  # the newest, and those before it that are kept for when it is damaged


class PulledFile(msgspec.Struct, frozen=True):
    """path: below the directory."""

    path: str
    bytes: int


class PullResult(msgspec.Struct, frozen=True):
    """directory: absolute; '' where nothing lies in storage yet. files: all that lie there now. fetched, unchanged: how
    many came now, and were there. bytes: of those that came now. step: of the model of a finished run, else of the
    newest checkpoint in storage; None where that is not known. complete: training has finished, and all of it came to
    storage and from there. as_of: ISO 8601, when the guest last wrote how it stands; '' where it never did. refused:
    names in storage that are no path below the directory."""

    run: str
    cloud: str
    directory: str
    files: list[PulledFile]
    fetched: int
    unchanged: int
    bytes: int
    step: int | None
    complete: bool
    as_of: str
    refused: list[str]


@dataclass(frozen=True)
class Destination:
    """to: where the user said. last: where the last pull of the run went. chosen: is told where files will lie, before
    the first one is written."""

    to: Path | None = None
    last: Path | None = None
    chosen: Callable[[Path], None] = lambda directory: None

    def candidates(self, run: str) -> list[Path]:
        if self.to is not None:
            return [self.to.absolute()]
        here = Path.cwd()
        # What another run of the same name left there is not ours to replace.
        usual = [here / run, *(here / f"{run}-{number}" for number in range(2, 100))]
        return [self.last, *usual] if self.last is not None and self.last.is_dir() else usual


def pull(ctx: Context, run: str, destination: Destination, *, checkpoints: bool = False) -> PullResult:
    """Raises NoSuchRun, and CloudtrainError where storage cannot be read or the files cannot be written."""
    group = groups.get(ctx.session, run)
    container = stored.opened(ctx, group)
    if container is None:
        raise CloudtrainError(
            "NoStorage",
            f"Run '{run}' has no storage: what it makes lies on its VM's disk alone.",
            f"cloudtrain up {run}  gives it storage, and its VM then sends what it has; "
            f"cloudtrain logs {run}  reads its journal from the VM.",
        )
    return bring_home(ctx, group, container, destination, Checkpoints.ALL if checkpoints else Checkpoints.NONE)


def bring_home(
    ctx: Context, group: Group, container: Any, destination: Destination, checkpoints: Checkpoints | None
) -> PullResult:
    """checkpoints: None for those that are needed to go on: none of a run that has finished, the newest of another."""
    seen = stored.observation(container)
    finished = seen is not None and seen.finished and seen.generation == group.generation
    if checkpoints is None:
        checkpoints = Checkpoints.NONE if finished else Checkpoints.NEWEST
    plan = _planned(container, checkpoints)
    if not plan.files:
        return _result(ctx, group, None, plan, seen, finished)
    with homecoming.opened(ctx, group, destination.candidates(group.run), plan.files) as home:
        destination.chosen(home.directory)
        plan = _fetched(ctx, container, home, plan, checkpoints)
        return _result(ctx, group, home, plan, seen, finished)


@dataclass(frozen=True)
class _Plan:
    """files: by the path below the directory."""

    files: dict[str, BlobInfo]
    refused: list[str]
    pointer: Pointer | None


def _fetched(ctx: Context, container: Any, home: Home, plan: _Plan, checkpoints: Checkpoints) -> _Plan:
    """Fetch what is not there yet; where something of it is replaced meanwhile, by the plan of then."""
    for left in reversed(range(ROUNDS)):
        home.expect(plan.files)
        if _fetch(ctx, container, home, plan, last=left == 0):
            break
        plan = _planned(container, checkpoints)
    return plan


def _fetch(ctx: Context, container: Any, home: Home, plan: _Plan, *, last: bool) -> bool:
    """False where something was replaced meanwhile, which at the last attempt is an error."""
    missing = home.missing(plan.files)
    if not missing:
        return True
    meter = _Meter(sum(blob.size for blob in missing.values()))
    with ctx.progress.step(f"fetching {len(missing)} files") as step:
        # The large ones first: what is small and often replaced is then fetched right after one another.
        for path, blob in sorted(missing.items(), key=lambda item: -item[1].size):
            try:
                blobs.fetch(container, blob, home.directory / path, lambda count: step.amount(*meter.add(count)))
            except CloudtrainError as error:
                if error.code != blobs.REPLACED or last:
                    raise
                return False
            home.have(path, blob)
    return True


@dataclass
class _Meter:
    total: int
    done: int = field(default=0)

    def add(self, count: int) -> tuple[int, int]:
        self.done += count
        return self.done, self.total


# what is to be fetched


def _planned(container: Any, checkpoints: Checkpoints) -> _Plan:
    # First the pointer: whatever it names was there before it.
    pointer = stored.pointer(container)
    listing = blobs.listed(container, durable.MODELS)
    files = {path: blob for path, blob in listing.files.items() if not path.startswith(CHECKPOINTS)}
    wanted = _wanted(pointer, checkpoints)
    if wanted:
        files |= _of_checkpoints(container, pointer, wanted, listing)
    refused = [*listing.refused, *(path for path in files if not blobs.is_path_below(path))]
    refused += [path for path in files if any(str(parent) in files for parent in PurePosixPath(path).parents)]
    return _Plan({path: blob for path, blob in files.items() if path not in refused}, sorted(set(refused)), pointer)


def _wanted(pointer: Pointer | None, checkpoints: Checkpoints) -> list[StoredCheckpoint]:
    if pointer is None or pointer.newest is None:
        return []
    if not pointer.newest.name:
        return [pointer.newest]
    return {
        Checkpoints.NONE: [],
        Checkpoints.NEWEST: [pointer.newest],
        Checkpoints.ALL: [pointer.newest, *pointer.previous],
    }[checkpoints]


def _of_checkpoints(
    container: Any, pointer: Pointer | None, wanted: Sequence[StoredCheckpoint], models: Listing
) -> dict[str, BlobInfo]:
    known = {blob.name: blob for blob in models.files.values()}
    if any(file.blob.startswith(durable.SETS) for one in wanted for file in one.files):
        known |= {blob.name: blob for blob in blobs.list_blobs(container, durable.SETS)}
    files: dict[str, BlobInfo] = {}
    for file in (file for one in wanted for file in one.files):
        blob = known.get(file.blob)
        if blob is None or blob.size != file.size or blob.md5 != _digest(file.md5):
            # The pointer has moved on since it was read, and what it named is being removed.
            raise _damaged(file.blob) if stored.pointer(container) == pointer else blobs.replaced(file.blob)
        files[file.path] = blob
    return files


def _damaged(name: str) -> CloudtrainError:
    return CloudtrainError(
        "DamagedBlob",
        f"A checkpoint in storage is damaged: the blob '{name}' is not there as it was written.",
        "Without --checkpoints everything else comes home.",
    )


def _digest(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b"?"


# what is told


def _result(
    ctx: Context, group: Group, home: Home | None, plan: _Plan, seen: Observation | None, finished: bool
) -> PullResult:
    fetched = home.fetched if home else set()
    newest = plan.pointer.newest if plan.pointer else None
    last = seen.progress.step if seen is not None and seen.progress is not None and finished else None
    waiting = seen is not None and seen.storage is not None and (seen.storage.pending > 0 or seen.storage.refused != "")
    return PullResult(
        run=group.run,
        cloud=ctx.session.cloud,
        directory=str(home.directory) if home else "",
        files=[PulledFile(path, blob.size) for path, blob in sorted(plan.files.items())],
        fetched=len(fetched),
        unchanged=len(plan.files) - len(fetched),
        bytes=sum(plan.files[path].size for path in fetched if path in plan.files),
        step=last if last is not None else newest.step if newest else None,
        complete=finished and not waiting and not plan.refused,
        as_of=datetime.fromtimestamp(seen.time, UTC).isoformat(timespec="seconds") if seen is not None else "",
        refused=plan.refused,
    )

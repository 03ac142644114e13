"""What a new VM goes on from: the newest checkpoint in storage that verifies, before the trainer starts.

A checkpoint appears in checkpoints/ whole or not at all, as the trainer itself writes it. Everything else that storage
has of the mount comes first, so that a checkpoint on the disk means that all is there.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import guest  # type: ignore[import-not-found]
import mount  # type: ignore[import-not-found]
import pointers  # type: ignore[import-not-found]
import storage  # type: ignore[import-not-found]

MARK = guest.ROOT / "restored.json"  # for the uploader: from now on the disk says what storage is to have
BEGUN = guest.ROOT / "restoring"  # what is on the disk is not all of it
PART = ".restoring"
NOT_SPREAD = "AuthorizationPermissionMismatch"  # a role on the blobs takes up to ten minutes to spread


class Impossible(Exception):
    """Storage was promised, and what it has cannot be had; the message says why."""


def restore(stage: Callable[[str], None], given_up: Callable[[], bool]) -> bool:
    """Whether training may begin; False where given_up() became true first. stage: is told what is waited for.

    Raises Impossible where nothing is on the disk and storage does not answer, and storage.Fenced."""
    begun = time.monotonic()
    told = ""
    pauses = list(guest.tuning("restore_pauses"))
    while True:
        access = storage.read_access()
        if access is None:
            return True
        try:
            take_over(access)
            return True
        except storage.StorageError as error:
            reason, spreads = str(error), error.code == NOT_SPREAD
        except OSError as error:
            reason, spreads = f"cannot write to the disk: {error.strerror}", False
        here = local()
        if spreads and here is None and nothing_can_be_there():
            go_on_without(access, reason)
            return True
        limit = guest.tuning("restore_short_seconds" if here is not None else "restore_seconds")
        if time.monotonic() - begun >= limit:
            if here is None:
                raise Impossible(reason)
            go_on_without(access, reason)
            return True
        if reason != told:
            told = reason
            guest.say(f"waiting for storage: {reason}")
            guest.event("storage_late", reason=reason)
        stage(reason)
        if not wait(pauses.pop(0) if len(pauses) > 1 else pauses[0], access.stamp, given_up):
            return False


def nothing_can_be_there() -> bool:
    """Whether no VM of the run ever started a container: until its role opens storage it may as well train."""
    starts = guest.step_of(guest.read_json(guest.ROOT / "state.json"), "starts")
    return int(guest.settings()["generation"]) == 1 and starts == 0 and not BEGUN.exists()


def wait(seconds: float, stamp: int, given_up: Callable[[], bool]) -> bool:
    """Until the pause is over, or storage opens in another way. Whether to go on."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and guest.changed(guest.ROOT / "storage.json") == stamp:
        if given_up():
            return False
        time.sleep(min(0.1, max(0.0, end - time.monotonic())))
    return not given_up()


def go_on_without(access: Any, reason: str) -> None:
    """The disk has a checkpoint, or nobody has one. Whether storage has a newer one, the uploader will see."""
    guest.event("restore_skipped", reason=reason)
    guest.say(f"going on without storage: {reason}")
    mark(access, seen=False)


def mark(access: Any, *, seen: bool) -> None:
    """Of this boot, and of this run of run_trainer: after both, the disk is compared again."""
    session = guest.session()
    content = {"place": access.place, "boot": guest.boot(), "session": session, "seen": seen}
    if guest.read_json(MARK) != content:
        guest.write_json(MARK, content, sync=True)


def local() -> Any:
    """What the disk has to go on from; None where that is nothing, or a restoring that was cut off."""
    if BEGUN.exists():
        return None
    seen = mount.look()
    if seen.checkpoints:
        return seen.checkpoints[0]
    files = tuple(file for file in seen.others if not mount.is_told(file))
    return mount.Checkpoint("", None, files) if files and seen.straight else None


def adopt() -> None:
    """The trainer runs already: storage is to have what the disk has, unless it has a newer checkpoint."""
    access = storage.read_access()
    if access is not None:
        before = guest.read_json(MARK) or {}
        same = (before.get("place"), before.get("boot")) == (access.place, guest.boot())
        mark(access, seen=same and before.get("seen") is True)


def take_over(access: Any) -> None:
    """Raises StorageError, Fenced, or OSError where the disk is full."""
    client = storage.Client(access)
    generation = int(guest.settings()["generation"])
    try:
        storage.claim(client, generation)
        try:
            pointer = pointers.pointer_in(client.read(storage.POINTER))
        except ValueError:  # somebody wrote it: nobody knows what there is
            raise storage.StorageError(0, "the pointer to the newest checkpoint is damaged") from None
        other = guest.whole(pointer.get("generation")) or 0
        if other > generation:
            raise storage.Fenced(other)
        here = local()
        wanted = [each for each in (pointer.get("newest"), *(pointer.get("previous") or [])) if newer(each, here)]
        if wanted or (here is None and pointer.get("files")):
            fetch(client, pointer, wanted, here)
        mark(access, seen=True)
    finally:
        client.close()


def newer(there: "dict[str, Any] | None", here: Any) -> bool:
    if there is None or here is None:
        return there is not None
    return there["step"] is not None and here.step is not None and there["step"] > here.step


def fetch(client: Any, pointer: dict[str, Any], wanted: list[dict[str, Any]], here: Any) -> None:
    """Of the wanted ones the first that verifies."""
    begun = time.monotonic()
    checkpoints = guest.MODELS / mount.CHECKPOINTS
    if here is None:
        guest.write_json(BEGUN, {"time": time.time()}, sync=True)
        take_along(client, pointer.get("files") or [])
    found = next((each for each in wanted if fetched(client, each, checkpoints)), None)
    BEGUN.unlink(missing_ok=True)
    sync(guest.ROOT)
    if found is not None:
        size = sum(file["size"] for file in found["files"])
        seconds = round(time.monotonic() - begun, 3)
        guest.event("restored", step=found["step"], name=found["name"], bytes=size, seconds=seconds)
        step = "" if found["step"] is None else f", step {found['step']}"
        guest.say(f"restored from storage{step}: {size} bytes in {seconds:.1f} s")
        guest.journal("was restored from storage", found["name"] + step if found["name"] else "the newest set of files")
    elif wanted:
        guest.event("not_restored", reason="no checkpoint in storage verifies")
        guest.journal("found no whole checkpoint in storage")


def fetched(client: Any, checkpoint: dict[str, Any], checkpoints: Path) -> bool:
    """Whether it is on the disk, whole. Raises StorageError while storage does not answer."""
    name = checkpoint["name"]
    part = (checkpoints if name else guest.MODELS) / PART
    discard(part)
    try:
        for file in checkpoint["files"]:
            into = part / below(file["path"], f"{mount.CHECKPOINTS}/{name}" if name else "")
            make_directory(into.parent)
            client.get_file(file["blob"], into, file["md5"], file["size"])
            into.chmod(0o666)
    except (storage.Damaged, storage.StorageError) as error:
        discard(part)
        if isinstance(error, storage.StorageError) and (error.status != 404 or error.refused):
            raise
        guest.event("damaged", name=name, step=checkpoint["step"], reason=str(error))
        guest.say(f"{name or 'the set of files'} in storage is damaged: {error}")
        return False
    except OSError:
        discard(part)
        raise
    if name:
        commit(part, checkpoints, name)
    else:
        spread(part)
    return True


def below(path: str, top: str) -> Path:
    """The path below `top`; '.' for `top` itself. Raises Damaged for one that leads elsewhere."""
    parts = path.split("/")
    if any(not part or part.startswith(".") or "\0" in part for part in parts):
        raise storage.Damaged(f"{path!r} is no path below the mount")
    if not top:
        return Path(*parts)
    rest = parts[len(top.split("/")) :]
    if not path.startswith(top) or parts[: len(top.split("/"))] != top.split("/"):
        raise storage.Damaged(f"{path!r} is not below {top}")
    return Path("entry", *rest)


def commit(part: Path, checkpoints: Path, name: str) -> None:
    """A file or a directory, in one step."""
    for directory, _, _ in os.walk(part):
        sync(Path(directory))
    target = checkpoints / name
    if target.is_dir():
        shutil.rmtree(target)  # of a restoring that was cut off, or found damaged
    (part / "entry").replace(target)
    sync(checkpoints)
    discard(part)


def spread(part: Path) -> None:
    """A set has no name of its own: it counts once `restoring` is gone."""
    for path in sorted(part.rglob("*")):
        if path.is_file():
            target = guest.MODELS / path.relative_to(part)
            make_directory(target.parent)
            path.replace(target)
            sync(target.parent)
    discard(part)


def take_along(client: Any, files: list[dict[str, Any]]) -> None:
    """Journal, progress, metrics, TensorBoard: each as it is in storage now; one that is not there is no loss."""
    for file in files:
        part = guest.MODELS / PART
        discard(part)
        try:
            target = guest.MODELS / below(file["path"], "")
            make_directory(target.parent)
            client.get_file(file["blob"], part, "")
            part.chmod(0o666)
            if file["path"] == mount.JOURNAL:
                put_before(part, target)
            else:
                part.replace(target)
        except (storage.Damaged, storage.StorageError) as error:
            discard(part)
            if isinstance(error, storage.StorageError) and (error.status != 404 or error.refused):
                raise
            guest.say(f"left out: {error}")
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            guest.say(f"left out {file['path']}: {error.strerror}")


def put_before(part: Path, target: Path) -> None:
    """The journal so far, and then what this VM has written to it already."""
    with contextlib.suppress(FileNotFoundError):
        here, before = target.read_bytes(), part.read_bytes()
        if here.startswith(before):
            part.unlink()
            return
        with part.open("ab") as file:
            file.write(here)
            file.flush()
            os.fsync(file.fileno())
    part.replace(target)


def make_directory(path: Path) -> None:
    """For the trainer to write into, whichever user it is."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        each.chmod(0o777)


def discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(directory: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""What is sent of the mount, and in which order: the newest checkpoint, the pointer, then everything else."""

import base64
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import guest  # type: ignore[import-not-found]
import mount  # type: ignore[import-not-found]
import pointers  # type: ignore[import-not-found]
import storage  # type: ignore[import-not-found]

SUMS = guest.ROOT / "sums.json"  # checksums of files by path, so that a restart need not read them all again
SHORT = 1024 * 1024  # bytes, of a file that holds nothing else up
LONGEST_UNREST = 60.0  # a file that never rests is sent as it is


class Pace:
    """At most so many bytes a second, but for a flush, which may also interrupt what is less urgent."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared
        self.due = time.monotonic()
        self.urgent = True  # what is being sent now must not be interrupted
        self.outdated: Callable[[], bool] | None = None
        self.left = self.total = 0

    def begin(self, total: int, *, urgent: bool, outdated: "Callable[[], bool] | None" = None) -> None:
        """outdated: whether there is something newer to send instead."""
        self.left = self.total = total
        self.urgent, self.outdated = urgent, outdated

    def __call__(self, count: int) -> None:
        self.shared.look_for_flush()
        self.left -= count
        if self.shared.hurry:
            self.give_way()
        rate = self.shared.pace
        if not rate or self.shared.hurry or guest.evicting():
            return
        now = time.monotonic()
        self.due = max(self.due, now - 0.25) + count / rate
        while self.due > time.monotonic() and not self.shared.hurry:
            time.sleep(min(0.1, max(0.0, self.due - time.monotonic())))
            self.shared.look_for_flush()

    def give_way(self) -> None:
        """There is little time. A checkpoint that is more than half sent is worth its end, though a newer one waits."""
        outdated, self.outdated = self.outdated, None
        if not self.urgent or (outdated is not None and self.left > self.total / 2 and outdated()):
            raise storage.Interrupted


class Sender:
    """The thread that sends the mount's files."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared
        self.pace = Pace(shared)
        self.client: Any = None
        self.generation = int(guest.settings()["generation"])
        self.remote: dict[str, tuple[int, str]] | None = None
        self.pointer: dict[str, Any] = {}
        self.etag = ""
        self.fence_at = 0.0
        self.sums: dict[str, list[str]] = self.kept_sums()
        self.rested: dict[str, tuple[str, float, float]] = {}  # path -> identity, since when, first unsent
        self.sent_at: dict[str, tuple[float, float]] = {}  # path -> when it was sent, and how long that took
        self.later: dict[str, float] = {}  # path -> not before; it was being written to
        self.words_turn = False  # a checkpoint was sent since the last word
        self.hopeless: set[str] = set()  # identities that storage does not take
        self.set_since: tuple[frozenset[str], float] = (frozenset(), 0.0)

    @staticmethod
    def kept_sums() -> dict[str, list[str]]:
        kept = guest.read_json(SUMS) or {}
        return {path: each for path, each in kept.items() if isinstance(each, list) and len(each) == 2}

    # one thing at a time

    def round(self) -> bool:
        """Send the one thing that is most urgent. False when there is nothing. Raises what storage raises."""
        self.renew()
        if not self.may_send():
            self.shared.pending = 0
            self.shared.given_up = max(self.shared.given_up, self.shared.flush)
            return False
        self.know()
        seen = mount.look()
        waived = self.shared.nobody_writes()
        newest = self.due_checkpoint(seen, waived)
        others = self.due_others(seen, waived)
        self.count(newest, others)
        if newest is not None:
            if not (self.words_turn and self.send_word(others)):
                self.send_checkpoint(newest, seen)
                self.words_turn = True
            return True
        self.shared.saved = max(self.shared.saved, self.shared.flush)
        self.shared.tell()
        if others:
            self.send_other(others[0])
            return True
        return self.name_others(seen) or self.clean_up()

    def renew(self) -> None:
        """Take up a new storage.json."""
        access = self.shared.access
        if self.client is None or self.client.access is not access:
            if self.client is not None:
                self.client.close()
            self.client = storage.Client(access, self.pace, lambda: self.shared.hurry)
            self.remote = None

    def may_send(self) -> bool:
        """Once a new VM has taken over what is in storage: before, it has nothing to say."""
        mark = guest.read_json(guest.ROOT / "restored.json") or {}
        now = (self.shared.access.place, guest.boot(), guest.session())
        return (mark.get("place"), mark.get("boot"), mark.get("session")) == now

    def know(self) -> None:
        """What storage has, learned once; and now and then, whether this VM may still send."""
        if self.remote is None:
            storage.claim(self.client, self.generation)
            self.read_pointer()
            remote = self.client.list(storage.MODELS)
            remote.update(self.client.list(storage.SETS))
            self.remote, self.fence_at = remote, time.monotonic()
            there = mount.look()
            paths = {file.path for each in there.checkpoints for file in each.files}
            paths.update(file.path for file in there.others)
            self.sums = {path: kept for path, kept in self.sums.items() if path in paths}
        elif time.monotonic() - self.fence_at > guest.tuning("fence_seconds"):
            storage.check_fence(self.client, self.generation)
            self.fence_at = time.monotonic()

    def read_pointer(self) -> None:
        found = self.client.read(storage.POINTER)
        self.etag = found.etag if found else ""
        try:
            self.pointer = pointers.pointer_in(found)
        except ValueError:
            self.pointer = {}  # somebody's; this disk says what is right
        other = guest.whole(self.pointer.get("generation")) or 0
        if other > self.generation:
            raise storage.Fenced(other)
        self.note_newest()

    def note_newest(self) -> None:
        newest = self.pointer.get("newest") or {}
        self.shared.newest, self.shared.name = guest.whole(newest.get("step")), str(newest.get("name", ""))

    def count(self, newest: Any, others: list[Any]) -> None:
        files = [*(newest.files if newest is not None else ()), *others]
        self.shared.pending, self.shared.pending_bytes = len(files), sum(file.size for file in files)
        self.shared.tell()

    # checkpoints

    def due_checkpoint(self, seen: Any, waived: bool) -> Any:
        if seen.checkpoints:
            newest = seen.checkpoints[0]
            return None if self.is_newest(newest) or self.goes_back(newest) else newest
        if not seen.straight:
            return None
        files = tuple(file for file in seen.others if not mount.is_told(file))
        rested = self.set_rested(files)
        made = mount.Checkpoint("", None, files)
        return made if files and (rested or waived) and not self.is_newest(made) else None

    def set_rested(self, files: Iterable[Any]) -> bool:
        now = time.monotonic()
        identities = frozenset(f"{file.path} {file.identity}" for file in files)
        if identities != self.set_since[0]:
            self.set_since = identities, now
        return bool(now - self.set_since[1] >= guest.tuning("quiet_seconds"))

    def is_newest(self, checkpoint: Any) -> bool:
        """Storage's newest has the very files, as far as their checksums are known here."""
        there = self.pointer.get("newest") or {}
        here = [(file.path, file.size, self.known_sum(file)) for file in checkpoint.files]
        listed = [(file["path"], file["size"], file["md5"]) for file in there.get("files", ())]
        same = there.get("name") == checkpoint.name and sorted(here) == sorted(listed)
        return same and pointers.whole_in(self.remote or {}, there)

    def known_sum(self, file: Any) -> str:
        kept = self.sums.get(file.path)
        return kept[1] if kept is not None and kept[0] == file.identity else ""

    def goes_back(self, checkpoint: Any) -> bool:
        """Storage has a newer one that this disk never saw, as storage was away when training began."""
        there = guest.whole((self.pointer.get("newest") or {}).get("step"))
        mark = guest.read_json(guest.ROOT / "restored.json") or {}
        older = there is not None and checkpoint.step is not None and checkpoint.step < there
        return older and mark.get("seen") is not True

    def send_checkpoint(self, checkpoint: Any, seen: Any) -> None:
        """All of its files, then the pointer."""
        storage.check_fence(self.client, self.generation)
        opened: list[Any] = []
        self.pace.begin(checkpoint.size, urgent=True, outdated=lambda: self.outdated(checkpoint))
        try:
            for file in checkpoint.files:
                opened.append(mount.Opened(file, exact=True))
            sums = [self.sum_of(each) for each in opened]
            if self.is_newest(checkpoint):  # a new VM, which has it from there
                self.save_sums()
                return
            self.check_unchanged(checkpoint)
            made = {"name": checkpoint.name, "step": checkpoint.step, "files": self.listed(checkpoint, sums)}
            self.make_room(made)
            for each, file in zip(opened, made["files"], strict=True):
                self.put(each, file["blob"], file["md5"])
            self.check_unchanged(checkpoint)
        finally:
            for each in opened:
                each.close()
        self.move_pointer(made, seen)
        self.clean_up()

    def sum_of(self, opened: Any) -> str:
        known = self.known_sum(opened.file)
        if known:
            return known
        md5 = str(opened.md5())
        self.sums[opened.file.path] = [opened.file.identity, md5]
        return md5

    @staticmethod
    def outdated(checkpoint: Any) -> bool:
        newest = mount.look().checkpoints[:1]
        return bool(newest) and newest[0].name != checkpoint.name

    @staticmethod
    def check_unchanged(checkpoint: Any) -> None:
        """A set is one only if nothing of it was written meanwhile; a directory that is being removed is none. What is
        gone as a whole is still held open. Raises Damaged."""
        seen = mount.look()
        if not checkpoint.name:
            now = tuple(file for file in seen.others if not mount.is_told(file))
        else:
            same = [each.files for each in seen.checkpoints if each.name == checkpoint.name]
            now = same[0] if same else checkpoint.files
        if now != checkpoint.files:
            raise storage.Damaged(f"{checkpoint.name or 'the files in the mount'} changed while being sent")

    @staticmethod
    def listed(checkpoint: Any, sums: list[str]) -> list[dict[str, Any]]:
        found = []
        for file, md5 in zip(checkpoint.files, sums, strict=True):
            blob = file.blob if checkpoint.name else f"{storage.SETS}{hex_of(md5)}/{file.path}"
            found.append(pointers.stored(file.path, blob, file.size, md5))
        return found

    def make_room(self, made: dict[str, Any]) -> None:
        """A blob that the pointer names is not overwritten with something else: first the pointer lets go of it."""
        new = {file["blob"]: file["md5"] for file in made["files"]}
        kept = [self.pointer.get("newest"), *(self.pointer.get("previous") or [])]
        good = [each for each in kept if each and all(new.get(f["blob"], f["md5"]) == f["md5"] for f in each["files"])]
        if good and len(good) < len([each for each in kept if each]):
            self.write_pointer({**self.pointer, "newest": good[0], "previous": good[1:]})

    def put(self, opened: Any, blob: str, md5: str) -> None:
        assert self.remote is not None
        if self.remote.get(blob) != (opened.file.size, md5):
            try:
                self.client.put_file(blob, opened.handle, opened.file.size, md5, new=blob not in self.remote)
            except storage.StorageError as error:
                if error.status != 409:
                    raise
                # An attempt of our own whose answer was lost, or another VM's.
                self.remote = None
                raise storage.Interrupted from None
            self.remote[blob] = opened.file.size, md5
            self.shared.gate.passed("sender")

    def move_pointer(self, newest: dict[str, Any] | None, seen: Any) -> None:
        assert self.remote is not None
        before = [each for each in (self.pointer.get("newest"), *(self.pointer.get("previous") or [])) if each]
        if newest is not None:
            before = [each for each in before if pointers.older(each, newest)]
        previous = [each for each in before if pointers.whole_in(self.remote, each)][: guest.tuning("keep_previous")]
        files = self.others_in_storage(seen)
        if newest is not None and not newest["name"]:
            told = [file for file in files if file["path"] in (mount.JOURNAL, mount.PROGRESS)]
            files = told  # the rest is the set itself
        self.write_pointer({"newest": newest, "previous": previous, "files": files})

    def others_in_storage(self, seen: Any) -> list[dict[str, Any]]:
        assert self.remote is not None
        there = [(file, self.remote[file.blob]) for file in seen.others if file.blob in self.remote]
        return [pointers.stored(file.path, file.blob, size, md5) for file, (size, md5) in there]

    def write_pointer(self, pointer: dict[str, Any]) -> None:
        """Raises Fenced where a newer VM has written one."""
        storage.check_fence(self.client, self.generation)
        content = {**pointer, "version": 1, "generation": self.generation, "time": time.time()}
        try:
            etag = self.client.put(storage.POINTER, json.dumps(content).encode(), if_match=self.etag)
        except storage.StorageError as error:
            if error.status not in (409, 412):
                raise
            # A newer VM's, or an earlier attempt of our own whose answer was lost.
            self.read_pointer()
            etag = self.client.put(storage.POINTER, json.dumps(content).encode(), if_match=self.etag)
        self.pointer, self.etag = content, etag
        self.note_newest()
        self.shared.gate.passed("sender")
        self.save_sums()
        self.shared.tell()

    def clean_up(self) -> bool:
        """What the pointer does not name any more, unless there is no time for it. Whether there was something."""
        assert self.remote is not None
        kept, found = pointers.blobs_of(self.pointer), False
        if not kept:
            return False  # without a pointer nobody knows what is old
        for blob in list(self.remote):
            if blob not in kept and blob.startswith((storage.SETS, f"{storage.MODELS}{mount.CHECKPOINTS}/")):
                if self.shared.hurry:
                    return False
                self.client.delete(blob)
                del self.remote[blob]
                found = True
        return found

    # everything else

    def send_word(self, others: list[Any]) -> bool:
        """The journal or another small file for people, between two checkpoints: where they come faster than they can
        be sent, nobody would hear anything of the training. Not where there is no time. Whether there was one."""
        self.words_turn = False
        word = next((file for file in others if mount.is_told(file) and file.size < SHORT), None)
        if word is None or self.shared.hurry:
            return False
        self.send_other(word)
        return True

    def due_others(self, seen: Any, waived: bool) -> list[Any]:
        """In the order in which to send them."""
        first = seen.straight and not waived  # of an image without checkpoints/ the whole set goes first
        files = [file for file in seen.others if not first or mount.is_told(file) or self.set_is_sent(seen)]
        due = [file for file in files if self.unsent(file) and self.is_due(file, waived)]
        return sorted(due, key=lambda file: (rank(file.path), -file.modified))

    def set_is_sent(self, seen: Any) -> bool:
        files = tuple(file for file in seen.others if not mount.is_told(file))
        return bool(self.is_newest(mount.Checkpoint("", None, files)))

    def unsent(self, file: Any) -> bool:
        assert self.remote is not None
        if f"{file.path} {file.identity}" in self.hopeless:
            return False
        md5 = self.known_sum(file)
        return not md5 or self.remote.get(file.blob) != (file.size, md5)

    def is_due(self, file: Any, waived: bool) -> bool:
        """waived: nobody writes any more."""
        now = time.monotonic()
        identity, since, first = self.rested.get(file.path, ("", now, now))
        if identity != file.identity:
            since = now
            self.rested[file.path] = file.identity, since, first
        sent, took = self.sent_at.get(file.path, (-1e9, 0.0))
        if waived or now < self.later.get(file.path, 0.0):
            return waived
        if self.shared.hurry:
            return bool(sent < self.shared.flush_at)
        if file.path != mount.JOURNAL and now - sent < max(guest.tuning("publish_seconds"), 20 * took):
            return False
        rests = now - since >= guest.tuning("settled_seconds") or now - first >= LONGEST_UNREST
        return mount.is_told(file) or rests

    def send_other(self, file: Any) -> None:
        begun = time.monotonic()
        # A flush is for checkpoints and words; it interrupts what is large.
        self.pace.begin(file.size, urgent=self.shared.hurry or file.size < SHORT)
        try:
            opened = mount.Opened(file, exact=False)
            try:
                self.put(opened, file.blob, self.sum_of(opened))
            finally:
                opened.close()
        except storage.Damaged:
            self.later[file.path] = time.monotonic() + 1.0
            raise
        except storage.StorageError as error:
            if error.refused or error.passing or error.status == 404:
                raise
            # A name that Azure does not take, for instance: it must not keep the others back.
            self.hopeless.add(f"{file.path} {file.identity}")
            guest.event("not_sent", path=file.path, code=error.code)
            guest.say(f"storage does not take {file.path}: {error}")
        self.sent_at[file.path] = time.monotonic(), time.monotonic() - begun
        self.rested.pop(file.path, None)
        self.save_sums()

    def name_others(self, seen: Any) -> bool:
        """The pointer names every other file too, for a new VM to take along. Whether it had to be written."""
        named = {file["path"] for file in self.pointer.get("files") or []}
        newest = self.pointer.get("newest")
        there = {file["path"] for file in self.others_in_storage(seen)}
        if newest is not None and not newest["name"]:
            there &= {mount.JOURNAL, mount.PROGRESS}
        if not there - named:
            return False
        self.write_pointer(
            {
                "newest": newest,
                "previous": self.pointer.get("previous") or [],
                "files": [file for file in self.others_in_storage(seen) if file["path"] in there],
            }
        )
        return True

    def save_sums(self) -> None:
        # of files that there are no more, too, until the next start: cheaper than looking
        guest.write_json(SUMS, self.sums)


def rank(path: str) -> int:
    """Journal, progress, metrics, exports, TensorBoard."""
    name = path.rpartition("/")[2]
    if path in (mount.JOURNAL, mount.PROGRESS):
        return 0 if path == mount.JOURNAL else 1
    if "tfevents" in name:
        return 4
    return 2 if name.startswith("metrics") else 3


def hex_of(md5: str) -> str:
    return base64.b64decode(md5).hex()

"""Tell storage how this VM stands, and what its logs say: from there they are read at any time, the VM up or not.

A log is a row of append blobs. How far it was sent is remembered after each piece; a piece whose answer was lost shows
in the length of the blob, so that no byte is told twice.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import guest  # type: ignore[import-not-found]
import observe  # type: ignore[import-not-found]
import storage  # type: ignore[import-not-found]

POSITIONS = guest.ROOT / "logs.json"
SOURCES = {
    "container": guest.ROOT / "container.log",
    "startup": guest.ROOT / "startup.log",
    "eviction": guest.ROOT / "eviction.log",
    "events": guest.ROOT / "events.jsonl",
}
PIECE = 1024 * 1024  # Azure's limit for an appended block is 4 MiB
MOST_BLOCKS = 40_000  # Azure's limit for an append blob is 50,000
TICK_SECONDS = 0.25
CONTAINER_SECONDS = 15.0  # between two looks at an unchanged container: each starts a docker client
WANTED = observe.Wanted(log=None, identity="", offset=0, events=-16384, journal=20)


class Teller:
    """A thread of the uploader. It has a connection of its own, so that a large file does not keep it waiting."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared
        self.client: Any = None
        self.told_at = -1e9
        self.told: Any = None  # what changed last, as `signs` has it
        self.container: dict[str, Any] | None = None
        self.container_at = -1e9
        self.container_turns: Any = None
        self.logs = guest.read_json(POSITIONS) or {}

    def run(self) -> None:
        while not self.shared.fenced:
            if self.is_due() and self.shared.gate.opens("teller"):
                self.attempt()
            time.sleep(TICK_SECONDS)

    def signs(self) -> list[Any]:
        """What makes it tell at once: a notice, an end, another stage, a new checkpoint in storage."""
        shared = self.shared
        return [*self.turns(), shared.name, shared.newest, shared.delivered]

    @staticmethod
    def turns() -> list[Any]:
        files = [guest.changed(guest.ROOT / name) for name in ("evicting", "finished", "failed", "stopping")]
        state = guest.read_json(guest.ROOT / "state.json") or {}
        return [files, state.get("stage"), state.get("container")]

    def is_due(self) -> bool:
        if self.shared.published < self.shared.flush or self.signs() != self.told:
            return True
        return time.monotonic() - self.told_at >= float(guest.tuning("publish_seconds"))

    def is_done(self) -> bool:
        """Everything that there is to tell is told."""
        return self.signs() == self.told and all(self.left(name) == 0 for name in SOURCES if name != "eviction")

    def attempt(self) -> None:
        if self.client is None or self.client.access is not self.shared.access:
            self.client = storage.Client(self.shared.access, hurry=lambda: self.shared.hurry)
        flush, signs = self.shared.flush, self.signs()
        try:
            storage.check_fence(self.client, int(guest.settings()["generation"]))
            for name, path in SOURCES.items():
                self.send_log(name, path)
            self.client.put(storage.GUEST, json.dumps(self.facts(), allow_nan=False).encode())
        except storage.StorageError as error:
            self.shared.gate.failed("teller", error)
            return
        except storage.Fenced as fenced:
            self.shared.fenced = fenced.generation
            return
        except (OSError, ValueError) as error:  # a log that was just rotated, a NaN that some image wrote
            guest.say(f"not told: {error}")
        else:
            self.shared.gate.passed("teller")
        self.shared.published, self.told, self.told_at = flush, signs, time.monotonic()

    def facts(self) -> dict[str, Any]:
        told = observe.facts(WANTED, self.look)
        happened, first = observe.events(WANTED.events)
        told["events"] = [said for _, said in happened]
        told["events_offset"] = happened[-1][0] if happened else first
        state = {**(told.pop("storage", None) or {}), **self.shared.storage()}
        return {"time": told["time"], "facts": finite(told), "storage": state}

    def look(self) -> dict[str, Any] | None:
        """The container, looked at anew when something changed, and now and then."""
        turns = self.turns()
        known = self.container is None or self.container["status"] != "unknown"
        if turns != self.container_turns or not known or time.monotonic() - self.container_at > CONTAINER_SECONDS:
            self.container, self.container_turns, self.container_at = observe.container(), turns, time.monotonic()
        return self.container

    # logs

    def place(self, name: str) -> dict[str, Any]:
        """How far this log was sent."""
        kept = self.logs.get(name)
        if isinstance(kept, dict) and kept.get("place") == self.shared.access.place:
            return kept
        # Another VM's log, or none: it goes on under the next number.
        there = self.client.list(f"{storage.LOGS}{name}.")
        numbers = [int(each.rpartition(".")[2]) for each in there if each.rpartition(".")[2].isdigit()]
        return self.keep(name, {"inode": 0, "offset": 0, **self.blank(max(numbers, default=-1) + 1)})

    def blank(self, number: int) -> dict[str, Any]:
        return {"place": self.shared.access.place, "number": number, "size": 0, "blocks": 0}

    def keep(self, name: str, at: dict[str, Any]) -> dict[str, Any]:
        self.logs[name] = at
        guest.write_json(POSITIONS, self.logs)
        return at

    def left(self, name: str) -> int:
        at = self.logs.get(name) or {}
        path = SOURCES[name]
        try:
            told = path.stat()
        except OSError:
            return 0
        return max(0, int(told.st_size) - (int(at.get("offset", 0)) if at.get("inode") == told.st_ino else 0))

    def send_log(self, name: str, path: Path) -> None:
        if not path.exists() and name not in self.logs:
            return
        at = self.place(name)
        old = path.with_name(path.name + ".1")
        here = inode(path)
        if at["inode"] not in (0, here) and at["inode"] == inode(old):
            self.send_rest(name, old)
        if here and self.logs[name]["inode"] != here:
            self.keep(name, {**self.logs[name], "inode": here, "offset": 0})
        if here:
            self.send_rest(name, path)

    def send_rest(self, name: str, path: Path) -> None:
        with path.open("rb") as file:
            told = os.fstat(file.fileno())
            if told.st_ino != self.logs[name]["inode"]:
                return  # rotated a moment ago: the next look finds it
            if self.logs[name]["offset"] > told.st_size:
                self.find_parting(name, file, told.st_size)
            while True:
                at = self.logs[name]
                file.seek(at["offset"])
                content = file.read(PIECE)
                if not content:
                    return
                self.settle(file)
                self.append(name, at, content)

    @staticmethod
    def settle(file: Any) -> None:
        """To the disk before it is told as sent: after a power cut the position would be beyond the end. It costs some
        milliseconds of a thread of its own, each time that there is something to send, and nothing of the trainer's."""
        with contextlib.suppress(OSError):  # of a disk that is breaking there is all the more to be told
            os.fdatasync(file.fileno())

    def find_parting(self, name: str, file: Any, size: int) -> None:
        """The power took the end of the log from this disk, and storage has it; something else may have been written in
        its place. On from where the two part, in a blob whose bytes are the file's again."""
        at = self.logs[name]
        begin = at["offset"] - min(PIECE, at["offset"], at["size"])
        file.seek(begin)
        here = file.read(max(0, size - begin))
        there = self.sent(name, at, at["offset"] - begin)
        same = len(os.path.commonprefix([here, there]))  # noqa: RUF071  # bytes, and not paths
        if same < len(here):  # lines begin alike
            same = here.rfind(b"\n", 0, same) + 1
        guest.say(f"{name}: {at['offset'] - size} bytes that storage has are lost here")
        self.keep(name, {**at, **self.blank(at["number"] + 1), "offset": min(size, begin + same)})

    def sent(self, name: str, at: dict[str, Any], count: int) -> bytes:
        """The last so many bytes that were sent to the blob; none where somebody removed it."""
        if not count:
            return b""
        span = {"Range": f"bytes={at['size'] - count}-{at['size'] - 1}"}
        try:
            return bytes(self.client.call("GET", blob_of(name, at), headers=span).body)
        except storage.StorageError as error:
            if error.status not in (404, 416):
                raise
            return b""

    def append(self, name: str, at: dict[str, Any], content: bytes) -> None:
        if at["blocks"] >= MOST_BLOCKS:
            at = self.keep(name, {**at, **self.blank(at["number"] + 1)})
        blob = blob_of(name, at)
        try:
            if not at["blocks"]:
                self.client.create_append(blob)
            self.client.append(blob, content, at["size"])
        except storage.StorageError as error:
            if error.status == 412:
                self.find_place(name, at, blob, len(content))
                return
            if error.status == 404:  # somebody removed it
                self.keep(name, {**at, **self.blank(at["number"] + 1)})
            raise
        sent = {"offset": at["offset"] + len(content), "size": at["size"] + len(content), "blocks": at["blocks"] + 1}
        self.keep(name, {**at, **sent})

    def find_place(self, name: str, at: dict[str, Any], blob: str, most: int) -> None:
        """The blob is longer than we know: by what was sent last, and its answer lost."""
        size = int(self.client.head(blob).headers.get("content-length", 0))
        sent = size - at["size"]
        if 0 < sent <= most:
            self.keep(name, {**at, "offset": at["offset"] + sent, "size": size, "blocks": at["blocks"] + 1})
        else:
            self.keep(name, {**at, **self.blank(at["number"] + 1)})


def blob_of(name: str, at: dict[str, Any]) -> str:
    return f"{storage.LOGS}{name}.{at['number']:06d}"


def inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def finite(value: Any) -> Any:
    """The same without the numbers that JSON has not."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(key): finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list) else value

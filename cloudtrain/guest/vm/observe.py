"""Tell everything about this guest in one line of stdout: base64 of zlib of a JSON object, a line end, raw
log bytes.

argv[1]: base64 of JSON, see `Wanted`. RunCommand shows the last 4096 bytes, so what does not fit is left
for the next time: first the piece of the log gets shorter, then the events, then the journal, then the
metrics.
"""

import base64
import contextlib
import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import guest  # type: ignore[import-not-found]

SOURCES = {
    "training": guest.MODELS / "log.txt",
    "container": guest.ROOT / "container.log",
    "startup": guest.ROOT / "startup.log",
    "eviction": guest.ROOT / "eviction.log",
}
LIMIT = 3900  # characters of base64; the marker needs the rest
CHUNK = 32 * 1024
NUMBERS = (
    "step",
    "total_steps",
    "epoch",
    "epochs",
    "resumed_from_step",
    "resumes",
    "saved_step",
    "finished",
    "examples_per_second",
    "eta_seconds",
    "elapsed_seconds",
    "time",
)
TEXTS = ("dataset", "model", "digest")


@dataclass(frozen=True)
class Wanted:
    """log, identity, offset: a piece of which file, from where (negative: from the end); events: likewise
    in bytes."""

    log: str | None
    identity: str
    offset: int
    events: int
    journal: int


def brief(seen: dict[str, Any] | None) -> dict[str, Any] | None:
    """progress.json without what no reader knows; any image may write anything there."""
    if seen is None:
        return None
    kept = {key: seen[key] for key in NUMBERS if isinstance(seen.get(key), (int, float))}
    kept.update({key: seen[key][:200] for key in TEXTS if isinstance(seen.get(key), str)})
    metrics = seen.get("metrics")
    if isinstance(metrics, dict):
        numbers = [(str(k)[:60], v) for k, v in metrics.items() if isinstance(v, (int, float))]
        kept["metrics"] = dict(numbers[:16])
    return kept


def piece(wanted: Wanted) -> tuple[dict[str, Any] | None, bytes]:
    """The next bytes of a log after a position; where the file was rotated, first the rest of the old one.

    identity is the inode: it stays with the bytes when the file is renamed."""
    if wanted.log is None:
        return None, b""
    path = SOURCES[wanted.log]
    lost, offset = False, wanted.offset
    try:
        if wanted.identity and wanted.identity != inode(path):
            old = path.with_name(path.name + ".1")
            if wanted.identity == inode(old) and offset < old.stat().st_size:
                return read_piece(old, wanted.log, offset, False, more=True)
            lost, offset = wanted.identity != inode(old), 0
        return read_piece(path, wanted.log, offset, lost, more=False)
    except OSError:
        position = {
            "source": wanted.log,
            "identity": "",
            "offset": 0,
            "size": 0,
            "lost": False,
            "more": False,
        }
        return position, b""


def inode(path: Path) -> str:
    try:
        return str(path.stat().st_ino)
    except OSError:
        return ""


def read_piece(path: Path, log: str, offset: int, lost: bool, more: bool) -> tuple[dict[str, Any], bytes]:
    with path.open("rb") as file:
        told = os.fstat(file.fileno())
        if offset < 0:
            offset = max(0, told.st_size + offset)
        elif offset > told.st_size:  # emptied by somebody
            offset, lost = 0, True
        file.seek(offset)
        content = file.read(CHUNK)
    position = {"source": log, "identity": str(told.st_ino), "offset": offset, "size": told.st_size}
    return {**position, "lost": lost, "more": more}, content


def events(offset: int) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """Whole lines of events.jsonl from an offset (negative: from the end), each with the offset of the next
    one. Some are told again where the file is no longer what it was at that offset."""
    try:
        with (guest.ROOT / "events.jsonl").open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if offset > 0 and os.pread(file.fileno(), 1, offset - 1) != b"\n":
                # No line begins there, or nothing is there: a power cut took the end of the file, and others followed.
                offset = -CHUNK // 2
            start = max(0, size + offset) if offset < 0 else offset
            file.seek(max(0, start - 1) if offset < 0 else start)
            content = file.read(CHUNK)
            with contextlib.suppress(OSError):
                os.fdatasync(file.fileno())  # whoever is told goes on from there, also after a power cut
    except OSError:
        return [], max(0, offset)
    position = start
    if offset < 0 and start > 0:  # begin at a line
        skipped = content.find(b"\n") + 1
        position, content = start - 1 + skipped, content[skipped:]
    found, first = [], position
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        position += len(line)
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            found.append((position, said))
    return found, first


def last_lines(count: int) -> list[str]:
    try:
        with (guest.MODELS / "log.txt").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            content = file.read()
    except OSError:
        return []
    return [line[:300] for line in content.decode(errors="replace").splitlines()[-count:]] if count else []


def container() -> dict[str, Any] | None:
    try:
        found = guest.container(timeout=8)
    except guest.EngineSilent as error:
        return {"status": "unknown", "reason": str(error)}
    if found is None:
        return None
    return {
        "status": found.status,
        "id": found.id,
        "exit_code": None if found.runs else found.exit_code,
        "out_of_memory": found.out_of_memory,
        "started": found.started,
        "spec": found.spec,
    }


def facts(wanted: Wanted, look: "Callable[[], dict[str, Any] | None]" = container) -> dict[str, Any]:
    """look: at the container; it starts a docker client."""
    # Nothing in it is older: whoever compares it with what was known earlier relies on that.
    now = time.time()
    state = guest.read_json(guest.ROOT / "state.json") or {}
    settings = guest.read_json(guest.ROOT / "settings.json")
    return {
        "version": 1,
        "installed": settings is not None,
        "generation": (settings or {}).get("generation"),
        "time": now,
        "uptime": float(Path("/proc/uptime").read_text().split()[0]),
        "boot": guest.boot(),
        "progress": brief(guest.progress()),
        "before": brief(guest.read_json(guest.ROOT / "progress.before.json")),
        "of_this_start": guest.progress() is not None and guest.progress() != before(),
        "container": look() if settings is not None else None,
        "state": {key: value for key, value in state.items() if key not in ("writer", "judged")},
        "former_settings": state.get("stage") == "running" and state.get("spec") != spec(settings or {}),
        "supervised": guest.alive(state.get("writer")),
        "evicting": guest.read_json(guest.ROOT / "evicting") if guest.evicting() else None,
        "stopping": guest.stopping(),
        "finished": guest.read_json(guest.ROOT / "finished"),
        "failed": guest.read_json(guest.ROOT / "failed"),
        "fenced": guest.fenced(),
        "storage": guest.storage_state(),
        "journal": last_lines(wanted.journal),
    }


def spec(settings: dict[str, Any]) -> str | None:
    try:
        return str(guest.spec_of(settings))
    except KeyError:
        return None


def before() -> dict[str, Any] | None:
    kept: dict[str, Any] | None = guest.read_json(guest.ROOT / "progress.before.json")
    return kept


def packed(told: dict[str, Any], content: bytes) -> str:
    return base64.b64encode(zlib.compress(json.dumps(told).encode() + b"\n" + content, 9)).decode()


def fitted(wanted: Wanted) -> str:
    told = facts(wanted)
    position, content = piece(wanted)
    happened, first = events(wanted.events)
    while True:
        if position is not None:
            position["next"] = position["offset"] + len(content)
            told["log"] = position
        told["events"] = [said for _, said in happened]
        told["events_offset"] = happened[-1][0] if happened else first
        line = packed(told, content)
        if len(line) <= LIMIT:
            return line
        if len(content) > 512:
            content = content[: len(content) // 2]
        elif len(happened) > 1:
            happened = happened[: len(happened) // 2]
        elif told["journal"]:
            told["journal"] = told["journal"][len(told["journal"]) // 2 + 1 :]
        elif content:
            content = content[: len(content) // 2]
        elif happened:
            at, said = happened[0]
            happened = [(at, {"time": said.get("time"), "event": str(said.get("event"))[:60]})]
            told = {key: shortened(value) for key, value in told.items()}


def shortened(value: Any) -> Any:
    """The same without what is long: the last resort."""
    if isinstance(value, str):
        return value[:120]
    if isinstance(value, dict):
        return {key: shortened(each) for key, each in value.items() if key != "metrics"}
    return value


if __name__ == "__main__":
    print(fitted(Wanted(**json.loads(base64.b64decode(sys.argv[1])))), flush=True)

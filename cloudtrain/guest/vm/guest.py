"""What the programs of this guest share: its files, its events, its journal and its container.

Standard library of Python 3.10 only (Ubuntu 22.04). Every value of the run comes from settings.json.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("CLOUDTRAIN_ROOT", "") + "/cloudtrain")
MODELS = ROOT / "models"
CONTAINER = "cloudtrain-trainer"

TUNING: dict[str, Any] = {
    "engine_seconds": 600.0,  # how long a Docker engine that does not answer is waited for
    "pull_pauses": [5.0, 20.0],  # between attempts to pull an image that is not here
    "pull_seconds": 3600.0,  # a pull that takes longer is stuck: docker's own has no limit
    "retry_pauses": [5.0, 15.0, 60.0, 300.0],  # after a crash without progress; then it has failed
    "settle_seconds": 1.0,  # a container can end a moment before this script hears that the VM goes down
    "log_bytes": 16 * 1024 * 1024,  # container.log rotates beyond it, keeping one old file
    "poll_seconds": 1.0,  # of IMDS: Azure's advice for scheduled events
    "first_call_seconds": 150.0,  # the first call switches the service on and may hang for two minutes
    "call_seconds": 5.0,
    "vanish_seconds": 60.0,  # an event that is no longer listed for this long was taken back
    "hook_margin_seconds": 3.0,  # on-evict.d must be done this long before NotBefore
    "check_seconds": 10.0,  # how often watcher and startup script look whether the other still lives
}


def settings() -> dict[str, Any]:
    """What the installer wrote; read anew before each start, so that changes apply then."""
    read: dict[str, Any] = json.loads((ROOT / "settings.json").read_text())
    return read


def tuning(name: str) -> Any:
    """A figure of the table above, or what settings.json says instead."""
    own = (read_json(ROOT / "settings.json") or {}).get("tuning") or {}
    return own.get(name, TUNING[name])


def spec_of(wanted: dict[str, Any]) -> str:
    """What a container is made from, as one short word: another word, another container."""
    parts = [wanted[key] for key in ("image", "mount", "arguments", "environment", "gpus")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in the file; None when it is not there or is not one."""
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def write(path: Path, content: bytes, *, sync: bool = False) -> bool:
    """Replace the file in one step. False, with a line on stderr, when the disk refuses."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        say(f"cannot write {path.name}: {error}")
        with contextlib.suppress(OSError):
            new.unlink()
        return False
    return True


def write_json(path: Path, content: dict[str, Any], *, sync: bool = False) -> bool:
    return write(path, json.dumps(content).encode() + b"\n", sync=sync)


RESERVE = ROOT / ".reserve"
RESERVE_BYTES = 64 * 1024


def keep_reserve() -> None:
    """Room for the last words of a run whose disk is full: given up with `give_up_reserve`, kept anew here."""
    with contextlib.suppress(OSError):
        if not RESERVE.exists() or RESERVE.stat().st_size < RESERVE_BYTES:
            RESERVE.write_bytes(os.urandom(RESERVE_BYTES))  # zeros might take no room


def give_up_reserve() -> None:
    with contextlib.suppress(OSError):
        RESERVE.unlink()


def say(text: str) -> None:
    """A line for the log that stderr goes to. A full disk must not stop the training."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"{stamp} {text}\n".encode(errors="replace"))


def append_line(path: Path, line: str) -> None:
    """One write with O_APPEND, so that lines of several writers never mix; ends a line another left
    unfinished."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        say(f"cannot write {path.name}: {error}")
        return
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, (("\n" if torn else "") + line + "\n").encode(errors="replace"))
    except OSError as error:
        say(f"cannot write {path.name}: {error}")
    finally:
        os.close(handle)


def event(name: str, /, **fields: Any) -> None:
    """A line of events.jsonl: what happened and when (epoch seconds)."""
    append_line(ROOT / "events.jsonl", json.dumps({"time": time.time(), "event": name, **fields}))


def journal(what: str, note: str = "") -> None:
    """A line of models/log.txt, in the words that the trainer uses there."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S %z")
    append_line(MODELS / "log.txt", f"Training {what} at: {stamp}" + (f" ({note})" if note else ""))


def progress() -> dict[str, Any] | None:
    return read_json(MODELS / "progress.json")


def whole(value: Any) -> int | None:
    """The value where it is a whole number; any image may write anything."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def step_of(seen: dict[str, Any] | None, key: str = "step") -> int | None:
    return whole((seen or {}).get(key))


def passed_start() -> dict[str, Any] | None:
    """progress.json once it is of this container start and beyond the step that it resumed from.

    Told by comparing with the copy taken before the start, never by the clock: clocks jump."""
    try:
        now = (MODELS / "progress.json").read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if now == (ROOT / "progress.before.json").read_bytes():
            return None
    seen = progress()
    step = step_of(seen)
    if step is None or step <= (step_of(seen, "resumed_from_step") or 0):
        return None
    return seen


def steps_lost(seen: dict[str, Any]) -> int | None:
    """Steps that this start does again: the last one shown before it, less the one resumed from."""
    before = step_of(read_json(ROOT / "progress.before.json"))
    if before is None:
        return None
    return max(0, before - (step_of(seen, "resumed_from_step") or 0))


def last_seen() -> float | None:
    """When the trainer before this start last told of itself, in epoch seconds."""
    before = read_json(ROOT / "progress.before.json")
    told = before.get("time") if before else None
    return float(told) if isinstance(told, (int, float)) and not isinstance(told, bool) else None


def identity(pid: int) -> str:
    """A process, told from every other that had or will have its number: pid and start in clock ticks."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    words = stat.rpartition(")")[2].split()
    return "" if words[0] in "ZX" else f"{pid}:{words[19]}"  # the dead may wait to be reaped


def alive(who: Any) -> bool:
    """Whether the process that signed a file as `writer` still runs; a file of an earlier boot has none."""
    if not isinstance(who, str) or not who.partition(":")[0].isdigit():
        return False
    return identity(int(who.partition(":")[0])) == who


def evicting() -> bool:
    """A notice for this VM stands. The file of an earlier boot, or of a watcher that is gone, says
    nothing."""
    said = read_json(ROOT / "evicting")
    return said is not None and alive(said.get("writer"))


def stopping() -> bool:
    return (ROOT / "stopping").exists()


def going_down() -> bool:
    """Whether systemd, where it runs, is shutting the VM down."""
    if os.environ.get("CLOUDTRAIN_ROOT") or not Path("/run/systemd/system").is_dir():
        return False
    try:
        told = subprocess.run(["systemctl", "is-system-running"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return told.stdout.strip() == "stopping"


def hold_lock(path: Path) -> int | None:
    """The descriptor that holds the lock, or None when another process does."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def held(path: Path) -> bool:
    """Whether some process holds the lock."""
    try:
        handle = hold_lock(path)
    except OSError:
        return True  # cannot tell: assume that all is well rather than start another
    if handle is None:
        return True
    os.close(handle)
    return False


def detach(command: list[str]) -> None:
    """Start a program that outlives this one; says so where that is impossible."""
    try:
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        say(f"cannot start {command[-1]}: {error}")


@dataclass(frozen=True)
class Container:
    """The trainer's container as Docker tells it. exit_code means something once it does not run."""

    id: str
    status: str  # created, running, paused, restarting, removing, exited or dead
    exit_code: int
    out_of_memory: bool
    started: str
    spec: str

    @property
    def runs(self) -> bool:
        return self.status in ("running", "paused", "restarting")


class EngineSilent(Exception):
    """The Docker engine does not answer; the message is what its client said."""


def docker(*arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run the docker client; code 127 when there is none, 124 when it hung."""
    command = ["docker", *arguments]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"docker cannot be run: {error}")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"docker {arguments[0]} hung for {timeout:.0f} s")


FORMAT = (
    "{{.Id}} {{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} {{.State.StartedAt}} "
    '{{index .Config.Labels "cloudtrain.spec"}}'
)


def container(timeout: float = 60.0) -> Container | None:
    """The trainer's container, or None when there is none. Raises EngineSilent."""
    told = docker("inspect", "--type", "container", "--format", FORMAT, CONTAINER, timeout=timeout)
    if told.returncode != 0:
        if "no such" in told.stderr.lower():
            return None
        raise EngineSilent(told.stderr.strip()[-300:] or f"docker inspect ended with {told.returncode}")
    words = told.stdout.split()
    if len(words) < 5:
        raise EngineSilent(f"docker inspect said {told.stdout.strip()!r}")
    code = int(words[2]) if words[2].lstrip("-").isdigit() else -1
    return Container(words[0], words[1], code, words[3] == "true", words[4], words[5] if len(words) > 5 else "")

"""What the programs of this guest share: its files, its events, its journal and its container.

Standard library of Python 3.10 only (Ubuntu 22.04). Every value of the run comes from settings.json.
"""

import contextlib
import fcntl
import hashlib
import hmac
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
    "scan_seconds": 1.0,  # between looks at the mount for something to send
    "quiet_seconds": 5.0,  # files that an image writes straight into the mount are one set once all rested so long
    "settled_seconds": 2.0,  # any other file is sent once it has rested so long, or has not for a minute
    "publish_seconds": 15.0,  # between two sendings of what changes all the time: progress, state, logs
    "upload_bytes_per_second": 100_000_000,  # 0: no limit; a flush has none
    "single_put_bytes": 64 * 1024 * 1024,  # a larger file goes in blocks
    "block_bytes": 8 * 1024 * 1024,
    "keep_previous": 1,  # checkpoints in storage beside the newest
    "storage_call_seconds": 20.0,
    "call_pauses": [0.5, 2.0],  # between attempts of one call of storage
    "upload_pauses": [1.0, 2.0, 5.0, 10.0, 30.0, 60.0],  # while storage does not answer
    "refused_pauses": [5.0, 15.0, 60.0, 120.0, 300.0],  # while storage refuses
    "fence_seconds": 15.0,  # how often the uploader looks whether a newer VM has taken over
    "flush_seconds": 20.0,  # how long a stop waits until everything is in storage
    "idle_seconds": 2.0,  # that everything has to be over and sent before the uploader ends
    "restore_seconds": 600.0,  # a new VM waits so long for storage: a role takes up to ten minutes to spread
    "restore_short_seconds": 10.0,  # and where the disk has a checkpoint to go on with
    "restore_pauses": [1.0, 2.0, 5.0, 10.0, 15.0],
    "release_pauses": [5.0, 10.0, 15.0, 30.0, 60.0, 60.0, 60.0, 120.0, 240.0],  # likewise, of the right to deallocate
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
    if wanted.get("secrets"):
        parts.append(secrets_digest(wanted))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def secrets(wanted: dict[str, Any]) -> dict[str, str | None]:
    """The values of the run's secret variables by name; None for one that has not reached this VM."""
    values = read_json(ROOT / "secrets.json") or {}
    return {name: values[name] if isinstance(values.get(name), str) else None for name in wanted.get("secrets") or ()}


def secrets_digest(wanted: dict[str, Any]) -> str:
    """Another word where a value changed. With a key of this VM, so that nobody finds a value by trying."""
    return hmac.new(secrets_key(), json.dumps(secrets(wanted)).encode(), hashlib.sha256).hexdigest()


def secrets_key() -> bytes:
    path = ROOT / ".secrets.key"
    if not path.exists():
        new = path.with_name(f"{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(handle, os.urandom(32))
            finally:
                os.close(handle)
            with contextlib.suppress(FileExistsError):
                os.link(new, path)  # whoever was first
            new.unlink()
    try:
        return path.read_bytes()
    except OSError:
        return b""


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


def boot() -> str:
    """Another word at each boot of this VM, where it has a process 1 of its own."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        kernel = ""
    return f"{kernel} {identity(1)}"


def session() -> Any:
    """How often the startup script was started; None before."""
    return (read_json(ROOT / "state.json") or {}).get("session")


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


def fenced() -> bool:
    """A newer generation of the run's VM has taken over: this one never trains again."""
    told = whole((read_json(ROOT / "fenced") or {}).get("generation"))
    return told is not None and told > (whole((read_json(ROOT / "settings.json") or {}).get("generation")) or 0)


def going_down() -> bool:
    """Whether systemd, where it runs, is shutting the VM down."""
    if os.environ.get("CLOUDTRAIN_ROOT") or not Path("/run/systemd/system").is_dir():
        return False
    try:
        told = subprocess.run(["systemctl", "is-system-running"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return told.stdout.strip() == "stopping"


# Held while a container is being started: by the docker client too, which lives on when the startup script is killed.
START_LOCK = ROOT / "start.lock"
ORPHAN_SECONDS = 10.0  # that such a client is waited for: beyond, it hangs, and its container has come or never will


def hold_start_lock() -> int | None:
    """A stop asked for before is there to be seen by the holder; one asked for later sees that it is held. None where
    there is no room for the file, or a client hangs."""
    end = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            handle = hold_lock(START_LOCK)
        except OSError:
            return None
        if handle is not None or time.monotonic() > end:
            return handle
        time.sleep(0.05)


def starts_container() -> bool:
    """A docker run is under way. Where there is no such file, none ever was."""
    return START_LOCK.exists() and held(START_LOCK)


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


def leave_parent() -> bool:
    """Go on in a process of our own session; True in it. A lock goes along."""
    if os.fork():
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    return True


def redirect(log: Path) -> None:
    """This program's stdout and stderr into its log; into nothing where the disk refuses."""
    try:
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def rotate(log: Path, largest: int = 1024 * 1024) -> None:
    """Of a program that logs there."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > largest:
            log.replace(log.with_name(log.name + ".1"))
            redirect(log)


# Storage: the uploader sends, and everybody else asks it with a token in `flush`, which it answers in upload.json.

ENDED = ("ended", "pause", "evicting", "stopped", "fenced", "finished", "failed")  # stages without a container


def changed(path: Path) -> int:
    """When the file was written, 0 where there is none: another number, another content."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def upload_state() -> dict[str, Any]:
    return read_json(ROOT / "upload.json") or {}


def storage_state() -> dict[str, Any] | None:
    """What is told of the sending; None where the VM has no storage."""
    access = read_json(ROOT / "storage.json")
    if access is None:
        return None
    told = upload_state().get("storage")
    kind = {"kind": access.get("kind"), "expires": access.get("expires") if access.get("kind") != "identity" else None}
    return {**kind, **(told if isinstance(told, dict) else {})}


def rest() -> list[Any]:
    """What the uploader had dealt with when it ended: where this changed, there may be something to send again."""
    state = read_json(ROOT / "state.json") or {}
    return [state.get("session"), state.get("stage"), changed(ROOT / "storage.json")]


def keep_uploader(*, always: bool = False) -> None:
    """Start the uploader where it is due and none runs. always: even when it had nothing more to do."""
    if not (ROOT / "storage.json").exists() or fenced() or held(ROOT / "upload.lock"):
        return
    if always or upload_state().get("rest") != rest():
        detach([sys.executable, "-sSEB", str(ROOT / "uploader.py")])


def ask_flush(*, ended: bool) -> int:
    """Ask for everything to be sent now. ended: no container writes any more. The token; 0 without storage."""
    if not (ROOT / "storage.json").exists() or fenced():
        return 0
    before = whole((read_json(ROOT / "flush") or {}).get("token")) or 0
    token = max(time.time_ns(), before + 1)  # clocks jump
    if not write_json(ROOT / "flush", {"token": token, "ended": ended}):
        return 0
    keep_uploader(always=True)
    return token


def await_flush(token: int, deadline: float) -> dict[str, Any]:
    """upload.json once it answers, or what it says at the deadline (monotonic), or when storage refuses."""
    while True:
        told = upload_state()
        if (whole(told.get("flushed")) or 0) >= token or (whole(told.get("given_up")) or 0) >= token:
            return told
        if time.monotonic() >= deadline:
            return told
        time.sleep(0.05)


def tell_flush(token: int, told: dict[str, Any]) -> bool:
    """The event `flushed` or `not_flushed`, and a line in the journal for what did not make it."""
    state = told.get("storage")
    state = state if isinstance(state, dict) else {}
    here, there = step_of(progress(), "saved_step"), whole(state.get("newest"))
    if (whole(told.get("saved")) or 0) >= token:
        everything = (whole(told.get("flushed")) or 0) >= token
        event("flushed", step=there, pending=0 if everything else whole(state.get("pending")))
        return True
    reason = str(state.get("refused") or "there was no time left")
    event("not_flushed", step=here, stored=there, reason=reason)
    steps = f"; saved at step {here}, storage has {'none' if there is None else f'step {there}'}" if here else ""
    journal("was not sent to storage in time", f"{reason}{steps}")
    say(f"not everything is in storage: {reason}{steps}")
    return False


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


def docker(
    *arguments: str, timeout: float = 60.0, environment: dict[str, str] | None = None, lock: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the docker client; code 127 when there is none, 124 when it hung. environment: what the client's has more.
    lock: a descriptor that it holds, too."""
    command = ["docker", *arguments]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**os.environ, **(environment or {})},
            pass_fds=() if lock is None else (lock,),
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

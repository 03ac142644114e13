"""One VM's directory on the host: where things lie, and who may say what is true.

The lock is the truth about liveness: the supervisor (and whatever could still run inside the VM) holds it.
state.json is written only by the one who holds it.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class VmDirectory:
    path: Path

    @property
    def disk(self) -> Path:
        """The VM's `/`, and the upper layers of what it overlays."""
        return self.path / "disk"

    @property
    def work(self) -> Path:
        """overlayfs's own work directories."""
        return self.path / "work"

    @property
    def root(self) -> Path:
        """Where the VM's `/` is put together, in the VM's mount namespace only; empty for everybody else."""
        return self.path / "root"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def config(self) -> Path:
        return self.path / "machine.json"

    @property
    def sequence(self) -> Path:
        return self.path / "sequence.json"

    @property
    def log(self) -> Path:
        return self.path / "supervisor.log"

    def script_record(self, key: str) -> Path:
        return self.path / "scripts" / f"{key}.json"


@dataclass(frozen=True)
class State:
    """What the holder of the lock last said. power: 'off', 'starting' or 'on' (so until every process is gone)."""

    power: str = "off"
    cause: str | None = "never started"  # the value of an OffCause; None while on
    since: float = 0.0  # epoch seconds
    boot: int = 0
    incarnation: str = ""  # of the supervisor
    host_boot: str = ""
    supervisor: int = 0
    kind: str = "namespaces"  # or "subreapers"
    imds_port: int = 0
    document_incarnation: int = 0  # IMDS counts on across boots


def read_state(directory: VmDirectory) -> State:
    return State(**_known(read_json(directory.state) or {}))


def write_state(directory: VmDirectory, state: State) -> None:
    write_json(directory.state, asdict(state))


def update_state(directory: VmDirectory, **changes: Any) -> State:
    state = replace(read_state(directory), **changes)
    write_state(directory, state)
    return state


def _known(values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(State)}
    return {key: value for key, value in values.items() if key in names}


def read_json(path: Path) -> Any:
    """None when the file is not there or was never finished."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Replace the file atomically; on disk before this returns."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    with temporary.open("wb") as file:
        file.write(json.dumps(value).encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def host_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def try_lock(directory: VmDirectory, *, shared: bool = False) -> int | None:
    """A locked descriptor, or None while somebody else holds the lock. Raises FileNotFoundError without a directory.

    shared: only to look; two that look do not disturb each other.
    """
    while True:
        descriptor = os.open(directory.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_still(descriptor, directory.lock):
            return descriptor
        os.close(descriptor)


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the path still names the file that we locked: an erase may have removed it in between."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)

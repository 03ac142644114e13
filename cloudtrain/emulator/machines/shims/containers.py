"""What the VM's docker knows: its images, and its containers' records and logs on the VM's disk.

A container's keeper (see `keeper`) holds a lock on the container's `alive` file. A record that says "running" while
nobody holds that lock tells of a power cut: docker shows such a container as exited with 255 after the next boot.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloudtrain.emulator.machines.directory import read_json, write_json
from cloudtrain.emulator.machines.rootfs import remove_tree

_ZERO_TIME = "0001-01-01T00:00:00Z"


class DockerError(Exception):
    """The daemon's answer; docker prints it after 'Error response from daemon: '."""


@dataclass(frozen=True)
class Engine:
    """What the supervisor told at boot. prefix: the VM's `/` (the disk's directory where namespaces are missing)."""

    prefix: Path
    images: dict[str, list[str]]
    environment: dict[str, str]
    library_path: str
    readable: list[str]
    isolated: bool

    @property
    def store(self) -> Path:
        return self.prefix / "var/lib/docker/containers"

    @property
    def keepers(self) -> Path:
        return self.prefix / "run/docker/keepers"

    def image(self, reference: str) -> str | None:
        """The name under which it is known here: 'x', 'x:latest' and 'docker.io/library/x' are one."""
        wanted = normalised(reference)
        return next((name for name in self.images if normalised(name) == wanted), None)


def engine() -> Engine | None:
    """None when the VM's docker is not there: outside of a VM, or in a container."""
    prefix = Path(os.environ.get("CLOUDTRAIN_ROOT") or "/")
    told = read_json(prefix / "run/docker/engine.json")
    if told is None:
        return None
    return Engine(prefix, told["images"], told["environment"], told["library_path"], told["readable"], told["isolated"])


def normalised(reference: str) -> str:
    name = reference.removeprefix("docker.io/").removeprefix("library/")
    return name if "@" in name or ":" in name.rpartition("/")[2] else f"{name}:latest"


def image_id(reference: str) -> str:
    return "sha256:" + hashlib.sha256(normalised(reference).encode()).hexdigest()


@dataclass(frozen=True)
class Container:
    """Everything on record about one container. Times are epoch seconds, 0.0 for never."""

    id: str
    name: str
    image: str
    arguments: list[str]
    created: float
    labels: dict[str, str] = field(default_factory=dict)
    environment: list[str] = field(default_factory=list)
    volumes: list[list[Any]] = field(default_factory=list)  # [host, container, read-only]
    working_directory: str = "/app"
    hostname: str = ""
    init: bool = False
    stop_timeout: float = 10.0
    auto_remove: bool = False
    log_driver: str = "json-file"
    log_options: dict[str, str] = field(default_factory=dict)
    status: str = "created"  # then running, exited
    exit_code: int = 0
    error: str = ""
    pid: int = 0
    started: float = 0.0
    finished: float = 0.0


@contextlib.contextmanager
def exclusive(on: Engine) -> Iterator[None]:
    """No record changes while this is held, except by the holder."""
    on.store.mkdir(mode=0o710, parents=True, exist_ok=True)
    descriptor = os.open(on.store / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def directory(on: Engine, container: Container) -> Path:
    return on.store / container.id


def log_path(on: Engine, container: Container) -> Path:
    return directory(on, container) / f"{container.id}-json.log"


def create(on: Engine, container: Container) -> None:
    """Raises DockerError when the name is taken. Under `exclusive`."""
    for other in everyone(on):
        if other.name == container.name:
            raise DockerError(
                f'Conflict. The container name "/{container.name}" is already in use by container "{other.id}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
    directory(on, container).mkdir(mode=0o710)
    (directory(on, container) / "alive").touch(mode=0o600)
    log_path(on, container).touch(mode=0o640)
    save(on, container)


def save(on: Engine, container: Container) -> None:
    write_json(directory(on, container) / "config.json", asdict(container))


def remove(on: Engine, container: Container) -> None:
    remove_tree(directory(on, container))


def everyone(on: Engine) -> list[Container]:
    """The newest first. Under `exclusive`: what a power cut left behind is put right here."""
    found = []
    for path in on.store.iterdir():
        if not path.is_dir():
            continue
        record = read_json(path / "config.json")
        if record is None:  # cut while it was being created or removed
            remove_tree(path)
            continue
        container = _put_right(on, Container(**record))
        if container is not None:
            found.append(container)
    return sorted(found, key=lambda container: -container.created)


def _put_right(on: Engine, container: Container) -> Container | None:
    if container.status != "running" or is_alive(on, container):
        return container
    if container.auto_remove:
        remove(on, container)
        return None
    ended = replace(container, status="exited", exit_code=255, finished=time.time(), pid=0)
    save(on, ended)
    return ended


def is_alive(on: Engine, container: Container) -> bool:
    """Whether its keeper still holds the container's lock."""
    with (directory(on, container) / "alive").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def await_end(on: Engine, container: Container) -> None:
    """Return when its keeper is gone."""
    with contextlib.suppress(FileNotFoundError), (directory(on, container) / "alive").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def find(on: Engine, wanted: str) -> Container:
    """By name, id, or the beginning of an id. Raises DockerError."""
    all_of_them = everyone(on)
    name = wanted.removeprefix("/")
    for container in all_of_them:
        if name in (container.name, container.id):
            return container
    matches = [container for container in all_of_them if wanted and container.id.startswith(wanted)]
    if len(matches) > 1:
        raise DockerError(f"Multiple IDs found with provided prefix: {wanted}")
    if not matches:
        raise DockerError(f"No such container: {wanted}")
    return matches[0]


def new_id() -> str:
    return os.urandom(32).hex()


def new_name() -> str:
    moods = "bold brave calm clever eager fervent gentle happy keen lucid nifty quirky serene vibrant zen"
    people = "babbage curie dijkstra hopper jang knuth lamport lovelace mccarthy noether pike turing wing"
    return f"{random.choice(moods.split())}_{random.choice(people.split())}{random.randrange(1000)}"


def shown_time(seconds: float) -> str:
    if not seconds:
        return _ZERO_TIME
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "000Z")


def inspection(on: Engine, container: Container) -> dict[str, Any]:
    """What `docker inspect` shows, as far as it means something here."""
    return {
        "Id": container.id,
        "Created": shown_time(container.created),
        "Path": (on.images.get(container.image) or [container.image])[0],
        "Args": container.arguments,
        "State": {
            "Status": container.status,
            "Running": container.status == "running",
            "Paused": False,
            "Restarting": False,
            "OOMKilled": False,
            "Dead": False,
            "Pid": container.pid,
            "ExitCode": container.exit_code,
            "Error": container.error,
            "StartedAt": shown_time(container.started),
            "FinishedAt": shown_time(container.finished),
        },
        "Image": image_id(container.image),
        "LogPath": str(log_path(on, container)),
        "Name": f"/{container.name}",
        "RestartCount": 0,
        "HostConfig": {
            "Binds": [f"{host}:{inside}{':ro' if fixed else ''}" for host, inside, fixed in container.volumes],
            "LogConfig": {"Type": container.log_driver, "Config": container.log_options},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "AutoRemove": container.auto_remove,
            "Init": container.init,
        },
        "Mounts": [
            {
                "Type": "bind",
                "Source": host,
                "Destination": inside,
                "Mode": "ro" if fixed else "",
                "RW": not fixed,
            }
            for host, inside, fixed in container.volumes
        ],
        "Config": {
            "Hostname": container.hostname,
            "Env": container.environment,
            "Cmd": container.arguments,
            "Image": container.image,
            "WorkingDir": container.working_directory,
            "Labels": container.labels,
            "StopTimeout": int(container.stop_timeout),
        },
    }


# --- logs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogLine:
    """One write of the container, at most to the end of a line. time: epoch seconds."""

    time: float
    stream: str
    text: str


class LogWriter:
    """docker's json-file driver: {"log", "stream", "time"} a line, with max-size and max-file."""

    def __init__(self, path: Path, options: dict[str, str]) -> None:
        self._path = path
        self._limit = size_in_bytes(options.get("max-size", "-1"))
        self._files = int(options.get("max-file", "1"))
        self._file = path.open("ab", buffering=0)

    def write(self, stream: str, data: bytes) -> None:
        for part in data.splitlines(keepends=True) if b"\n" in data else [data]:
            text = part.decode(errors="replace")
            entry = {"log": text, "stream": stream, "time": shown_time(time.time())}
            self._file.write(json.dumps(entry).encode() + b"\n")
        if 0 < self._limit < self._file.tell():
            self._rotate()

    def _rotate(self) -> None:
        for number in range(self._files - 1, 0, -1):
            older = _numbered(self._path, number - 1)
            if older.exists():
                older.replace(_numbered(self._path, number))
        self._file.close()
        if self._files == 1:
            self._path.unlink(missing_ok=True)
        self._file = self._path.open("ab", buffering=0)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def size_in_bytes(text: str) -> int:
    """docker's sizes: 10m, 64k, 1g. Raises DockerError."""
    match = re.fullmatch(r"(-?\d+)\s*([kmg]?)b?", text.strip().lower())
    if match is None:
        raise DockerError(f"invalid size: '{text}'")
    return int(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[match[2]]


class LogReader:
    """Reads what is there, then, each time it is asked, what was added, across rotations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        rotated = sorted(path.parent.glob(f"{path.name}.*"), key=lambda p: -int(p.name.rpartition(".")[2]))
        self._older = [older.read_bytes() for older in rotated]
        self._file = path.open("rb")
        self._rest = b""

    def read(self) -> Iterator[LogLine]:
        older, self._older = self._older, []
        for data in older:
            yield from self._lines(data)
        yield from self._lines(self._file.read())
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino:
                yield from self._lines(self._file.read())
                self._file.close()
                self._file = self._path.open("rb")
                yield from self._lines(self._file.read())

    def _lines(self, data: bytes) -> Iterator[LogLine]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                entry = json.loads(line)
                yield LogLine(_epoch(entry["time"]), entry["stream"], entry["log"])
            except (ValueError, KeyError):  # a line that a power cut left unfinished
                continue


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text[:26] + "+00:00").timestamp()

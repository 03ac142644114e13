"""Copy what the trainer prints to container.log, every byte once, whoever was killed in between.

Only this program writes container.log, so its size tells how much of the container's output was copied: the
rest of `docker logs`, which always begins at the beginning, is what is missing. output.json says where the
container's output begins in the file. (Beyond 200 MB in one container Docker forgets the oldest part, see
--log-opt: then output is followed from the time of the last write, and a few lines may appear twice.)
"""

import contextlib
import os
import subprocess
import threading
import time
from typing import Any

import guest  # type: ignore[import-not-found]

LOG = guest.ROOT / "container.log"
OLD = guest.ROOT / "container.log.1"
POSITION = guest.ROOT / "output.json"
DOCKER_KEEPS = 100_000_000  # bytes, of --log-opt max-size: beyond it the oldest output may be gone


def sizes() -> dict[int, int]:
    """Inode -> size of container.log and the one before."""
    found = {}
    for path in (LOG, OLD):
        with contextlib.suppress(OSError):
            told = path.stat()
            found[told.st_ino] = told.st_size
    return found


def copied(container: str) -> int:
    """How many bytes of the container's output are in the file. Begins a new count for a new container."""
    position = guest.read_json(POSITION) or {}
    here = sizes()
    if position.get("container") != container or position.get("inode") not in here:
        remember(container, 0)
        return 0
    since = here[position["inode"]] - int(position["start"])
    if since < 0:  # a power cut took the end of the file, and with it whatever this container had printed
        remember(container, int(position["stream"]))
        return int(position["stream"])
    return int(position["stream"]) + since


def remember(container: str, stream: int) -> None:
    """From here on the file continues the container's output at byte `stream`."""
    LOG.touch()
    told = LOG.stat()
    content: dict[str, Any] = {
        "container": container,
        "inode": told.st_ino,
        "start": told.st_size,
        "stream": stream,
    }
    guest.write_json(POSITION, content)


def append(container: str, chunk: bytes, give_up: threading.Event) -> bool:
    """Write it all, waiting while the disk is full: Docker keeps the rest meanwhile. False when given up."""
    with contextlib.suppress(OSError):
        if LOG.stat().st_size >= guest.tuning("log_bytes"):
            stream = copied(container)
            LOG.replace(OLD)
            remember(container, stream)
    while chunk:
        try:
            handle = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                chunk = chunk[os.write(handle, chunk) :]
            finally:
                os.close(handle)
        except OSError:
            if give_up.wait(1):
                return False
    return True


def drain(container: str, client: "subprocess.Popen[bytes]", skip: int, give_up: threading.Event) -> None:
    assert client.stdout is not None
    handle = client.stdout.fileno()
    while chunk := os.read(handle, 65536):
        unseen = chunk[skip:]
        skip = max(0, skip - len(chunk))
        if unseen and not append(container, unseen, give_up):
            return


def client(container: str, *options: str) -> "tuple[subprocess.Popen[bytes], int]":
    """docker logs, and how many bytes of what it prints were copied before."""
    skip = copied(container)
    if skip > DOCKER_KEEPS:
        last = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(LOG.stat().st_mtime))
        options, skip = (*options, "--since", last), 0
    command = ["docker", "logs", *options, container]
    made = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return made, skip


def catch_up(container: str) -> None:
    """Copy what is still missing of a container that does not run."""
    give_up = threading.Event()
    give_up.set()
    with contextlib.suppress(OSError):
        made, skip = client(container)
        drain(container, made, skip, give_up)
        made.kill()
        made.wait()


class Copy:
    """Copies in the background while the container runs; a docker client that dies is replaced."""

    def __init__(self, container: str) -> None:
        self.container = container
        self.ended = threading.Event()
        self.made: subprocess.Popen[bytes] | None = None
        self.thread = threading.Thread(target=self.copy, daemon=True)
        self.thread.start()

    def copy(self) -> None:
        while not self.ended.is_set():
            try:
                self.made, skip = client(self.container, "--follow")
                drain(self.container, self.made, skip, self.ended)
                self.made.kill()
                self.made.wait()
            except OSError as error:
                guest.say(f"cannot copy the trainer's output: {error}")
            self.ended.wait(1)

    def finish(self) -> None:
        """The container ended: let the client come to its end, for a while, and copy the rest."""
        self.ended.set()
        self.thread.join(5)
        if self.thread.is_alive() and self.made is not None:
            self.made.kill()
            self.thread.join(5)
        if not self.thread.is_alive():
            catch_up(self.container)

"""The rehearsal's registry: where trainer images are pushed to and the nodes pull them from.

A container of the node image, on a port of 127.0.0.1 that one emulator keeps for good: image references name it. Inside
a node the same port of 127.0.0.1 leads to it, so that one reference is right everywhere.
"""

import contextlib
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloudtrain.emulator.machines import MachineError
from cloudtrain.emulator.machines.engine import Engine, errors
from cloudtrain.emulator.machines.node_image import NodeImage

_PORT = 5000  # inside its container
_STORAGE = "/var/lib/docker-registry"
_START_SECONDS = 30.0
# Deletion is of no use here: the whole storage goes with the last VM.
_CONFIG = (
    "version: 0.1\\nlog:\\n  level: warn\\nstorage:\\n  filesystem:\\n    rootdirectory: "
    f"{_STORAGE}\\nhttp:\\n  addr: 0.0.0.0:{_PORT}\\n"
)
_COMMAND = ["-c", f"printf '{_CONFIG}' > /etc/registry.yml && exec docker-registry serve /etc/registry.yml"]


@dataclass(frozen=True)
class Running:
    """port: of the engine's 127.0.0.1. inside: HOST:PORT by which a node reaches it."""

    port: int
    inside: str


class Registry:
    def __init__(self, root: Path, *, engine: Engine, image: NodeImage) -> None:
        self._root = root.absolute()
        self._engine = engine
        self._image = image
        self.name = f"cloudtrain-registry-{engine.owner}"

    def start(self) -> Running:
        """Running already: no-op. Raises MachineError."""
        with self._locked():
            found = self._engine.container(self.name)
            if found is None or not found["State"]["Running"]:
                self._make()
            return self._answering()

    def _make(self) -> None:
        image = self._image.ensure()
        port = self._port()
        self._engine.remove_container(self.name)
        api = self._engine.api
        labels = self._engine.labels()
        with errors():
            api.create_volume(self.name, labels=labels)
            api.create_container(
                image,
                name=self.name,
                entrypoint=["sh"],
                command=_COMMAND,
                labels=labels,
                ports=[_PORT],
                host_config={
                    "Binds": [f"{self.name}:{_STORAGE}"],
                    "PortBindings": {f"{_PORT}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]},
                    "NetworkMode": "bridge",
                    "RestartPolicy": {"Name": "unless-stopped"},
                },
            )
            api.start(self.name)

    def _answering(self) -> Running:
        give_up = time.monotonic() + _START_SECONDS
        port = self._port()
        while time.monotonic() < give_up:
            found = self._engine.container(self.name)
            if found is None or not found["State"]["Running"]:
                raise MachineError(f"The rehearsal's registry ended at once: see docker logs {self.name}")
            address = found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
            if self._answers():
                return Running(port, f"{address}:{_PORT}")
            time.sleep(0.05)
        raise MachineError(f"The rehearsal's registry does not answer: see docker logs {self.name}")

    def _answers(self) -> bool:
        """Asked inside its container: the engine may be another machine than this."""
        with errors():
            made = self._engine.api.exec_create(
                self.name, ["curl", "-fsS", "-o", "/dev/null", f"http://127.0.0.1:{_PORT}/v2/"]
            )
            self._engine.api.exec_start(made["Id"])
            return bool(self._engine.api.exec_inspect(made["Id"])["ExitCode"] == 0)

    def _port(self) -> int:
        """Chosen once; image references in specs hold it."""
        path = self._root / "registry.port"
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        while not path.exists():
            with socket.socket() as free, tempfile.NamedTemporaryFile("w", dir=self._root) as chosen:
                free.bind(("127.0.0.1", 0))
                chosen.write(str(free.getsockname()[1]))
                chosen.flush()
                with contextlib.suppress(FileExistsError):  # of two that choose at once, one wins
                    os.link(chosen.name, path)
        return int(path.read_text())

    def repository(self, name: str) -> str:
        """What an image is called that is pushed here, without its tag."""
        return f"127.0.0.1:{self._port()}/{name}"

    def remove(self) -> None:
        """Its container, its storage, and the images in the engine that were tagged for it."""
        with self._locked():
            self._engine.remove_container(self.name)
            self._engine.remove_volume(self.name)
            if (self._root / "registry.port").exists():
                self._remove_images(f"127.0.0.1:{self._port()}/")
                (self._root / "registry.port").unlink()

    def _remove_images(self, prefix: str) -> None:
        with errors():
            for image in self._engine.api.images():
                names = [*(image["RepoTags"] or []), *(image["RepoDigests"] or [])]
                for name in [name for name in names if name.startswith(prefix)]:
                    self._engine.remove_image(name)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._root / "registry.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

"""The embedded Azure's blob service, as a guest under test reaches it: over HTTP, stopped and started, its requests
counted."""

import base64
import contextlib
import itertools
import json
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import ContainerClient, generate_container_sas

from cloudtrain.clock import SystemClock
from cloudtrain.emulator.blobs.server import HOST, listening
from cloudtrain.guest import SECRETS, STORAGE
from cloudtrain.guest.durable import POINTER, Pointer, StoredCheckpoint, parse_pointer
from tests.emulator.blob_services import CONTRIBUTOR
from tests.emulator.conftest import Cloud, open_cloud

from .guest_vm import QUICK, Vm

RIGHTS = "racwdl"
# Times that let a test see everything within a second or two.
BRISK: dict[str, object] = {
    **QUICK,
    "poll_seconds": 0.2,
    "scan_seconds": 0.1,
    "quiet_seconds": 0.4,
    "settled_seconds": 0.1,
    "publish_seconds": 0.5,
    "idle_seconds": 0.2,
    "fence_seconds": 0.3,
    "call_pauses": [0.05],
    "upload_pauses": [0.1, 0.2],
    "refused_pauses": [0.3, 60.0],
    "restore_seconds": 20.0,
    "restore_short_seconds": 0.4,
    "restore_pauses": [0.1],
    "release_pauses": [0.1] * 20,
}


@dataclass
class Request:
    method: str
    path: str
    status: int


@dataclass
class BlobServer:
    """One server for all tests of a module; each test has a container of its own."""

    cloud: Cloud
    port: int = 0
    up: bool = False
    requests: list[Request] = field(default_factory=list)
    before: Callable[[str, str], int] = lambda method, path: 0  # a status to answer with instead
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    reserved: socket.socket = field(default_factory=socket.socket)  # the port, from others, while this is stopped

    def __post_init__(self) -> None:
        self.reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # bound, it never listens
        self.reserved.bind((HOST, 0))
        self.port = self.reserved.getsockname()[1]

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if not self.up:
            raise ConnectionAbortedError
        environ["wsgi.url_scheme"] = "https"  # as Azure is reached
        status = self.before(method, path)
        if status:
            self.requests.append(Request(method, path, status))
            start_response(f"{status} Refused", [("x-ms-error-code", "ServerBusy"), ("Content-Length", "0")])
            return [b""]

        def start(line: str, *rest: Any) -> Any:
            self.requests.append(Request(method, path, int(line.split()[0])))
            return start_response(line, *rest)

        served: Iterable[bytes] = self.cloud.azure.blobs(environ, start)
        return served

    def start(self) -> None:
        self.up = True
        self.stack.enter_context(listening(self, self.port))

    def stop(self) -> None:
        self.up = False  # connections that there are would be served on
        self.stack.close()


_names = itertools.count(1)


@dataclass
class Store:
    """A run's container."""

    server: BlobServer
    container: ContainerClient
    name: str
    key: str

    def signature(self, hours: float = 1.0, rights: str = RIGHTS, name: str = "") -> str:
        expiry = SystemClock().now() + timedelta(hours=hours)
        return generate_container_sas(
            "acct", name or self.name, account_key=self.key, permission=rights, expiry=expiry, protocol="https"
        )

    def access(self, *, kind: str = "signature", signature: str | None = None, name: str = "") -> dict[str, Any]:
        """storage.json."""
        return {
            "version": 1,
            "account": "acct",
            "container": name or self.name,
            "endpoint": "https://acct.blob.core.windows.net/",
            "kind": kind,
            "signature": self.signature() if signature is None else signature,
            "expires": None,
        }

    def blobs(self, prefix: str = "") -> dict[str, int]:
        return {blob.name: int(blob.size) for blob in self.container.list_blobs(name_starts_with=prefix)}

    def read(self, blob: str) -> bytes:
        return bytes(self.container.get_blob_client(blob).download_blob().readall())

    def log(self, source: str) -> bytes:
        return b"".join(self.read(name) for name in sorted(self.blobs(f"cloudtrain/logs/{source}.")))

    def pointer(self) -> Pointer | None:
        try:
            return parse_pointer(self.read(POINTER))
        except ResourceNotFoundError:
            return None

    def newest(self) -> StoredCheckpoint | None:
        pointer = self.pointer()
        return pointer.newest if pointer else None

    def step(self) -> int:
        newest = self.newest()
        return (newest.step if newest else None) or 0

    def check(self) -> None:
        """Whatever the pointer names is there, whole. A newer pointer may have come meanwhile, and older files gone."""
        while True:
            pointer = self.pointer()
            try:
                return self._check(pointer)
            except (AssertionError, ResourceNotFoundError):
                if self.pointer() == pointer:
                    raise

    def _check(self, pointer: Pointer | None) -> None:
        for each in [pointer.newest, *pointer.previous] if pointer else []:
            for file in each.files if each else ():
                content = self.read(file.blob)
                assert len(content) == file.size and md5(content) == file.md5, file


def md5(content: bytes) -> str:
    import hashlib

    return base64.b64encode(hashlib.md5(content).digest()).decode()


def protect(vm: Vm, access: dict[str, Any] | None, **secrets: str) -> None:
    """What the next installation brings along."""
    vm.protected = {}
    if access is not None:
        vm.protected[STORAGE] = base64.b64encode(json.dumps(access).encode()).decode()
    if secrets:
        vm.protected[SECRETS] = base64.b64encode(json.dumps(secrets).encode()).decode()


@pytest.fixture(scope="module")
def blob_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobServer]:
    cloud = open_cloud(tmp_path_factory.mktemp("cloud") / "emulator", clock=SystemClock())
    account = cloud.account()
    role = f"{cloud.subscription}/providers/Microsoft.Authorization/roleDefinitions/{CONTRIBUTOR}"
    properties = {"principalId": cloud.azure.caller_id, "principalType": "User", "roleDefinitionId": role}
    name = f"{account.id}/providers/Microsoft.Authorization/roleAssignments/8a3e9c7e-6b06-4d0a-9a55-000000000001"
    assert cloud.call("PUT", name, {"properties": properties}).status == 201
    server = BlobServer(cloud)
    server.start()
    yield server
    server.stop()
    server.reserved.close()
    cloud.azure.close()


@pytest.fixture
def store(blob_server: BlobServer, vm: Vm) -> Iterator[Store]:
    """A container, and a VM that is let in at its next installation."""
    name = f"run{next(_names)}"
    key = blob_server.cloud.key()
    container = blob_server.cloud.blobs(credential=key).create_container(name)
    blob_server.requests.clear()
    blob_server.before = lambda method, path: 0
    made = Store(blob_server, container, name, key)
    vm.environment["CLOUDTRAIN_BLOBS"] = f"http://127.0.0.1:{blob_server.port}"
    protect(vm, made.access())
    vm.settings = _with_tuning(vm)
    yield made
    if not blob_server.up:
        blob_server.start()


def _with_tuning(vm: Vm) -> Any:
    from dataclasses import replace

    return replace(vm.settings, tuning=BRISK)


def erase_disk(vm: Vm, generation: int | None = None) -> None:
    """A new VM in place of the old: nothing is left but what Azure gives to every VM."""
    import shutil
    from dataclasses import replace

    vm.cut_power()
    shutil.rmtree(vm.home)
    vm.home.mkdir()
    for path in ("containers", "names"):
        shutil.rmtree(vm.engine / path)
        (vm.engine / path).mkdir()
    (Path(vm.environment["CRONTAB_FILE"])).unlink(missing_ok=True)
    number = vm.settings.generation + 1 if generation is None else generation
    vm.settings = replace(vm.settings, generation=number)

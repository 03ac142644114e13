"""How what runs on an emulated VM reaches the blobs: over HTTP, with no more than the standard library."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ContainerClient, generate_container_sas

from cloudtrain.clock import SystemClock
from cloudtrain.emulator.embedded import EmbeddedAzure
from cloudtrain.emulator.machines import MachineSpec, Script, ScriptState
from cloudtrain.emulator.machines.process import ProcessMachines

from .conftest import open_cloud

REPOSITORY = Path(__file__).parents[2]
VM = "6b0d7f4e-6f1b-4c1e-9f55-00000000b10b"
SPEC = MachineSpec(
    vm_id=VM,
    name="vm",
    computer_name="vm",
    subscription_id="00000000-0000-0000-0000-000000000001",
    resource_group="g",
    location="eastus",
    size="Standard_D2s_v3",
    priority="Spot",
    eviction_policy="Deallocate",
)
PUT = """#!{python}
import os, sys, urllib.error, urllib.request
url = os.environ["CLOUDTRAIN_BLOBS"] + "/acct/runs/{name}?" + os.environ["SIGNATURE"]
headers = {{"x-ms-blob-type": "BlockBlob", "x-ms-version": "2026-10-06"}}
request = urllib.request.Request(url, b"{name} " * 20000, headers, method="PUT")
try:
    print(urllib.request.urlopen(request).status)
except urllib.error.HTTPError as error:
    print(error.status, error.headers["x-ms-error-code"])
"""


@dataclass
class World:
    machines: ProcessMachines
    container: ContainerClient
    key: str
    root: Path
    azure: EmbeddedAzure

    def put(self, name: str, permission: str) -> str:
        """What the script on the VM prints."""
        expiry = SystemClock().now() + timedelta(hours=1)
        signature = generate_container_sas(
            "acct", "runs", account_key=self.key, permission=permission, expiry=expiry, protocol="https"
        )
        text = PUT.format(python=sys.executable, name=name)
        script = Script("managed", name, text, environment={"SIGNATURE": signature})
        key = self.machines.start_script(VM, script)
        deadline = time.monotonic() + 30
        while True:
            result: Any = self.machines.script(VM, key)
            if result.state not in (ScriptState.PENDING, ScriptState.RUNNING):
                return bytes(result.stdout + result.stderr).decode().strip()
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    root = tmp_path / "emulator"
    cloud = open_cloud(root, clock=SystemClock())
    cloud.account()
    container = cloud.blobs(credential=cloud.key()).create_container("runs")
    server = ["/usr/bin/env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "cloudtrain.emulator.blobs.server"]
    machines = ProcessMachines(
        tmp_path / "vms",
        clock=SystemClock(),
        images={},
        readable=[],
        blob_server=[*server, str(root)],
        without_namespaces_as_root=True,
    )
    machines.boot(SPEC)
    yield World(machines, container, cloud.key(), root, cloud.azure)
    machines.erase(VM)
    deadline = time.monotonic() + 5
    while servers_of(root):  # they die with the VM's supervisor, a moment later
        assert time.monotonic() < deadline
        time.sleep(0.02)
    cloud.azure.close()


def servers_of(root: Path) -> list[str]:
    """The processes that serve that directory's blobs."""
    command = [b"cloudtrain.emulator.blobs.server", str(root).encode()]
    return [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if _words(path)[-3:-1] == command]


def _words(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().rstrip(b"\0").split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def test_a_vm_sends_its_blobs_with_a_signature(world: World) -> None:
    assert world.put("first", "racw") == "201"
    assert world.container.get_blob_client("first").download_blob().readall() == b"first " * 20000
    (server,) = servers_of(world.root)
    os.kill(int(server), signal.SIGKILL)
    assert world.put("second", "r") == "403 AuthorizationPermissionMismatch"
    world.machines.reboot(VM)
    assert world.put("third", "racw") == "201"
    assert [blob.name for blob in world.container.list_blobs()] == ["first", "third"]


def test_a_fault_strikes_what_a_vm_sends(world: World) -> None:
    world.azure.add_fault("503", on="Blobs_PutBlob")
    assert world.put("first", "racw") == "503 ServerBusy"
    world.azure.add_fault("drop-after", on="PUT https://acct.blob.core.windows.net/runs/*")
    assert "RemoteDisconnected" in world.put("second", "racw")
    assert world.put("third", "racw") == "201"
    assert [blob.name for blob in world.container.list_blobs()] == ["second", "third"]

"""An embedded Azure on machines that are only states, reached through the real SDK clients."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from azure.core.pipeline.policies import SansIOHTTPPolicy

from cloudtrain.azure.wsgi_transport import ClockedTransport, WsgiAdapter
from cloudtrain.clock import Clock
from cloudtrain.emulator.embedded import EmbeddedAzure

from .contract import differences
from .memory_machines import MemoryMachines
from .watched import watch

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE5m1u1xKq4o3eMl2l7A4b9f7vW0gX8Jr4a0c5Y2ZkQp test"


class VirtualClock:
    """Time passes only where somebody waits for it."""

    def __init__(self) -> None:
        self._now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
        self._mutex = threading.Lock()

    def now(self) -> datetime:
        with self._mutex:
            return self._now

    def sleep(self, seconds: float) -> None:
        with self._mutex:
            self._now += timedelta(seconds=max(0.0, seconds))


class Bearer(SansIOHTTPPolicy):
    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def on_request(self, request: Any) -> None:
        request.http_request.headers["Authorization"] = f"Bearer {self._token}"


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class Cloud:
    """One process's view of an embedded Azure."""

    azure: EmbeddedAzure
    machines: MemoryMachines
    clock: Clock

    # The clients are imported where they are used: the processes that the tests start do without.

    @cached_property
    def compute(self) -> Any:
        from azure.mgmt.compute import ComputeManagementClient

        return ComputeManagementClient(object(), self.azure.subscription_id, **self._options())

    @cached_property
    def network(self) -> Any:
        from azure.mgmt.network import NetworkManagementClient

        return NetworkManagementClient(object(), self.azure.subscription_id, **self._options())

    @cached_property
    def resources(self) -> Any:
        from azure.mgmt.resource.resources import ResourceManagementClient

        return ResourceManagementClient(object(), self.azure.subscription_id, **self._options())

    @cached_property
    def storage(self) -> Any:
        from azure.mgmt.storage import StorageManagementClient

        return StorageManagementClient(object(), self.azure.subscription_id, **self._options())

    def account(self, name: str = "acct", group: str = "g", **properties: Any) -> Any:
        """A storage account, in a group that is made if need be."""
        if not self.resources.resource_groups.check_existence(group):
            self.group(group)
        body = {
            "sku": {"name": "Standard_LRS"},
            "kind": "StorageV2",
            "location": "eastus",
            "properties": {"minimumTlsVersion": "TLS1_2", "allowBlobPublicAccess": False, **properties},
        }
        return self.storage.storage_accounts.begin_create(group, name, body).result()

    def blobs(self, account: str = "acct", credential: Any = None, query: str = "", **options: Any) -> Any:
        """The account's blob service, as azure-storage-blob's client."""
        from azure.storage.blob import BlobServiceClient

        url = f"https://{account}.blob.core.windows.net/" + (f"?{query}" if query else "")
        return BlobServiceClient(url, credential=credential, transport=self.transport(), retry_total=0, **options)

    def key(self, account: str = "acct", group: str = "g") -> str:
        return str(self.storage.storage_accounts.list_keys(group, account).keys_property[0].value)

    def transport(self) -> ClockedTransport:
        http = requests.Session()
        http.mount("https://", WsgiAdapter(self.azure))
        return ClockedTransport(self.clock, session=http, session_owner=False)

    def _options(self) -> dict[str, Any]:
        return {
            "transport": self.transport(),
            "authentication_policy": Bearer(self.azure.token),
            "retry_total": 0,
        }

    @property
    def subscription(self) -> str:
        return f"/subscriptions/{self.azure.subscription_id}"

    def call(self, method: str, url: str, body: Any = None, *, version: str = "2026-04-01", **headers: str) -> Reply:
        """A raw request; the path may be a whole URL from a header, else it is below the subscription."""
        if url.startswith("https://"):
            parts = urlsplit(url)
            path, query = parts.path, parts.query
        else:
            path, _, query = (url if url.startswith("/subscriptions") else self.subscription + url).partition("?")
            query += f"{'&' if query else ''}api-version={version}" if version else ""
        request = requests.Request(
            method,
            f"https://management.azure.com{path}" + (f"?{query}" if query else ""),
            data=None if body is None else json.dumps(body),
            headers={"Authorization": f"Bearer {self.azure.token}", **headers},
        ).prepare()
        reply = WsgiAdapter(self.azure).send(request)
        return Reply(reply.status_code, dict(reply.headers), reply.json() if reply.content else None)

    def finish(self, reply: Reply) -> Reply:
        """Poll what a reply names until it has ended; the last status."""
        url = reply.headers.get("Azure-AsyncOperation") or reply.headers["Location"]
        while True:
            status = self.call("GET", url)
            if status.status != 202 and (status.body or {}).get("status") not in ("InProgress", "Running"):
                return status
            self.clock.sleep(int(status.headers["retry-after-ms"]) / 1000)

    def group(self, name: str = "g", location: str = "eastus", **tags: str) -> None:
        self.resources.resource_groups.create_or_update(name, {"location": location, "tags": tags})

    def net(self, group: str = "g", location: str = "eastus") -> str:
        """A virtual network; the id of its subnet."""
        body = {
            "location": location,
            "properties": {
                "addressSpace": {"addressPrefixes": ["10.0.0.0/16"]},
                "subnets": [{"name": "default", "properties": {"addressPrefix": "10.0.0.0/24"}}],
            },
        }
        vnet = self.network.virtual_networks.begin_create_or_update(group, "vnet", body).result()
        return str(vnet.subnets[0].id)

    def vm_body(self, subnet: str, **properties: Any) -> dict[str, Any]:
        interface = {
            "name": "nic",
            "properties": {
                "primary": True,
                "deleteOption": "Delete",
                "ipConfigurations": [
                    {
                        "name": "ipcfg",
                        "properties": {
                            "primary": True,
                            "subnet": {"id": subnet},
                            "publicIPAddressConfiguration": {
                                "name": "pip",
                                "sku": {"name": "Standard", "tier": "Regional"},
                                "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"},
                            },
                        },
                    }
                ],
            },
        }
        base: dict[str, Any] = {
            "hardwareProfile": {"vmSize": "Standard_D2s_v3"},
            "priority": "Spot",
            "storageProfile": {
                "imageReference": {
                    "publisher": "microsoft-dsvm",
                    "offer": "ubuntu-hpc",
                    "sku": "2204",
                    "version": "latest",
                },
                "osDisk": {"createOption": "FromImage", "name": "os", "deleteOption": "Delete"},
            },
            "osProfile": {
                "computerName": "vm",
                "adminUsername": "azureuser",
                "linuxConfiguration": {
                    "disablePasswordAuthentication": True,
                    "ssh": {"publicKeys": [{"path": "/home/azureuser/.ssh/authorized_keys", "keyData": KEY}]},
                },
            },
            "networkProfile": {
                "networkApiVersion": "2022-11-01",
                "networkInterfaceConfigurations": [interface],
            },
        }
        given = {key: value for key, value in {**base, **properties}.items() if value is not None}
        return {"location": "eastus", "properties": given}

    def vm(self, name: str = "vm", group: str = "g", **properties: Any) -> Any:
        """A group, a network and a VM that runs."""
        if not self.resources.resource_groups.check_existence(group):
            self.group(group)
        body = self.vm_body(self.net(group), **properties)
        return self.compute.virtual_machines.begin_create_or_update(group, name, body).result()

    def power(self, name: str = "vm", group: str = "g") -> str:
        view = self.compute.virtual_machines.instance_view(group, name)
        codes = [s.code for s in view.statuses if s.code.startswith("PowerState/")]
        return codes[0].removeprefix("PowerState/") if codes else ""

    def await_power(self, wanted: str, name: str = "vm", group: str = "g") -> None:
        for _ in range(500):
            if self.power(name, group) == wanted:
                return
            self.clock.sleep(0.02)
        raise AssertionError(f"{name} did not become {wanted}: {self.power(name, group)}")


def open_cloud(root: Path, *, fresh: bool = False, clock: Clock | None = None) -> Cloud:
    clock = clock or VirtualClock()
    machines = MemoryMachines(root / "machines", clock)
    return Cloud(EmbeddedAzure(root, clock=clock, machines=machines, fresh=fresh), machines, clock)


@pytest.fixture
def to_the_letter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test asks, every answer is one that the SDK's models know."""
    watched = watch(monkeypatch)
    yield
    found = {one for exchange in watched.exchanges for one in differences(exchange, request=False)}
    assert not found, "\n".join(sorted(found))


@pytest.fixture
def cloud(tmp_path: Path, to_the_letter: None) -> Iterator[Cloud]:
    opened = open_cloud(tmp_path / "emulator")
    yield opened
    opened.azure.close()


@pytest.fixture
def fresh_cloud(tmp_path: Path, to_the_letter: None) -> Iterator[Cloud]:
    opened = open_cloud(tmp_path / "fresh", fresh=True)
    yield opened
    opened.azure.close()

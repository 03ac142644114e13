"""What a VM may ask of Resource Manager by itself, with its managed identity: first of all its own end."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cloudtrain.clock import SystemClock
from cloudtrain.emulator import principals
from cloudtrain.emulator.embedded import EmbeddedAzure
from cloudtrain.emulator.machines import Script, ScriptState
from cloudtrain.emulator.machines.process import ProcessMachines
from cloudtrain.emulator.store import Store

from .conftest import Cloud
from .test_blobs_from_a_vm import servers_of

REPOSITORY = Path(__file__).parents[2]
VM_CONTRIBUTOR = "9980e02c-c2be-4d73-94e8-173b1dc7cf3c"
# Prints the answer's status, whether it can be polled, and the code of a refusal; then stays, as a trainer would.
ASK = """#!{python}
import json, os, time, urllib.error, urllib.request

def call(method, url, **headers):
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.status, error.headers, error.read()

token = os.environ.get("TOKEN")
if token is None:
    service = os.environ.get("CLOUDTRAIN_IMDS", "http://169.254.169.254")
    resource = service + "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="
    token = json.loads(call("GET", resource + "https://management.azure.com/", Metadata="true")[2])["access_token"]
headers = {{"Authorization": "Bearer " + token}} if token else {{}}
url = os.environ["CLOUDTRAIN_ARM"] + os.environ["WHAT"] + "?api-version=2026-04-01"
status, headers, body = call(os.environ["METHOD"], url, **headers)
refusal = json.loads(body).get("error", {{}}).get("code", "") if body else ""
polled = headers.get("Azure-AsyncOperation", "").startswith(os.environ["CLOUDTRAIN_ARM"] + "/subscriptions/")
print(status, polled, refusal, flush=True)
time.sleep(float(os.environ.get("STAY", "0")))
"""


def machines_at(root: Path) -> ProcessMachines:
    server = ["/usr/bin/env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "cloudtrain.emulator.blobs.server"]
    return ProcessMachines(
        root / "vms",
        clock=SystemClock(),
        images={},
        readable=[],
        blob_server=[*server, str(root)],
        without_namespaces_as_root=True,
    )


class World:
    def __init__(self, root: Path, machines: Any = None, python: str = sys.executable, **properties: Any) -> None:
        self.machines, self.python = machines or machines_at(root), python
        clock = SystemClock()
        # The fixture's machines have no processes, which a Cloud does not mind.
        self.cloud = Cloud(EmbeddedAzure(root, clock=clock, machines=self.machines), None, clock)  # type: ignore[arg-type]
        self.cloud.group()
        body = self.cloud.vm_body(self.cloud.net(), **properties) | {"identity": {"type": "SystemAssigned"}}
        self.vm = self.cloud.compute.virtual_machines.begin_create_or_update("g", "vm", body).result()

    def assign(self, scope: str) -> None:
        role = f"{self.cloud.subscription}/providers/Microsoft.Authorization/roleDefinitions/{VM_CONTRIBUTOR}"
        principal = {"principalId": self.vm.identity.principal_id, "principalType": "ServicePrincipal"}
        name = "8a3e9c7e-6b06-4d0a-9a55-00000000000a"
        assignment = f"{scope}/providers/Microsoft.Authorization/roleAssignments/{name}"
        body = {"properties": {**principal, "roleDefinitionId": role}}
        assert self.cloud.call("PUT", assignment, body, version="2022-04-01").status == 201

    def ask(self, method: str, what: str, **environment: str) -> str:
        """What the VM's script prints, as soon as it has said it."""
        text = ASK.format(python=self.python)
        variables = {"METHOD": method, "WHAT": what, **environment}
        key = self.machines.start_script(self.vm.vm_id, Script("managed", "ask", text, environment=variables))
        deadline = time.monotonic() + 30
        while True:
            result = self.machines.script(self.vm.vm_id, key)
            said = bytes(result.stdout).decode()
            if said.endswith("\n") or result.state not in (ScriptState.PENDING, ScriptState.RUNNING):
                return said.strip() or bytes(result.stderr).decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ask_granted(self, method: str, what: str, **environment: str) -> str:
        """Again, as long as the role has not spread."""
        deadline = time.monotonic() + 30
        while (said := self.ask(method, what, **environment)) == "403 False AuthorizationFailed":
            assert time.monotonic() < deadline
        return said

    def await_off(self) -> float:
        """Seconds until nothing runs for the VM any more, without a request to the embedded Azure."""
        begun = time.monotonic()
        while self.machines.power(self.vm.vm_id).on or servers_of(self.cloud.azure.root):
            assert time.monotonic() < begun + 15
            time.sleep(0.02)
        return time.monotonic() - begun


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "emulator")
    yield made
    made.machines.erase(made.vm.vm_id)
    made.cloud.azure.close()


def another_command(world: World) -> Cloud:
    root = world.cloud.azure.root
    return Cloud(EmbeddedAzure(root, clock=SystemClock(), machines=machines_at(root)), None, SystemClock())  # type: ignore[arg-type]


def test_a_vm_with_the_role_deallocates_itself_and_is_gone_although_nobody_asks(world: World) -> None:
    world.assign(world.vm.id)
    said = world.ask_granted("POST", f"{world.vm.id}/deallocate", STAY="600")
    assert said == "202 True"
    assert world.await_off() < 5
    later = another_command(world)
    deadline = time.monotonic() + 5  # as a rule the first who asks sees it
    while (shown := later.azure.status())["open_operations"]:
        assert time.monotonic() < deadline
    assert [(vm["power_state"], vm["cause"]) for vm in shown["vms"]] == [("deallocated", "asked for")]
    assert later.power() == "deallocated"
    later.azure.close()


def test_a_vm_with_the_role_deletes_itself_with_what_its_delete_options_say(world: World) -> None:
    world.assign(f"{world.cloud.subscription}/resourceGroups/g")
    assert world.ask_granted("DELETE", world.vm.id, STAY="600") == "202 True"
    assert world.await_off() < 5
    later = another_command(world)
    deadline = time.monotonic() + 15
    while later.call("GET", world.vm.id).status != 404:  # its disk takes a moment
        assert time.monotonic() < deadline
    left = later.call("GET", "/resourceGroups/g/resources", version="2025-04-01").body["value"]
    assert [one["type"] for one in left] == ["Microsoft.Network/virtualNetworks"]
    assert not list((later.azure.root / "vms").glob("*"))
    later.azure.close()


def test_a_vm_may_nothing_that_no_role_gives_it(world: World) -> None:
    assert world.ask("POST", f"{world.vm.id}/deallocate") == "403 False AuthorizationFailed"
    world.assign(world.vm.id)
    assert world.ask_granted("GET", world.vm.id) == "200 False"
    group = f"{world.cloud.subscription}/resourceGroups/g"
    assert world.ask("GET", group) == "403 False AuthorizationFailed"
    assert world.ask("DELETE", group) == "403 False AuthorizationFailed"
    assert world.ask("DELETE", f"{world.vm.id}x") == "403 False AuthorizationFailed"
    assert world.ask("GET", world.vm.id, TOKEN="") == "401 False InvalidAuthenticationToken"
    assert world.ask("GET", world.vm.id, TOKEN="made-up") == "401 False InvalidAuthenticationToken"


def test_a_refusal_says_what_azure_says(world: World) -> None:
    principal = world.vm.identity.principal_id
    with closing(Store(world.cloud.azure.root, {})) as store, store.read() as records:
        token = principals.token(records, principals.MANAGEMENT, principal)
    reply = world.cloud.call("POST", f"{world.vm.id}/deallocate", Authorization=f"Bearer {token}")
    assert reply.status == 403
    assert reply.headers["x-ms-failure-cause"] == "gateway"
    assert json.dumps(reply.body) == json.dumps(
        {
            "error": {
                "code": "AuthorizationFailed",
                "message": f"The client '{principal}' with object id '{principal}' does not have authorization to "
                f"perform action 'Microsoft.Compute/virtualMachines/deallocate/action' over scope '{world.vm.id}' or "
                "the scope is invalid. If access was recently granted, please refresh your credentials.",
            }
        }
    )

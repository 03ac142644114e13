"""A VM's managed identity: its token from the metadata service, and what that opens."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError

from cloudtrain.emulator.machines import MachineSpec, imds

from .blob_services import CONTRIBUTOR, Token
from .conftest import Cloud

STORAGE = "https://storage.azure.com"


@pytest.fixture
def booted(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> list[MachineSpec]:
    """What the machines were told of each VM that they booted."""
    specs: list[MachineSpec] = []
    boot = cloud.machines.boot

    def noted(spec: MachineSpec, **options: Any) -> None:
        specs.append(spec)
        boot(spec, **options)

    monkeypatch.setattr(cloud.machines, "boot", noted)
    return specs


def ask(spec: MachineSpec, resource: str) -> tuple[int, dict[str, Any]]:
    target = f"/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}"
    request = imds.Request("GET", target, {"metadata": "true"})
    response = imds.answer(request, imds.ScheduledEvents(spec.name), asdict(spec))
    return response.status, json.loads(response.body)


def vm_with_identity(cloud: Cloud) -> Any:
    cloud.group()
    body = cloud.vm_body(cloud.net()) | {"identity": {"type": "SystemAssigned"}}
    return cloud.compute.virtual_machines.begin_create_or_update("g", "vm", body).result()


def test_a_vm_with_a_role_reaches_the_blobs_by_itself(cloud: Cloud, booted: list[MachineSpec]) -> None:
    vm = vm_with_identity(cloud)
    account = cloud.account()
    cloud.blobs(credential=cloud.key()).create_container("runs")
    status, answer = ask(booted[0], STORAGE + "/")
    assert (status, answer["token_type"], answer["expires_in"]) == (200, "Bearer", "86399")
    container = cloud.blobs(credential=Token(answer["access_token"])).get_container_client("runs")
    with pytest.raises(HttpResponseError):
        container.upload_blob("b", b"x")
    role = f"{cloud.subscription}/providers/Microsoft.Authorization/roleDefinitions/{CONTRIBUTOR}"
    principal = {"principalId": vm.identity.principal_id, "principalType": "ServicePrincipal"}
    assignment = f"{account.id}/providers/Microsoft.Authorization/roleAssignments/8a3e9c7e-6b06-4d0a-9a55-000000000002"
    assert cloud.call("PUT", assignment, {"properties": {**principal, "roleDefinitionId": role}}).status == 201
    cloud.clock.sleep(1)
    container.upload_blob("b", b"x")
    assert container.get_blob_client("b").download_blob().readall() == b"x"


def test_a_token_is_for_one_audience(cloud: Cloud, booted: list[MachineSpec]) -> None:
    vm_with_identity(cloud)
    status, answer = ask(booted[0], "https://example.com")
    assert (status, answer["error"]) == (400, "invalid_resource")


def test_a_vm_without_identity_gets_no_token(cloud: Cloud, booted: list[MachineSpec]) -> None:
    cloud.vm()
    assert ask(booted[0], STORAGE) == (400, {"error": "invalid_request", "error_description": "Identity not found"})


def test_nobody_elses_identity_gets_a_role(cloud: Cloud) -> None:
    account = cloud.account()
    role = f"{cloud.subscription}/providers/Microsoft.Authorization/roleDefinitions/{CONTRIBUTOR}"
    stranger = {"principalId": "8a3e9c7e-6b06-4d0a-9a55-000000000003", "principalType": "ServicePrincipal"}
    assignment = f"{account.id}/providers/Microsoft.Authorization/roleAssignments/8a3e9c7e-6b06-4d0a-9a55-000000000004"
    reply = cloud.call("PUT", assignment, {"properties": {**stranger, "roleDefinitionId": role}})
    assert (reply.status, reply.body["error"]["code"]) == (400, "PrincipalNotFound")

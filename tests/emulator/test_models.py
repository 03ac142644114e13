"""The check that every answer fits the SDK's models (contract.py) sees what it should, and knows every operation."""

from typing import Any

import pytest
from azure.mgmt.compute import models as compute
from azure.mgmt.marketplaceordering.models import AgreementTerms

from cloudtrain.emulator.app import ROUTES

from .conftest import Cloud
from .contract import OPERATIONS, Exchange, differences, misfits

PATH = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm"
ASYNC = {"azure-asyncoperation": "https://x"}


def vm(**properties: Any) -> dict[str, Any]:
    return {"location": "eastus", "properties": properties}


STRANGE = {
    "an unknown key deep inside": (vm(storageProfile={"osDisk": {"colour": "blue"}}), "colour is not of OSDisk"),
    "a word for a number": (vm(billingProfile={"maxPrice": "0.5"}), "maxPrice: '0.5' is no float"),
    "a number for a word": (vm(hardwareProfile={"vmSize": 3}), "vmSize"),
    "true for a number": (vm(storageProfile={"osDisk": {"diskSizeGB": True}}), "diskSizeGB: True is no int"),
    "an object for a list": (vm(networkProfile={"networkInterfaces": {}}), "networkInterfaces is no list"),
    "a list for an object": (vm(osProfile=[]), "osProfile is no object"),
    "a word that is not one of them": (vm(evictionPolicy="Destroy"), "'Destroy' is not one of"),
    "no time": (vm(timeCreated="yesterday"), "timeCreated: 'yesterday' is no time"),
    "a tag that is no text": ({"location": "eastus", "tags": {"a": 1}}, "tags.a: 1 is no str"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_body_that_its_model_could_not_have_produced_is_seen(case: str) -> None:
    body, said = STRANGE[case]
    (found,) = misfits(compute.VirtualMachine, body)
    assert said in found


def test_models_of_the_older_make_are_understood_too() -> None:
    properties = {"publisher": "p", "accepted": "yes", "colour": "blue"}
    found = list(misfits(AgreementTerms, {"name": "n", "properties": properties}))
    assert found == ["$.properties.accepted: 'yes' is no bool", "$.properties.colour is not of that answer"]


def exchange(method: str, status: int, answer: Any, headers: dict[str, str], sent: Any = None) -> Exchange:
    return Exchange(method, PATH, {}, sent, status, headers, answer)


WRONG = {
    "a status": (exchange("PUT", 202, None, ASYNC), "status 202, not one of [201, 200]"),
    "no URL to poll": (exchange("PUT", 201, vm(), {}), "headers [], not ['azure-asyncoperation']"),
    "a URL too many": (exchange("PUT", 201, vm(), ASYNC | {"location": "x"}), "not ['azure-asyncoperation']"),
    "a URL on a final answer": (exchange("GET", 200, vm(), ASYNC), "not []"),
    "an error without envelope": (exchange("GET", 404, {"code": "x", "message": "y"}, {}), "no error envelope"),
    "an error without message": (exchange("GET", 404, {"error": {"code": "x"}}, {}), "has no message"),
    "a request": (exchange("PUT", 201, vm(), ASYNC, vm(colour="blue")), "colour is not of VirtualMachineProperties"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_exchange_that_breaks_the_contract_is_seen(case: str) -> None:
    wrong, said = WRONG[case]
    (found,) = differences(wrong)
    assert said in found


def test_every_contract_is_of_an_operation_that_there_is() -> None:
    """That none is missing which cloudtrain or az uses: tests/cli/test_contract.py, tests/az."""
    assert set(OPERATIONS) <= {route.operation for route in ROUTES}


def test_every_resource_of_a_vm_fits_its_model(cloud: Cloud) -> None:
    """The fixture looks at each answer: here all kinds of resources are asked for, with something in them."""
    nsg = {"location": "eastus", "properties": {}}
    cloud.group()
    cloud.network.network_security_groups.begin_create_or_update("g", "nsg", nsg).result()
    cloud.vm(
        scheduledEventsPolicy={"userInitiatedReboot": {"automaticallyApprove": True}},
        diagnosticsProfile={"bootDiagnostics": {"enabled": True}},
    )
    path = "/resourceGroups/g/providers/Microsoft."
    command = {"location": "eastus", "properties": {"source": {"script": "#test: Succeeded"}}}
    cloud.finish(cloud.call("PUT", f"{path}Compute/virtualMachines/vm/runCommands/go", command))
    for url in (
        f"{path}Compute/virtualMachines?$expand=instanceView",
        f"{path}Compute/virtualMachines?statusOnly=true",
        f"{path}Compute/virtualMachines/vm/runCommands?$expand=instanceView",
        f"{path}Compute/disks",
        f"{path}Network/virtualNetworks",
        f"{path}Network/networkSecurityGroups",
        f"{path}Network/publicIPAddresses",
        f"{path}Network/networkInterfaces",
        "/resourcegroups",
        "/resourceGroups/g/resources?$expand=createdTime,changedTime,provisioningState",
        "/locations",
        "/providers",
        "/providers/Microsoft.Compute/skus",
        "/providers/Microsoft.Compute/locations/eastus/usages",
        "/providers/Microsoft.Compute/locations/eastus/vmSizes",
        "/providers/Microsoft.Compute/locations/eastus/runCommands",
        "/providers/Microsoft.Network/networkWatchers",
    ):
        assert cloud.call("GET", url).body["value"], url

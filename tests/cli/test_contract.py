"""What cloudtrain sends to Azure could have come from the SDK's models, whatever the verb; so could the answers."""

from typing import Any

import pytest

from cloudtrain.azure import group as groups
from cloudtrain.azure import vm
from cloudtrain.azure.session import open_session
from cloudtrain.clock import SystemClock
from tests.emulator.contract import OPERATIONS, differences
from tests.emulator.watched import Watched, watch

from .conftest import CommandLine
from .untrained import patches

VERBS = (
    "up horses --accept-terms",
    "up horses",
    "status horses",
    "list",
    "stop horses",
    "restart horses",
    "doctor horses",
)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    for target, value in patches().items():
        monkeypatch.setattr(target, value)
    return watch(monkeypatch)


def test_every_request_and_answer_of_a_run_is_of_its_model(
    quick: Any, watched: Watched, cloudtrain: CommandLine
) -> None:
    quick("emulator", "reset", "--fresh", "--yes")
    assert quick("doctor", "horses").code == 4
    assert {line: quick(*line.split(), "--json").code for line in VERBS} == dict.fromkeys(VERBS, 0)
    clock = SystemClock()
    with open_session("embedded", home=cloudtrain.home, clock=clock) as session:  # what needs a guest that answers
        group = groups.get(session, "horses")
        vm.restart(session, group, clock)
        vm.update(session, group, {"hardwareProfile": {"vmSize": "Standard_DS1_v2"}})
        vm.simulate_eviction(session, group)
        vm.delete(session, group, clock)
    assert quick("down", "horses", "--network-watcher").code == 0

    broken = sorted({one for exchange in watched.exchanges for one in differences(exchange)})
    assert not broken, "\n".join(broken)
    assert watched.operations() <= set(OPERATIONS)
    sent = {exchange.operation for exchange in watched.exchanges if exchange.sent is not None}
    assert {
        "ResourceGroups_CreateOrUpdate",
        "Tags_UpdateAtScope",
        "MarketplaceAgreements_Create",
        "VirtualNetworks_CreateOrUpdate",
        "NetworkSecurityGroups_CreateOrUpdate",
        "VirtualMachines_CreateOrUpdate",
        "VirtualMachines_Update",
        "VirtualMachineRunCommands_CreateOrUpdate",
    } <= sent
    assert {
        "VirtualMachines_Deallocate",
        "VirtualMachines_Start",
        "VirtualMachines_Restart",
        "VirtualMachines_SimulateEviction",
        "VirtualMachines_Delete",
        "ResourceGroups_Delete",
        "OperationResults_Get",
        "ComputeOperations_Get",
        "NetworkOperations_Get",
        "VirtualMachineRunCommands_GetByVirtualMachine",
        "VirtualMachineRunCommands_Delete",
    } <= watched.operations()

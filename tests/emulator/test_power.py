"""Power operations, eviction and deletion; and that the machine's power is the truth."""

from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError

from cloudtrain.emulator.machines import OffCause

from .conftest import Cloud

VM = "/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm"


@pytest.mark.parametrize(
    ("action", "while_it_goes_on", "afterwards"),
    [
        ("powerOff?skipShutdown=false", "stopping", "stopped"),
        ("deallocate", "deallocating", "deallocated"),
        ("restart", "running", "running"),
        ("redeploy", "running", "running"),
        ("reapply", "running", "running"),
        ("start", "running", "running"),
    ],
)
def test_an_action_is_202_with_both_urls_and_its_states_in_order(
    cloud: Cloud, action: str, while_it_goes_on: str, afterwards: str
) -> None:
    cloud.vm()
    begun = cloud.call("POST", f"{VM}/{action}")
    assert (begun.status, begun.body) == (202, None)
    assert "monitor=true" in begun.headers["Location"]
    assert "monitor" not in begun.headers["Azure-AsyncOperation"]
    assert "Retry-After" not in begun.headers
    assert cloud.call("GET", begun.headers["Azure-AsyncOperation"]).body["status"] == "InProgress"
    assert cloud.call("GET", VM).body["properties"]["provisioningState"] == "Updating"
    assert cloud.power() == while_it_goes_on
    assert cloud.finish(begun).body["status"] == "Succeeded"
    final = cloud.call("GET", begun.headers["Location"])
    assert (final.status, final.body) == (200, None)
    assert cloud.power() == afterwards


def test_a_deallocated_vm_loses_disk_size_disk_type_and_agent_and_gets_them_back(cloud: Cloud) -> None:
    vm = cloud.vm()
    cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()
    shown = cloud.call("GET", f"{VM}?$expand=instanceView").body["properties"]
    disk = shown["storageProfile"]["osDisk"]
    assert "diskSizeGB" not in disk
    assert set(disk["managedDisk"]) == {"id"}
    assert set(shown["instanceView"]) == {"disks", "hyperVGeneration", "statuses"}
    assert shown["provisioningState"] == "Succeeded"
    assert cloud.compute.disks.get("g", "os").disk_state == "Reserved"
    cloud.compute.virtual_machines.begin_start("g", "vm").result()
    again = cloud.compute.virtual_machines.get("g", "vm")
    assert again.storage_profile.os_disk.disk_size_gb == 64
    assert again.vm_id == vm.vm_id
    assert [what for what, _ in cloud.machines.log()] == ["boot", "off: powered off", "boot"]


def test_a_stopped_vm_still_lists_its_agent_as_ready(cloud: Cloud) -> None:
    cloud.vm()
    cloud.compute.virtual_machines.begin_power_off("g", "vm").result()
    view = cloud.call("GET", f"{VM}/instanceView").body
    assert view["statuses"][1] == {"code": "PowerState/stopped", "level": "Info", "displayStatus": "VM stopped"}
    assert view["vmAgent"]["statuses"][0]["displayStatus"] == "Ready"


@pytest.mark.parametrize(("stop", "found"), [("powerOff", "kept"), ("deallocate", "new")])
def test_only_a_deallocation_takes_the_temporary_disk(cloud: Cloud, stop: str, found: str) -> None:
    vm = cloud.vm()
    cloud.finish(cloud.call("POST", f"{VM}/{stop}"))
    cloud.compute.virtual_machines.begin_start("g", "vm").result()
    assert cloud.machines.temporary_disk(vm.vm_id) == found


@pytest.mark.parametrize("stop", ["powerOff", "deallocate"])
def test_restart_of_a_vm_that_is_off_is_refused(cloud: Cloud, stop: str) -> None:
    cloud.vm()
    cloud.finish(cloud.call("POST", f"{VM}/{stop}"))
    with pytest.raises(ResourceExistsError) as caught:
        cloud.compute.virtual_machines.begin_restart("g", "vm").result()
    assert caught.value.error.code == "OperationNotAllowed"
    assert caught.value.error.message == "The operation requires the VM to be running (or set to run)."


def test_deallocating_a_deallocated_vm_does_nothing(cloud: Cloud) -> None:
    cloud.vm()
    for _ in range(2):
        cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()
    assert cloud.power() == "deallocated"


def test_a_second_operation_while_one_goes_on_is_refused(cloud: Cloud) -> None:
    cloud.vm()
    begun = cloud.call("POST", f"{VM}/restart")
    for action in ("start", "deallocate", "powerOff"):
        reply = cloud.call("POST", f"{VM}/{action}")
        assert (reply.status, reply.body["error"]["code"]) == (409, "OperationNotAllowed")
        assert "since another operation is in progress" in reply.body["error"]["message"]
    cloud.finish(begun)
    assert cloud.call("POST", f"{VM}/deallocate").status == 202


def test_a_simulated_eviction_is_204_and_reaches_the_machine_with_its_notice(cloud: Cloud) -> None:
    vm = cloud.vm()
    reply = cloud.call("POST", f"{VM}/simulateEviction")
    assert (reply.status, reply.body) == (204, None)
    assert "Azure-AsyncOperation" not in reply.headers
    assert cloud.machines.notice(vm.vm_id) == 30.0
    assert cloud.power() == "running"
    cloud.azure.set_notice(vm.id.upper(), 7)
    cloud.call("POST", f"{VM}/simulateEviction")
    assert cloud.machines.notice(vm.vm_id) == 7.0


def test_an_evicted_vm_looks_like_one_that_its_user_deallocated(cloud: Cloud) -> None:
    vm = cloud.vm()
    cloud.machines.cut(vm.vm_id, OffCause.EVICTED)
    assert cloud.power() == "deallocating"
    assert cloud.call("POST", f"{VM}/start").status == 409
    cloud.await_power("deallocated")
    evicted = cloud.call("GET", f"{VM}?$expand=instanceView").body
    cloud.compute.virtual_machines.begin_start("g", "vm").result()
    cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()
    deallocated = cloud.call("GET", f"{VM}?$expand=instanceView").body
    assert _without_times(evicted) == _without_times(deallocated)


def _without_times(body: object) -> object:
    if isinstance(body, dict):
        return {key: _without_times(value) for key, value in body.items() if key not in ("time", "etag")}
    return [_without_times(entry) for entry in body] if isinstance(body, list) else body


def test_a_regular_vm_cannot_be_evicted(cloud: Cloud) -> None:
    cloud.vm(priority="Regular")
    reply = cloud.call("POST", f"{VM}/simulateEviction")
    assert reply.status == 409
    assert reply.body["error"] == {
        "code": "OperationNotAllowed",
        "message": "Operation 'simulateEviction' is allowed only for Spot Virtual Machines",
    }


def test_an_eviction_with_policy_delete_takes_vm_and_disk_and_leaves_the_network(cloud: Cloud) -> None:
    vm = cloud.vm(evictionPolicy="Delete")
    cloud.machines.cut(vm.vm_id, OffCause.EVICTED)
    gone = cloud.call("GET", VM)
    assert (gone.status, gone.body["error"]["code"]) == (404, "NotFound")
    assert gone.body["error"]["message"] == "The entity was not found in this Azure location."
    assert "x-ms-failure-cause" not in gone.headers
    assert cloud.machines.strays() == []
    assert list(cloud.compute.disks.list()) == []
    cloud.clock.sleep(130)
    assert cloud.call("GET", VM).body["error"]["code"] == "ResourceNotFound"


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (OffCause.HOST_REBOOTED, "deallocated"),
        (OffCause.SUPERVISOR_DIED, "deallocated"),
        (OffCause.GUEST_SHUTDOWN, "stopped"),
    ],
)
def test_a_machine_that_went_off_by_itself_is_shown_as_azure_would(
    cloud: Cloud, cause: OffCause, expected: str
) -> None:
    vm = cloud.vm()
    cloud.machines.cut(vm.vm_id, cause)
    cloud.await_power(expected)
    assert cloud.azure.status()["vms"][0]["cause"] == cause.value
    cloud.compute.virtual_machines.begin_start("g", "vm").result()
    assert cloud.power() == "running"


def test_deletion_follows_the_delete_options(cloud: Cloud) -> None:
    cloud.vm()
    begun = cloud.call("DELETE", f"{VM}?forceDeletion=true")
    assert begun.status == 202
    assert {"Azure-AsyncOperation", "Location"} <= set(begun.headers)
    assert cloud.call("GET", VM).body["properties"]["provisioningState"] == "Deleting"
    assert cloud.finish(begun).body["status"] == "Succeeded"
    gone = cloud.call("GET", VM)
    assert (gone.status, gone.body["error"]["code"]) == (404, "ResourceNotFound")
    kinds = {r.type for r in cloud.resources.resources.list_by_resource_group("g")}
    assert kinds == {"Microsoft.Network/virtualNetworks"}
    assert cloud.machines.strays() == []
    assert cloud.call("DELETE", VM).status == 204


def test_what_is_not_marked_for_deletion_stays_behind(cloud: Cloud) -> None:
    disk = {
        "imageReference": {"publisher": "microsoft-dsvm", "offer": "ubuntu-hpc", "sku": "2204", "version": "latest"},
        "osDisk": {"createOption": "FromImage", "name": "os"},
    }
    cloud.vm(storageProfile=disk)
    attached = cloud.call("DELETE", "/resourceGroups/g/providers/Microsoft.Compute/disks/os")
    assert (attached.status, attached.body["error"]["code"]) == (409, "OperationNotAllowed")
    cloud.compute.virtual_machines.begin_delete("g", "vm").result()
    assert cloud.compute.disks.get("g", "os").disk_state == "Unattached"
    cloud.compute.disks.begin_delete("g", "os").result()
    assert list(cloud.compute.disks.list_by_resource_group("g")) == []


def test_deletion_takes_precedence_over_what_goes_on(cloud: Cloud) -> None:
    cloud.vm()
    restart = cloud.call("POST", f"{VM}/restart")
    cloud.compute.virtual_machines.begin_delete("g", "vm").result()
    assert cloud.finish(restart).body["error"]["code"] == "OperationPreempted"


def test_a_vm_that_is_not_there_cannot_be_started(cloud: Cloud) -> None:
    cloud.group()
    with pytest.raises(HttpResponseError) as caught:
        cloud.compute.virtual_machines.begin_start("g", "vm").result()
    assert caught.value.error.code == "ResourceNotFound"


def own_nic(cloud: Cloud) -> str:
    """A network interface that was there before its VM, and stays when that goes."""
    cloud.group()
    ip = {"name": "ipcfg", "properties": {"primary": True, "subnet": {"id": cloud.net()}}}
    body = {"location": "eastus", "properties": {"ipConfigurations": [ip]}}
    return str(cloud.network.network_interfaces.begin_create_or_update("g", "own", body).result().id)


def vm_on(cloud: Cloud, nic: str, name: str = "vm") -> Any:
    profile = {"networkInterfaces": [{"id": nic}]}
    return cloud.vm(name, networkProfile=profile, evictionPolicy="Delete")


def test_the_interface_of_a_vm_that_an_eviction_deleted_is_kept_for_it_for_three_minutes(cloud: Cloud) -> None:
    nic = own_nic(cloud)
    vm = vm_on(cloud, nic)
    cloud.machines.cut(vm.vm_id, OffCause.EVICTED)
    assert cloud.call("GET", VM).status == 404
    for attempt in (
        lambda: cloud.network.network_interfaces.begin_delete("g", "own"),
        lambda: vm_on(cloud, nic, "other"),
    ):
        with pytest.raises(HttpResponseError) as refusal:
            attempt()
        assert (refusal.value.status_code, refusal.value.error.code) == (400, "NicReservedForAnotherVm")
        assert refusal.value.error.message.endswith(f"retry after 180 seconds. Reserved VM: {vm.id}")
    cloud.clock.sleep(180)
    cloud.network.network_interfaces.begin_delete("g", "own").result()


def test_the_vm_of_the_same_name_gets_its_interface_back_at_once(cloud: Cloud) -> None:
    nic = own_nic(cloud)
    vm = vm_on(cloud, nic)
    cloud.machines.cut(vm.vm_id, OffCause.EVICTED)
    assert cloud.call("GET", VM).status == 404
    assert vm_on(cloud, nic).vm_id != vm.vm_id


def test_an_orderly_deletion_frees_the_interface(cloud: Cloud) -> None:
    vm_on(cloud, own_nic(cloud))
    cloud.compute.virtual_machines.begin_delete("g", "vm").result()
    cloud.network.network_interfaces.begin_delete("g", "own").result()

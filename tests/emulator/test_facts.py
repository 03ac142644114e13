"""Facts of Azure that cut across the resources: what survives what, what is gone already, how the SDK tells errors."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError

from cloudtrain.emulator.machines import OffCause

from .conftest import Cloud

COMPUTE = "/resourceGroups/g/providers/Microsoft.Compute"
NETWORK = "/resourceGroups/g/providers/Microsoft.Network"
VM = f"{COMPUTE}/virtualMachines/vm"


def restart(cloud: Cloud) -> None:
    cloud.compute.virtual_machines.begin_restart("g", "vm").result()


def stop(cloud: Cloud) -> None:
    cloud.compute.virtual_machines.begin_power_off("g", "vm").result()


def deallocate(cloud: Cloud) -> None:
    cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()


def evict(cloud: Cloud) -> None:
    cloud.machines.cut(cloud.compute.virtual_machines.get("g", "vm").vm_id, OffCause.EVICTED)
    cloud.await_power("deallocated")


def standing(cloud: Cloud) -> dict[str, Any]:
    """What a VM is known by from outside, and what it costs."""
    vm = cloud.compute.virtual_machines.get("g", "vm")
    (nic,) = cloud.network.network_interfaces.list("g")
    (address,) = cloud.network.public_ip_addresses.list("g")
    used = {usage.name.value: usage.current_value for usage in cloud.compute.usage.list("eastus")}
    return {
        "vm": (vm.vm_id, vm.time_created),
        "disk": vm.storage_profile.os_disk.managed_disk.id,
        "private address": nic.ip_configurations[0].private_ip_address,
        "public address": address.ip_address,
        "Spot quota": used["lowPriorityCores"],
    }


@pytest.mark.parametrize("what", [restart, stop, deallocate, evict])
def test_a_vm_that_is_off_keeps_its_disk_its_addresses_and_its_quota(
    cloud: Cloud, what: Callable[[Cloud], None]
) -> None:
    cloud.vm()
    before = standing(cloud)
    what(cloud)
    assert standing(cloud) == before
    if what is not restart:
        cloud.compute.virtual_machines.begin_start("g", "vm").result()
    assert standing(cloud) == before
    assert cloud.power() == "running"


def test_starting_a_vm_that_runs_succeeds_and_does_nothing(cloud: Cloud) -> None:
    vm = cloud.vm()
    begun = cloud.call("POST", f"{VM}/start")
    assert (begun.status, cloud.finish(begun).body["status"]) == (202, "Succeeded")
    assert cloud.machines.power(vm.vm_id).boot == 1


@pytest.mark.parametrize(
    "path",
    [
        VM,
        f"{COMPUTE}/disks/x",
        f"{NETWORK}/networkInterfaces/x",
        f"{NETWORK}/publicIPAddresses/x",
        f"{NETWORK}/networkSecurityGroups/x",
        f"{NETWORK}/virtualNetworks/x",
    ],
)
def test_deleting_what_is_not_there_is_204(cloud: Cloud, path: str) -> None:
    cloud.group()
    reply = cloud.call("DELETE", path)
    assert (reply.status, reply.body) == (204, None)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"{COMPUTE}/disks/x", "Microsoft.Compute/disks"),
        (f"{COMPUTE}/virtualMachines/x", "Microsoft.Compute/virtualMachines"),
        (f"{NETWORK}/virtualNetworks/x", "Microsoft.Network/virtualNetworks"),
        (f"{NETWORK}/networkInterfaces/x", "Microsoft.Network/networkInterfaces"),
    ],
)
def test_a_missing_resource_is_resource_managers_404(cloud: Cloud, path: str, kind: str) -> None:
    cloud.group()
    reply = cloud.call("GET", path)
    assert (reply.status, reply.body["error"]["code"]) == (404, "ResourceNotFound")
    assert f"The Resource '{kind}/x' under resource group 'g' was not found." in reply.body["error"]["message"]
    assert reply.headers["x-ms-failure-cause"] == "gateway"


# how the SDK tells what went wrong


def test_every_409_is_resource_exists_to_the_sdk_and_its_code_tells_what_it_is(cloud: Cloud) -> None:
    cloud.vm()
    deallocate(cloud)
    with pytest.raises(ResourceExistsError) as off:
        restart(cloud)
    assert off.value.error.code == "OperationNotAllowed"
    nic = f"{cloud.subscription}{NETWORK}/networkInterfaces/x"
    body = cloud.vm_body(
        "", hardwareProfile={"vmSize": "Standard_D16s_v3"}, networkProfile={"networkInterfaces": [{"id": nic}]}
    )
    with pytest.raises(ResourceExistsError, match="exceeding approved LowPriorityCores quota") as quota:
        cloud.compute.virtual_machines.begin_create_or_update("g", "more", body)
    assert (quota.value.status_code, quota.value.error.code) == (409, "OperationNotAllowed")


def test_an_operation_that_fails_raises_with_status_200_and_its_code(cloud: Cloud) -> None:
    cloud.group()
    subnet = cloud.net()
    cloud.machines.refuse_boot = "no host"
    with pytest.raises(HttpResponseError) as failed:
        cloud.compute.virtual_machines.begin_create_or_update("g", "vm", cloud.vm_body(subnet)).result()
    assert (failed.value.status_code, failed.value.error.code) == (200, "InternalExecutionError")
    assert cloud.compute.virtual_machines.get("g", "vm").provisioning_state == "Failed"


def test_what_is_missing_is_not_found_to_the_sdk(cloud: Cloud) -> None:
    with pytest.raises(ResourceNotFoundError) as missing:
        cloud.compute.virtual_machines.get("nowhere", "vm")
    assert missing.value.error.code == "ResourceGroupNotFound"


# operations


def test_a_groups_deletion_is_a_job_named_after_it(cloud: Cloud) -> None:
    cloud.group("Mine", "westus2")
    location = cloud.call("DELETE", "/resourcegroups/mine").headers["Location"]
    job = location.partition("/operationresults/")[2].partition("?")[0]
    told = json.loads(base64.urlsafe_b64decode(job + "=" * (-len(job) % 4)))
    assert told == {"jobId": "RESOURCEGROUPDELETIONJOB-MINE-WESTUS2", "jobLocation": "westus2"}


def test_both_urls_of_an_action_lead_to_the_same_operation(cloud: Cloud) -> None:
    cloud.vm()
    begun = cloud.call("POST", f"{VM}/deallocate")
    status, result = begun.headers["Azure-AsyncOperation"], begun.headers["Location"]
    assert result.replace("monitor=true&", "").partition("?p=")[0] == status.partition("?p=")[0]
    first = cloud.call("GET", result)
    assert (first.status, first.body) == (202, None)
    cloud.finish(begun)
    last = cloud.call("GET", result)
    assert (last.status, last.body) == (200, None)
    assert cloud.call("GET", status).body["status"] == "Succeeded"


def test_an_operation_nobody_began_is_not_found(cloud: Cloud) -> None:
    reply = cloud.call("GET", "/providers/Microsoft.Compute/locations/eastus/operations/nope")
    assert (reply.status, reply.body["error"]["code"]) == (404, "NotFound")


# VMs and their commands


@pytest.mark.parametrize("version", [None, "2019-01-01"])
def test_interfaces_in_a_vm_put_need_one_of_two_network_versions(cloud: Cloud, version: str | None) -> None:
    cloud.group()
    body = cloud.vm_body(cloud.net())
    body["properties"]["networkProfile"]["networkApiVersion"] = version
    reply = cloud.call("PUT", VM, body)
    assert (reply.status, reply.body["error"]["target"]) == (400, "networkProfile.networkApiVersion")
    body["properties"]["networkProfile"]["networkApiVersion"] = "2020-11-01"
    assert cloud.call("PUT", VM, body).status == 201


def test_a_vms_etag_counts_its_changes(cloud: Cloud) -> None:
    cloud.vm()
    first = int(json.loads(cloud.call("GET", VM).body["etag"]))
    cloud.compute.virtual_machines.begin_update("g", "vm", {"tags": {"a": "b"}}).result()
    second = cloud.call("GET", VM)
    assert int(json.loads(second.body["etag"])) > first
    assert second.headers["ETag"] == second.body["etag"]
    assert "ETag" not in cloud.call("GET", f"{VM}?$expand=instanceView").headers


def run_command(cloud: Cloud, script: list[str], command: str = "RunShellScript") -> Any:
    body = {"commandId": command, "script": script, "parameters": []}
    begun = cloud.call("POST", f"{VM}/runCommand", body)
    return begun if begun.status != 202 else cloud.finish(begun)


def test_an_action_tells_the_last_4096_bytes_of_a_stream(cloud: Cloud) -> None:
    cloud.vm()
    output = "".join(f"{number:05}," for number in range(1000))
    told = run_command(cloud, [f"#test: Succeeded {output}"]).body["properties"]["output"]["value"][0]["message"]
    assert told == f"Enable succeeded: \n[stdout]\n{output[-4096:]}\n[stderr]\n"


def test_a_script_has_at_most_256_kib(cloud: Cloud) -> None:
    cloud.vm()
    assert run_command(cloud, ["#test: Succeeded", "#" * (256 * 1024 - 17)]).body["status"] == "Succeeded"
    refused = run_command(cloud, ["#test: Succeeded", "#" * (256 * 1024 - 16)])
    assert (refused.status, refused.body["error"]["code"]) == (400, "InvalidParameter")


def test_a_wedged_extension_can_be_removed(cloud: Cloud) -> None:
    cloud.vm()
    assert run_command(cloud, [], "RemoveRunCommandLinuxExtension").body["status"] == "Succeeded"

"""What a VM's PUT makes, what it shows, and what it refuses."""

import base64
from typing import Any

import pytest

from .conftest import KEY, Cloud

VM = "/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm"
NVIDIA = {"publisher": "nvidia", "offer": "ngc_azure_17_11", "version": "latest"}


def storage(**reference: str) -> dict[str, Any]:
    return {"imageReference": reference, "osDisk": {"createOption": "FromImage", "name": "os"}}


def guest(**changes: Any) -> dict[str, Any]:
    return {
        "computerName": "vm",
        "adminUsername": "azureuser",
        "linuxConfiguration": {
            "disablePasswordAuthentication": True,
            "ssh": {"publicKeys": [{"path": "/home/azureuser/.ssh/authorized_keys", "keyData": KEY}]},
        },
        **changes,
    }


def test_a_put_is_201_creating_and_the_operation_tells_start_end_and_name(cloud: Cloud) -> None:
    cloud.group()
    begun = cloud.call("PUT", VM, cloud.vm_body(cloud.net()))
    assert begun.status == 201
    assert begun.body["properties"]["provisioningState"] == "Creating"
    assert "id" not in begun.body["properties"]["storageProfile"]["osDisk"]["managedDisk"]
    assert begun.headers["Azure-AsyncNotification"] == "Enabled"
    assert "Location" not in begun.headers
    assert "Retry-After" not in begun.headers
    first = cloud.call("GET", begun.headers["Azure-AsyncOperation"])
    assert set(first.body) == {"startTime", "status", "name"}
    assert first.body["status"] == "InProgress"
    view = cloud.call("GET", f"{VM}/instanceView").body
    assert [s["code"] for s in view["statuses"]] == ["ProvisioningState/creating"]
    last = cloud.finish(begun)
    assert set(last.body) == {"startTime", "endTime", "status", "name"}
    assert last.body["status"] == "Succeeded"
    shown = cloud.call("GET", VM)
    assert shown.body["properties"]["provisioningState"] == "Succeeded"
    assert shown.headers["ETag"] == shown.body["etag"]
    assert shown.body["properties"]["storageProfile"]["osDisk"]["managedDisk"]["id"].endswith("/disks/os")


def test_the_put_makes_a_real_interface_and_address(cloud: Cloud) -> None:
    vm = cloud.vm()
    reference = vm.network_profile.network_interfaces[0]
    assert reference.delete_option == "Delete"
    assert vm.network_profile.network_interface_configurations is None
    nic = next(iter(cloud.network.network_interfaces.list("g")))
    assert nic.id == reference.id
    assert nic.virtual_machine.id == vm.id
    assert nic.mac_address and nic.primary
    ip = next(iter(cloud.network.public_ip_addresses.list("g")))
    assert ip.ip_address
    assert ip.ip_configuration.id == nic.ip_configurations[0].id
    assert nic.ip_configurations[0].private_ip_address == "10.0.0.4"


def test_what_was_not_sent_is_shown_with_azures_defaults(cloud: Cloud) -> None:
    body = cloud.vm().as_dict()
    shown = body["properties"]
    assert (shown["evictionPolicy"], shown["billingProfile"]) == ("Deallocate", {"maxPrice": -1.0})
    disk = shown["storageProfile"]["osDisk"]
    assert (disk["caching"], disk["diskSizeGB"], disk["osType"]) == ("ReadWrite", 64, "Linux")
    assert disk["managedDisk"]["storageAccountType"] == "Premium_LRS"
    assert shown["storageProfile"]["imageReference"]["exactVersion"] == "22.04.2026062201"
    assert shown["osProfile"]["linuxConfiguration"]["provisionVMAgent"] is True
    assert shown["osProfile"]["requireGuestProvisionSignal"] is True


def test_secrets_are_never_shown(cloud: Cloud) -> None:
    data = base64.b64encode(b"#cloud-config").decode()
    vm = cloud.vm(userData=data, osProfile=guest(customData=data, adminPassword="Abcdef1!", linuxConfiguration=None))
    assert vm.os_profile.custom_data is None
    assert vm.os_profile.admin_password is None
    assert vm.user_data is None
    shown = cloud.compute.virtual_machines.get("g", "vm", expand="userData")
    assert shown.user_data == data
    assert cloud.machines.spec(vm.vm_id)["user_data"] == data


def test_a_running_vm_shows_its_agent_and_its_power(cloud: Cloud) -> None:
    cloud.vm()
    view = cloud.call("GET", f"{VM}?$expand=instanceView").body["properties"]["instanceView"]
    assert (view["computerName"], view["osName"], view["osVersion"]) == ("vm", "ubuntu", "22.04")
    assert view["hyperVGeneration"] == "V2"
    agent = view["vmAgent"]["statuses"][0]
    assert (agent["displayStatus"], agent["message"]) == ("Ready", "Guest Agent is running")
    assert view["disks"][0]["name"] == "os"
    assert [s["code"] for s in view["statuses"]] == ["ProvisioningState/succeeded", "PowerState/running"]
    cloud.machines.ready = False
    agent = cloud.call("GET", f"{VM}/instanceView").body["vmAgent"]["statuses"][0]
    assert agent["displayStatus"] == "Not Ready"


def test_states_can_be_listed_cheaply(cloud: Cloud) -> None:
    cloud.vm()
    listed = cloud.call("GET", "/providers/Microsoft.Compute/virtualMachines?statusOnly=true").body["value"]
    assert listed[0]["properties"]["instanceView"]["statuses"][1]["code"] == "PowerState/running"
    assert [vm.name for vm in cloud.compute.virtual_machines.list_all()] == ["vm"]
    assert [vm.name for vm in cloud.compute.virtual_machines.list("g")] == ["vm"]


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"hardwareProfile": {"vmSize": "Standard_Foo"}}, 400, "InvalidParameter"),
        ({"hardwareProfile": {"vmSize": "Standard_B2s"}}, 400, "AzureSpotIsNotSupportedForThisVMSize"),
        ({"hardwareProfile": {"vmSize": "Standard_NC6s_v3"}}, 409, "SkuNotAvailable"),
        ({"hardwareProfile": {"vmSize": "Standard_F16s_v2"}, "priority": "Regular"}, 201, ""),
        ({"hardwareProfile": {"vmSize": "Standard_NC64as_T4_v3"}}, 409, "OperationNotAllowed"),
        ({"hardwareProfile": {"vmSize": "Standard_NC4as_T4_v3"}, "priority": "Regular"}, 409, "OperationNotAllowed"),
        ({"hardwareProfile": {"vmSize": "Standard_D2_v2"}}, 400, "BadRequest"),
        ({"priority": "Urgent"}, 400, "InvalidParameter"),
        (
            {"priority": "Regular", "evictionPolicy": "Delete"},
            400,
            "EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines",
        ),
        ({"evictionPolicy": "Stop"}, 400, "InvalidParameter"),
        ({"billingProfile": {"maxPrice": 0}}, 400, "MaxPriceValueInvalid"),
        ({"billingProfile": {"maxPrice": 0.123456}}, 400, "MaxPriceValueInvalid"),
        ({"billingProfile": {"maxPrice": 0.00001}}, 409, "SpotPriceGreaterThanProvidedMaxPrice"),
        ({"billingProfile": {"maxPrice": "1"}}, 400, "InvalidRequestFormat"),
        ({"billingProfile": {"maxPrice": 1.5}}, 201, ""),
        ({"storageProfile": storage(publisher="a", offer="b", sku="c", version="d")}, 404, "PlatformImageNotFound"),
        ({"storageProfile": storage(**NVIDIA, sku="ngc-base-version-25_9_1_gen2")}, 400, "VMMarketplaceInvalidInput"),
        ({"osProfile": guest(adminUsername="root")}, 400, "InvalidParameter"),
        ({"osProfile": guest(customData="not base64!")}, 400, "InvalidParameter"),
        ({"osProfile": guest(customData="A" * 87384)}, 400, "InvalidParameter"),
        ({"osProfile": guest(linuxConfiguration=None, adminPassword="short")}, 400, "InvalidParameter"),
        ({"osProfile": guest(linuxConfiguration={"disablePasswordAuthentication": True})}, 400, "InvalidParameter"),
        ({"userData": "not base64!"}, 400, "InvalidParameter"),
        ({"networkProfile": {}}, 400, "InvalidParameter"),
        ({"availabilitySet": {"id": "x"}}, 400, "AzureSpotVMNotSupportedInAvailabilitySet"),
        ({"colour": "blue"}, 400, "BadRequest"),
        ({"hardwareProfile": "big"}, 400, "InvalidRequestFormat"),
    ],
)
def test_what_azure_refuses_is_refused_with_its_code_and_nothing_is_made(
    cloud: Cloud, changes: dict[str, Any], status: int, code: str
) -> None:
    cloud.group()
    reply = cloud.call("PUT", VM, cloud.vm_body(cloud.net(), **changes))
    assert (reply.status, (reply.body.get("error") or {}).get("code", "")) == (status, code)
    if code:
        kinds = {r.type for r in cloud.resources.resources.list_by_resource_group("g")}
        assert kinds == {"Microsoft.Network/virtualNetworks"}
        assert cloud.machines.log() == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"location": "atlantis"}, "LocationNotAvailableForResourceType"),
        ({"location": None}, "LocationRequired"),
        ({"zones": ["4"]}, "AvailabilityZoneNotSupported"),
        ({"plan": {"name": "a", "product": "b", "publisher": "c"}}, "VMMarketplaceInvalidInput"),
        ({"identity": {"type": "UserAssigned"}}, "OperationNotEmulated"),
    ],
)
def test_places_plans_and_identities_that_cannot_be_are_refused(
    cloud: Cloud, changes: dict[str, Any], code: str
) -> None:
    cloud.group()
    reply = cloud.call("PUT", VM, {**cloud.vm_body(cloud.net()), **changes})
    assert reply.body["error"]["code"] == code


def test_the_quota_counts_deallocated_vms_and_names_its_figures(fresh_cloud: Cloud) -> None:
    cloud = fresh_cloud
    for namespace in ("Microsoft.Compute", "Microsoft.Network"):
        cloud.resources.providers.register(namespace)
    cloud.clock.sleep(0.2)
    cloud.vm()
    cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()
    second = VM.removesuffix("vm") + "two"
    body = cloud.vm_body(next(iter(cloud.network.virtual_networks.list("g"))).subnets[0].id)
    body["properties"]["storageProfile"]["osDisk"]["name"] = "two"
    reply = cloud.call("PUT", second, body)
    assert reply.status == 409
    assert "exceeding approved LowPriorityCores quota" in reply.body["error"]["message"]
    assert "Current Limit: 3, Current Usage: 2, Additional Required: 2" in reply.body["error"]["message"]
    usages = {u.name.value: u for u in cloud.compute.usage.list("eastus")}
    assert (usages["lowPriorityCores"].current_value, usages["lowPriorityCores"].limit) == (2, 3)


def test_a_marketplace_image_needs_its_plan_and_accepted_terms(cloud: Cloud) -> None:
    cloud.group()
    sku, offer = "ngc-tensorflow-version-21-11-0", "tensorflow_from_nvidia"
    body = cloud.vm_body(
        cloud.net(), storageProfile=storage(publisher="nvidia", offer=offer, sku=sku, version="latest")
    )
    body["properties"]["hardwareProfile"]["vmSize"] = "Standard_D2s_v3"
    body["plan"] = {"name": sku, "product": offer, "publisher": "nvidia"}
    refused = cloud.call("PUT", VM, body)
    assert (refused.status, refused.body["error"]["code"]) == (400, "ResourcePurchaseValidationFailed")
    terms = (
        "/providers/Microsoft.MarketplaceOrdering/offerTypes/virtualmachine/publishers/nvidia/offers/"
        f"{offer}/plans/{sku}/agreements/current"
    )
    first, second = (cloud.call("GET", terms, version="2021-01-01").body["properties"] for _ in range(2))
    assert first["accepted"] is False
    assert first["signature"] != second["signature"]
    accepted = cloud.call("PUT", terms, {"properties": {**second, "accepted": True}}, version="2021-01-01")
    assert accepted.body["properties"]["signature"] == second["signature"]
    made = cloud.call("PUT", VM, body)
    assert made.status == 201
    assert made.body["plan"] == body["plan"]


def test_the_default_images_terms_are_accepted_unless_the_subscription_is_fresh(
    cloud: Cloud, fresh_cloud: Cloud
) -> None:
    plan = "ngc_azure_17_11/plans/ngc-base-version-25_9_1_gen2"
    path = f"/providers/Microsoft.MarketplaceOrdering/agreements/nvidia/offers/{plan}"
    assert cloud.call("GET", path).body["properties"]["accepted"] is True
    assert fresh_cloud.call("GET", path).body["properties"]["accepted"] is False


def test_a_missing_subnet_is_refused_and_nothing_is_made(cloud: Cloud) -> None:
    cloud.group()
    missing = f"{cloud.subscription}/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/s"
    reply = cloud.call("PUT", VM, cloud.vm_body(missing))
    assert (reply.status, reply.body["error"]["code"]) == (400, "InvalidResourceReference")
    assert list(cloud.resources.resources.list_by_resource_group("g")) == []


def test_the_same_put_again_changes_nothing(cloud: Cloud) -> None:
    cloud.vm()
    before = cloud.compute.virtual_machines.get("g", "vm")
    subnet = next(iter(cloud.network.virtual_networks.list("g"))).subnets[0].id
    again = cloud.call("PUT", VM, cloud.vm_body(subnet))
    assert (again.status, again.body["properties"]["provisioningState"]) == (200, "Updating")
    assert "Azure-AsyncOperation" in again.headers
    cloud.finish(again)
    after = cloud.compute.virtual_machines.get("g", "vm")
    assert after.vm_id == before.vm_id
    assert len(list(cloud.network.network_interfaces.list("g"))) == 1
    assert [what for what, _ in cloud.machines.log()] == ["boot"]


@pytest.mark.parametrize(
    "changes",
    [
        {"priority": "Regular", "evictionPolicy": None},
        {"evictionPolicy": "Delete"},
        {"osProfile": guest(adminUsername="other")},
        {"osProfile": guest(customData=base64.b64encode(b"new").decode())},
        {"storageProfile": storage(publisher="Canonical", offer="ubuntu-24_04-lts", sku="server", version="latest")},
    ],
)
def test_what_cannot_change_is_refused_on_a_vm_that_exists(cloud: Cloud, changes: dict[str, Any]) -> None:
    cloud.vm()
    subnet = next(iter(cloud.network.virtual_networks.list("g"))).subnets[0].id
    reply = cloud.call("PUT", VM, cloud.vm_body(subnet, **changes))
    assert (reply.status, reply.body["error"]["code"]) == (409, "PropertyChangeNotAllowed")


def test_the_highest_price_changes_only_while_deallocated(cloud: Cloud) -> None:
    cloud.vm()
    patch = {"properties": {"billingProfile": {"maxPrice": 0.5}}}
    refused = cloud.call("PATCH", VM, patch)
    assert (refused.status, refused.body["error"]["code"]) == (400, "MaxPriceChangeNotAllowedForAllocatedVMs")
    cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()
    patched = cloud.compute.virtual_machines.begin_update("g", "vm", patch).result()
    assert patched.billing_profile.max_price == 0.5


def test_a_price_below_the_market_keeps_a_deallocated_vm_from_starting(cloud: Cloud) -> None:
    cloud.vm()
    cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()
    patch = {"properties": {"billingProfile": {"maxPrice": 0.00001}}}
    cloud.compute.virtual_machines.begin_update("g", "vm", patch).result()
    reply = cloud.call("POST", f"{VM}/start")
    assert reply.body["error"]["code"] == "SpotPriceGreaterThanProvidedMaxPrice"


def test_the_size_changes_by_a_reboot_while_running_and_without_one_while_deallocated(cloud: Cloud) -> None:
    cloud.vm()
    bigger = {"properties": {"hardwareProfile": {"vmSize": "Standard_D4s_v3"}}}
    resized = cloud.compute.virtual_machines.begin_update("g", "vm", bigger).result()
    assert resized.hardware_profile.vm_size == "Standard_D4s_v3"
    assert [what for what, _ in cloud.machines.log()] == ["boot", "reboot"]
    cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()
    smaller = {"properties": {"hardwareProfile": {"vmSize": "Standard_D2s_v3"}}}
    cloud.compute.virtual_machines.begin_update("g", "vm", smaller).result()
    assert cloud.power() == "deallocated"
    too_big = {"properties": {"hardwareProfile": {"vmSize": "Standard_NC64as_T4_v3"}}}
    assert cloud.call("PATCH", VM, too_big).status == 409


def test_a_machine_that_does_not_boot_fails_the_operation_and_leaves_a_failed_vm(cloud: Cloud) -> None:
    cloud.machines.refuse_boot = "no room"
    cloud.group()
    begun = cloud.call("PUT", VM, cloud.vm_body(cloud.net()))
    status = cloud.finish(begun)
    assert (status.status, status.body["status"]) == (200, "Failed")
    assert "no room" in status.body["error"]["message"]
    shown = cloud.call("GET", f"{VM}?$expand=instanceView").body["properties"]
    assert shown["provisioningState"] == "Failed"
    assert shown["instanceView"]["statuses"][0]["code"] == "ProvisioningState/failed/InternalExecutionError"
    cloud.compute.virtual_machines.begin_delete("g", "vm").result()
    assert cloud.call("GET", VM).status == 404


def test_an_interface_made_before_can_be_attached_and_outlives_the_vm(cloud: Cloud) -> None:
    cloud.group()
    configuration = {"name": "c", "properties": {"subnet": {"id": cloud.net()}}}
    body = {"location": "eastus", "properties": {"ipConfigurations": [configuration]}}
    nic = cloud.network.network_interfaces.begin_create_or_update("g", "nic", body).result()
    cloud.compute.virtual_machines.begin_create_or_update(
        "g", "vm", cloud.vm_body("", networkProfile={"networkInterfaces": [{"id": nic.id}]})
    ).result()
    assert cloud.network.network_interfaces.get("g", "nic").virtual_machine is not None
    cloud.compute.virtual_machines.begin_delete("g", "vm").result()
    assert cloud.network.network_interfaces.get("g", "nic").virtual_machine is None

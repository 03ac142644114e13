"""Networks, security groups, addresses and interfaces."""

from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError

from cloudtrain.emulator.firewall import CALLER

from .conftest import Cloud

NET = "/resourceGroups/g/providers/Microsoft.Network"
VNET = {
    "location": "eastus",
    "properties": {
        "addressSpace": {"addressPrefixes": ["10.0.0.0/16"]},
        "subnets": [{"name": "default", "properties": {"addressPrefix": "10.0.0.0/24"}}],
    },
}


def test_a_virtual_network_is_updating_then_succeeded_and_its_poll_has_nothing_but_the_status(
    cloud: Cloud,
) -> None:
    cloud.group()
    begun = cloud.call("PUT", f"{NET}/virtualNetworks/v", VNET)
    assert begun.status == 201
    assert begun.body["properties"]["provisioningState"] == "Updating"
    assert begun.headers["Azure-AsyncNotification"] == "Enabled"
    assert "/providers/Microsoft.Network/locations/eastus/operations/" in begun.headers["Azure-AsyncOperation"]
    assert "Location" not in begun.headers
    first = cloud.call("GET", begun.headers["Azure-AsyncOperation"])
    assert (first.status, first.body) == (200, {"status": "InProgress"})
    assert "Retry-After" not in first.headers
    assert cloud.finish(begun).body == {"status": "Succeeded"}
    got = cloud.call("GET", f"{NET}/virtualNetworks/v")
    assert got.body["properties"]["provisioningState"] == "Succeeded"
    assert got.headers["ETag"] == got.body["etag"]
    assert cloud.call("PUT", f"{NET}/virtualNetworks/v", VNET).status == 200


def test_the_first_network_of_a_region_brings_a_network_watcher(cloud: Cloud) -> None:
    cloud.group()
    assert not cloud.resources.resource_groups.check_existence("NetworkWatcherRG")
    cloud.net()
    watchers = [w.name for w in cloud.network.network_watchers.list("NetworkWatcherRG")]
    assert watchers == ["NetworkWatcher_eastus"]
    cloud.group("w", "westus2")
    cloud.net("w", "westus2")
    assert {w.name for w in cloud.network.network_watchers.list_all()} == {
        "NetworkWatcher_eastus",
        "NetworkWatcher_westus2",
    }
    cloud.resources.resource_groups.begin_delete("g").result()
    assert cloud.resources.resource_groups.check_existence("NetworkWatcherRG")


@pytest.mark.parametrize(
    ("subnets", "code"),
    [
        ([("a", "10.1.0.0/24")], "NetcfgInvalidSubnet"),
        ([("a", "10.0.0.0/24"), ("b", "10.0.0.128/25")], "NetcfgSubnetRangesOverlap"),
        ([("a", "10.0.0.1/24")], "InvalidAddressPrefixFormat"),
        ([("a b", "10.0.0.0/24")], "InvalidResourceName"),
    ],
)
def test_subnets_that_cannot_be_are_refused(cloud: Cloud, subnets: list[tuple[str, str]], code: str) -> None:
    cloud.group()
    properties = {
        "addressSpace": {"addressPrefixes": ["10.0.0.0/16"]},
        "subnets": [{"name": n, "properties": {"addressPrefix": p}} for n, p in subnets],
    }
    reply = cloud.call("PUT", f"{NET}/virtualNetworks/v", {"location": "eastus", "properties": properties})
    assert (reply.status, reply.body["error"]["code"]) == (400, code)


def test_a_security_group_lists_azures_six_rules_beside_its_own(cloud: Cloud) -> None:
    cloud.group()
    rule = {
        "name": "ssh",
        "properties": {
            "protocol": "Tcp",
            "sourcePortRange": "*",
            "destinationPortRange": "22",
            "sourceAddressPrefix": "*",
            "destinationAddressPrefix": "*",
            "access": "Allow",
            "priority": 1000,
            "direction": "Inbound",
        },
    }
    body = {"location": "eastus", "properties": {"securityRules": [rule]}}
    nsg = cloud.network.network_security_groups.begin_create_or_update("g", "n", body).result()
    assert [r.name for r in nsg.security_rules] == ["ssh"]
    assert {(r.name, r.priority) for r in nsg.default_security_rules} == {
        ("AllowVnetInBound", 65000),
        ("AllowAzureLoadBalancerInBound", 65001),
        ("DenyAllInBound", 65500),
        ("AllowVnetOutBound", 65000),
        ("AllowInternetOutBound", 65001),
        ("DenyAllOutBound", 65500),
    }
    with pytest.raises(HttpResponseError) as caught:
        cloud.network.security_rules.begin_create_or_update(
            "g", "n", "two", {"properties": rule["properties"]}
        ).result()
    assert caught.value.error.code == "SecurityRuleConflict"


def _let_in(cloud: Cloud, *rules: tuple[str, str, int], port: str = "22") -> str:
    """The security group `n` with these rules: (source, access, priority)."""
    made = [
        {
            "name": f"rule{priority}",
            "properties": {
                "protocol": "Tcp",
                "sourcePortRange": "*",
                "destinationPortRange": port,
                "sourceAddressPrefix": source,
                "destinationAddressPrefix": "*",
                "access": access,
                "priority": priority,
                "direction": "Inbound",
            },
        }
        for source, access, priority in rules
    ]
    body = {"location": "eastus", "properties": {"securityRules": made}}
    return str(cloud.network.network_security_groups.begin_create_or_update("g", "n", body).result().id)


def test_machines_are_told_who_may_log_in_at_boot_and_when_the_rules_change(cloud: Cloud) -> None:
    cloud.group()
    caller = f"{CALLER}/32"
    body = cloud.vm_body(cloud.net())
    [interface] = body["properties"]["networkProfile"]["networkInterfaceConfigurations"]
    interface["properties"]["networkSecurityGroup"] = {"id": _let_in(cloud, (caller, "Allow", 1000))}
    vm = cloud.compute.virtual_machines.begin_create_or_update("g", "vm", body).result()
    assert cloud.machines.spec(vm.vm_id)["ssh_open"] is True
    changes = [
        ([], "22", False),
        ([("*", "Allow", 1000)], "20-30", True),
        ([("203.0.113.0/24", "Allow", 1000)], "22", False),
        ([(caller, "Allow", 1000)], "443", False),
        ([(caller, "Deny", 900), ("Internet", "Allow", 1000)], "22", False),
        ([(caller, "Deny", 1100), ("Internet", "Allow", 1000)], "*", True),
    ]
    for rules, port, allowed in changes:
        _let_in(cloud, *rules, port=port)
        assert cloud.machines.log()[-1] == [f"open_ssh {allowed}", vm.vm_id], (rules, port)
    cloud.network.security_rules.begin_delete("g", "n", "rule1000").result()
    assert cloud.machines.log()[-1] == ["open_ssh False", vm.vm_id]


def test_without_a_security_group_a_standard_address_lets_nobody_in(cloud: Cloud) -> None:
    assert cloud.machines.spec(cloud.vm().vm_id)["ssh_open"] is False


def test_a_public_address_is_standard_and_static_and_comes_with_the_operation(cloud: Cloud) -> None:
    cloud.group()
    body: dict[str, Any] = {
        "location": "eastus",
        "sku": {"name": "Standard", "tier": "Regional"},
        "properties": {"publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4"},
    }
    begun = cloud.call("PUT", f"{NET}/publicIPAddresses/p", body)
    assert begun.status == 201
    assert "ipAddress" not in begun.body["properties"]
    cloud.finish(begun)
    shown = cloud.network.public_ip_addresses.get("g", "p")
    assert shown.ip_address
    assert (shown.sku.name, shown.public_ip_allocation_method) == ("Standard", "Static")
    basic = cloud.call("PUT", f"{NET}/publicIPAddresses/q", {**body, "sku": {"name": "Basic"}})
    assert basic.body["error"]["code"] == "IPv4BasicSkuPublicIpCountLimitReached"


def test_an_interface_has_succeeded_in_its_first_answer_and_gets_the_first_free_address(cloud: Cloud) -> None:
    cloud.group()
    subnet = cloud.net()
    for index, expected in enumerate(("10.0.0.4", "10.0.0.5")):
        configuration = {"name": "c", "properties": {"subnet": {"id": subnet}}}
        body = {"location": "eastus", "properties": {"ipConfigurations": [configuration]}}
        begun = cloud.call("PUT", f"{NET}/networkInterfaces/n{index}", body)
        properties = begun.body["properties"]
        assert (begun.status, properties["provisioningState"]) == (201, "Succeeded")
        assert properties["ipConfigurations"][0]["properties"]["privateIPAddress"] == expected
        assert "macAddress" not in properties
        assert cloud.finish(begun).body["status"] == "Succeeded"


def test_deletion_is_202_with_both_urls_and_ends_with_204(cloud: Cloud) -> None:
    cloud.group()
    cloud.net()
    begun = cloud.call("DELETE", f"{NET}/virtualNetworks/vnet")
    assert begun.status == 202
    assert "/operationResults/" in begun.headers["Location"]
    assert cloud.finish(begun).body == {"status": "Succeeded"}
    result = cloud.call("GET", begun.headers["Location"])
    assert (result.status, result.body) == (204, None)
    assert {"Azure-AsyncOperation", "Location", "Azure-AsyncNotification"} <= set(result.headers)
    gone = cloud.call("GET", f"{NET}/virtualNetworks/vnet")
    assert (gone.status, gone.body["error"]["code"]) == (404, "ResourceNotFound")
    assert gone.headers["x-ms-failure-cause"] == "gateway"
    assert cloud.call("DELETE", f"{NET}/virtualNetworks/vnet").status == 204


def test_what_a_vm_uses_cannot_be_deleted(cloud: Cloud) -> None:
    cloud.group()
    nsg = cloud.network.network_security_groups.begin_create_or_update("g", "n", {"location": "eastus"}).result()
    body = cloud.vm_body(cloud.net())
    described = body["properties"]["networkProfile"]["networkInterfaceConfigurations"][0]
    described["properties"]["networkSecurityGroup"] = {"id": nsg.id}
    cloud.compute.virtual_machines.begin_create_or_update("g", "vm", body).result()
    nic = next(iter(cloud.network.network_interfaces.list("g"))).name
    ip = next(iter(cloud.network.public_ip_addresses.list("g"))).name
    refusals = {
        f"networkInterfaces/{nic}": "NicInUse",
        f"publicIPAddresses/{ip}": "PublicIPAddressCannotBeDeleted",
        "networkSecurityGroups/n": "InUseNetworkSecurityGroupCannotBeDeleted",
        "virtualNetworks/vnet": "InUseSubnetCannotBeDeleted",
        "virtualNetworks/vnet/subnets/default": "InUseSubnetCannotBeDeleted",
    }
    for path, code in refusals.items():
        reply = cloud.call("DELETE", f"{NET}/{path}")
        assert (reply.status, reply.body["error"]["code"]) == (400, code)


def test_a_reference_to_what_is_not_there_is_refused(cloud: Cloud) -> None:
    cloud.group()
    missing = f"{cloud.subscription}{NET}/virtualNetworks/nope/subnets/x"
    configuration = {"name": "c", "properties": {"subnet": {"id": missing}}}
    body = {"location": "eastus", "properties": {"ipConfigurations": [configuration]}}
    reply = cloud.call("PUT", f"{NET}/networkInterfaces/n", body)
    assert (reply.status, reply.body["error"]["code"]) == (400, "InvalidResourceReference")


def test_subnets_can_be_added_and_removed_one_by_one(cloud: Cloud) -> None:
    cloud.group()
    cloud.net()
    body = {"properties": {"addressPrefix": "10.0.1.0/24"}}
    made = cloud.network.subnets.begin_create_or_update("g", "vnet", "two", body).result()
    assert made.provisioning_state == "Succeeded"
    assert [s.name for s in cloud.network.subnets.list("g", "vnet")] == ["default", "two"]
    cloud.network.subnets.begin_delete("g", "vnet", "two").result()
    assert [s.name for s in cloud.network.subnets.list("g", "vnet")] == ["default"]

"""Template deployments, as `az vm create` sends them."""

from pathlib import Path
from typing import Any

import pytest

from .conftest import Cloud, Reply, open_cloud

DEPLOYMENTS = "/resourcegroups/g/providers/Microsoft.Resources/deployments"
D = f"{DEPLOYMENTS}/d"
VERSION = "2024-11-01"


def network_interface(cloud: Cloud, *needs: str) -> dict[str, Any]:
    root = f"{cloud.subscription}/resourceGroups/g/providers/Microsoft.Network"
    inner = {"subnet": {"id": f"{root}/virtualNetworks/vNET/subnets/s"}, "publicIPAddress": {"id": "[variables('ip')]"}}
    return {
        "type": "Microsoft.Network/networkInterfaces",
        "name": "nic",
        "apiVersion": "2015-06-15",
        "location": "eastus",
        "dependsOn": list(needs),
        "properties": {"ipConfigurations": [{"name": "ipconfigvm", "properties": inner}]},
    }


def virtual_machine(cloud: Cloud, size: str = "Standard_D2s_v3", **properties: Any) -> dict[str, Any]:
    """With the nulls and the spelling of az 2.91."""
    nic = f"{cloud.subscription}/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/nic"
    return {
        "type": "Microsoft.Compute/virtualMachines",
        "name": "vm",
        "apiVersion": "2026-04-01",
        "location": "eastus",
        "tags": {},
        "dependsOn": ["Microsoft.Network/networkInterfaces/nic"],
        "properties": {
            "hardwareProfile": {"vmSize": size},
            "networkProfile": {"networkInterfaces": [{"id": nic, "properties": {"deleteOption": None}}]},
            "storageProfile": {
                "osDisk": {
                    "createOption": "fromImage",
                    "name": None,
                    "caching": "ReadWrite",
                    "managedDisk": {"storageAccountType": None},
                    "diskSizeGb": 64,
                },
                "imageReference": {
                    "publisher": "Canonical",
                    "offer": "0001-com-ubuntu-server-jammy",
                    "sku": "22_04-lts-gen2",
                    "version": "latest",
                },
            },
            "osProfile": {
                "computerName": "vm",
                "adminUsername": "azureuser",
                "adminPassword": "[parameters('adminPassword')]",
            },
            "priority": "Spot",
            **properties,
        },
    }


def template(cloud: Cloud, *resources: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """The whole request. Without resources: network, address, interface and VM, in an order that does not do."""
    vnet = {
        "type": "Microsoft.Network/virtualNetworks",
        "name": "vNET",
        "apiVersion": "2015-06-15",
        "location": "eastus",
        "dependsOn": [],
        "properties": {
            "addressSpace": {"addressPrefixes": ["10.0.0.0/16"]},
            "subnets": [{"name": "s", "properties": {"addressPrefix": "10.0.0.0/24"}}],
        },
    }
    ip = {
        "type": "Microsoft.Network/publicIPAddresses",
        "name": "[concat('vm', 'IP')]",
        "apiVersion": "2022-01-01",
        "location": "eastus",
        "sku": {"name": "Standard"},
        "properties": {"publicIPAllocationMethod": "Static"},
    }
    nic = network_interface(
        cloud, "[resourceId('Microsoft.Network/virtualNetworks', 'vNET')]", "Microsoft.Network/publicIpAddresses/vmIP"
    )
    whole = {
        "$schema": "https://schema.management.azure.com/schemas/2015-01-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "parameters": {"adminPassword": {"type": "securestring", "metadata": {"description": "Secure"}}},
        "variables": {"ip": "[resourceId('Microsoft.Network/publicIPAddresses', 'vmIP')]"},
        "resources": list(resources) or [virtual_machine(cloud), nic, ip, vnet],
        "outputs": {},
        **parts,
    }
    given = {"adminPassword": {"value": "Abcdefg12345!"}}
    return {"properties": {"template": whole, "parameters": given, "mode": "incremental"}}


def deploy(cloud: Cloud, body: dict[str, Any]) -> tuple[Reply, Reply]:
    """The first answer and the last."""
    begun = cloud.call("PUT", D, body, version=VERSION)
    return begun, cloud.finish(begun) if "Azure-AsyncOperation" in begun.headers else begun


def code(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.body["error"]["code"]


def test_resources_are_made_after_what_they_need_whatever_their_order(cloud: Cloud) -> None:
    cloud.group()
    begun, ended = deploy(cloud, template(cloud))
    assert (begun.status, begun.body["properties"]["provisioningState"]) == (201, "Accepted")
    assert {"Location", "Azure-AsyncNotification"}.isdisjoint(begun.headers)
    assert ended.body == {"status": "Succeeded"}
    vm = cloud.compute.virtual_machines.get("g", "vm")
    assert (vm.provisioning_state, vm.priority, vm.storage_profile.os_disk.disk_size_gb) == ("Succeeded", "Spot", 64)
    assert cloud.power() == "running"
    made = cloud.call("GET", f"{D}/operations", version=VERSION).body["value"]
    ends = {one["properties"]["targetResource"]["resourceName"]: one["properties"]["timestamp"] for one in made}
    assert max(ends["vNET"], ends["vmIP"]) <= ends["nic"] <= ends["vm"]
    assert {one["properties"]["provisioningState"] for one in made} == {"Succeeded"}
    shown = cloud.call("GET", D, version=VERSION).body["properties"]
    assert [one["id"].rsplit("/", 1)[-1] for one in shown["outputResources"]] == ["vm", "nic", "vmIP", "vNET"]


def test_a_secure_parameter_is_never_shown_nor_kept_readable(cloud: Cloud) -> None:
    cloud.group()
    begun, _ = deploy(cloud, template(cloud))
    assert begun.body["properties"]["parameters"] == {"adminPassword": {"type": "SecureString"}}
    assert cloud.call("GET", D, version=VERSION).body["properties"]["parameters"] == {
        "adminPassword": {"type": "SecureString"}
    }
    files = [path for path in cloud.azure.root.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"Abcdefg12345!" in path.read_bytes()]


def test_whichever_process_polls_takes_a_deployment_further(tmp_path: Path) -> None:
    first = open_cloud(tmp_path)
    first.group()
    begun = first.call("PUT", D, template(first), version=VERSION)
    second = open_cloud(tmp_path, clock=first.clock)
    assert second.finish(begun).body == {"status": "Succeeded"}
    assert second.power() == "running"
    assert [what for what, _ in second.machines.log()] == ["boot"]
    for one in (first, second):
        one.azure.close()


def test_outputs_name_ids_and_states(cloud: Cloud) -> None:
    cloud.group()
    outputs = {
        "id": {"type": "string", "value": "[variables('ip')]"},
        "address": {"type": "string", "value": "[reference('vmIP').ipAddress]"},
        "sku": {"type": "string", "value": "[reference(variables('ip'), '2022-01-01', 'Full').sku.name]"},
        "plain": {"type": "string", "value": "[[not an expression]"},
        "hidden": {"type": "securestring", "value": "[parameters('adminPassword')]"},
    }
    assert deploy(cloud, template(cloud, outputs=outputs))[1].body == {"status": "Succeeded"}
    shown = cloud.call("GET", D, version=VERSION).body["properties"]["outputs"]
    ip = cloud.network.public_ip_addresses.get("g", "vmIP")
    assert shown["id"] == {"type": "String", "value": ip.id}
    assert shown["address"]["value"] == ip.ip_address
    assert (shown["sku"]["value"], shown["plain"]["value"]) == ("Standard", "[not an expression]")
    assert "value" not in shown["hidden"]


INVALID = {
    "a need that is not there": (
        lambda c: template(c, network_interface(c, "Microsoft.Network/virtualNetworks/other")),
        "'Microsoft.Network/virtualNetworks/other' is not defined in the template",
    ),
    "a circle": (
        lambda c: template(c, {**network_interface(c, "vm")}, virtual_machine(c)),
        "Circular dependency detected",
    ),
    "twice the same": (
        lambda c: template(c, network_interface(c), network_interface(c)),
        "defined multiple times",
    ),
    "a parameter without value": (
        lambda c: template(c, parameters={"adminPassword": {"type": "securestring"}, "size": {"type": "string"}}),
        "'size' is not provided",
    ),
    "a value of another type": (
        lambda c: template(c, parameters={"adminPassword": {"type": "int"}}),
        "Expected type 'int'",
    ),
    "a value that is not allowed": (
        lambda c: template(c, parameters={"adminPassword": {"type": "string", "allowedValues": ["a", "b"]}}),
        "not part of the allowed value(s): 'a,b'",
    ),
    "a value for no parameter": (lambda c: template(c, parameters={}), "'adminPassword' in the parameters file"),
    "an unknown variable": (lambda c: template(c, variables={}), "The template variable 'ip' is not found"),
    "a variable of itself": (lambda c: template(c, variables={"ip": "[variables('ip')]"}), "Circular reference"),
    "half an expression": (lambda c: template(c, variables={"ip": "[concat('a']"}), "is not valid"),
    "names too many": (lambda c: template(c, {**network_interface(c), "name": "a/b"}), "segment length"),
}


@pytest.mark.parametrize("case", INVALID)
def test_a_template_that_cannot_be_one_is_refused_before_anything_is_made(cloud: Cloud, case: str) -> None:
    make, said = INVALID[case]
    cloud.group()
    for verb, url in (("PUT", D), ("POST", f"{D}/validate")):
        reply = cloud.call(verb, url, make(cloud), version=VERSION)
        assert code(reply) == (400, "InvalidTemplate")
        assert reply.body["error"]["message"].startswith("Deployment template validation failed: '")
        assert said in reply.body["error"]["message"]
    assert cloud.call("GET", "/resourceGroups/g/resources").body["value"] == []
    assert cloud.call("GET", DEPLOYMENTS, version=VERSION).body["value"] == []


NOT_HERE = {
    "uniqueString": lambda c: template(c, variables={"ip": "[uniqueString('x')]"}),
    "providers": lambda c: template(c, outputs={"a": {"type": "string", "value": "[providers('x', 'y').z]"}}),
    "reference": lambda c: template(c, variables={"ip": "[reference('x').id]"}),
    "copy": lambda c: template(c, {**network_interface(c), "copy": {"name": "n", "count": 2}}),
    "Microsoft.Web/sites": lambda c: template(
        c, {"type": "Microsoft.Web/sites", "name": "a", "apiVersion": "2022-01-01"}
    ),
    "Complete": lambda c: {"properties": {**template(c)["properties"], "mode": "Complete"}},
}


@pytest.mark.parametrize("what", NOT_HERE)
def test_what_is_not_here_is_refused_by_its_name(cloud: Cloud, what: str) -> None:
    cloud.group()
    reply = cloud.call("PUT", D, NOT_HERE[what](cloud), version=VERSION)
    assert code(reply) == (501, "OperationNotEmulated")
    assert f"'{what}'" in reply.body["error"]["message"]


PREFLIGHT = {
    "SkuNotAvailable": {"size": "Standard_NC6s_v3"},
    "QuotaExceeded": {"size": "Standard_NC4as_T4_v3", "priority": "Regular"},
    "AzureSpotIsNotSupportedForThisVMSize": {"size": "Standard_B2s"},
    "InvalidParameter": {"size": "Standard_Foo"},
    "SpotPriceGreaterThanProvidedMaxPrice": {"billingProfile": {"maxPrice": 0.00001}},
}


@pytest.mark.parametrize("inner", PREFLIGHT)
def test_what_compute_would_refuse_comes_wrapped_and_before_anything_is_made(cloud: Cloud, inner: str) -> None:
    cloud.group()
    vm = virtual_machine(cloud, **PREFLIGHT[inner])
    reply = cloud.call("PUT", D, template(cloud, network_interface(cloud), vm), version=VERSION)
    assert code(reply) == (400, "InvalidTemplateDeployment")
    assert (
        "The template deployment 'd' is not valid according to the validation procedure."
        in (reply.body["error"]["message"])
    )
    assert [detail["code"] for detail in reply.body["error"]["details"]] == [inner]
    assert cloud.call("GET", "/resourceGroups/g/resources").body["value"] == []


def test_terms_that_are_not_accepted_have_an_error_of_their_own(cloud: Cloud) -> None:
    cloud.group()
    vm = virtual_machine(cloud)
    image = {"publisher": "nvidia", "offer": "tensorflow_from_nvidia", "sku": "gen2_21-06-0", "version": "latest"}
    vm["properties"]["storageProfile"]["imageReference"] = image
    vm["plan"] = {"name": "gen2_21-06-0", "product": "tensorflow_from_nvidia", "publisher": "nvidia"}
    reply = cloud.call("PUT", D, template(cloud, network_interface(cloud), vm), version=VERSION)
    assert code(reply) == (400, "MarketplacePurchaseEligibilityFailed")
    assert reply.body["error"]["message"].startswith("Marketplace purchase eligibilty check returned errors.")
    assert reply.body["error"]["details"][0]["code"] == "ResourcePurchaseValidationFailed"


def test_a_resource_that_fails_fails_the_deployment_with_its_error_inside(cloud: Cloud) -> None:
    cloud.group()
    cloud.machines.refuse_boot = "no host"
    _, ended = deploy(cloud, template(cloud))
    error = ended.body["error"]
    assert (ended.status, ended.body["status"], error["code"]) == (200, "Failed", "DeploymentFailed")
    assert error["target"].endswith("/resourceGroups/g/providers/Microsoft.Resources/deployments/d")
    (inner,) = error["details"]
    assert (inner["code"], inner["target"].rsplit("/", 1)[-1]) == ("ResourceDeploymentFailure", "vm")
    assert inner["message"].endswith("because it reached terminal provisioning state 'Failed'.")
    assert inner["details"][0]["code"] == "InternalExecutionError"
    shown = cloud.call("GET", D, version=VERSION).body["properties"]
    assert (shown["provisioningState"], shown["error"]) == ("Failed", error)
    assert "outputResources" not in shown
    states = {
        one["properties"]["targetResource"]["resourceName"]: one["properties"]["provisioningState"]
        for one in cloud.call("GET", f"{D}/operations", version=VERSION).body["value"]
    }
    assert states == {"vNET": "Succeeded", "vmIP": "Succeeded", "nic": "Succeeded", "vm": "Failed"}


def test_what_needs_a_refused_resource_is_not_begun(cloud: Cloud) -> None:
    cloud.group()
    nic = network_interface(cloud)  # its subnet is missing
    _, ended = deploy(cloud, template(cloud, nic, virtual_machine(cloud)))
    (inner,) = ended.body["error"]["details"]
    assert inner["code"] == "InvalidResourceReference"
    assert list(cloud.compute.virtual_machines.list("g")) == []


def test_a_resource_that_is_busy_is_waited_for_and_then_made_as_the_template_says(cloud: Cloud) -> None:
    cloud.group()
    network = "/resourceGroups/g/providers/Microsoft.Network/networkSecurityGroups/nsg"
    assert cloud.call("PUT", network, {"location": "eastus"}).status == 201  # and goes on
    rule = {
        "protocol": "Tcp",
        "sourcePortRange": "*",
        "destinationPortRange": "22",
        "sourceAddressPrefix": "*",
        "destinationAddressPrefix": "*",
        "access": "Allow",
        "priority": 1000,
        "direction": "Inbound",
    }
    nsg = {
        "type": "Microsoft.Network/networkSecurityGroups",
        "name": "nsg",
        "apiVersion": "2015-06-15",
        "location": "eastus",
        "properties": {"securityRules": [{"name": "ssh", "properties": rule}]},
    }
    assert deploy(cloud, template(cloud, nsg))[1].body == {"status": "Succeeded"}
    made = cloud.network.network_security_groups.get("g", "nsg")
    assert [one.name for one in made.security_rules] == ["ssh"]


def test_a_brand_new_subscription_is_registered_by_a_template(fresh_cloud: Cloud) -> None:
    fresh_cloud.group()
    assert deploy(fresh_cloud, template(fresh_cloud))[1].body == {"status": "Succeeded"}
    state = fresh_cloud.call("GET", "/providers/Microsoft.Compute").body["registrationState"]
    assert state == "Registered"


def test_again_is_200_and_changes_nothing_while_running_it_is_refused(cloud: Cloud) -> None:
    cloud.group()
    begun = cloud.call("PUT", D, template(cloud), version=VERSION)
    assert code(cloud.call("PUT", D, template(cloud), version=VERSION)) == (409, "DeploymentActive")
    cloud.finish(begun)
    before = cloud.compute.virtual_machines.get("g", "vm").vm_id
    again, ended = deploy(cloud, template(cloud))
    assert (again.status, ended.body) == (200, {"status": "Succeeded"})
    assert cloud.compute.virtual_machines.get("g", "vm").vm_id == before
    assert len(cloud.call("GET", DEPLOYMENTS, version=VERSION).body["value"]) == 1


def test_deployments_are_found_listed_and_missed(cloud: Cloud) -> None:
    cloud.group()
    assert cloud.call("HEAD", D, version=VERSION).status == 404
    assert code(cloud.call("GET", D, version=VERSION)) == (404, "DeploymentNotFound")
    missing = D.replace("/g/", "/missing/")
    assert code(cloud.call("PUT", missing, template(cloud), version=VERSION)) == (404, "ResourceGroupNotFound")
    checked = cloud.call("POST", f"{D}/validate", template(cloud), version=VERSION)
    assert (checked.status, len(checked.body["properties"]["validatedResources"])) == (200, 4)
    assert cloud.call("HEAD", D, version=VERSION).status == 404
    deploy(cloud, template(cloud))
    assert cloud.call("HEAD", D, version=VERSION).status == 204
    assert "Microsoft.Resources/deployments" not in {r.type for r in cloud.resources.resources.list()}


def test_a_group_that_goes_takes_its_deployment_along(cloud: Cloud) -> None:
    cloud.group()
    begun = cloud.call("PUT", D, template(cloud), version=VERSION)
    cloud.finish(cloud.call("DELETE", "/resourcegroups/g"))
    assert cloud.call("GET", begun.headers["Azure-AsyncOperation"]).body["status"] == "Failed"
    cloud.clock.sleep(10)
    assert cloud.call("GET", "/resourcegroups/g").status == 404
    assert cloud.machines.strays() == []

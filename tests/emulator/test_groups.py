"""Resource groups, tags, the generic list, and subscriptions."""

import base64
import json

import pytest
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from .conftest import Cloud


def test_a_new_group_is_201_and_one_that_exists_200(cloud: Cloud) -> None:
    body = {"location": "West US", "tags": {"a": "b", "c": ""}, "managedBy": "m"}
    assert cloud.call("PUT", "/resourcegroups/g", body).status == 201
    again = cloud.call("PUT", "/resourcegroups/g", body)
    assert again.status == 200
    assert again.body == {
        "id": f"{cloud.subscription}/resourceGroups/g",
        "name": "g",
        "type": "Microsoft.Resources/resourceGroups",
        "location": "westus",
        "managedBy": "m",
        "tags": {"a": "b", "c": ""},
        "properties": {"provisioningState": "Succeeded"},
    }
    assert "Azure-AsyncOperation" not in again.headers


def test_a_missing_group_is_404_with_its_code(cloud: Cloud) -> None:
    with pytest.raises(ResourceNotFoundError) as caught:
        cloud.resources.resource_groups.get("nope")
    assert caught.value.error.code == "ResourceGroupNotFound"
    assert caught.value.error.message == "Resource group 'nope' could not be found."
    head = cloud.call("HEAD", "/resourcegroups/nope")
    assert (head.status, head.headers["x-ms-failure-cause"], head.body) == (404, "gateway", None)
    cloud.group()
    assert cloud.call("HEAD", "/resourcegroups/g").status == 204


def test_anything_in_a_missing_group_says_that_the_group_is_missing(cloud: Cloud) -> None:
    vm = "/resourceGroups/nope/providers/Microsoft.Compute/virtualMachines/vm"
    for method in ("GET", "PUT", "DELETE"):
        reply = cloud.call(method, vm, {"location": "eastus"} if method == "PUT" else None)
        assert (reply.status, reply.body["error"]["code"]) == (404, "ResourceGroupNotFound")


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        ({}, "LocationRequired", 400),
        ({"location": "atlantis"}, "LocationNotAvailableForResourceGroup", 400),
        ({"location": "westus"}, "InvalidResourceGroupLocation", 409),
        ({"location": "eastus", "tags": {"a": "x" * 257}}, "TagValueTooLong", 400),
        ({"location": "eastus", "tags": {"a?": "x"}}, "InvalidTagNameCharacters", 400),
        ({"location": "eastus", "tags": {str(n): "" for n in range(51)}}, "InvalidTagCount", 400),
    ],
)
def test_a_group_that_cannot_be_is_refused(cloud: Cloud, body: object, code: str, status: int) -> None:
    cloud.group()
    reply = cloud.call("PUT", "/resourcegroups/g", body)
    assert (reply.status, reply.body["error"]["code"]) == (status, code)


def test_names_with_forbidden_characters_are_refused(cloud: Cloud) -> None:
    for name in ("a b", "a.", "x" * 91):
        reply = cloud.call("PUT", f"/resourcegroups/{name}", {"location": "eastus"})
        assert (reply.status, reply.body["error"]["code"]) == (400, "InvalidResourceGroupName")


def test_patch_replaces_the_tags_and_keeps_the_rest(cloud: Cloud) -> None:
    cloud.group(a="1", b="2")
    patched = cloud.resources.resource_groups.update("g", {"tags": {"a": "3"}})
    assert (patched.tags, patched.location) == ({"a": "3"}, "eastus")


def test_tags_can_be_merged_replaced_and_deleted_at_any_scope(cloud: Cloud) -> None:
    cloud.group(a="1")
    scope = f"{cloud.subscription}/resourceGroups/g"
    tags = cloud.resources.tags
    merged = {"operation": "Merge", "properties": {"tags": {"b": "2"}}}
    tags.begin_update_at_scope(scope, merged).result()
    assert tags.get_at_scope(scope).properties.tags == {"a": "1", "b": "2"}
    tags.begin_update_at_scope(scope, {"operation": "Delete", "properties": {"tags": {"a": "1"}}}).result()
    assert tags.get_at_scope(scope).properties.tags == {"b": "2"}
    tags.begin_create_or_update_at_scope(scope, {"properties": {"tags": {"c": "3"}}}).result()
    assert cloud.resources.resource_groups.get("g").tags == {"c": "3"}


def test_groups_are_found_by_tag_name_and_value(cloud: Cloud) -> None:
    cloud.group("one", run="x")
    cloud.group("two", run="y's")
    names = lambda text: [g.name for g in cloud.resources.resource_groups.list(filter=text)]  # noqa: E731
    assert names("tagName eq 'run'") == ["one", "two"]
    assert names("tagname eq 'RUN' and tagvalue eq 'y''s'") == ["two"]
    with pytest.raises(HttpResponseError) as caught:
        names("colour eq 'blue'")
    assert caught.value.error.code == "InvalidFilterInQueryString"


def test_deletion_is_202_with_location_alone_then_202_then_200_with_nothing(cloud: Cloud) -> None:
    cloud.group()
    begun = cloud.call("DELETE", "/resourcegroups/g")
    assert (begun.status, begun.body) == (202, None)
    assert "Azure-AsyncOperation" not in begun.headers
    assert "Retry-After" not in begun.headers
    location = begun.headers["Location"]
    job = location.split("/operationresults/")[1].split("?")[0]
    decoded = json.loads(base64.urlsafe_b64decode(job + "=="))
    assert decoded == {"jobId": "RESOURCEGROUPDELETIONJOB-G-EASTUS", "jobLocation": "eastus"}
    first = cloud.call("GET", location)
    assert (first.status, first.headers["Location"]) == (202, location)
    assert cloud.call("GET", "/resourcegroups/g").body["properties"]["provisioningState"] == "Deleting"
    last = cloud.finish(first)
    assert (last.status, last.body) == (200, None)
    assert cloud.call("GET", "/resourcegroups/g").status == 404


def test_a_group_being_deleted_refuses_every_write_inside_and_a_second_deletion_joins_the_first(
    cloud: Cloud,
) -> None:
    cloud.group()
    begun = cloud.call("DELETE", "/resourcegroups/g")
    inside = "/resourcegroups/g/providers/Microsoft.Network/networkSecurityGroups/n"
    for path in ("/resourcegroups/g", inside):
        reply = cloud.call("PUT", path, {"location": "eastus"})
        assert (reply.status, reply.body["error"]["code"]) == (409, "ResourceGroupBeingDeleted")
        assert "is in deprovisioning state" in reply.body["error"]["message"]
    again = cloud.call("DELETE", "/resourcegroups/g")
    assert again.headers["Location"] == begun.headers["Location"]
    assert cloud.finish(again).status == 200


def test_deleting_a_group_takes_its_vms_while_they_are_still_being_made(cloud: Cloud) -> None:
    cloud.group()
    body = cloud.vm_body(cloud.net())
    vm = cloud.call("PUT", "/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm", body)
    assert vm.status == 201
    cloud.resources.resource_groups.begin_delete("g").result()
    assert cloud.machines.strays() == []
    status = cloud.finish(vm)
    assert (status.status, status.body["error"]["code"]) == (200, "OperationPreempted")
    assert list(cloud.resources.resources.list(filter="resourceGroup eq 'g'")) == []


def test_the_generic_list_finds_by_group_tag_and_type_and_expands(cloud: Cloud) -> None:
    cloud.vm()
    nsg = {"location": "eastus", "tags": {"k": "v"}}
    cloud.network.network_security_groups.begin_create_or_update("g", "nsg", nsg).result()
    listed = cloud.resources.resources.list_by_resource_group("g", expand="createdTime,provisioningState")
    kinds = {r.type.lower(): r for r in listed}
    assert set(kinds) == {
        "microsoft.network/virtualnetworks",
        "microsoft.network/networkinterfaces",
        "microsoft.network/publicipaddresses",
        "microsoft.network/networksecuritygroups",
        "microsoft.compute/virtualmachines",
        "microsoft.compute/disks",
    }
    vm = kinds["microsoft.compute/virtualmachines"]
    assert vm.provisioning_state == "Succeeded"
    assert vm.created_time is not None
    tagged = cloud.resources.resources.list(filter="tagName eq 'k' and tagValue eq 'v'")
    assert [r.name for r in tagged] == ["nsg"]
    typed = cloud.resources.resources.list(filter="resourceGroup eq 'G' and resourceType eq 'microsoft.compute/disks'")
    assert [r.name for r in typed] == ["os"]


def test_the_subscription_is_enabled_and_names_its_regions(cloud: Cloud) -> None:
    listed = cloud.call("GET", "/subscriptions", version="2022-12-01").body["value"]
    assert [(s["subscriptionId"], s["state"], s["tenantId"]) for s in listed] == [
        (cloud.azure.subscription_id, "Enabled", cloud.azure.tenant_id)
    ]
    regions = {r["name"] for r in cloud.call("GET", "/locations").body["value"]}
    assert {"eastus", "westeurope"} <= regions


def test_a_fresh_subscription_has_to_register_its_providers(fresh_cloud: Cloud) -> None:
    cloud = fresh_cloud
    cloud.group()
    vnet = "/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v"
    body = {"location": "eastus", "properties": {"addressSpace": {"addressPrefixes": ["10.0.0.0/16"]}}}
    reply = cloud.call("PUT", vnet, body)
    assert (reply.status, reply.body["error"]["code"]) == (409, "MissingSubscriptionRegistration")
    assert reply.body["error"]["details"][0]["target"] == "Microsoft.Network"
    providers = cloud.resources.providers
    assert providers.register("Microsoft.Network").registration_state == "Registering"
    cloud.clock.sleep(0.2)
    assert providers.get("Microsoft.Network").registration_state == "Registered"
    assert providers.get("Microsoft.Compute").registration_state == "NotRegistered"
    assert cloud.network.virtual_networks.begin_create_or_update("g", "v", body).result().name == "v"

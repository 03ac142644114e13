"""What holds for every request: who may ask, which version, which path, and how a refusal looks."""

import pytest

from .conftest import Cloud

VM = "/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm"


def test_a_request_without_the_token_is_refused_with_401(cloud: Cloud) -> None:
    for header in ("", "Bearer other", "Basic " + cloud.azure.token):
        reply = cloud.call("GET", "/resourcegroups", Authorization=header)
        assert reply.status == 401
        assert reply.body["error"]["code"] == "InvalidAuthenticationToken"
        assert "WWW-Authenticate" in reply.headers


def test_a_request_without_api_version_is_refused(cloud: Cloud) -> None:
    reply = cloud.call("GET", "/resourcegroups", version="")
    assert (reply.status, reply.body["error"]["code"]) == (400, "MissingApiVersionParameter")


@pytest.mark.parametrize("version", ["latest", "2026-13-01", "2026-4-1", "1999-01-01", "2026-04-01-x"])
def test_an_api_version_that_cannot_be_one_is_refused(cloud: Cloud, version: str) -> None:
    reply = cloud.call("GET", "/resourcegroups", version=version)
    assert (reply.status, reply.body["error"]["code"]) == (400, "InvalidApiVersionParameter")


def test_older_and_preview_api_versions_are_taken(cloud: Cloud) -> None:
    for version in ("2016-02-01", "2022-01-01", "2024-11-01", "2023-07-01-preview"):
        assert cloud.call("GET", "/resourcegroups", version=version).status == 200


def test_paths_compare_without_case_and_names_keep_theirs(cloud: Cloud) -> None:
    cloud.call("PUT", "/RESOURCEGROUPS/MyGroup", {"location": "eastus"})
    assert cloud.call("GET", "/resourcegroups/mygroup").body["name"] == "MyGroup"
    listed = cloud.call("GET", "/ResourceGroups/MYGROUP/Providers/microsoft.compute/VirtualMachines")
    assert listed.body == {"value": []}


def test_an_operation_that_is_not_there_names_itself(cloud: Cloud) -> None:
    reply = cloud.call("GET", "/resourceGroups/g/providers/Microsoft.Compute/availabilitySets/a")
    assert reply.status == 501
    assert reply.body["error"]["code"] == "OperationNotEmulated"
    assert "'GET Microsoft.Compute/availabilitySets'" in reply.body["error"]["message"]
    reply = cloud.call("POST", f"{VM}/capture", {})
    assert "POST Microsoft.Compute/virtualMachines/capture" in reply.body["error"]["message"]


def test_another_subscription_is_not_found(cloud: Cloud) -> None:
    reply = cloud.call("GET", "/subscriptions/00000000-0000-0000-0000-000000000000/resourcegroups")
    assert (reply.status, reply.body["error"]["code"]) == (404, "SubscriptionNotFound")


def test_a_body_that_is_no_json_is_refused(cloud: Cloud) -> None:
    for body in ("[]", '"x"'):
        reply = cloud.call("PUT", "/resourcegroups/g", body)
        assert (reply.status, reply.body["error"]["code"]) == (400, "InvalidRequestContent")


def test_reads_writes_and_deletes_say_what_is_left_of_their_limits(cloud: Cloud) -> None:
    written = cloud.call("PUT", "/resourcegroups/g", {"location": "eastus"})
    assert "x-ms-ratelimit-remaining-subscription-writes" in written.headers
    first, second = (cloud.call("GET", "/resourcegroups").headers for _ in range(2))
    name = "x-ms-ratelimit-remaining-subscription-global-reads"
    assert int(second[name]) == int(first[name]) - 1
    deleted = cloud.call("DELETE", "/resourcegroups/g")
    assert "x-ms-ratelimit-remaining-subscription-deletes" in deleted.headers


def test_compute_says_what_is_left_for_the_subscription_and_the_vm(cloud: Cloud) -> None:
    cloud.vm()
    names = {
        "GET": ("LowCostGetSubscriptionMaximum", "LowCostGetResource"),
        "DELETE": ("DeleteVMSubscriptionMaximum", "DeleteVMResource"),
    }
    for method, expected in names.items():
        header = cloud.call(method, VM).headers["x-ms-ratelimit-remaining-resource"]
        shown = [part.split(";")[0].removeprefix("Microsoft.Compute/") for part in header.split(",")]
        assert tuple(shown) == expected


def test_every_answer_carries_a_request_id_and_echoes_the_clients(cloud: Cloud) -> None:
    reply = cloud.call("GET", "/resourcegroups", **{"x-ms-client-request-id": "mine"})
    assert reply.headers["x-ms-request-id"]
    assert reply.headers["x-ms-client-request-id"] == "mine"

"""Sizes, quotas and images: real shapes, the emulator's own figures."""

from .conftest import Cloud

LOCATION = "/providers/Microsoft.Compute/locations/eastus"


def skus(cloud: Cloud, location: str) -> dict[str, object]:
    return {sku.name: sku for sku in cloud.compute.resource_skus.list(filter=f"location eq '{location}'")}


def test_every_capability_of_a_sku_is_a_string_and_says_whether_it_can_be_spot(cloud: Cloud) -> None:
    found = skus(cloud, "eastus")
    spot = {}
    for name, sku in found.items():
        capabilities = {c.name: c.value for c in sku.capabilities}
        assert all(isinstance(value, str) for value in capabilities.values())
        spot[name] = capabilities["LowPriorityCapable"]
    assert (spot["Standard_B2s"], spot["Standard_D2s_v3"], spot["Standard_NC4as_T4_v3"]) == ("False", "True", "True")
    assert {sku.resource_type for sku in found.values()} == {"virtualMachines"}


def test_regions_differ_in_sizes_and_restrictions(cloud: Cloud) -> None:
    east, west = skus(cloud, "East US"), skus(cloud, "westus")
    assert "Standard_D2as_v6" in east
    assert "Standard_D2as_v6" not in west
    whole = {r.type for r in east["Standard_NC6s_v3"].restrictions}
    assert whole == {"Location", "Zone"}
    partly = east["Standard_NC4as_T4_v3"].restrictions
    assert [(r.type, r.restriction_info.zones, r.reason_code) for r in partly] == [
        ("Zone", ["3"], "NotAvailableForSubscription")
    ]
    everywhere = list(cloud.compute.resource_skus.list())
    assert len(everywhere) > len(east)


def test_usages_count_spot_apart_from_the_rest(cloud: Cloud) -> None:
    cloud.vm()
    usages = {u.name.value: (u.current_value, u.limit) for u in cloud.compute.usage.list("eastus")}
    assert usages["lowPriorityCores"] == (2, 16)
    assert usages["cores"] == (0, 100)
    assert usages["virtualMachines"][0] == 1
    assert usages["standardDSv3Family"] == (0, 100)
    elsewhere = {u.name.value: u.current_value for u in cloud.compute.usage.list("westus2")}
    assert elsewhere["lowPriorityCores"] == 0


def test_sizes_of_a_region_can_be_listed(cloud: Cloud) -> None:
    sizes = {s.name: s.number_of_cores for s in cloud.compute.virtual_machine_sizes.list("eastus")}
    assert sizes["Standard_NC4as_T4_v3"] == 4


def test_images_are_bare_lists_down_to_one_version(cloud: Cloud) -> None:
    images = cloud.compute.virtual_machine_images
    assert "nvidia" in {p.name for p in images.list_publishers("eastus")}
    assert {o.name for o in images.list_offers("eastus", "nvidia")} >= {"ngc_azure_17_11"}
    assert "2204" in {s.name for s in images.list_skus("eastus", "microsoft-dsvm", "ubuntu-hpc")}
    newest = images.list("eastus", "microsoft-dsvm", "ubuntu-hpc", "2204", top=1, orderby="name desc")
    assert [v.name for v in newest] == ["22.04.2026062201"]
    one = images.get("eastus", "nvidia", "ngc_azure_17_11", "ngc-base-version-25_9_1_gen2", "25.9.1")
    assert one.plan.product == "ngc_azure_17_11"
    assert one.os_disk_image.operating_system == "Linux"
    assert isinstance(cloud.call("GET", f"{LOCATION}/publishers").body, list)


def test_an_image_that_is_not_there_is_not_found(cloud: Cloud) -> None:
    reply = cloud.call("GET", f"{LOCATION}/publishers/nobody/artifacttypes/vmimage/offers")
    assert (reply.status, reply.body["error"]["code"]) == (404, "NotFound")

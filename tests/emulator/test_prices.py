"""The price list: open to everyone, in Azure's shape, a page at a time."""

import json
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from cloudtrain.azure.wsgi_transport import WsgiAdapter

from .conftest import Cloud

# Every field of an answer, as recorded in the documentation of the API.
FIELDS = [
    "currencyCode",
    "tierMinimumUnits",
    "retailPrice",
    "unitPrice",
    "armRegionName",
    "location",
    "effectiveStartDate",
    "meterId",
    "meterName",
    "productId",
    "skuId",
    "productName",
    "skuName",
    "serviceName",
    "serviceId",
    "serviceFamily",
    "unitOfMeasure",
    "type",
    "isPrimaryMeterRegion",
    "armSkuName",
]


def ask(cloud: Cloud, wanted: str = "", url: str = "") -> Any:
    url = url or "https://prices.azure.com/api/retail/prices?" + urlencode({"$filter": wanted})
    reply = WsgiAdapter(cloud.azure).send(requests.Request("GET", url).prepare())
    return reply.status_code, json.loads(reply.content)


def of(size: str, region: str = "eastus") -> str:
    return f"armRegionName eq '{region}' and armSkuName eq '{size}' and priceType eq 'Consumption'"


def test_a_size_has_meters_for_spot_low_priority_on_demand_and_windows(cloud: Cloud) -> None:
    status, body = ask(cloud, of("Standard_D2s_v3"))
    assert status == 200 and body["Count"] == len(body["Items"]) == 6 and body["NextPageLink"] is None
    assert all(list(item) == FIELDS for item in body["Items"])
    assert {item["skuName"] for item in body["Items"]} == {"D2s v3", "D2s v3 Spot", "D2s v3 Low Priority"}
    assert sum(item["productName"].endswith(" Windows") for item in body["Items"]) == 3
    _, spot = ask(cloud, of("Standard_D2s_v3") + " and contains(meterName,'Spot')")
    assert {item["meterName"] for item in spot["Items"]} == {"D2s v3 Spot"}


def test_what_cannot_be_spot_or_is_not_sold_has_no_such_meter(cloud: Cloud) -> None:
    assert {item["skuName"] for item in ask(cloud, of("Standard_B2s"))[1]["Items"]} == {"B2s"}
    for unknown in (of("Standard_Nonsense9"), of("standard_d2s_v3"), of("Standard_D2s_v3", "EastUS")):
        assert ask(cloud, unknown)[1]["Items"] == []


def test_regions_have_prices_of_their_own(cloud: Cloud) -> None:
    def price(region: str) -> float:
        items = ask(cloud, of("Standard_D2s_v3", region))[1]["Items"]
        return float(next(item["retailPrice"] for item in items if item["skuName"] == "D2s v3"))

    assert price("westeurope") > price("eastus")


def test_a_long_list_comes_in_pages_that_name_the_next_one(cloud: Cloud) -> None:
    _, page = ask(cloud, "serviceName eq 'Virtual Machines'")
    seen = {item["meterId"] for item in page["Items"]}
    pages = 1
    while page["NextPageLink"]:
        _, page = ask(cloud, url=page["NextPageLink"])
        seen |= {item["meterId"] for item in page["Items"]}
        pages += 1
    assert pages > 3 and len(seen) > 300


@pytest.mark.parametrize("wanted", ["armSkuName like 'x'", "armSkuName eq 'x' or armSkuName eq 'y'"])
def test_a_filter_that_it_does_not_know_is_refused(cloud: Cloud, wanted: str) -> None:
    assert ask(cloud, wanted)[0] == 400


def test_only_the_price_list_is_open_to_everyone(cloud: Cloud) -> None:
    for url in (
        "https://management.azure.com/api/retail/prices",
        f"https://management.azure.com{cloud.subscription}?api-version=2022-12-01",
    ):
        reply = WsgiAdapter(cloud.azure).send(requests.Request("GET", url).prepare())
        assert reply.status_code == 401
    subscription = f"https://prices.azure.com{cloud.subscription}?api-version=2022-12-01"
    assert WsgiAdapter(cloud.azure).send(requests.Request("GET", subscription).prepare()).status_code == 404

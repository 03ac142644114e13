"""The Retail Prices API, https://prices.azure.com: another host than Resource Manager's, and open to everyone.

It answers the prices of this embedded Azure (the catalog's, and what the person rehearsing has set), in Azure's shape.
"""

import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping
from urllib.parse import urlencode

from cloudtrain.emulator import catalog, market
from cloudtrain.emulator.catalog import Region, Size
from cloudtrain.emulator.store import Json, Records, Store
from cloudtrain.emulator.wire import Answer

HOST = "prices.azure.com"
PATH = "/api/retail/prices"
PAGE = 100
# Low Priority and Windows meters are told apart from ours by names alone. Shares of the on-demand price: ours.
_LOW_PRIORITY, _WINDOWS = 0.2, 1.9
_EQUALS = re.compile(r"^(?P<field>\w+) eq '(?P<value>[^']*)'$")
_CONTAINS = re.compile(r"^contains\((?P<field>\w+),\s*'(?P<value>[^']*)'\)$")
# Some fields are called otherwise in a filter than in an answer.
_FIELDS = {"priceType": "type"}


def answer(store: Store, path: str, query: Mapping[str, str]) -> Answer:
    if path.rstrip("/").lower() != PATH:
        return Answer(404, {"statusCode": 404, "message": "Resource not found"})
    try:
        conditions = _conditions(query.get("$filter", ""))
        skipped = int(query.get("$skip", "0"))
    except ValueError:
        return Answer(400, {"Error": {"Code": "BadRequest", "Message": "Invalid OData parameters supplied"}})
    with store.read() as records:
        everything = (*_items(records, conditions), *_other_items(conditions))
        found = [item for item in everything if _fits(item, conditions)]
    page = found[skipped : skipped + PAGE]
    more = skipped + PAGE < len(found)
    following = {**query, "$skip": str(skipped + PAGE)}
    return Answer(
        200,
        {
            "BillingCurrency": "USD",
            "CustomerEntityId": "Default",
            "CustomerEntityType": "Retail",
            "Items": page,
            "NextPageLink": f"https://{HOST}:443{PATH}?{urlencode(following)}" if more else None,
            "Count": len(page),
        },
    )


def _conditions(text: str) -> list[tuple[str, str, bool]]:
    """(field, value, whether it has to be equal). Raises ValueError."""
    found = []
    for part in filter(None, re.split(r"\s+and\s+", text.strip())):
        match = _EQUALS.match(part.strip()) or _CONTAINS.match(part.strip())
        if match is None:
            raise ValueError(part)
        found.append((_FIELDS.get(match["field"], match["field"]), match["value"], match.re is _EQUALS))
    return found


def _fits(item: Json, conditions: list[tuple[str, str, bool]]) -> bool:
    # Values are case-sensitive since version 2023-01-01-preview.
    return all(
        item.get(field) == value if equal else value in str(item.get(field, "")) for field, value, equal in conditions
    )


def _items(records: Records, conditions: list[tuple[str, str, bool]]) -> Iterator[Json]:
    wanted = {field: value for field, value, equal in conditions if equal}
    for region in catalog.REGIONS.values():
        for size in catalog.sizes_in(region.name):
            if (
                wanted.get("armRegionName", region.name) == region.name
                and wanted.get("armSkuName", size.name) == size.name
            ):
                yield from _meters(records, size, region)


# Of what is not a VM: service, its id, product, SKU, meter, unit, and the figures of the emulator's own in eastus, USD.
# The names are those that Azure's list is believed to have; none was recorded.
_DISKS = {"E6": 4.8, "E10": 9.6, "E15": 19.2, "E20": 38.4, "E30": 76.8, "E40": 153.6, "E50": 307.2}
_ADDRESS = "Standard IPv4 Static Public IP"
_OTHERS = (
    *(
        ("Storage", "DZH317F1HKN0", "Standard SSD Managed Disks", f"{tier} LRS", f"{tier} LRS Disk", "1/Month", price)
        for tier, price in _DISKS.items()
    ),
    ("Storage", "DZH317F1HKN0", "General Block Blob v2", "Hot LRS", "Hot LRS Data Stored", "1 GB/Month", 0.02),
    ("Storage", "DZH317F1HKN0", "General Block Blob v2", "Hot LRS", "Hot LRS Write Operations", "10K", 0.06),
    ("Virtual Network", "DZH314HC0WV9", "IP Addresses", "Standard", _ADDRESS, "1 Hour", 0.005),
)  # fmt: skip
_FAMILIES = {"Storage": "Storage", "Virtual Network": "Networking"}


def _other_items(conditions: list[tuple[str, str, bool]]) -> Iterator[Json]:
    wanted = {field: value for field, value, equal in conditions if equal}
    if wanted.get("serviceName", "Storage") not in _FAMILIES:
        return
    for region in catalog.REGIONS.values():
        for service, service_id, product, sku, meter, unit, price in _OTHERS:
            key = f"{region.name}:{product}:{sku}:{meter}"
            item = _item(region, key, product, sku, meter, round(price * region.price_factor, 5))
            yield item | {
                "serviceName": service,
                "serviceId": service_id,
                "serviceFamily": _FAMILIES[service],
                "unitOfMeasure": unit,
                "armSkuName": "",
            }


def _meters(records: Records, size: Size, region: Region) -> Iterator[Json]:
    on_demand = catalog.on_demand_price(size, region.name)
    prices = {"": on_demand}
    if size.spot:
        spot = market.spot_price(records, size, region.name)
        prices |= {" Spot": spot, " Low Priority": round(on_demand * _LOW_PRIORITY, 5)}
    for ending, price in prices.items():
        yield _meter(size, region, ending, price, windows=False)
        yield _meter(size, region, ending, round(price * _WINDOWS, 5), windows=True)


def _meter(size: Size, region: Region, ending: str, price: float, *, windows: bool) -> Json:
    name = size.short.replace("_", " ") + ending
    product = (size.product or f"Virtual Machines {size.family_display.split()[1]} Series") + (
        " Windows" if windows else ""
    )
    key = f"{region.name}:{size.name}:{name}:{product}"
    return _item(region, key, product, name, name, price) | {
        "serviceName": "Virtual Machines",
        "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour",
        "armSkuName": size.name,
    }


def _item(region: Region, key: str, product: str, sku: str, meter: str, price: float) -> Json:
    return {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": price,
        "unitPrice": price,
        "armRegionName": region.name,
        "location": region.retail_name,
        "effectiveStartDate": f"{catalog.PRICES_OF}T00:00:00Z",
        "meterId": str(uuid.uuid5(uuid.NAMESPACE_URL, key)),
        "meterName": meter,
        "productId": "DZH318Z0" + hashlib.sha256(product.encode()).hexdigest()[:4].upper(),
        "skuId": "DZH318Z0" + hashlib.sha256(product.encode()).hexdigest()[:4].upper() + "/" + _sku_suffix(key),
        "productName": product,
        "skuName": sku,
        "serviceName": "",
        "serviceId": "",
        "serviceFamily": "",
        "unitOfMeasure": "",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": "",
    }


def _sku_suffix(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:4].upper()

"""What a size costs: Azure's Retail Prices API, which needs no login and has no SDK."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from cloudtrain.azure.errors import translated
from cloudtrain.azure.session import PRICES_URL, Session
from cloudtrain.errors import CloudtrainError, Exit

# Values of a filter are case-sensitive in this version.
API_VERSION = "2023-01-01-preview"
# A list that does not answer must not hold anybody up for long.
TIMEOUT_SECONDS = 5


@dataclass(frozen=True)
class Prices:
    """USD an hour of a Linux VM; None where the list has no such meter. spot_since: since when the Spot price is in
    force, ISO 8601."""

    spot: float | None
    on_demand: float | None
    spot_since: str = ""


@dataclass(frozen=True)
class Standing:
    """USD an hour of what bills whether the VM runs or not; None where the list has no such meter. disk: of that size.
    address: public, Standard. gib: a GiB of blobs. write: USD for one write of a blob."""

    disk: float | None = None
    address: float | None = None
    gib: float | None = None
    write: float | None = None


# Azure bills months of 730 hours.
HOURS_A_MONTH = 730
# GiB of a Standard SSD -> its tier; Azure bills a disk as the smallest tier that holds it.
TIERS = {64: "E6", 128: "E10", 256: "E15", 512: "E20", 1024: "E30", 2048: "E40", 4096: "E50"}


BLOBS = "General Block Blob v2"


def look_up_standing(session: Session, location: str, disk_gb: int) -> Standing:
    """Raises CloudtrainError. An assumption: the names of products, SKUs and meters, which Azure's list does not
    explain; where they differ, nothing is found, and the price counts as unknown."""
    tier = next((name for size, name in TIERS.items() if disk_gb <= size), "E50")
    with _told():
        return Standing(
            disk=_monthly(session, location, "Standard SSD Managed Disks", f"{tier} LRS", f"{tier} LRS Disk"),
            address=_hourly(session, location),
            gib=_monthly(session, location, BLOBS, "Hot LRS", "Hot LRS Data Stored"),
            write=_each(session, location, BLOBS, "Hot LRS", "Hot LRS Write Operations"),
        )


def _monthly(session: Session, location: str, product: str, sku: str, meter: str) -> float | None:
    found = _of_product(session, location, "Storage", product, sku, meter)
    monthly = _lowest([item for item in found if item["unitOfMeasure"] in ("1/Month", "1 GB/Month")])
    return None if monthly is None else monthly / HOURS_A_MONTH


def _each(session: Session, location: str, product: str, sku: str, meter: str) -> float | None:
    found = _of_product(session, location, "Storage", product, sku, meter)
    of_ten_thousand = _lowest([item for item in found if item["unitOfMeasure"] == "10K"])
    return None if of_ten_thousand is None else of_ten_thousand / 10_000


def _hourly(session: Session, location: str) -> float | None:
    found = _of_product(
        session, location, "Virtual Network", "IP Addresses", "Standard", "Standard IPv4 Static Public IP"
    )
    return _lowest([item for item in found if item["unitOfMeasure"] == "1 Hour"])


def _of_product(
    session: Session, location: str, service: str, product: str, sku: str, meter: str
) -> list[dict[str, Any]]:
    """The first tier of each: later ones, after so many units, cost less."""
    wanted = (
        f"serviceName eq '{service}' and armRegionName eq '{location}' and productName eq '{product}' "
        f"and skuName eq '{sku}' and meterName eq '{meter}' and priceType eq 'Consumption'"
    )
    return [item for item in _found(session, wanted) if not float(item.get("tierMinimumUnits") or 0)]


def look_up(session: Session, location: str, size: str) -> Prices:
    """Raises CloudtrainError where the list cannot be reached or read."""
    with _told():
        meters = [item for item in _items(session, location, size) if _counts(item)]
        spot = [item for item in meters if _is_spot(item)]
        return Prices(
            spot=_lowest(spot),
            on_demand=_lowest([item for item in meters if not _is_spot(item)]),
            spot_since=max((str(item["effectiveStartDate"]) for item in spot), default=""),
        )


@contextmanager
def _told() -> Iterator[None]:
    with translated("reading the price list"):
        try:
            yield
        except (ValueError, KeyError, TypeError) as error:
            raise CloudtrainError(
                "UnreadablePrices",
                f"The price list's answer could not be read ({type(error).__name__}: {error}).",
                "",
                Exit.UNREACHABLE,
            ) from error


def _items(session: Session, location: str, size: str) -> Iterator[dict[str, Any]]:
    """Every meter of the size."""
    return _found(
        session,
        f"serviceName eq 'Virtual Machines' and armRegionName eq '{location}' "
        f"and armSkuName eq '{size}' and priceType eq 'Consumption'",
    )


def _found(session: Session, wanted: str) -> Iterator[dict[str, Any]]:
    """Over all pages."""
    from azure.core.rest import HttpRequest

    url: str | None = f"{PRICES_URL}/api/retail/prices?api-version={API_VERSION}&$filter={quote(wanted)}"
    while url:
        answer = session.prices.send_request(
            HttpRequest("GET", url), connection_timeout=TIMEOUT_SECONDS, read_timeout=TIMEOUT_SECONDS
        )
        answer.raise_for_status()
        page = answer.json()
        yield from page["Items"]
        url = page.get("NextPageLink")
        if url and urlsplit(url).hostname != urlsplit(PRICES_URL).hostname:
            raise ValueError(f"it goes on at another host: {url}")


def _counts(item: dict[str, Any]) -> bool:
    """Meters by the hour of a Linux VM; Low Priority is an older kind, for batch pools only."""
    return (
        item["unitOfMeasure"] == "1 Hour"
        and not item["productName"].endswith(" Windows")
        and "Low Priority" not in item["skuName"]
    )


def _is_spot(item: dict[str, Any]) -> bool:
    return str(item["skuName"]).endswith(" Spot")


def _lowest(items: list[dict[str, Any]]) -> float | None:
    # A meter may stand there once more without being the primary one of its region, at the same price.
    return min((float(item["retailPrice"]) for item in items), default=None)

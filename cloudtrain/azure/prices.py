"""What a size costs: Azure's Retail Prices API, which needs no login and has no SDK."""

from collections.abc import Iterator
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


def look_up(session: Session, location: str, size: str) -> Prices:
    """Raises CloudtrainError where the list cannot be reached or read."""
    with translated("reading the price list"):
        try:
            meters = [item for item in _items(session, location, size) if _counts(item)]
            spot = [item for item in meters if _is_spot(item)]
            return Prices(
                spot=_lowest(spot),
                on_demand=_lowest([item for item in meters if not _is_spot(item)]),
                spot_since=max((str(item["effectiveStartDate"]) for item in spot), default=""),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CloudtrainError(
                "UnreadablePrices",
                f"The price list's answer could not be read ({type(error).__name__}: {error}).",
                "",
                Exit.UNREACHABLE,
            ) from error


def _items(session: Session, location: str, size: str) -> Iterator[dict[str, Any]]:
    """Every meter of the size, over all pages."""
    from azure.core.rest import HttpRequest

    wanted = (
        f"serviceName eq 'Virtual Machines' and armRegionName eq '{location}' "
        f"and armSkuName eq '{size}' and priceType eq 'Consumption'"
    )
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

"""The subscription itself: its state, its offer, and the regions it sees."""

from dataclasses import dataclass
from typing import Any

from cloudtrain.azure.errors import translated
from cloudtrain.azure.session import Session

# azure-mgmt-resource has no subscriptions any more; the version that the portal and azure-cli use.
API_VERSION = "2022-12-01"


@dataclass(frozen=True)
class Subscription:
    """state: Enabled, Warned, PastDue, Disabled or Deleted. offer: the quotaId, 'PayAsYouGo_2014-09-01'."""

    id: str
    name: str
    state: str
    offer: str


def find(session: Session) -> Subscription:
    """Raises Refused where there is none of that id for this login."""
    with translated("reading the subscription"):
        found = _get(session, "")
    policies = found.get("subscriptionPolicies") or {}
    return Subscription(
        id=session.subscription_id,
        name=str(found.get("displayName", "")),
        state=str(found.get("state", "")),
        offer=str(policies.get("quotaId", "")),
    )


def regions(session: Session) -> dict[str, str]:
    """Name -> display name of the regions where resources can be. Without the logical ones, such as `europe`."""
    with translated("listing the regions"):
        found = _get(session, "/locations")["value"]
    return {
        one["name"]: one.get("displayName", one["name"])
        for one in found
        if (one.get("metadata") or {}).get("regionType", "Physical") == "Physical"
    }


def _get(session: Session, path: str) -> Any:
    from azure.core.rest import HttpRequest

    url = f"/subscriptions/{session.subscription_id}{path}"
    answer = session.resources.send_request(HttpRequest("GET", url, params={"api-version": API_VERSION}))
    answer.raise_for_status()
    return answer.json()

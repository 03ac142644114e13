"""What Azure's resource health says of a VM that went off: evicted, or deallocated by somebody.

Azure shows an evicted VM exactly as one that somebody deallocated; its latest health annotation tells them apart. It
comes minutes late, only the latest is kept, and reading it may be forbidden: then nothing is known."""

import logging
from datetime import datetime

import msgspec

from cloudtrain.azure.session import Session

QUERY = (
    "HealthResources | where type =~ 'microsoft.resourcehealth/resourceannotations' "
    "| where properties.targetResourceId =~ '{vm_id}' | project properties"
)
# Names: Microsoft's table of VM annotations. Contexts are spelt in several ways: only names are compared.
EVICTED = frozenset({"VirtualMachinePreempted"})
STOPPED = frozenset({"VirtualMachineDeallocationInitiated", "VirtualMachineStopInitiatedByControlPlane"})


def stopped_by_somebody(session: Session, vm_id: str, since: str) -> bool | None:
    """True: somebody deallocated or stopped it; False: Azure evicted it; None: Azure does not say.

    since: ISO 8601; what was annotated before is over."""
    latest = _latest(session, vm_id)
    if latest is None:
        return None
    name, at = latest
    if name in EVICTED:
        return False
    try:
        return True if name in STOPPED and at > datetime.fromisoformat(since) else None
    except ValueError:
        return None


def _latest(session: Session, vm_id: str) -> tuple[str, datetime] | None:
    from azure.core.exceptions import AzureError
    from azure.core.rest import HttpRequest

    request = HttpRequest(
        "POST",
        "/providers/Microsoft.ResourceGraph/resources",
        params={"api-version": "2021-03-01"},
        json={"subscriptions": [session.subscription_id], "query": QUERY.format(vm_id=vm_id)},
    )
    try:
        answer = session.resources.send_request(request)
        answer.raise_for_status()
        found = [
            (str(row["properties"]["annotationName"]), _moment(row["properties"]["occurredTime"]))
            for row in answer.json()["data"]
        ]
    except (AzureError, KeyError, TypeError, ValueError, msgspec.MsgspecError) as error:
        logging.getLogger(__name__).info("resource health tells nothing: %s", error)
        return None
    return max(found, key=lambda each: each[1], default=None)


def _moment(text: str) -> datetime:
    """Azure writes seven decimals and Z."""
    return msgspec.convert(text, datetime)

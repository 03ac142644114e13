"""Azure's activity log: who asked for what. A second source for a stop made elsewhere, where resource health says
nothing. It comes minutes late, too, and reading it may be forbidden: then nothing is known."""

import logging
from datetime import datetime

import msgspec

from cloudtrain.azure.session import Session

API_VERSION = "2015-04-01"
_ACTION = "microsoft.compute/virtualmachines/{}/action"
STOPS = frozenset(_ACTION.format(name) for name in ("deallocate", "poweroff"))
STARTS = frozenset(_ACTION.format(name) for name in ("start", "restart"))
# An operation that Azure refused, or that failed, stopped nothing.
IN_VAIN = frozenset({"failed", "canceled"})


def stopped_by_somebody(session: Session, vm_id: str, since: str, now: datetime) -> bool | None:
    """True: the last that somebody asked of the VM was to stop or deallocate it; None: the log does not say so. An
    eviction is not known to leave a mark there.

    since: ISO 8601; what was asked before is over."""
    from azure.core.exceptions import AzureError
    from azure.core.rest import HttpRequest

    span = f"eventTimestamp ge '{_utc(since)}' and eventTimestamp le '{_utc(now.isoformat())}'"
    request = HttpRequest(
        "GET",
        f"/subscriptions/{session.subscription_id}/providers/Microsoft.Insights/eventtypes/management/values",
        params={"api-version": API_VERSION, "$filter": f"{span} and resourceUri eq '{vm_id}'"},
    )
    try:
        answer = session.resources.send_request(request)
        answer.raise_for_status()
        asked = [_read(event) for event in answer.json()["value"]]
    except (AzureError, KeyError, TypeError, ValueError, msgspec.MsgspecError) as error:
        logging.getLogger(__name__).info("the activity log tells nothing: %s", error)
        return None
    last = max((each for each in asked if each[1] in STOPS | STARTS and each[2] not in IN_VAIN), default=None)
    return True if last is not None and last[1] in STOPS else None


def _read(event: dict[str, dict[str, str]]) -> tuple[datetime, str, str]:
    at = msgspec.convert(event["eventTimestamp"], datetime)
    return at, str(event["operationName"]["value"]).lower(), str(event["status"]["value"]).lower()


def _utc(moment: str) -> str:
    from datetime import UTC

    return datetime.fromisoformat(moment).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""Azure's own auto-shutdown of a VM: a backstop for the maximum duration that needs no client at all.

It knows only a time of the day, and fires on each: so it is set no earlier than a day before it is to fire. It
deallocates without asking the trainer beforehand, as any deallocation does, so a watcher is given the first chance."""

from datetime import UTC, datetime, timedelta
from typing import Any

from cloudtrain.azure import names
from cloudtrain.azure.errors import is_missing, translated
from cloudtrain.azure.group import Group
from cloudtrain.azure.session import Session

API_VERSION = "2018-09-15"
AFTER_THE_LIMIT = timedelta(minutes=5)
SOON = timedelta(hours=23, minutes=55)


def ensure(session: Session, group: Group, vm_id: str, now: datetime) -> str:
    """Bring the schedule in line with the run's maximum duration; its time, 'HHMM' UTC, '' for none.

    Raises CloudtrainError, as where the subscription is not registered for Microsoft.DevTestLab."""
    wanted, held = due(group.begun, group.spec.max_duration, now), _held(session, group)
    if wanted == held:
        return wanted
    with translated("setting Azure's auto-shutdown"):
        if wanted:
            session.resources.resources.begin_create_or_update_by_id(
                _id(group), _body(group, vm_id, wanted), api_version=API_VERSION, polling=session.polling()
            ).result()
        else:
            session.resources.resources.begin_delete_by_id(
                _id(group), api_version=API_VERSION, polling=session.polling()
            ).result()
    return wanted


def due(begun: float, max_duration: int, now: datetime) -> str:
    """When a schedule set now has to fire, 'HHMM' UTC; '' where none is to be set. begun: of the run, epoch seconds."""
    if not max_duration:
        return ""
    at = datetime.fromtimestamp(begun + max_duration, UTC) + AFTER_THE_LIMIT
    if not now < at < now + SOON:
        return ""
    return f"{at:%H%M}"


def name(run: str, generation: int) -> str:
    """Azure takes no other."""
    return f"shutdown-computevm-{names.vm(run, generation)}"


def _held(session: Session, group: Group) -> str:
    from azure.core.exceptions import HttpResponseError

    with translated("reading Azure's auto-shutdown"):
        try:
            found = session.resources.resources.get_by_id(_id(group), api_version=API_VERSION)
        except HttpResponseError as error:
            if is_missing(error):
                return ""
            raise
    properties = found.properties or {}
    return str((properties.get("dailyRecurrence") or {}).get("time", ""))


def _id(group: Group) -> str:
    schedule = name(group.run, group.generation)
    return f"{group.id}/providers/Microsoft.DevTestLab/schedules/{schedule}".lstrip("/")


def _body(group: Group, vm_id: str, time: str) -> dict[str, Any]:
    return {
        "location": group.place.location,
        "properties": {
            "status": "Enabled",
            "taskType": "ComputeVmShutdownTask",
            "dailyRecurrence": {"time": time},
            "timeZoneId": "UTC",
            "targetResourceId": vm_id,
            "notificationSettings": {"status": "Disabled"},
        },
    }

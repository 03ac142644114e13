"""Auto-shutdown of VMs (Microsoft.DevTestLab/schedules): a daily time at which a VM is deallocated.

From third-party templates and scripts; Azure's own answers were not seen. Nobody runs in the background of the embedded
Azure: a shutdown that was due is begun by the next request that comes."""

from datetime import UTC, datetime, timedelta

from cloudtrain.emulator import ids, operations, power, preconditions, timing
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Records, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, same, section, zulu

NAMESPACE = "Microsoft.DevTestLab"
TYPE = f"{NAMESPACE}/schedules"
_TASK = "ComputeVmShutdownTask"


def put(azure: Azure, request: Request, group: str, name: str) -> Answer:
    body = request.object()
    properties = section(body, "properties")
    with azure.store.write() as records:
        preconditions.registered(records, NAMESPACE)
        preconditions.writable_group(records, request.subscription, group)
        location = preconditions.location(body, TYPE)
        vm = _target(records, properties, name)
        _time(properties)
        schedule_id = ids.resource_id(request.subscription, group, TYPE, name)
        known = records.resource(schedule_id)
        now = azure.now()
        shown: Json = {
            "id": schedule_id,
            "name": name,
            "type": TYPE,
            "location": location,
            "properties": {
                "status": properties.get("status", "Enabled"),
                "taskType": _TASK,
                "dailyRecurrence": properties["dailyRecurrence"],
                "timeZoneId": properties.get("timeZoneId", "UTC"),
                "notificationSettings": properties.get("notificationSettings", {"status": "Disabled"}),
                "createdDate": zulu(known.created if known else now),
                "targetResourceId": vm.id,
                "provisioningState": "Succeeded",
            },
        }
        kept = known or Resource(schedule_id, TYPE, name, location, shown, created=now, changed=now)
        kept.body, kept.changed = shown, now
        kept.private["checked"] = now
        records.put(kept)
    return Answer(200 if known else 201, shown)


def _target(records: Records, properties: Json, name: str) -> Resource:
    vm = records.resource(str(properties.get("targetResourceId", "")))
    if vm is None or vm.type != ids.VM:
        raise _invalid("The target resource of the schedule was not found.")
    if not same(name, f"shutdown-computevm-{vm.name}") or not same(str(properties.get("taskType")), _TASK):
        raise _invalid(f"A schedule of a virtual machine is a {_TASK} named 'shutdown-computevm-{vm.name}'.")
    if str(properties.get("timeZoneId", "UTC")) != "UTC":
        raise ArmError(501, "OperationNotEmulated", "The embedded Azure has schedules in UTC only.")
    return vm


def _time(properties: Json) -> tuple[int, int]:
    text = str(section(properties, "dailyRecurrence").get("time", ""))
    if len(text) != 4 or not text.isdigit() or int(text[:2]) > 23 or int(text[2:]) > 59:
        raise _invalid(f"The time '{text}' of the daily recurrence is not of the form HHmm.")
    return int(text[:2]), int(text[2:])


def _invalid(message: str) -> ArmError:
    return ArmError(400, "InvalidScheduleRequest", message)


def get(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        return Answer(200, _found(records, request, group, name).body)


def delete(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        known = records.resource(ids.resource_id(request.subscription, group, TYPE, name))
        if known is None:
            return Answer(204)
        records.delete(known.id)
    return Answer(200)


def _found(records: Records, request: Request, group: str, name: str) -> Resource:
    preconditions.readable_group(records, request.subscription, group)
    known = records.resource(ids.resource_id(request.subscription, group, TYPE, name))
    if known is None:
        raise preconditions.resource_not_found(TYPE, name, group)
    return known


def shut_down_what_is_due(azure: Azure) -> None:
    """Begin the shutdowns whose time has come since the last request."""
    with azure.store.read() as records:
        due = [schedule.id for schedule in records.resources(TYPE) if _is_due(schedule, azure.now())]
    for schedule_id in due:
        begun = None
        with azure.store.write() as records:
            schedule = records.resource(schedule_id)
            if schedule is None or not _is_due(schedule, azure.now()):
                continue
            vm = records.resource(schedule.body["properties"]["targetResourceId"])
            if vm is not None and power.phase(vm) == power.RUNNING:
                if power.vm_operations(records, vm):
                    continue  # the next request tries again
                begun = power.begin(azure, records, vm, "vm.deallocate")
            schedule.private["checked"] = azure.now()
            records.put(schedule)
        if begun is not None:
            operations.advance(azure, begun.seq, patience=timing.PATIENCE_SECONDS)


def _is_due(schedule: Resource, now: float) -> bool:
    properties = schedule.body["properties"]
    if not same(properties["status"], "Enabled"):
        return False
    hour, minute = _time(properties)
    checked = datetime.fromtimestamp(schedule.private["checked"], UTC)
    next_time = checked.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if next_time <= checked:
        next_time += timedelta(days=1)
    return next_time.timestamp() <= now


_PATH = "/subscriptions/<subscription>/resourcegroups/<group>/providers/microsoft.devtestlab/schedules/<name>"
ROUTES = [
    Route("PUT", _PATH, "Schedules_CreateOrUpdate", put),
    Route("GET", _PATH, "Schedules_Get", get),
    Route("DELETE", _PATH, "Schedules_Delete", delete),
]

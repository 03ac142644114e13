"""The one table of Azure Resource Graph that is emulated: HealthResources, with the annotations of VMs."""

import re

from cloudtrain.emulator import health, ids, power
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, same

_CLAUSE = re.compile(r"^where\s+(?P<field>[\w.]+)\s*=~\s*'(?P<value>[^']*)'$", re.IGNORECASE)
_ANNOTATIONS = "microsoft.resourcehealth/resourceannotations"


def query(azure: Azure, request: Request) -> Answer:
    """HealthResources, filtered by `where FIELD =~ 'VALUE'`, with `project properties` at the end."""
    text = str(request.object().get("query", ""))
    table, *clauses = [part.strip() for part in text.split("|")]
    if not same(table, "HealthResources") or not clauses or not same(clauses[-1], "project properties"):
        raise _not_emulated(text)
    wanted = []
    for clause in clauses[:-1]:
        match = _CLAUSE.match(clause)
        if match is None:
            raise _not_emulated(text)
        wanted.append((match["field"].lower(), match["value"]))
    rows = [row for vm in _asked_for(azure, wanted) if (row := health.annotation(vm)) is not None]
    data = [{"properties": row} for row in rows if all(_holds(row, *each) for each in wanted)]
    count = len(data)
    return Answer(
        200,
        {"totalRecords": count, "count": count, "data": data, "facets": [], "resultTruncated": "false"},
    )


def _asked_for(azure: Azure, wanted: list[tuple[str, str]]) -> list[Resource]:
    """The VMs among which those are that are wanted, as their machines are now."""
    named = next((value for field, value in wanted if field == "properties.targetresourceid"), None)
    parsed = None if named is None else ids.parse(named)
    if named is not None and (parsed is None or not same(parsed.type, ids.VM)):
        return []
    power.observe(azure, parsed.group if parsed else None, parsed.names[0] if parsed else None)
    with azure.store.read() as records:
        if named is None:
            return records.resources(ids.VM)
        vm = records.resource(named)
        return [] if vm is None else [vm]


def _holds(row: Json, field: str, value: str) -> bool:
    if field == "type":
        return same(value, _ANNOTATIONS)
    held = {f"properties.{key.lower()}": text for key, text in row.items()}
    return field in held and same(held[field], value)


def _not_emulated(text: str) -> ArmError:
    return ArmError(
        501, "OperationNotEmulated", f"The embedded Azure's Resource Graph does not know the query '{text}'."
    )


ROUTES = [Route("POST", "/providers/microsoft.resourcegraph/resources", "ResourceGraph_Resources", query)]

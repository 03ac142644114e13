"""Resource groups, the generic list of resources, and tags."""

import re
from typing import Any

from cloudtrain.emulator import account_files, ids, operations, preconditions, timing
from cloudtrain.emulator.operations import Azure, Kind, NotYet, Outcome
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Operation, Records, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, same, zulu

_NAME = r"[-\w\._\(\)]*[-\w_\(\)]"
HIDDEN_TYPES = frozenset({ids.GROUP.lower(), ids.ROLE_ASSIGNMENT.lower(), ids.DEPLOYMENT.lower()})


# groups


def _shape(group: Resource) -> Json:
    order = ("id", "name", "type", "location", "managedBy", "tags", "properties")
    return {key: group.body[key] for key in order if key in group.body}


def new_group(records: Records, azure: Azure, subscription: str, name: str, location: str) -> Resource:
    group_id = ids.group_id(subscription, name)
    body: Json = {
        "id": group_id,
        "name": name,
        "type": ids.GROUP,
        "location": location,
        "properties": {"provisioningState": "Succeeded"},
    }
    now = azure.now()
    return records.put(Resource(group_id, ids.GROUP, name, location, body, created=now, changed=now))


def put_group(azure: Azure, request: Request, group: str) -> Answer:
    body = request.object()
    _check_group_name(group)
    location = preconditions.location(body, ids.GROUP)
    tags = preconditions.tags(body.get("tags"))
    with azure.store.write() as records:
        known = records.resource(ids.group_id(request.subscription, group))
        if known is not None:
            preconditions.writable_group(records, request.subscription, group)
            if not same(known.location, location):
                raise ArmError(
                    409,
                    "InvalidResourceGroupLocation",
                    f"Invalid resource group location '{location}'. "
                    f"The Resource group already exists in location '{known.location}'.",
                )
        kept = known or new_group(records, azure, request.subscription, group, location)
        for key, value in (("tags", tags), ("managedBy", body.get("managedBy"))):
            kept.body.pop(key, None)
            if value is not None:
                kept.body[key] = value
        kept.changed = azure.now()
        records.put(kept)
    return Answer(200 if known else 201, _shape(kept))


def _check_group_name(name: str) -> None:
    if len(name) > 90:
        raise ArmError(
            400,
            "InvalidResourceGroupName",
            f"The provided resource group name '{name}' has {len(name)} characters; at most 90 are allowed.",
        )
    if not re.fullmatch(_NAME, name):
        wrong = "".join(sorted(set(re.sub(r"[-\w._()]", "", name)))) or "."
        raise ArmError(
            400,
            "InvalidResourceGroupName",
            f"The provided resource group name '{name}' has these invalid characters: '{wrong}'. The name "
            "can only "
            "be a letter, digit, '-', '.', '(', ')' or '_', and cannot end with '.'.",
        )


def get_group(azure: Azure, request: Request, group: str) -> Answer:
    with azure.store.read() as records:
        return Answer(200, _shape(preconditions.readable_group(records, request.subscription, group)))


def head_group(azure: Azure, request: Request, group: str) -> Answer:
    with azure.store.read() as records:
        known = records.resource(ids.group_id(request.subscription, group))
    return Answer(204) if known else Answer(404, None, {"x-ms-failure-cause": "gateway"})


def patch_group(azure: Azure, request: Request, group: str) -> Answer:
    body = request.object()
    tags = preconditions.tags(body.get("tags"))
    with azure.store.write() as records:
        known = preconditions.writable_group(records, request.subscription, group)
        if tags is not None:
            known.body["tags"] = tags
        if body.get("managedBy") is not None:
            known.body["managedBy"] = body["managedBy"]
        known.changed = azure.now()
        records.put(known)
    return Answer(200, _shape(known))


_TAG_FILTER = re.compile(
    r"^\s*tagname eq '(?P<name>(?:[^']|'')*)'(?:\s+and\s+tagvalue eq '(?P<value>(?:[^']|'')*)')?\s*$",
    re.IGNORECASE,
)


def list_groups(azure: Azure, request: Request) -> Answer:
    wanted = request.query.get("$filter")
    match = _TAG_FILTER.match(wanted) if wanted else None
    if wanted and match is None:
        raise _bad_filter(wanted)
    with azure.store.read() as records:
        groups = records.resources(ids.GROUP)
    if match is not None:
        value = match["value"]
        groups = [
            g
            for g in groups
            if _has_tag(g, match["name"].replace("''", "'"), None if value is None else value.replace("''", "'"))
        ]
    return Answer(200, {"value": [_shape(group) for group in groups]})


def delete_group(azure: Azure, request: Request, group: str) -> Answer:
    with azure.store.write() as records:
        known = preconditions.readable_group(records, request.subscription, group)
        if known.body["properties"]["provisioningState"] != "Deleting":
            known.body["properties"]["provisioningState"] = "Deleting"
            records.put(known)
            for other in records.open_operations(group=group):
                operations.cancel(records, other, azure.now())
            operation = operations.begin(
                azure,
                records,
                "group.delete",
                known.key,
                operation_id=operations.job_id(known.name, known.location),
            )
        else:
            operation = records.open_operations(target=known.key)[0]
    operations.advance(azure, operation.seq, patience=timing.PATIENCE_SECONDS)
    return Answer(202, None, _group_location(request, operation))


def _group_location(request: Request, operation: Operation) -> dict[str, str]:
    url = f"{request.base}/subscriptions/{request.subscription}/operationresults/{operation.id}"
    return {"Location": f"{url}?api-version={request.api_version}", **operations.polling_headers(operation)}


def get_operation_result(azure: Azure, request: Request, operation: str) -> Answer:
    found = operations.find(azure, operation)
    if found.open:
        return Answer(202, None, _group_location(request, found))
    if found.error is not None:
        return Answer(409, {"error": found.error})
    return Answer(200)


def _erase_machines(azure: Azure, operation: Operation) -> None:
    """Every VM of the group goes, whoever is working on it first lets go of it."""
    with azure.store.read() as records:
        machines = records.resources(ids.VM, operation.group)
    for vm in machines:
        with azure.locks.attempt(vm.seq) as mine:
            if not mine:
                raise NotYet
            azure.machines.erase(vm.private["vm_id"])


def _erase_blobs(azure: Azure, operation: Operation) -> None:
    with azure.store.read() as records:
        accounts = records.resources(ids.STORAGE_ACCOUNT, operation.group)
    if accounts:
        account_files.erase(azure, accounts)
    account_files.sweep(azure)


def _erase(azure: Azure, operation: Operation) -> None:
    _erase_machines(azure, operation)
    _erase_blobs(azure, operation)


def _settle_deletion(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    group = records.resource(operation.target)
    if group is None:
        return
    if outcome.error is not None:
        group.body["properties"]["provisioningState"] = "Succeeded"
        records.put(group)
        return
    for resource in records.resources(group=operation.group):
        records.delete(resource.id)
        records.drop_setting(f"notice:{resource.key}")


KINDS = {"group.delete": Kind(perform=_erase, settle=_settle_deletion)}


def export_template(azure: Azure, request: Request, group: str) -> Answer:
    with azure.store.read() as records:
        preconditions.readable_group(records, request.subscription, group)
        inside = [r for r in records.resources(group=group) if r.type.lower() not in HIDDEN_TYPES]
    if inside:
        raise ArmError(
            501,
            "OperationNotEmulated",
            "The embedded Azure has the operation 'ResourceGroups_ExportTemplate' for empty resource groups only.",
        )
    template = {
        "$schema": "https://schema.management.azure.com/schemas/2015-01-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "parameters": {},
        "variables": {},
        "resources": [],
    }
    return Answer(200, {"template": template})


# the generic list


_TERM = re.compile(
    r"^\s*(?P<field>resourceGroup|tagName|tagValue|resourceType|name|location)\s+(?P<op>eq|ne)\s+'(?P<value>(?:[^']|'')*)'\s*$",
    re.IGNORECASE,
)


def _bad_filter(text: str) -> ArmError:
    return ArmError(
        400,
        "InvalidFilterInQueryString",
        f"Invalid $filter '{text}' specified in the query string.",
    )


def _terms(text: str) -> list[tuple[str, bool, str]]:
    terms = []
    for part in re.split(r"\s+and\s+", text, flags=re.IGNORECASE):
        match = _TERM.match(part)
        if match is None:
            raise _bad_filter(text)
        terms.append((match["field"].lower(), match["op"].lower() == "eq", match["value"].replace("''", "'")))
    return terms


def _has_tag(resource: Resource, name: str, value: str | None) -> bool:
    for key, held in (resource.body.get("tags") or {}).items():
        if same(key, name) and (value is None or same(held, value)):
            return True
    return False


def _matches(resource: Resource, terms: list[tuple[str, bool, str]]) -> bool:
    values = {field: value for field, _, value in terms}
    facts = {
        "resourcegroup": resource.group,
        "resourcetype": resource.type,
        "name": resource.name,
        "location": resource.location,
    }
    for field, equal, value in terms:
        if field == "tagname":
            held = _has_tag(resource, value, values.get("tagvalue"))
        elif field == "tagvalue":
            held = "tagname" in values or any(same(v, value) for v in (resource.body.get("tags") or {}).values())
        else:
            held = same(facts[field], value)
        if held != equal:
            return False
    return True


def _generic(resource: Resource, expand: str) -> Json:
    shown: Json = {"id": resource.id, "name": "/".join(_names(resource)), "type": resource.type}
    for key in ("kind", "managedBy", "sku", "plan", "zones", "identity", "location", "tags"):
        if key in resource.body:
            shown[key] = resource.body[key]
    wanted = {part.strip().lower() for part in expand.split(",")}
    if "createdtime" in wanted:
        shown["createdTime"] = zulu(resource.created)
    if "changedtime" in wanted:
        shown["changedTime"] = zulu(resource.changed)
    if "provisioningstate" in wanted:
        state = resource.private.get("provisioning") or resource.body.get("properties", {}).get("provisioningState")
        shown["provisioningState"] = state or "Succeeded"
    return shown


def _names(resource: Resource) -> tuple[str, ...]:
    parsed = ids.parse(resource.id)
    return parsed.names if parsed else (resource.name,)


def _list(azure: Azure, request: Request, group: str | None) -> Answer:
    terms = _terms(request.query["$filter"]) if request.query.get("$filter") else []
    with azure.store.read() as records:
        if group is not None:
            preconditions.readable_group(records, request.subscription, group)
        found = [r for r in records.resources(group=group) if r.type.lower() not in HIDDEN_TYPES]
    found = [resource for resource in found if resource.group and _matches(resource, terms)]
    top = request.query.get("$top", "")
    if top.isdigit():
        found = found[: int(top)]
    return Answer(200, {"value": [_generic(resource, request.query.get("$expand", "")) for resource in found]})


def list_resources(azure: Azure, request: Request) -> Answer:
    return _list(azure, request, None)


def list_group_resources(azure: Azure, request: Request, group: str) -> Answer:
    return _list(azure, request, group)


# Microsoft.Resources/tags


def _scope(records: Records, request: Request, scope: str) -> Resource:
    found = records.resource("/" + scope)
    if found is None:
        parsed = ids.parse("/" + scope)
        if parsed is None or parsed.type == ids.GROUP:
            raise preconditions.group_not_found(scope.rsplit("/", 1)[-1])
        raise preconditions.resource_not_found(parsed.type, parsed.name, parsed.group)
    return found


def _tags_of(resource: Resource) -> Json:
    return {
        "id": f"{resource.id}/providers/Microsoft.Resources/tags/default",
        "name": "default",
        "type": "Microsoft.Resources/tags",
        "properties": {"tags": resource.body.get("tags") or {}},
    }


def get_tags(azure: Azure, request: Request, scope: str) -> Answer:
    with azure.store.read() as records:
        return Answer(200, _tags_of(_scope(records, request, scope)))


def _change_tags(azure: Azure, request: Request, scope: str, operation: str, given: Any) -> Answer:
    with azure.store.write() as records:
        resource = _scope(records, request, scope)
        preconditions.writable_group(records, request.subscription, resource.group)
        sent = preconditions.tags(given) or {}
        held = dict(resource.body.get("tags") or {})
        if operation == "replace":
            held = sent
        elif operation == "merge":
            held = {**{k: v for k, v in held.items() if k.lower() not in {s.lower() for s in sent}}, **sent}
        else:
            held = {k: v for k, v in held.items() if not (k in sent and sent[k] in ("", v))}
        resource.body["tags"] = preconditions.tags(held)
        resource.changed = azure.now()
        records.put(resource)
        return Answer(200, _tags_of(resource))


def put_tags(azure: Azure, request: Request, scope: str) -> Answer:
    return _change_tags(azure, request, scope, "replace", (request.object().get("properties") or {}).get("tags"))


def patch_tags(azure: Azure, request: Request, scope: str) -> Answer:
    body = request.object()
    operation = str(body.get("operation", "")).lower()
    if operation not in ("replace", "merge", "delete"):
        raise ArmError(
            400, "InvalidTagsPatchOperation", f"The operation '{operation}' is not Replace, Merge or Delete."
        )
    return _change_tags(azure, request, scope, operation, (body.get("properties") or {}).get("tags"))


def delete_tags(azure: Azure, request: Request, scope: str) -> Answer:
    _change_tags(azure, request, scope, "replace", {})
    return Answer(200)


_S = "/subscriptions/<subscription>"
_G = f"{_S}/resourcegroups/<group>"
_T = "/<path:scope>/providers/microsoft.resources/tags/default"
ROUTES = [
    Route("GET", f"{_S}/resourcegroups", "ResourceGroups_List", list_groups),
    Route("PUT", _G, "ResourceGroups_CreateOrUpdate", put_group),
    Route("GET", _G, "ResourceGroups_Get", get_group),
    Route("HEAD", _G, "ResourceGroups_CheckExistence", head_group),
    Route("PATCH", _G, "ResourceGroups_Update", patch_group),
    Route("DELETE", _G, "ResourceGroups_Delete", delete_group),
    Route("POST", f"{_G}/exporttemplate", "ResourceGroups_ExportTemplate", export_template),
    Route("GET", f"{_S}/operationresults/<operation>", "OperationResults_Get", get_operation_result),
    Route("GET", f"{_S}/resources", "Resources_List", list_resources),
    Route("GET", f"{_G}/resources", "Resources_ListByResourceGroup", list_group_resources),
    Route("GET", _T, "Tags_GetAtScope", get_tags),
    Route("PUT", _T, "Tags_CreateOrUpdateAtScope", put_tags),
    Route("PATCH", _T, "Tags_UpdateAtScope", patch_tags),
    Route("DELETE", _T, "Tags_DeleteAtScope", delete_tags),
]

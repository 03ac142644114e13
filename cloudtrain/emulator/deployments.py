"""Template deployments: Microsoft.Resources/deployments, the way in which `az vm create` makes a VM.

A deployment PUTs the resources of its template to their providers, each once what it depends on has succeeded. Like
every operation here it goes on with the requests that poll it, and another process takes it over after a kill."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from graphlib import CycleError, TopologicalSorter
from http import HTTPStatus
from typing import Any

from cloudtrain.emulator import compute, ids, interfaces, network, operations, preconditions, providers, sealing, timing
from cloudtrain.emulator import template as language
from cloudtrain.emulator.operations import Azure, Kind, NotYet, Outcome
from cloudtrain.emulator.routes import Handler, Route
from cloudtrain.emulator.store import Json, Operation, Records, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, entries, guid, same, section, text, zulu


@dataclass(frozen=True)
class _Provider:
    """Who makes a resource of a type: its PUT, its GET, and what the PUT calls the names of the id."""

    put: Handler
    get: Handler
    names: tuple[str, ...] = ("name",)


_TYPES: Mapping[str, _Provider] = {
    ids.VNET: _Provider(network.put_vnet, network.get_vnet),
    f"{ids.VNET}/subnets": _Provider(network.put_subnet, network.get_subnet, ("name", "subnet")),
    ids.NSG: _Provider(network.put_nsg, network.get_nsg),
    f"{ids.NSG}/securityRules": _Provider(network.put_rule, network.get_rule, ("name", "rule")),
    ids.PUBLIC_IP: _Provider(interfaces.put_public_ip, interfaces.get_public_ip),
    ids.NIC: _Provider(interfaces.put_nic, interfaces.get_nic),
    ids.VM: _Provider(compute.put_vm, compute.get_vm),
}
_NOT_HERE = ("copy", "condition", "scope", "resources", "subscriptionId", "resourceGroup")
_WAITING, _STARTING, _RUNNING, _SUCCEEDED, _FAILED = "Waiting", "Starting", "Running", "Succeeded", "Failed"


@dataclass
class _Step:
    """One resource of a template on its way. operation: the id of what its provider does; error: ARM's, when failed."""

    id: str
    type: str
    needs: list[str] = field(default_factory=list)  # ids
    state: str = _WAITING
    operation: str = ""
    error: Json | None = None
    status_code: str = ""
    started: float = 0.0
    ended: float = 0.0

    @property
    def name(self) -> str:
        parsed = ids.parse(self.id)
        return "/".join(parsed.names) if parsed else self.id


@dataclass(frozen=True)
class _Plan:
    """A template understood: every resource, in the template's order, with its body."""

    steps: list[_Step]
    bodies: dict[str, Json]  # by id; may hold secrets
    scope: language.Scope
    shown_parameters: Json
    outputs: Json  # expressions


# a request understood


def _plan(request: Request, group: str) -> _Plan:
    """Raises ArmError: InvalidTemplate, or what is not here."""
    properties = section(request.object(), "properties")
    template = _template(properties)
    values = language.parameters(template, section(properties, "parameters"), request.subscription, group)
    scope = language.Scope(request.subscription, group, values, section(template, "variables"))
    outputs = section(template, "outputs")
    language.check(outputs)
    steps: list[_Step] = []
    bodies: dict[str, Json] = {}
    for written in entries(template, "resources", "template"):
        resource = language.evaluate(written, scope)
        step = _step(request, group, resource)
        if step.id.lower() in bodies:
            raise language.invalid(
                f"The resource '{step.type}/{step.name}' is defined multiple times in a template. Please see "
                "https://aka.ms/arm-syntax-resources for usage details."
            )
        steps.append(step)
        bodies[step.id.lower()] = resource
    return _Plan(_ordered(steps), bodies, scope, language.shown_parameters(template, values), outputs)


def _template(properties: Json) -> Json:
    if properties.get("templateLink") or properties.get("parametersLink"):
        raise language.not_here("a template behind a link")
    if not same(text(properties, "mode", "properties") or "", "Incremental"):
        raise language.not_here(f"the mode '{properties.get('mode')}'")
    template = section(properties, "template")
    for key in ("$schema", "contentVersion", "resources"):
        if key not in template:
            raise language.invalid(
                f"The template has no '{key}'. Please see https://aka.ms/arm-syntax for usage details."
            )
    return template


def _step(request: Request, group: str, resource: Json) -> _Step:
    """One resource; what it needs is still as the template says it."""
    for key in _NOT_HERE:
        if resource.get(key):
            raise language.not_here(f"'{key}' of a resource")
    kind, name = text(resource, "type", "resources") or "", text(resource, "name", "resources") or ""
    if not text(resource, "apiVersion", "resources"):
        raise language.invalid(f"The template resource '{name}' has no 'apiVersion'.")
    known = next((known for known in _TYPES if same(known, kind)), None)
    if known is None:
        raise language.not_here(f"resources of type '{kind}'")
    names = name.split("/")
    if len(names) != len(_TYPES[known].names):
        raise language.invalid(
            f"The template resource '{name}' for type '{kind}' has incorrect segment lengths. A root resource must "
            "have segment length 1 less than its resource type. Please see https://aka.ms/arm-syntax-resources for "
            "usage details."
        )
    needs = resource.get("dependsOn") or []
    return _Step(ids.resource_id(request.subscription, group, known, *names), known, [str(need) for need in needs])


def _ordered(steps: list[_Step]) -> list[_Step]:
    """The steps in the template's order, with ids for what they need."""
    for step in steps:
        step.needs = [_needed(need, steps).id for need in step.needs]
    try:
        TopologicalSorter({step.id: step.needs for step in steps}).prepare()
    except CycleError as error:
        circle = " -> ".join(one.rsplit("/providers/", 1)[-1] for one in error.args[1])
        raise language.invalid(
            f"Circular dependency detected on resource: '{circle}'. Please see https://aka.ms/arm-syntax-resources "
            "for usage details."
        ) from None
    return steps


def _needed(need: str, steps: list[_Step]) -> _Step:
    """dependsOn names a resource by its id, by type and name, or by its name alone; without case."""
    for step in steps:
        relative = step.id.split("/providers/", 1)[-1]
        if any(same(need.strip("/"), form.strip("/")) for form in (step.id, relative, step.name)):
            return step
    raise language.invalid(
        f"The resource '{need}' is not defined in the template. Please see https://aka.ms/arm-syntax for usage details."
    )


def _preflight(records: Records, request: Request, group: str, name: str, plan: _Plan) -> None:
    """What the providers would refuse is told before anything is made."""
    for step in plan.steps:
        if step.type != ids.VM or records.resource(step.id) is not None:
            continue
        try:
            compute.check_new(records, request.subscription, step.name, plan.bodies[step.id.lower()])
        except ArmError as refusal:
            if refusal.code == "OperationNotEmulated":
                raise
            raise _refused(name, refusal) from None


def _refused(name: str, refusal: ArmError) -> ArmError:
    inner = refusal.error()
    if refusal.code == "ResourcePurchaseValidationFailed":
        return ArmError(
            400,
            "MarketplacePurchaseEligibilityFailed",
            "Marketplace purchase eligibilty check returned errors. See inner errors for details. ",  # [sic]
            details=[inner],
        )
    if "quota" in refusal.message and refusal.code == "OperationNotAllowed":
        inner["code"] = "QuotaExceeded"  # what Compute calls OperationNotAllowed where it is asked directly
    return ArmError(
        400,
        "InvalidTemplateDeployment",
        f"The template deployment '{name}' is not valid according to the validation procedure. The tracking id is "
        f"'{guid()}'. See inner errors for details.",
        details=[inner],
    )


# requests


def put_deployment(azure: Azure, request: Request, group: str, name: str) -> Answer:
    plan = _plan(request, group)
    with azure.store.write() as records:
        home = preconditions.writable_group(records, request.subscription, group)
        known = _existing(records, request, group, name)
        if known is not None and records.open_operations(target=known.key):
            raise ArmError(
                409,
                "DeploymentActive",
                f"Unable to edit or replace deployment '{name}': previous deployment is still active. Please see "
                "https://aka.ms/arm-deploy for usage details.",
            )
        _preflight(records, request, home.name, name, plan)
        for namespace in {step.type.split("/")[0] for step in plan.steps}:
            providers.register_at_once(records, namespace)  # Resource Manager does, for templates
        deployment = _new(azure, request, home, name, plan)
        records.put(deployment)
        secret = {"bodies": plan.bodies, "outputs": plan.outputs, "parameters": plan.scope.parameters}
        operation = operations.begin(
            azure,
            records,
            "deployment.create",
            deployment.key,
            {
                "deployment": deployment.id,
                "steps": [asdict(step) for step in plan.steps],
                "base": request.base,
                "variables": plan.scope.variables,
            },
            secret=sealing.seal(azure.secrets, secret),
        )
    operations.advance(azure, operation.seq, patience=timing.PATIENCE_SECONDS)
    accepted = {**deployment.body["properties"], "provisioningState": "Accepted", "duration": "PT0.0001186S"}
    headers = {
        "Azure-AsyncOperation": _status_url(request, home, name, operation),
        **operations.polling_headers(operation),
    }
    return Answer(200 if known else 201, {**deployment.body, "properties": accepted}, headers)


def _status_url(request: Request, home: Resource, name: str, operation: Operation) -> str:
    path = f"{ids.group_id(request.subscription, home.name)}/providers/{ids.DEPLOYMENT}/{name}"
    path = path.replace("/resourceGroups/", "/resourcegroups/")  # as recorded
    signed = f"api-version={request.api_version}&t=0&c=embedded&s=embedded&h=embedded"
    return f"{request.base}{path}/operationStatuses/{operation.id}?{signed}"


def _new(azure: Azure, request: Request, home: Resource, name: str, plan: _Plan) -> Resource:
    deployment_id = ids.resource_id(request.subscription, home.name, ids.DEPLOYMENT, name)
    properties: Json = {
        "templateHash": _hash(section(request.object(), "properties", "template")),
        "parameters": plan.shown_parameters,
        "mode": "Incremental",
        "provisioningState": "Running",
        "timestamp": zulu(azure.now()),
        "correlationId": guid(),
        "providers": _providers(plan),
        "dependencies": [
            {"dependsOn": [_target(one) for one in _steps_of(step, plan.steps)], **_target(step)}
            for step in plan.steps
            if step.needs
        ],
    }
    body: Json = {"id": deployment_id, "name": name, "type": ids.DEPLOYMENT, "properties": properties}
    now = azure.now()
    return Resource(deployment_id, ids.DEPLOYMENT, name, home.location, body, created=now, changed=now)


def _steps_of(step: _Step, steps: list[_Step]) -> list[_Step]:
    """What a step needs, in the template's order."""
    return [other for other in steps if other.id in step.needs]


def _target(step: _Step) -> Json:
    return {"id": step.id, "resourceType": step.type, "resourceName": step.name}


def _hash(template: Json) -> str:
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).digest()
    return str(int.from_bytes(digest[:8], "big"))


def _providers(plan: _Plan) -> list[Json]:
    shown: dict[str, dict[str, list[str]]] = {}
    for step in plan.steps:
        namespace, _, kind = step.type.partition("/")
        locations = shown.setdefault(namespace, {}).setdefault(kind, [])
        location = plan.bodies[step.id.lower()].get("location")
        if location and location not in locations:
            locations.append(location)
    return [
        {
            "namespace": namespace,
            "resourceTypes": [{"resourceType": kind, "locations": places or [None]} for kind, places in kinds.items()],
        }
        for namespace, kinds in shown.items()
    ]


def validate(azure: Azure, request: Request, group: str, name: str) -> Answer:
    plan = _plan(request, group)
    with azure.store.read() as records:
        home = preconditions.writable_group(records, request.subscription, group)
        _preflight(records, request, home.name, name, plan)
    deployment = _new(azure, request, home, name, plan)
    checked = [{"id": step.id} for step in plan.steps]
    properties = {**deployment.body["properties"], "provisioningState": "Succeeded", "duration": "PT0S"}
    return Answer(200, {**deployment.body, "properties": {**properties, "validatedResources": checked}})


def _existing(records: Records, request: Request, group: str, name: str) -> Resource | None:
    return records.resource(ids.resource_id(request.subscription, group, ids.DEPLOYMENT, name))


def _found(records: Records, request: Request, group: str, name: str) -> Resource:
    preconditions.readable_group(records, request.subscription, group)
    deployment = _existing(records, request, group, name)
    if deployment is None:
        raise ArmError(404, "DeploymentNotFound", f"Deployment '{name}' could not be found.")
    return deployment


def get_deployment(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        return Answer(200, _found(records, request, group, name).body)


def head_deployment(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        return Answer(204 if _existing(records, request, group, name) else 404)


def list_deployments(azure: Azure, request: Request, group: str) -> Answer:
    with azure.store.read() as records:
        preconditions.readable_group(records, request.subscription, group)
        return Answer(200, {"value": [one.body for one in records.resources(ids.DEPLOYMENT, group)]})


def get_status(azure: Azure, request: Request, group: str, name: str, operation: str) -> Answer:
    current = operations.find(azure, operation)
    body: Json = {"status": "Running" if current.open else current.status}
    if current.error is not None and not current.open:
        body["error"] = current.error
    return Answer(200, body, operations.polling_headers(current) if current.open else {})


def list_operations(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        deployment = _found(records, request, group, name)
        running = records.open_operations(target=deployment.key)
    steps = running[-1].arguments["steps"] if running else deployment.private.get("steps", [])
    begun = [step for step in (_Step(**one) for one in steps) if step.state not in (_WAITING, _STARTING)]
    return Answer(200, {"value": [_shown_operation(deployment, step, azure.now()) for step in begun]})


def _shown_operation(deployment: Resource, step: _Step, now: float) -> Json:
    number = hashlib.sha256(step.id.encode()).hexdigest()[:16].upper()
    ended = step.ended or now
    properties: Json = {
        "provisioningOperation": "Create",
        "provisioningState": step.state,
        "timestamp": zulu(ended),
        "duration": f"PT{ended - step.started:.7f}S",
        "serviceRequestId": guid(),
        "statusCode": step.status_code,
        "targetResource": _target(step),
    }
    if step.error is not None:
        properties["statusMessage"] = {"error": step.error}
    return {"id": f"{deployment.id}/operations/{number}", "operationId": number, "properties": properties}


# the work: a round with each request that looks, until nothing is left to begin or to wait for


def _perform(azure: Azure, operation: Operation) -> None:
    secret = sealing.unseal(azure.secrets, operation.secret)
    steps = [_Step(**one) for one in operation.arguments["steps"]]
    while any(_advance(azure, operation, step, steps, secret["bodies"]) for step in steps):
        pass  # what has ended may let others begin
    if any(step.state == _RUNNING for step in steps) or _due(steps):
        raise NotYet
    if all(step.state == _SUCCEEDED for step in steps):
        _note(azure, operation, _outputs(azure, operation, secret))


def _due(steps: list[_Step]) -> list[_Step]:
    """The steps that may begin now."""
    done = {step.id for step in steps if step.state == _SUCCEEDED}
    return [step for step in steps if step.state in (_WAITING, _STARTING) and done.issuperset(step.needs)]


def _advance(azure: Azure, operation: Operation, step: _Step, steps: list[_Step], bodies: dict[str, Json]) -> bool:
    """Bring one step further; whether it has ended by that."""
    before = step.state
    if step.state == _RUNNING:
        _look(azure, step)
    elif step in _due(steps):
        _begin(azure, operation, step, steps, bodies[step.id.lower()])
    else:
        return False
    if step.state in (_SUCCEEDED, _FAILED):
        step.ended = azure.now()
    if step.state != before:
        _note(azure, operation, {"steps": [asdict(one) for one in steps]})
    return step.ended > 0


def _note(azure: Azure, operation: Operation, facts: Json) -> None:
    operation.arguments |= facts
    with azure.store.write() as records:
        current = records.operation(operation.seq)
        if current is None or not current.open:
            raise NotYet  # its group is being deleted
        current.arguments = operation.arguments
        records.save_operation(current)


def _begin(azure: Azure, operation: Operation, step: _Step, steps: list[_Step], body: Json) -> None:
    """PUT a resource. After a kill between the PUT and its note, what the provider is doing is found again."""
    if step.state == _STARTING:
        with azure.store.read() as records:
            going = records.open_operations(target=step.id)
        if going:
            step.state, step.operation = _RUNNING, going[-1].id
            return
    step.state, step.started = _STARTING, azure.now()
    _note(azure, operation, {"steps": [asdict(one) for one in steps]})
    parsed, provider = ids.parse(step.id), _TYPES[step.type]
    assert parsed is not None
    sent = {
        key: value for key, value in body.items() if key not in ("type", "name", "apiVersion", "dependsOn", "comments")
    }
    request = _request("PUT", operation, step.id, sent, str(body["apiVersion"]))
    try:
        answer = provider.put(azure, request, parsed.group, **dict(zip(provider.names, parsed.names, strict=True)))
    except ArmError as refusal:
        if refusal.status == HTTPStatus.TOO_MANY_REQUESTS:  # Network's RetryableError: a later round tries again
            step.state = _WAITING
            _note(azure, operation, {"steps": [asdict(one) for one in steps]})
            return
        step.state, step.error, step.status_code = _FAILED, refusal.error(), _phrase(refusal.status)
        return
    step.status_code = _phrase(answer.status)
    found = re.search(r"/operations/([^/?]+)", answer.headers.get("Azure-AsyncOperation", ""))
    step.state, step.operation = (_RUNNING, found[1]) if found else (_SUCCEEDED, "")


def _phrase(status: int) -> str:
    """The name of an HTTP status as ARM writes it."""
    return HTTPStatus(status).phrase.replace(" ", "")


def _look(azure: Azure, step: _Step) -> None:
    """Whether the provider is done."""
    with azure.store.read() as records:
        current = records.operation_by_id(step.operation)
    if current is not None and current.open:
        return
    error = current.error if current is not None else None
    step.state = _FAILED if error else _SUCCEEDED
    step.status_code = "Conflict" if error else "OK"
    if error:
        step.error = {
            "code": "ResourceDeploymentFailure",
            "target": step.id,
            "message": "The resource write operation failed to complete successfully, because it reached terminal "
            "provisioning state 'Failed'.",
            "details": [error],
        }


def _request(method: str, operation: Operation, path: str, body: Json | None, api_version: str) -> Request:
    parsed = ids.parse(path)
    assert parsed is not None
    query = {"api-version": api_version}
    return Request(method, path, query, body, operation.arguments["base"], api_version, parsed.subscription)


def _outputs(azure: Azure, operation: Operation, secret: Json) -> Json:
    """The outputs, or why they cannot be evaluated, as facts of the operation."""
    parsed = ids.parse(operation.target)
    assert parsed is not None

    def reference(resource_id: str, whole: bool) -> Any:
        return _state(azure, operation, resource_id, whole)

    variables = operation.arguments["variables"]
    scope = language.Scope(parsed.subscription, parsed.group, secret["parameters"], variables, reference)
    shown: Json = {}
    try:
        for name, output in secret["outputs"].items():
            kind = str(output.get("type", ""))
            shown[name] = {"type": kind[:1].upper() + kind[1:]}
            if not kind.lower().startswith("secure"):
                shown[name]["value"] = language.evaluate(output.get("value"), scope)
    except ArmError as refusal:
        return {"output_error": refusal.error()}
    return {"outputs": shown}


def _state(azure: Azure, operation: Operation, resource_id: str, whole: bool) -> Any:
    """What `reference` gives: the properties of a resource, or all of it. A bare name is one of the template's."""
    named = [step for step in operation.arguments["steps"] if same(_Step(**step).name, resource_id)]
    resource_id = named[0]["id"] if named else resource_id
    parsed = ids.parse(resource_id)
    provider = next((known for kind, known in _TYPES.items() if parsed and same(kind, parsed.type)), None)
    if parsed is None or provider is None:
        raise language.invalid(f"The resource '{resource_id}' of a reference is not valid.")
    request = _request("GET", operation, resource_id, None, "2022-01-01")
    names = dict(zip(provider.names, parsed.names, strict=True))
    body = provider.get(azure, request, parsed.group, **names).body
    return body if whole else body["properties"]


# how it ends


def _outcome(azure: Azure, operation: Operation) -> Outcome:
    facts = operation.arguments
    if "output_error" in facts:
        code, message = "DeploymentOutputEvaluationFailed", "Unable to evaluate template outputs."
        return Outcome(error={"code": code, "message": message, "details": [facts["output_error"]]})
    failed = [step for step in (_Step(**one) for one in facts["steps"]) if step.state == _FAILED]
    if not failed:
        return Outcome()
    return Outcome(
        error={
            "code": "DeploymentFailed",
            "target": facts["deployment"],
            "message": "At least one resource deployment operation failed. Please list deployment operations for "
            "details. Please see https://aka.ms/arm-deployment-operations for usage details.",
            "details": [step.error for step in failed],
        }
    )


def _settle(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    deployment = records.resource(operation.target)
    if deployment is None:
        return
    steps = operation.arguments["steps"]
    properties = deployment.body["properties"]
    properties["timestamp"] = zulu(azure.now())
    properties["provisioningState"] = "Succeeded" if outcome.error is None else "Failed"
    if outcome.error is None:
        properties["outputs"] = operation.arguments.get("outputs", {})
        properties["outputResources"] = [{"id": one} for one in sorted(step["id"] for step in steps)]
    else:
        properties["error"] = outcome.error
    deployment.private["steps"] = steps
    deployment.changed = azure.now()
    records.put(deployment)


KINDS = {"deployment.create": Kind(_perform, _outcome, _settle)}

_G = "/subscriptions/<subscription>/resourcegroups/<group>/providers/microsoft.resources/deployments"
_D = f"{_G}/<name>"
ROUTES = [
    Route("PUT", _D, "Deployments_CreateOrUpdate", put_deployment),
    Route("GET", _D, "Deployments_Get", get_deployment),
    Route("HEAD", _D, "Deployments_CheckExistence", head_deployment),
    Route("GET", _G, "Deployments_ListByResourceGroup", list_deployments),
    Route("POST", f"{_D}/validate", "Deployments_Validate", validate),
    Route("GET", f"{_D}/operations", "DeploymentOperations_List", list_operations),
    Route("GET", f"{_D}/operationstatuses/<operation>", "DeploymentOperationStatuses_Get", get_status),
]

"""RunCommand: the action on a VM, and managed commands (virtualMachines/runCommands), with their quirks.

The action tells success whatever the script's exit code, in one entry with the last 4096 bytes of both
streams. A managed command has an exit code, but says 0 and "Running" for a command that never ran."""

import contextlib
from dataclasses import replace

from cloudtrain.emulator import compute, ids, operations, power, preconditions, sealing, timing
from cloudtrain.emulator.machines import Script, ScriptResult, ScriptState
from cloudtrain.emulator.operations import Azure, Kind, NotYet, Outcome
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Operation, Records, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, entries, same, second, section, text

_SCRIPT_LIMIT = 256 * 1024
_TAIL = 4096
_ACTION_TIMEOUT = 90 * 60.0
_SCHEMA = "http://schema.management.azure.com/schemas/2016-11-17/runcommands.json"
_NEVER_RAN = (
    "Execution failed: failed to get configuration: invalid configuration: Either 'source.script' or "
    "'source.scriptUri' "
    "has to be specified"
)

_NOT_FINISHED = "Enable succeeded: Last script execution didn't finish."


# documents


def _document(name: str, system: str, label: str, description: str) -> Json:
    return {"$schema": _SCHEMA, "id": name, "osType": system, "label": label, "description": description}


_DOCUMENTS = (
    _document(
        "RunShellScript",
        "Linux",
        "Executes a Linux shell script",
        "Custom multiline shell script should be defined in script property. Optional parameters can be set "
        "in "
        "parameters property.",
    ),
    _document("ifconfig", "Linux", "List network configuration", "Get the configuration of all network interfaces."),
    _document(
        "RemoveRunCommandLinuxExtension",
        "Linux",
        "Remove Linux Run Command extension",
        "Removes the Run Command extension from the machine.",
    ),
)
_SCRIPTS = {
    "RunShellScript": ["echo This is a sample script", "echo Optional parameters: $0 $1"],
    "ifconfig": ["ifconfig"],
    "RemoveRunCommandLinuxExtension": [],
}


def list_documents(azure: Azure, request: Request, location: str) -> Answer:
    return Answer(200, {"value": list(_DOCUMENTS)})


def get_document(azure: Azure, request: Request, location: str, command: str) -> Answer:
    document = _found_document(command)
    parameters = [{"name": name, "type": "string", "required": False} for name in ("arg1", "arg2")]
    script = _SCRIPTS[document["id"]]
    return Answer(200, {"script": script, "parameters": parameters if len(script) > 1 else [], **document})


def _found_document(command: str) -> Json:
    for document in _DOCUMENTS:
        if same(document["id"], command):
            return document
    raise ArmError(404, "NotFound", "The entity was not found in this Azure location.")


# parameters


def _parameters(given: list[Json]) -> tuple[list[str], dict[str, str]]:
    """Unnamed ones are arguments, named ones environment variables."""
    arguments, environment = [], {}
    for parameter in given:
        name, value = text(parameter, "name", "parameters"), text(parameter, "value", "parameters") or ""
        if name:
            environment[name] = value
        else:
            arguments.append(value)
    return arguments, environment


def _lines(value: object) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        joined = "\n".join(value)
    else:
        joined = value if isinstance(value, str) else ""
    if len(joined.encode()) > _SCRIPT_LIMIT:
        raise ArmError(400, "InvalidParameter", "The script is larger than 256 KiB.", target="script")
    return joined


# the action


def run_command(azure: Azure, request: Request, group: str, name: str) -> Answer:
    body = request.object()
    document = _found_document(text(body, "commandId") or "")
    sent = body.get("script")
    script = _lines(sent if sent is not None else _SCRIPTS[document["id"]])
    parameters = entries(body, "parameters")
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        vm = compute.found(azure, records, request, group, name)
        power.check_running(vm)
        power.check_free(records, vm, "runCommand")
        busy = [o for o in records.open_operations(target=vm.key) if o.kind == "runCommand.action"]
        if busy:
            raise ArmError(
                409,
                "Conflict",
                "Run command extension execution is in progress. Please wait for completion before invoking "
                "a run "
                "command.",
            )
        sealed = sealing.seal(azure.secrets, {"script": script, "parameters": parameters})
        arguments = {"vm_id": vm.private["vm_id"], "command": document["id"]}
        operation = operations.begin(azure, records, "runCommand.action", vm.key, arguments, secret=sealed)
        answer = compute.accepted(request, operation, vm, status=202, with_location=True)
    operations.advance(azure, operation.seq, patience=timing.PATIENCE_SECONDS)
    return answer


def _perform_action(azure: Azure, operation: Operation) -> None:
    if operation.arguments["command"] == "RemoveRunCommandLinuxExtension":
        return
    content = sealing.unseal(azure.secrets, operation.secret)
    arguments, environment = _parameters(content["parameters"])
    script = Script(
        "action",
        f"action-{operation.id}",
        content["script"],
        arguments,
        environment,
        timeout_seconds=_ACTION_TIMEOUT,
    )
    _hand_over(azure, operation, script)


def _hand_over(azure: Azure, operation: Operation, script: Script) -> None:
    """Give the script to the agent, once: whoever takes the work over from a killed process gives it again, and the
    agent knows it by its token."""
    vm_id = operation.arguments["vm_id"]
    if not azure.machines.power(vm_id).on:
        return  # `outcome` sees no key
    if not azure.machines.agent_ready(vm_id):
        raise NotYet
    key = azure.machines.start_script(vm_id, replace(script, token=operation.id))
    _note(azure, operation, {"script": key})


def _note(azure: Azure, operation: Operation, facts: Json) -> None:
    operation.arguments |= facts
    with azure.store.write() as records:
        current = records.operation(operation.seq)
        if current is not None and current.open:
            current.arguments = operation.arguments
            records.save_operation(current)


def _outcome_of_action(azure: Azure, operation: Operation) -> Outcome | None:
    if operation.error is not None:
        return Outcome(error=operation.error)
    if operation.arguments["command"] == "RemoveRunCommandLinuxExtension":
        return Outcome(_entry("Enable succeeded: \n[stdout]\n\n[stderr]\n"))
    result = _result(azure, operation.arguments)
    if operation.arguments.get("lost"):
        _end_script(azure, operation.arguments["vm_id"], operation.arguments.get("script"))
        return Outcome(_entry(_NOT_FINISHED))
    if result is None or result.state is ScriptState.INTERRUPTED:
        return _interrupted(azure, operation)
    if result.state in (ScriptState.PENDING, ScriptState.RUNNING):
        return None
    if result.state is ScriptState.TIMED_OUT:
        return Outcome(
            error={
                "code": "VMExtensionProvisioningTimeout",
                "message": "Provisioning of VM extension RunCommandLinux has timed out. Extension "
                "provisioning has "
                "taken too long to complete.",
            }
        )
    streams = f"\n[stdout]\n{_tail(result.stdout)}\n[stderr]\n{_tail(result.stderr)}"
    return Outcome(_entry(f"Enable succeeded: {streams}"))


def _interrupted(azure: Azure, operation: Operation) -> Outcome:
    if azure.machines.power(operation.arguments["vm_id"]).on:
        return Outcome(_entry(_NOT_FINISHED))
    return Outcome(
        error={
            "code": "OperationPreempted",
            "message": "Operation execution has been preempted by a more recent operation.",
        }
    )


def _entry(message: str) -> Json:
    return {
        "value": [
            {
                "code": "ProvisioningState/succeeded",
                "level": "Info",
                "displayStatus": "Provisioning succeeded",
                "message": message,
            }
        ]
    }


def _tail(stream: bytes) -> str:
    return stream[-_TAIL:].decode("utf-8", errors="replace")


def _result(azure: Azure, holder: Json) -> ScriptResult | None:
    """None when the script never reached a machine."""
    if not holder.get("script"):
        return None
    try:
        return azure.machines.script(holder["vm_id"], holder["script"])
    except KeyError:
        return None


# managed commands


def _found(azure: Azure, records: Records, request: Request, group: str, name: str, command: str) -> Resource:
    vm = compute.found(azure, records, request, group, name)
    managed = records.resource(f"{vm.id}/runCommands/{command}")
    if managed is None:
        raise ArmError(404, "NotFound", "The entity was not found in this Azure location.")
    return managed


def _check_supported(properties: Json) -> None:
    source = section(properties, "source")
    for where, holder, keys in (
        ("source.", source, ("scriptUri", "commandId", "galleryScriptReferenceId")),
        ("", properties, ("outputBlobUri", "errorBlobUri")),
    ):
        for key in keys:
            if holder.get(key):
                raise ArmError(
                    501,
                    "OperationNotEmulated",
                    f"The embedded Azure does not have '{where}{key}' of VirtualMachineRunCommands_CreateOrUpdate.",
                )


_KEPT = (
    "parameters",
    "runAsUser",
    "timeoutInSeconds",
    "asyncExecution",
    "treatFailureAsDeploymentFailure",
)


def _merged(held: Json, properties: Json) -> Json:
    """The properties as Azure shows them; protected parameters and passwords are never among them."""
    shown: Json = {"source": dict(held.get("source") or {})}
    if section(properties, "source"):
        shown["source"] = {k: v for k, v in section(properties, "source").items() if v is not None}
        if "script" in shown["source"]:
            shown["source"]["script"] = _lines(shown["source"]["script"])
    for key in _KEPT:
        value = properties.get(key, held.get(key))
        if value is not None:
            shown[key] = value
    shown.setdefault("timeoutInSeconds", 0)
    shown.setdefault("asyncExecution", False)
    return shown


def put_command(azure: Azure, request: Request, group: str, name: str, command: str) -> Answer:
    body = request.object()
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        vm = compute.found(azure, records, request, group, name)
        location = preconditions.location(body, ids.RUN_COMMAND)
        if not same(location, vm.location):
            raise ArmError(400, "BadRequest", "The location of a run command must be that of its virtual machine.")
        managed = records.resource(f"{vm.id}/runCommands/{command}")
        operation, managed, created = _begin(azure, records, vm, managed, command, body, whole=True)
        answer = compute.accepted(
            request, operation, vm, status=201 if created else 200, body=_shown(managed, operation.kind)
        )
    operations.advance(azure, operation.seq, patience=timing.PATIENCE_SECONDS)
    return answer


def patch_command(azure: Azure, request: Request, group: str, name: str, command: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        managed = _found(azure, records, request, group, name, command)
        vm = compute.found(azure, records, request, group, name)
        operation, managed, _ = _begin(azure, records, vm, managed, command, request.object(), whole=False)
        answer = compute.accepted(request, operation, vm, status=200, body=_shown(managed, operation.kind))
    operations.advance(azure, operation.seq, patience=timing.PATIENCE_SECONDS)
    return answer


def _begin(
    azure: Azure,
    records: Records,
    vm: Resource,
    managed: Resource | None,
    command: str,
    body: Json,
    *,
    whole: bool,
) -> tuple[Operation, Resource, bool]:
    """Record a run of a command: a new one of the same name ends the one before it."""
    _check_runnable(records, vm)
    properties = section(body, "properties")
    _check_supported(properties)
    shown = _merged({} if managed is None or whole else managed.body["properties"], properties)
    _parameters(entries(shown, "parameters"))
    protected = entries(properties, "protectedParameters")
    _parameters(protected)
    created, now = managed is None, azure.now()
    if managed is None:
        command_id = f"{vm.id}/runCommands/{command}"
        outer: Json = {"name": command, "id": command_id, "type": ids.RUN_COMMAND, "location": vm.location}
        managed = Resource(command_id, ids.RUN_COMMAND, command, vm.location, outer, created=now)
    for other in records.open_operations(target=managed.key):
        operations.cancel(records, other, now)
    tags = preconditions.tags(body.get("tags"))
    if tags is not None:
        managed.body["tags"] = tags
    managed.body["properties"] = shown
    previous = managed.private.get("script")
    managed.private = {
        "provisioning": "Creating" if created else "Updating",
        "vm_id": vm.private["vm_id"],
        "begun": now,
    }
    managed.changed = now
    records.put(managed)
    arguments = {"vm_id": vm.private["vm_id"], "previous": previous, "properties": shown}
    sealed = sealing.seal(azure.secrets, {"protected": protected}) if protected else None
    return (
        operations.begin(azure, records, "runCommand.put", managed.key, arguments, secret=sealed),
        managed,
        created,
    )


def _check_runnable(records: Records, vm: Resource) -> None:
    if power.phase(vm) != power.RUNNING:
        raise ArmError(409, "OperationNotAllowed", "Cannot modify extensions in the VM when the VM is not running.")
    power.check_free(records, vm, "runCommands")


def _perform_put(azure: Azure, operation: Operation) -> None:
    # Azure's operation succeeds when the script starts: the script begins at its end, and not with it.
    early = operation.ready - timing.PATIENCE_SECONDS - azure.now()
    if early > 0:
        azure.clock.sleep(early)
    vm_id, properties = operation.arguments["vm_id"], operation.arguments["properties"]
    _end_script(azure, vm_id, operation.arguments.get("previous"))
    if not properties["source"].get("script"):
        return
    protected = sealing.unseal(azure.secrets, operation.secret).get("protected", [])
    arguments, environment = _parameters([*entries(properties, "parameters"), *protected])
    script = Script(
        "managed",
        operation.target.rsplit("/", 1)[-1],
        properties["source"]["script"],
        arguments,
        environment,
        run_as=properties.get("runAsUser") or "",
        timeout_seconds=float(properties["timeoutInSeconds"] or _ACTION_TIMEOUT),
    )
    _hand_over(azure, operation, script)
    _remember_script(azure, operation)


def _remember_script(azure: Azure, operation: Operation) -> None:
    """On the command as well, at once: its output can be read while it runs."""
    key, orphan = operation.arguments.get("script"), False
    with azure.store.write() as records:
        managed, current = records.resource(operation.target), records.operation(operation.seq)
        if managed is not None and current is not None and current.open:
            managed.private["script"] = key
            records.put(managed)
        else:
            orphan = True
    if orphan:  # the command was replaced or removed while its script was handed over
        _end_script(azure, operation.arguments["vm_id"], key)


def _end_script(azure: Azure, vm_id: str, key: str | None) -> None:
    if key:
        with contextlib.suppress(KeyError):
            azure.machines.cancel_script(vm_id, key)


def _outcome_of_put(azure: Azure, operation: Operation) -> Outcome | None:
    properties = operation.arguments["properties"]
    if operation.error is not None:
        return Outcome(error=operation.error)
    if not properties["source"].get("script"):
        return Outcome()
    if operation.arguments.get("lost"):
        _end_script(azure, operation.arguments["vm_id"], operation.arguments.get("script"))
        return Outcome()
    result = _result(azure, operation.arguments)
    if result is None:
        return Outcome(
            error={
                "code": "VMExtensionHandlerNonTransientError",
                "message": "The command never reached the VM's agent.",
            }
        )
    going = result.state in (ScriptState.PENDING, ScriptState.RUNNING)
    if properties["asyncExecution"]:
        return None if result.state is ScriptState.PENDING else Outcome()
    if going:
        return None
    if properties.get("treatFailureAsDeploymentFailure") and result.state is not ScriptState.SUCCEEDED:
        return Outcome(error={"code": "VMExtensionProvisioningError", "message": _message(result)})
    return Outcome()


def _settle_put(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    managed = records.resource(operation.target)
    if managed is not None:
        managed.private["provisioning"] = "Succeeded" if outcome.error is None else "Failed"
        managed.private["lost"] = operation.arguments.get("lost", False)
        managed.private["mute"] = operation.arguments.get("mute", False)
        managed.changed = azure.now()
        records.put(managed)


def delete_command(azure: Azure, request: Request, group: str, name: str, command: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        vm = compute.found(azure, records, request, group, name)
        managed = records.resource(f"{vm.id}/runCommands/{command}")
        if managed is None:
            return Answer(204)
        _check_runnable(records, vm)
        for other in records.open_operations(target=managed.key):
            operations.cancel(records, other, azure.now())
        managed.private["provisioning"] = "Deleting"
        records.put(managed)
        arguments = {"vm_id": vm.private["vm_id"], "script": managed.private.get("script")}
        operation = operations.begin(azure, records, "runCommand.delete", managed.key, arguments)
        answer = compute.accepted(request, operation, vm, status=202, with_location=True)
    operations.advance(azure, operation.seq, patience=timing.PATIENCE_SECONDS)
    return answer


def _perform_delete(azure: Azure, operation: Operation) -> None:
    _end_script(azure, operation.arguments["vm_id"], operation.arguments.get("script"))


def _settle_delete(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    managed = records.resource(operation.target)
    if outcome.error is None:
        records.delete(operation.target)
    elif managed is not None:
        managed.private["provisioning"] = "Failed"
        records.put(managed)


KINDS = {
    "runCommand.action": Kind(_perform_action, _outcome_of_action),
    "runCommand.put": Kind(_perform_put, _outcome_of_put, _settle_put),
    "runCommand.delete": Kind(_perform_delete, settle=_settle_delete),
}


# what a client sees


def _shown(managed: Resource, kind: str = "") -> Json:
    properties = {**managed.body["properties"], "provisioningState": managed.private["provisioning"]}
    ordered = {key: properties[key] for key in ("source", "parameters", "runAsUser") if key in properties}
    ordered |= {
        "timeoutInSeconds": properties["timeoutInSeconds"],
        "provisioningState": properties["provisioningState"],
    }
    return {**managed.body, "properties": {**ordered, **properties}}


_STATES = {
    ScriptState.PENDING: "Pending",
    ScriptState.RUNNING: "Running",
    ScriptState.SUCCEEDED: "Succeeded",
    ScriptState.FAILED: "Failed",
    ScriptState.TIMED_OUT: "TimedOut",
    ScriptState.CANCELED: "Canceled",
    ScriptState.INTERRUPTED: "Failed",
}


def _message(result: ScriptResult) -> str:
    if result.state in (ScriptState.PENDING, ScriptState.RUNNING):
        return "Execution in progress"
    if result.state is ScriptState.SUCCEEDED:
        return "Execution completed"
    if result.state is ScriptState.TIMED_OUT:
        return "Execution failed: failed to execute command: timeout"
    if result.state is ScriptState.CANCELED:
        return "Execution failed: failed to execute command: canceled"
    if result.state is ScriptState.INTERRUPTED:
        return "Execution failed: the VM went off or restarted before the command ended"
    return (
        "Execution failed: failed to execute command: command terminated with exit status="
        f"{result.exit_code if result.exit_code is not None else -1}"
    )


def _view(azure: Azure, managed: Resource) -> Json:
    begun = second(managed.private["begun"])
    if not managed.body["properties"]["source"].get("script"):
        never = {"exitCode": 0, "executionState": "Running", "executionMessage": _NEVER_RAN}
        return {**never, "output": "", "error": "", "startTime": begun, "endTime": begun}
    result = _result(azure, managed.private)
    if result is None:
        return _view_without_script(managed, begun)
    if managed.private.get("lost"):
        # The success of a script that was lost half way: the end of its output is missing.
        result = replace(result, state=ScriptState.SUCCEEDED, stdout=result.stdout[: len(result.stdout) // 2])
    if managed.private.get("mute"):
        result = replace(result, state=ScriptState.RUNNING, exit_code=None, ended=None)
    view: Json = {
        "exitCode": result.exit_code or 0,
        "executionState": _STATES[result.state],
        "executionMessage": _message(result),
        "output": _tail(result.stdout),
        "error": _tail(result.stderr),
    }
    if result.started is not None:
        view["startTime"] = second(result.started.timestamp())
    if result.ended is not None:
        view["endTime"] = second(result.ended.timestamp())
    return view


def _view_without_script(managed: Resource, begun: str) -> Json:
    empty = {"exitCode": 0, "output": "", "error": ""}
    if managed.private["provisioning"] in ("Creating", "Updating"):
        return {**empty, "executionState": "Pending", "executionMessage": ""}
    message = "Execution failed: the command never reached the agent of the VM"
    return {**empty, "executionState": "Failed", "executionMessage": message, "startTime": begun, "endTime": begun}


def get_command(azure: Azure, request: Request, group: str, name: str, command: str) -> Answer:
    with azure.store.read() as records:
        managed = _found(azure, records, request, group, name, command)
    body = _shown(managed)
    if "instanceview" in request.query.get("$expand", "").lower():
        body["properties"]["instanceView"] = _view(azure, managed)
    return Answer(200, body)


def list_commands(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        vm = compute.found(azure, records, request, group, name)
        managed = [child for child in records.children(vm.id) if same(child.type, ids.RUN_COMMAND)]
    view = "instanceview" in request.query.get("$expand", "").lower()
    bodies = [_shown(child) for child in managed]
    for body, child in zip(bodies, managed, strict=True):
        if view:
            body["properties"]["instanceView"] = _view(azure, child)
    return Answer(200, {"value": bodies})


_S = "/subscriptions/<subscription>"
_V = f"{_S}/resourcegroups/<group>/providers/microsoft.compute/virtualmachines/<name>"
_D = f"{_S}/providers/microsoft.compute/locations/<location>/runcommands"
ROUTES = [
    Route("GET", _D, "VirtualMachineRunCommands_List", list_documents, "GetSubscriptionInfo"),
    Route("GET", f"{_D}/<command>", "VirtualMachineRunCommands_Get", get_document, "GetSubscriptionInfo"),
    Route("POST", f"{_V}/runcommand", "VirtualMachines_RunCommand", run_command, "UpdateVM"),
    Route(
        "PUT",
        f"{_V}/runcommands/<command>",
        "VirtualMachineRunCommands_CreateOrUpdate",
        put_command,
        "UpdateVM",
    ),
    Route("PATCH", f"{_V}/runcommands/<command>", "VirtualMachineRunCommands_Update", patch_command, "UpdateVM"),
    Route(
        "DELETE",
        f"{_V}/runcommands/<command>",
        "VirtualMachineRunCommands_Delete",
        delete_command,
        "UpdateVM",
    ),
    Route(
        "GET",
        f"{_V}/runcommands/<command>",
        "VirtualMachineRunCommands_GetByVirtualMachine",
        get_command,
        "LowCostGet",
    ),
    Route(
        "GET",
        f"{_V}/runcommands",
        "VirtualMachineRunCommands_ListByVirtualMachine",
        list_commands,
        "LowCostGet",
    ),
]

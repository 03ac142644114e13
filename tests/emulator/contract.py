"""What Azure's operations take and answer, by the SDK's own models: statuses, headers, bodies.

A body fits when its model could have produced it: no key that the model does not know, nothing of another type, and
of a closed set of words only those."""

import datetime
import enum
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Any, Union

from azure.mgmt.authorization.models import RoleAssignment, RoleAssignmentCreateParameters, RoleAssignmentListResult
from azure.mgmt.compute import models as compute
from azure.mgmt.marketplaceordering.models import AgreementTerms
from azure.mgmt.network import models as network
from azure.mgmt.resource.deployments import models as deployments
from azure.mgmt.resource.resources import models as resources
from azure.mgmt.resource.subscriptions import models as subscriptions
from azure.mgmt.storage import models as storage

from cloudtrain.emulator.app import match
from cloudtrain.emulator.wire import ArmError

# In Azure's answers (recordings/exchanges.jsonl) and not in the models.
BESIDE_THE_MODELS: Mapping[str, frozenset[str]] = {
    "VirtualMachineImageProperties": frozenset({"replicaType"}),
    "OSDiskImage": frozenset({"sizeInGb", "sizeInBytes"}),
    "NetworkInterface": frozenset({"kind"}),
    "NetworkInterfacePropertiesFormat": frozenset({"allowPort25Out"}),
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True)
class Listed:
    """{"value": [...]}"""

    model: Any


@dataclass(frozen=True)
class Bare:
    """[...], without an object around it."""

    model: Any


@dataclass(frozen=True)
class Keys:
    """A body that the SDK reads without a model of its own."""

    kinds: Mapping[str, Any]


# does a body fit


def misfits(kind: Any, value: Any, path: str = "$") -> Iterator[str]:
    """Where a value is not of its kind: a model, a Python type as the models write it, Listed, Bare or Keys."""
    if isinstance(kind, Listed):
        kind = Keys({"value": list[kind.model], "nextLink": str, "count": dict})
    if isinstance(kind, Bare):
        kind = list[kind.model]
    if kind is None:
        if value is not None:
            yield f"{path} is not empty"
    elif isinstance(kind, Keys):
        yield from _object(kind.kinds, value, path, "that answer")
    elif isinstance(kind, str):
        yield from _named(kind, value, path)
    elif _is_model(kind):
        yield from _object(fields(kind), value, path, kind.__name__)
    elif typing.get_origin(kind) in (Union, UnionType):
        yield from _one_of(typing.get_args(kind), value, path)
    elif typing.get_origin(kind) is list:
        yield from _array(typing.get_args(kind)[0], value, path)
    elif typing.get_origin(kind) is dict:
        yield from _table(typing.get_args(kind)[1], value, path)
    else:
        yield from _plain(kind, value, path)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and (hasattr(kind, "_is_model") or hasattr(kind, "_attribute_map"))


def _object(known: Mapping[str, Any], value: Any, path: str, of: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path} is no object"
        return
    for key, inner in value.items():
        if key in known:
            yield from misfits(known[key], inner, f"{path}.{key}")
        elif key not in BESIDE_THE_MODELS.get(of, ()):
            yield f"{path}.{key} is not of {of}"


def _array(kind: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path} is no list"
        return
    for entry in value:
        yield from misfits(kind, entry, f"{path}[]")


def _table(kind: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path} is no object"
        return
    for key, entry in value.items():
        yield from misfits(kind, entry, f"{path}.{key}")


def _one_of(kinds: tuple[Any, ...], value: Any, path: str) -> Iterator[str]:
    """A value may be None where the model allows it; a word has to be one of its enumeration."""
    words = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)]
    rest = [kind for kind in kinds if kind is not type(None) and not (words and kind is str)]
    if value is None and type(None) in kinds:
        return
    found = [list(misfits(kind, value, path)) for kind in rest]
    if all(found):
        yield from min(found, key=len)


def _plain(kind: Any, value: Any, path: str) -> Iterator[str]:
    if kind is Any or kind is object:
        return
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if str(value).lower() not in [str(one.value).lower() for one in kind]:  # the SDK reads them without case
            yield f"{path}: {value!r} is not one of {kind.__name__}"
    elif typing.get_origin(kind) is typing.Literal:
        if value not in [getattr(one, "value", one) for one in typing.get_args(kind)]:
            yield f"{path}: {value!r} is not {kind}"
    elif kind is datetime.datetime:
        if not isinstance(value, str) or not _TIME.fullmatch(value):
            yield f"{path}: {value!r} is no time"
    elif kind in (int, float, str, bool, dict, list):
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            yield f"{path}: {value!r} is no {kind.__name__}"
    else:
        raise AssertionError(f"{path} is of a kind that is not understood here: {kind}")


@cache
def fields(model: Any) -> Mapping[str, Any]:
    """The kinds of a model's keys, as they stand in JSON. The SDK has models of two makes."""
    if hasattr(model, "_attribute_map"):
        return _fields_of_old_make(model)
    model.__new__(model)  # the model base makes its table of fields with the first instance
    package = sys.modules[model.__module__.rpartition(".models.")[0] + ".models"]
    hints = typing.get_type_hints(model, localns={**vars(package), "_models": package})
    return {one._rest_name: hints[name] for name, one in model._attr_to_rest_field.items() if name in hints}


def _fields_of_old_make(model: Any) -> Mapping[str, Any]:
    """Its table has dots where objects lie inside each other: 'properties.plan'."""
    package = sys.modules[model.__module__.rpartition(".models.")[0] + ".models"]
    known: dict[str, Any] = {}
    for entry in model._attribute_map.values():
        *outer, last = entry["key"].replace("\\.", "\0").split(".")
        place = known
        for key in outer:
            place = place.setdefault(key, Keys({})).kinds
        place[last.replace("\0", ".")] = _kind_of_old_make(entry["type"], package) | None
    return known


def _kind_of_old_make(name: str, package: Any) -> Any:
    if name[0] in "[{":
        inner = _kind_of_old_make(name[1:-1], package)
        return list[inner] if name[0] == "[" else dict[str, inner]  # type: ignore[valid-type]
    plain = {"str": str, "bool": bool, "int": int, "long": int, "float": float, "iso-8601": datetime.datetime}
    return plain.get(name) or (Any if name == "object" else getattr(package, name))


def _named(kind: str, value: Any, path: str) -> Iterator[str]:
    raise AssertionError(f"{path}: the kind '{kind}' was not resolved")


# errors

_DETAIL: dict[str, Any] = {"code": str, "message": str, "target": str | None}
_ERROR: dict[str, Any] = {**_DETAIL, "innererror": dict, "additionalInfo": list}
_DETAIL["details"] = _ERROR["details"] = list[Any]


def error_misfits(error: Any, path: str = "$.error") -> Iterator[str]:
    yield from misfits(Keys(_ERROR), error, path)
    if isinstance(error, dict):
        yield from (f"{path} has no {key}" for key in ("code", "message") if not error.get(key))
        for detail in error.get("details") or []:
            yield from error_misfits(detail, f"{path}.details[]")


# operations


@dataclass(frozen=True)
class Operation:
    """takes: the body's model. answers: by status. links: which URLs an answer that is not final carries."""

    takes: Any = None
    answers: Mapping[int, Any] = field(default_factory=dict)
    links: frozenset[str] = frozenset()


ASYNC, LOCATION = frozenset({"azure-asyncoperation"}), frozenset({"location"})
BOTH = ASYNC | LOCATION
_COMPUTE_STATUS = Keys(
    {
        "startTime": datetime.datetime,
        "endTime": datetime.datetime,
        "status": str,
        "name": str,
        "properties": dict,
        "error": dict,
    }
)
_BRIEF_STATUS = Keys({"status": str, "error": dict})


def _made(model: Any) -> Operation:
    """A PUT that goes on after its answer."""
    return Operation(model, {201: model, 200: model}, ASYNC)


def _shown(model: Any) -> Operation:
    return Operation(None, {200: model})


def _gone() -> Operation:
    return Operation(None, {202: None, 204: None}, BOTH)


def _acted(takes: Any = None) -> Operation:
    return Operation(takes, {202: None}, BOTH)


OPERATIONS: Mapping[str, Operation] = {
    "Subscriptions_List": _shown(Listed(subscriptions.Subscription)),
    "Subscriptions_Get": _shown(subscriptions.Subscription),
    "Subscriptions_ListLocations": _shown(Listed(subscriptions.Location)),
    "Tenants_List": _shown(Listed(subscriptions.TenantIdDescription)),
    "Providers_Get": _shown(resources.Provider),
    "Providers_List": _shown(Listed(resources.Provider)),
    "Providers_Unregister": _shown(resources.Provider),
    "Providers_Register": Operation(resources.ProviderRegistrationRequest, {200: resources.Provider}),
    "ResourceGroups_CreateOrUpdate": Operation(
        resources.ResourceGroup, {200: resources.ResourceGroup, 201: resources.ResourceGroup}
    ),
    "ResourceGroups_Update": Operation(resources.ResourceGroupPatchable, {200: resources.ResourceGroup}),
    "ResourceGroups_Get": _shown(resources.ResourceGroup),
    "ResourceGroups_CheckExistence": Operation(None, {204: None}),
    "ResourceGroups_List": _shown(Listed(resources.ResourceGroup)),
    "ResourceGroups_Delete": Operation(None, {202: None}, LOCATION),
    "OperationResults_Get": Operation(None, {202: None, 200: None}, LOCATION),
    "ResourceGroups_ExportTemplate": Operation(
        resources.ExportTemplateRequest, {200: resources.ResourceGroupExportResult}
    ),
    "Resources_List": _shown(Listed(resources.GenericResourceExpanded)),
    "Resources_ListByResourceGroup": _shown(Listed(resources.GenericResourceExpanded)),
    "Tags_GetAtScope": _shown(resources.TagsResource),
    "Tags_CreateOrUpdateAtScope": Operation(resources.TagsResource, {200: resources.TagsResource}),
    "Tags_UpdateAtScope": Operation(resources.TagsPatchResource, {200: resources.TagsResource}),
    "Tags_DeleteAtScope": Operation(None, {200: None}),
    "Deployments_CreateOrUpdate": Operation(
        deployments.Deployment, {201: deployments.DeploymentExtended, 200: deployments.DeploymentExtended}, ASYNC
    ),
    "Deployments_Validate": Operation(deployments.Deployment, {200: deployments.DeploymentValidateResult}),
    "Deployments_Get": _shown(deployments.DeploymentExtended),
    "Deployments_CheckExistence": Operation(None, {204: None}),
    "Deployments_ListByResourceGroup": _shown(Listed(deployments.DeploymentExtended)),
    "DeploymentOperations_List": _shown(Listed(deployments.DeploymentOperation)),
    "DeploymentOperationStatuses_Get": _shown(_BRIEF_STATUS),
    "VirtualNetworks_CreateOrUpdate": _made(network.VirtualNetwork),
    "VirtualNetworks_Get": _shown(network.VirtualNetwork),
    "VirtualNetworks_List": _shown(Listed(network.VirtualNetwork)),
    "VirtualNetworks_ListAll": _shown(Listed(network.VirtualNetwork)),
    "VirtualNetworks_Delete": _gone(),
    "VirtualNetworks_UpdateTags": Operation(network.TagsObject, {200: network.VirtualNetwork}),
    "Subnets_CreateOrUpdate": _made(network.Subnet),
    "Subnets_Get": _shown(network.Subnet),
    "Subnets_List": _shown(Listed(network.Subnet)),
    "Subnets_Delete": _gone(),
    "NetworkSecurityGroups_CreateOrUpdate": _made(network.NetworkSecurityGroup),
    "NetworkSecurityGroups_Get": _shown(network.NetworkSecurityGroup),
    "NetworkSecurityGroups_List": _shown(Listed(network.NetworkSecurityGroup)),
    "NetworkSecurityGroups_ListAll": _shown(Listed(network.NetworkSecurityGroup)),
    "NetworkSecurityGroups_UpdateTags": Operation(network.TagsObject, {200: network.NetworkSecurityGroup}),
    "NetworkSecurityGroups_Delete": _gone(),
    "SecurityRules_CreateOrUpdate": _made(network.SecurityRule),
    "SecurityRules_Get": _shown(network.SecurityRule),
    "SecurityRules_List": _shown(Listed(network.SecurityRule)),
    "SecurityRules_Delete": _gone(),
    "PublicIPAddresses_CreateOrUpdate": _made(network.PublicIPAddress),
    "PublicIPAddresses_Get": _shown(network.PublicIPAddress),
    "PublicIPAddresses_List": _shown(Listed(network.PublicIPAddress)),
    "PublicIPAddresses_ListAll": _shown(Listed(network.PublicIPAddress)),
    "PublicIPAddresses_UpdateTags": Operation(network.TagsObject, {200: network.PublicIPAddress}),
    "PublicIPAddresses_Delete": _gone(),
    "NetworkInterfaces_CreateOrUpdate": _made(network.NetworkInterface),
    "NetworkInterfaces_Get": _shown(network.NetworkInterface),
    "NetworkInterfaces_List": _shown(Listed(network.NetworkInterface)),
    "NetworkInterfaces_ListAll": _shown(Listed(network.NetworkInterface)),
    "NetworkInterfaces_UpdateTags": Operation(network.TagsObject, {200: network.NetworkInterface}),
    "NetworkInterfaces_Delete": _gone(),
    "NetworkWatchers_Get": _shown(network.NetworkWatcher),
    "NetworkWatchers_List": _shown(Listed(network.NetworkWatcher)),
    "NetworkWatchers_Delete": _gone(),
    "NetworkWatchers_ListAll": _shown(Listed(network.NetworkWatcher)),
    "NetworkOperations_Get": _shown(_BRIEF_STATUS),
    "NetworkOperationResults_Get": Operation(None, {202: None, 204: None}, BOTH),
    "VirtualMachines_CreateOrUpdate": _made(compute.VirtualMachine),
    "VirtualMachines_Update": Operation(compute.VirtualMachineUpdate, {200: compute.VirtualMachine}, ASYNC),
    "VirtualMachines_Get": _shown(compute.VirtualMachine),
    "VirtualMachines_InstanceView": _shown(compute.VirtualMachineInstanceView),
    "VirtualMachines_List": _shown(Listed(compute.VirtualMachine)),
    "VirtualMachines_ListAll": _shown(Listed(compute.VirtualMachine)),
    "VirtualMachines_ListByLocation": _shown(Listed(compute.VirtualMachine)),
    "VirtualMachines_Delete": _gone(),
    "VirtualMachines_Start": _acted(),
    "VirtualMachines_Restart": _acted(),
    "VirtualMachines_Redeploy": _acted(),
    "VirtualMachines_Reapply": _acted(),
    "VirtualMachines_PowerOff": _acted(),
    "VirtualMachines_Deallocate": _acted(),
    "VirtualMachines_SimulateEviction": Operation(None, {204: None}),
    "VirtualMachines_RunCommand": _acted(compute.RunCommandInput),
    "VirtualMachineRunCommands_CreateOrUpdate": _made(compute.VirtualMachineRunCommand),
    "VirtualMachineRunCommands_Update": Operation(
        compute.VirtualMachineRunCommandUpdate, {200: compute.VirtualMachineRunCommand}, ASYNC
    ),
    "VirtualMachineRunCommands_GetByVirtualMachine": _shown(compute.VirtualMachineRunCommand),
    "VirtualMachineRunCommands_ListByVirtualMachine": _shown(Listed(compute.VirtualMachineRunCommand)),
    "VirtualMachineRunCommands_Get": _shown(compute.RunCommandDocument),
    "VirtualMachineRunCommands_List": _shown(Listed(compute.RunCommandDocumentBase)),
    "VirtualMachineRunCommands_Delete": _gone(),
    # With monitor=true it is the Location of an action: 202, then what the action returns.
    "ComputeOperations_Get": Operation(None, {200: Any, 202: None}, LOCATION),
    "VirtualMachineImages_List": _shown(Bare(compute.VirtualMachineImageResource)),
    "VirtualMachineImages_ListPublishers": _shown(Bare(compute.VirtualMachineImageResource)),
    "VirtualMachineImages_ListOffers": _shown(Bare(compute.VirtualMachineImageResource)),
    "VirtualMachineImages_ListSkus": _shown(Bare(compute.VirtualMachineImageResource)),
    "VirtualMachineImages_Get": _shown(compute.VirtualMachineImage),
    "ResourceSkus_List": _shown(Listed(compute.ResourceSku)),
    "Usage_List": _shown(Listed(compute.Usage)),
    "VirtualMachineSizes_List": _shown(Listed(compute.VirtualMachineSize)),
    "VirtualMachines_ListAvailableSizes": _shown(Listed(compute.VirtualMachineSize)),
    "Disks_Update": Operation(compute.DiskUpdate, {200: compute.Disk}),
    "Disks_Get": _shown(compute.Disk),
    "Disks_List": _shown(Listed(compute.Disk)),
    "Disks_ListByResourceGroup": _shown(Listed(compute.Disk)),
    "Disks_Delete": _gone(),
    "MarketplaceAgreements_Get": _shown(AgreementTerms),
    "MarketplaceAgreements_Create": Operation(AgreementTerms, {200: AgreementTerms}),
    "MarketplaceAgreements_GetAgreement": _shown(AgreementTerms),
    "MarketplaceAgreements_Sign": _shown(AgreementTerms),
    "MarketplaceAgreements_Cancel": _shown(AgreementTerms),
    "Schedules_CreateOrUpdate": Operation(
        resources.GenericResource, {200: resources.GenericResource, 201: resources.GenericResource}
    ),
    "Schedules_Get": _shown(resources.GenericResource),
    "Schedules_Delete": Operation(None, {200: None, 204: None}),
    "ResourceGraph_Resources": Operation(
        Keys({"subscriptions": list[str], "query": str, "options": dict}),
        {200: Keys({"totalRecords": int, "count": int, "data": list, "facets": list, "resultTruncated": str})},
    ),
    "ActivityLogs_List": Operation(None, {200: Keys({"value": list})}),
    "RoleAssignments_Create": Operation(RoleAssignmentCreateParameters, {201: RoleAssignment, 200: RoleAssignment}),
    "RoleAssignments_Get": _shown(RoleAssignment),
    "RoleAssignments_ListForScope": _shown(RoleAssignmentListResult),
    "RoleAssignments_Delete": Operation(None, {200: RoleAssignment, 204: None}),
    "StorageAccounts_Create": Operation(
        storage.StorageAccountCreateParameters, {202: None, 200: storage.StorageAccount}, LOCATION
    ),
    "StorageAccounts_GetProperties": _shown(storage.StorageAccount),
    "StorageAccounts_List": _shown(Listed(storage.StorageAccount)),
    "StorageAccounts_ListByResourceGroup": _shown(Listed(storage.StorageAccount)),
    "StorageOperations_Get": Operation(None, {202: None, 200: storage.StorageAccount}, LOCATION),
    "StorageAccounts_CheckNameAvailability": Operation(
        storage.StorageAccountCheckNameAvailabilityParameters, {200: storage.CheckNameAvailabilityResult}
    ),
    "StorageAccounts_Update": Operation(storage.StorageAccountUpdateParameters, {200: storage.StorageAccount}),
    "StorageAccounts_Delete": Operation(None, {200: None, 204: None}),
    "StorageAccounts_ListKeys": _shown(storage.StorageAccountListKeysResult),
    "StorageAccounts_RegenerateKey": Operation(
        storage.StorageAccountRegenerateKeyParameters, {200: storage.StorageAccountListKeysResult}
    ),
    "StorageAccounts_RevokeUserDelegationKeys": Operation(None, {200: None}),
    "BlobServices_List": _shown(Listed(storage.BlobServiceProperties)),
    "BlobServices_GetServiceProperties": _shown(storage.BlobServiceProperties),
    "BlobContainers_List": _shown(Listed(storage.ListContainerItem)),
    "BlobContainers_Delete": Operation(None, {200: None, 204: None}),
    "BlobContainers_Create": Operation(storage.BlobContainer, {201: storage.BlobContainer, 200: storage.BlobContainer}),
    "BlobContainers_Get": _shown(storage.BlobContainer),
}


@dataclass(frozen=True)
class Exchange:
    """One request and its answer; bodies parsed, None for empty ones. headers: of the answer, names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    sent: Any
    status: int
    headers: Mapping[str, str]
    answer: Any

    @property
    def operation(self) -> str:
        """Azure's operationId; '' for what the embedded Azure does not have."""
        try:
            return match(self.method, self.path)[0].operation
        except ArmError:
            return ""


def differences(exchange: Exchange, *, request: bool = True) -> list[str]:
    """How one exchange departs from the operation's contract. request: whether its body is looked at as well."""
    wanted = OPERATIONS.get(exchange.operation)
    if wanted is None:
        return []
    found: list[str] = []
    if request:
        found += misfits(wanted.takes, exchange.sent, "request") if exchange.sent is not None else ()
    if exchange.status >= 400:
        found += _refusal(exchange)
    elif exchange.status not in wanted.answers:
        found.append(f"status {exchange.status}, not one of {list(wanted.answers)}")
    else:
        found += misfits(_kind(exchange, wanted), exchange.answer)
        found += _links(exchange, wanted)
    return [f"{exchange.operation} ({exchange.method} {exchange.status}): {one}" for one in found]


def _kind(exchange: Exchange, wanted: Operation) -> Any:
    if exchange.operation != "ComputeOperations_Get":
        return wanted.answers[exchange.status]
    if exchange.query.get("monitor") == "true":
        return compute.RunCommandResult | None if exchange.status == 200 else None
    return _COMPUTE_STATUS


def _refusal(exchange: Exchange) -> Iterator[str]:
    if exchange.method == "HEAD":
        yield from misfits(None, exchange.answer)
    elif not isinstance(exchange.answer, dict) or set(exchange.answer) != {"error"}:
        yield f"$ is no error envelope: {exchange.answer!r}"
    else:
        yield from error_misfits(exchange.answer["error"])


def _links(exchange: Exchange, wanted: Operation) -> Iterator[str]:
    """A final answer (204, the 200 of a GET) carries none; the first answer and a 202 carry all of theirs."""
    given = {name for name in BOTH if name in exchange.headers}
    final = exchange.status == 204 or (exchange.method == "GET" and exchange.status == 200)
    due = frozenset() if final else wanted.links
    if exchange.operation == "NetworkOperationResults_Get":
        due = BOTH  # recorded so, on its final 204 too
    if exchange.operation in ("StorageAccounts_Create", "StorageOperations_Get") and exchange.status == 200:
        due = frozenset()
    if given != due:
        yield f"headers {sorted(given)}, not {sorted(due)}"

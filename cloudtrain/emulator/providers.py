"""Subscriptions, regions and the registration of resource providers."""

from collections.abc import Mapping

from cloudtrain.emulator import catalog, operations
from cloudtrain.emulator.operations import Azure, Kind, Outcome
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Operation, Records
from cloudtrain.emulator.wire import Answer, ArmError, Request

PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "Microsoft.Resources": ("resourceGroups", "subscriptions", "tags", "deployments"),
    "Microsoft.Compute": (
        "virtualMachines",
        "virtualMachines/runCommands",
        "disks",
        "locations",
        "locations/usages",
        "locations/vmSizes",
        "locations/publishers",
        "skus",
    ),
    "Microsoft.Network": (
        "virtualNetworks",
        "networkSecurityGroups",
        "publicIPAddresses",
        "networkInterfaces",
        "networkWatchers",
    ),
    "Microsoft.MarketplaceOrdering": ("agreements", "offerTypes"),
    "Microsoft.Storage": ("storageAccounts",),
    "Microsoft.ManagedIdentity": ("userAssignedIdentities",),
    "Microsoft.Authorization": ("roleAssignments",),
    "Microsoft.DevTestLab": ("schedules",),
}
ALWAYS_REGISTERED = frozenset({"microsoft.resources", "microsoft.authorization"})
IN_USE = frozenset(
    {
        "microsoft.compute",
        "microsoft.network",
        "microsoft.marketplaceordering",
        "microsoft.storage",
        "microsoft.devtestlab",
    }
)


def first_settings(fresh: bool) -> dict[str, str]:
    """What a subscription begins with: brand-new, or one in use."""
    known = ALWAYS_REGISTERED if fresh else ALWAYS_REGISTERED | IN_USE
    return {f"provider:{name}": "Registered" for name in known}


def _subscription(subscription: str, tenant: str) -> Json:
    return {
        "id": f"/subscriptions/{subscription}",
        "authorizationSource": "RoleBased",
        "managedByTenants": [],
        "subscriptionId": subscription,
        "tenantId": tenant,
        "displayName": "Embedded Azure",
        "state": "Enabled",
        "subscriptionPolicies": {
            "locationPlacementId": "Public_2014-09-01",
            "quotaId": "PayAsYouGo_2014-09-01",
            "spendingLimit": "Off",
        },
    }


def _identity(azure: Azure) -> tuple[str, str]:
    with azure.store.read() as records:
        return records.setting("subscription_id") or "", records.setting("tenant_id") or ""


def list_subscriptions(azure: Azure, request: Request) -> Answer:
    subscription = _subscription(*_identity(azure))
    return Answer(200, {"value": [subscription], "count": {"type": "Total", "value": 1}})


def get_subscription(azure: Azure, request: Request) -> Answer:
    return Answer(200, _subscription(*_identity(azure)))


def list_tenants(azure: Azure, request: Request) -> Answer:
    tenant = _identity(azure)[1]
    return Answer(200, {"value": [{"id": f"/tenants/{tenant}", "tenantId": tenant, "displayName": "Embedded Azure"}]})


def list_locations(azure: Azure, request: Request) -> Answer:
    return Answer(200, {"value": [_location(request.subscription, region) for region in catalog.REGIONS.values()]})


def _location(subscription: str, region: catalog.Region) -> Json:
    return {
        "id": f"/subscriptions/{subscription}/locations/{region.name}",
        "name": region.name,
        "type": "Region",
        "displayName": region.display,
        "regionalDisplayName": region.display,
        "metadata": {"regionType": "Physical", "regionCategory": "Recommended"},
        "availabilityZoneMappings": [
            {"logicalZone": zone, "physicalZone": f"{region.name}-az{zone}"} for zone in region.zones
        ],
    }


def _shape(records: Records, subscription: str, namespace: str) -> Json:
    state = records.setting(f"provider:{namespace.lower()}") or "NotRegistered"
    regions = [region.display for region in catalog.REGIONS.values()]
    return {
        "id": f"/subscriptions/{subscription}/providers/{namespace}",
        "namespace": namespace,
        "resourceTypes": [
            {"resourceType": kind, "locations": regions, "apiVersions": [], "capabilities": "None"}
            for kind in PROVIDERS[namespace]
        ],
        "registrationState": state,
        "registrationPolicy": "RegistrationRequired",
    }


def _known(namespace: str) -> str:
    for name in PROVIDERS:
        if name.lower() == namespace.lower():
            return name
    raise ArmError(
        404, "InvalidResourceNamespace", f"The resource namespace '{namespace}' is invalid.", headers=_GATEWAY
    )


_GATEWAY = {"x-ms-failure-cause": "gateway"}


def list_providers(azure: Azure, request: Request) -> Answer:
    with azure.store.read() as records:
        return Answer(200, {"value": [_shape(records, request.subscription, name) for name in PROVIDERS]})


def get_provider(azure: Azure, request: Request, namespace: str) -> Answer:
    with azure.store.read() as records:
        return Answer(200, _shape(records, request.subscription, _known(namespace)))


def register(azure: Azure, request: Request, namespace: str) -> Answer:
    name = _known(namespace)
    with azure.store.write() as records:
        if records.setting(f"provider:{name.lower()}") not in ("Registered", "Registering"):
            records.set_setting(f"provider:{name.lower()}", "Registering")
            operations.begin(azure, records, "provider.register", f"provider:{name}", {"namespace": name})
        return Answer(200, _shape(records, request.subscription, name))


def register_at_once(records: Records, namespace: str) -> None:
    records.set_setting(f"provider:{namespace.lower()}", "Registered")


def unregister(azure: Azure, request: Request, namespace: str) -> Answer:
    name = _known(namespace)
    with azure.store.write() as records:
        if any(resource.type.lower().startswith(name.lower() + "/") for resource in records.resources()):
            raise ArmError(
                409,
                "CannotUnregisterProvider",
                f"Cannot unregister provider '{name}' because resources of it exist in the subscription.",
            )
        if name.lower() not in ALWAYS_REGISTERED:
            records.drop_setting(f"provider:{name.lower()}")
        return Answer(200, _shape(records, request.subscription, name))


def _settle_registration(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    state = "Registered" if outcome.error is None else "NotRegistered"
    records.set_setting(f"provider:{operation.arguments['namespace'].lower()}", state)


KINDS = {"provider.register": Kind(settle=_settle_registration)}

_S = "/subscriptions/<subscription>"
ROUTES = [
    Route("GET", "/subscriptions", "Subscriptions_List", list_subscriptions),
    Route("GET", "/tenants", "Tenants_List", list_tenants),
    Route("GET", _S, "Subscriptions_Get", get_subscription),
    Route("GET", f"{_S}/locations", "Subscriptions_ListLocations", list_locations),
    Route("GET", f"{_S}/providers", "Providers_List", list_providers),
    Route("GET", f"{_S}/providers/<namespace>", "Providers_Get", get_provider),
    Route("POST", f"{_S}/providers/<namespace>/register", "Providers_Register", register),
    Route("POST", f"{_S}/providers/<namespace>/unregister", "Providers_Unregister", unregister),
]

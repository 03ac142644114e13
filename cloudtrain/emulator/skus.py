"""Resource SKUs, VM sizes and usages of Microsoft.Compute, from the catalog."""

import re

from cloudtrain.emulator import catalog, compute, market, preconditions
from cloudtrain.emulator.catalog import Size
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json
from cloudtrain.emulator.wire import Answer, ArmError, Request

_LOCATION_FILTER = re.compile(r"^\s*location eq '(?P<location>[^']*)'\s*$", re.IGNORECASE)


def _sku(size: Size, region: catalog.Region) -> Json:
    capabilities = {
        "MaxResourceVolumeMB": size.temp_mb,
        "vCPUs": size.vcpus,
        "HyperVGenerations": size.generations,
        "MemoryGB": f"{size.memory_gb:g}",
        "CpuArchitectureType": "x64",
        "LowPriorityCapable": size.spot,
        "PremiumIO": size.premium,
        "vCPUsAvailable": size.vcpus,
        "EphemeralOSDiskSupported": size.temp_mb > 30 * 1024,
        "AcceleratedNetworkingEnabled": size.vcpus > 1,
    }
    if size.gpus:
        capabilities["GPUs"] = size.gpus
    return {
        "resourceType": "virtualMachines",
        "name": size.name,
        "tier": "Standard",
        "size": size.short,
        "family": size.family,
        "locations": [region.name],
        "locationInfo": [{"location": region.name, "zones": list(region.zones), "zoneDetails": []}],
        "capabilities": [{"name": name, "value": str(value)} for name, value in capabilities.items()],
        "restrictions": _restrictions(size, region),
    }


def _restrictions(size: Size, region: catalog.Region) -> list[Json]:
    found = []
    if region.name in size.restricted_in:
        found.append(("Location", {"locations": [region.name]}))
    blocked = list(region.zones) if region.name in size.restricted_in else size.restricted_zones.get(region.name, ())
    if blocked:
        found.append(("Zone", {"locations": [region.name], "zones": list(blocked)}))
    return [
        {
            "type": kind,
            "values": [region.name],
            "restrictionInfo": info,
            "reasonCode": size.reason,
        }
        for kind, info in found
    ]


def list_skus(azure: Azure, request: Request) -> Answer:
    wanted = request.query.get("$filter")
    match = _LOCATION_FILTER.match(wanted) if wanted else None
    if wanted and match is None:
        raise ArmError(400, "InvalidFilter", f"The filter '{wanted}' is not supported: only location eq '…' is.")
    regions = list(catalog.REGIONS.values())
    if match is not None:
        name = match["location"].replace(" ", "").lower()
        regions = [region for region in regions if region.name == name]
    return Answer(200, {"value": [_sku(size, region) for region in regions for size in catalog.sizes_in(region.name)]})


def _size(size: Size) -> Json:
    return {
        "name": size.name,
        "numberOfCores": size.vcpus,
        "osDiskSizeInMB": 1047552,
        "resourceDiskSizeInMB": size.temp_mb,
        "memoryInMB": int(size.memory_gb * 1024),
        "maxDataDiskCount": 2 * size.vcpus,
    }


def list_sizes(azure: Azure, request: Request, location: str) -> Answer:
    region = preconditions.location({"location": location}, "locations/vmSizes")
    return Answer(200, {"value": [_size(size) for size in catalog.sizes_in(region)]})


def list_sizes_of_vm(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        vm = compute.found(azure, records, request, group, name)
    return Answer(200, {"value": [_size(size) for size in catalog.sizes_in(vm.location)]})


def list_usages(azure: Azure, request: Request, location: str) -> Answer:
    region = preconditions.location({"location": location}, "locations/usages")
    families = {size.family: size.family_display for size in catalog.sizes_in(region)}
    with azure.store.read() as records:
        used = market.usage(records, region)
        rows = [
            ("availabilitySets", "Availability Sets", 2500, 0),
            ("cores", "Total Regional vCPUs", market.limit(records, "cores", region), used["cores"]),
            ("virtualMachines", "Virtual Machines", 25000, used["virtualMachines"]),
            ("virtualMachineScaleSets", "Virtual Machine Scale Sets", 2500, 0),
            ("dedicatedVCpus", "Dedicated vCPUs", 3000, 0),
            ("cloudServices", "Cloud Services", 2500, 0),
            (
                "lowPriorityCores",
                "Total Regional Low-priority vCPUs",
                market.limit(records, "lowPriorityCores", region),
                used["lowPriorityCores"],
            ),
            *(
                (family, display, market.limit(records, family, region), used.get(family, 0))
                for family, display in families.items()
            ),
        ]
    return Answer(200, {"value": [_usage(*row) for row in rows]})


def _usage(name: str, display: str, allowed: int, current: int) -> Json:
    shown = {"value": name, "localizedValue": display}
    return {"limit": allowed, "unit": "Count", "currentValue": current, "name": shown}


_L = "/subscriptions/<subscription>/providers/microsoft.compute"
_V = "/subscriptions/<subscription>/resourcegroups/<group>/providers/microsoft.compute/virtualmachines/<name>"
ROUTES = [
    Route("GET", f"{_L}/skus", "ResourceSkus_List", list_skus),
    Route("GET", f"{_L}/locations/<location>/vmsizes", "VirtualMachineSizes_List", list_sizes),
    Route("GET", f"{_V}/vmsizes", "VirtualMachines_ListAvailableSizes", list_sizes_of_vm, "LowCostGet"),
    Route("GET", f"{_L}/locations/<location>/usages", "Usage_List", list_usages, "GetSubscriptionInfo"),
]

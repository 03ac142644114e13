"""What can be had: Spot prices and core quotas, with what the person rehearsing has set."""

from cloudtrain.emulator import catalog, ids, settings
from cloudtrain.emulator.catalog import Size
from cloudtrain.emulator.refusals import Circumstances, failure
from cloudtrain.emulator.store import Json, Records, Resource
from cloudtrain.emulator.wire import ArmError

SPOT_PRIORITIES = frozenset({"spot", "low"})
NO_LIMIT = -1.0
"""maxPrice that is never the reason for an eviction."""


def is_spot(vm: Resource) -> bool:
    return _spot(str(vm.body["properties"].get("priority", "")))


def _spot(priority: str) -> bool:
    """priority: of a VM; '' where none was given."""
    return priority.lower() in SPOT_PRIORITIES


def spot_price(records: Records, size: Size, region: str) -> float:
    """USD an hour."""
    told = records.setting(f"price:{size.name.lower()}:{region.lower()}")
    return float(told) if told is not None else catalog.spot_price(size, region)


def limit(records: Records, name: str, region: str) -> int:
    """The quota of a usage name ('lowPriorityCores', 'cores', a family)."""
    told = records.setting(f"quota:{name.lower()}:{region.lower()}")
    if told is not None:
        return int(told)
    if name == "lowPriorityCores":
        return int(records.setting("spot_cores") or catalog.DEFAULT_SPOT_CORES)
    if name == "cores":
        return int(records.setting("cores") or catalog.REGIONAL_CORES)
    gpu = any(size.family == name and size.gpus for size in catalog.SIZES.values())
    return catalog.GPU_FAMILY_CORES if gpu else catalog.FAMILY_CORES


def usage(records: Records, region: str, *, apart_from: Resource | None = None) -> dict[str, int]:
    """Cores by usage name. Deallocated VMs count: they keep their quota."""
    counted: dict[str, int] = {"lowPriorityCores": 0, "cores": 0, "virtualMachines": 0}
    for name, priority, count in records.vm_sizes(region):
        _count(counted, name, _spot(priority), count)
    if apart_from is not None and apart_from.location.lower() == region.lower():
        _count(counted, apart_from.body["properties"]["hardwareProfile"]["vmSize"], is_spot(apart_from), -1)
    return counted


def _count(counted: dict[str, int], size_name: str, spot: bool, vms: int) -> None:
    size = catalog.SIZES[size_name.lower()]
    counted["virtualMachines"] += vms
    for name in ("lowPriorityCores",) if spot else ("cores", size.family):
        counted[name] = counted.get(name, 0) + vms * size.vcpus


def check_quota(records: Records, size: Size, region: str, *, spot: bool, known: Resource | None) -> None:
    """Raises Azure's OperationNotAllowed when the cores of one more VM of that size exceed a quota."""
    used = usage(records, region, apart_from=known)
    names = {"lowPriorityCores": "LowPriorityCores"} if spot else {"cores": "Total Regional Cores"}
    if not spot:
        names[size.family] = f"{size.family} Cores"
    for name, shown in names.items():
        allowed, current = limit(records, name, region), used.get(name, 0)
        if current + size.vcpus > allowed:
            raise _exceeded(shown, region, allowed, current, size.vcpus, spot)


def _exceeded(name: str, region: str, allowed: int, current: int, more: int, spot: bool) -> ArmError:
    page = "low-priority-quota" if spot else "per-vm-quota-requests"
    return ArmError(
        409,
        "OperationNotAllowed",
        f"Operation could not be completed as it results in exceeding approved {name} quota. Additional "
        "details - "
        f"Deployment Model: Resource Manager, Location: {region}, Current Limit: {allowed}, Current Usage: "
        f"{current}, "
        f"Additional Required: {more}, (Minimum) New Limit Required: {current + more}. Submit a request for "
        "Quota "
        "increase at https://aka.ms/ProdportalCRP/#blade/Microsoft_Azure_Capacity/UsageAndQuota.ReactView by "
        "specifying parameters listed in the 'Details' section for deployment to succeed. Please read more "
        "about "
        f"quota limits at https://docs.microsoft.com/en-us/azure/azure-portal/supportability/{page}",
    )


def without_capacity(records: Records, vm: Resource, now: float) -> Json:
    """The `failure` of an operation that wants a host for the VM; {} where there is one. Azure accepts the request and
    fails later."""
    parsed = ids.parse(vm.id)
    size = str(vm.body["properties"]["hardwareProfile"]["vmSize"])
    zone = next(iter(vm.body.get("zones") or [""]))
    for shortage in settings.shortages(records, now):
        if (
            shortage.size in (None, size)
            and shortage.zone in (None, zone)
            and shortage.location in (None, vm.location.lower())
        ):
            about = Circumstances(
                parsed.subscription if parsed else "", vm.group, size=size, location=vm.location, zone=zone
            )
            return {"failure": failure("ZonalAllocationFailed" if zone else "AllocationFailed", about)}
    return {}


def outbid(records: Records) -> list[Resource]:
    """Spot VMs that run and would pay less than the price is now."""
    found = []
    for vm in records.resources(ids.VM):
        if not is_spot(vm) or vm.private["phase"] != "running":
            continue
        size = catalog.SIZES[vm.body["properties"]["hardwareProfile"]["vmSize"].lower()]
        highest = vm.body["properties"]["billingProfile"]["maxPrice"]
        if highest != NO_LIMIT and highest < spot_price(records, size, vm.location):
            found.append(vm)
    return found


def check_price(records: Records, size: Size, region: str, highest: float, operation: str) -> None:
    """Raises SpotPriceGreaterThanProvidedMaxPrice. highest: USD an hour, or NO_LIMIT."""
    current = spot_price(records, size, region)
    if highest != NO_LIMIT and highest < current:
        raise ArmError(
            409,
            "SpotPriceGreaterThanProvidedMaxPrice",
            f"Unable to perform operation '{operation}' since the provided max price '{highest:g} USD' is "
            "lower than "
            f"the current spot price '{current:g} USD' for Azure Spot Virtual Machine size '{size.name}'.",
        )

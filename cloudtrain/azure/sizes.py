"""What a region sells, and how much of it this subscription may have as Spot."""

from dataclasses import dataclass
from typing import Any

from cloudtrain.azure.errors import translated
from cloudtrain.azure.session import Session
from cloudtrain.azure.words import word

SPOT_QUOTA = "lowPriorityCores"


@dataclass(frozen=True)
class Size:
    """One VM size in one region. closed: why the region does not sell it to this subscription (Azure's reason code),
    "" where it does. closed_zones: zones that do not. zones: of the region, where it has the size in any."""

    name: str
    vcpus: int
    memory_gb: float
    gpus: int
    spot: bool
    generations: tuple[str, ...]
    architecture: str
    closed: str
    closed_zones: tuple[str, ...]
    zones: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cores:
    """Spot vCPUs of a region. Deallocated VMs count as used."""

    used: int
    limit: int


def offered(session: Session, location: str) -> dict[str, Size]:
    """The VM sizes of the region by their names in small letters. Read from Azure's resource SKUs: megabytes."""
    with translated("reading the sizes of the region"):
        found = [
            _size(sku)
            for sku in session.compute.resource_skus.list(filter=f"location eq '{location}'")
            if sku.resource_type == "virtualMachines"
        ]
    return {size.name.lower(): size for size in found}


def spot_cores(session: Session, location: str) -> Cores | None:
    """None where Azure names no such quota."""
    with translated("reading the quotas of the region"):
        for usage in session.compute.usage.list(location):
            if usage.name.value == SPOT_QUOTA:
                return Cores(used=usage.current_value, limit=usage.limit)
    return None


def _size(sku: Any) -> Size:
    # Every value is text, whatever it means.
    said = {ability.name: ability.value for ability in sku.capabilities or []}
    restrictions = list(sku.restrictions or [])
    closed = next((word(r.reason_code) or "closed" for r in restrictions if word(r.type) == "Location"), "")
    zones = [zone for r in restrictions if word(r.type) == "Zone" for zone in r.restriction_info.zones or []]
    return Size(
        name=sku.name,
        # Sizes with constrained cores show fewer than they have.
        vcpus=int(said.get("vCPUsAvailable") or said.get("vCPUs") or 0),
        memory_gb=float(said.get("MemoryGB") or 0),
        gpus=int(said.get("GPUs") or 0),
        spot=said.get("LowPriorityCapable") == "True",
        generations=tuple(part for part in said.get("HyperVGenerations", "").split(",") if part),
        architecture=said.get("CpuArchitectureType", ""),
        closed=closed,
        closed_zones=tuple(sorted(zones)),
        zones=tuple(sorted(zone for info in sku.location_info or [] for zone in info.zones or [])),
    )

"""What a region sells: asked before anything is made."""

from cloudtrain.azure.errors import translated
from cloudtrain.azure.session import Session
from cloudtrain.errors import Refused
from cloudtrain.spec import RunSpec


def check_spot_capable(session: Session, spec: RunSpec) -> None:
    """Raises Refused where the size is not sold in the location, or not as Spot. Decided from Azure's resource SKUs."""
    with translated("reading the sizes of the region"):
        offered = [
            sku
            for sku in session.compute.resource_skus.list(filter=f"location eq '{spec.location}'")
            if sku.resource_type == "virtualMachines"
        ]
    if not offered:
        raise Refused(
            "LocationNotFound",
            f"location: Azure sells no VM sizes in '{spec.location}': no such region, or not for this subscription.",
            "az account list-locations -o table  lists the names.",
        )
    found = next((sku for sku in offered if sku.name.lower() == spec.size.lower()), None)
    if found is None:
        raise Refused(
            "SizeNotFound",
            f"size: '{spec.size}' is not sold in '{spec.location}'.",
            f"az vm list-skus -l {spec.location} --resource-type virtualMachines -o table  lists what is.",
        )
    abilities = {ability.name: ability.value for ability in found.capabilities or []}
    if abilities.get("LowPriorityCapable") != "True":
        raise Refused(
            "AzureSpotIsNotSupportedForThisVMSize",
            f"size: '{spec.size}' cannot be a Spot VM (Azure says so of all B sizes and some others).",
            "Choose one that can, such as Standard_D2s_v3.",
        )
    for restriction in found.restrictions or []:
        if restriction.type == "Location":
            raise Refused(
                "SkuNotAvailable",
                f"size: '{spec.size}' is closed to this subscription in '{spec.location}' ({restriction.reason_code}).",
                "Choose another --size or --location.",
            )
